"""Long recordings: overlapping windows, merged where their labels agree."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from asr_jax.decoding.hypotheses import Hypotheses
from asr_jax.text import Tokenizer

OVERLAP_SECONDS = 4.0
# Largest distance between emissions of the same label in two windows.
SAME_SECONDS = 0.2
# Agreement of more labels than this around a join does not make it better.
LONGEST_RUN = 6


def window_starts(
    duration_seconds: float, *, window_seconds: float, frame_seconds: float
) -> list[float]:
    """Return the starts of a recording's windows in seconds, multiples of `frame_seconds`.

    Windows are `window_seconds` long, the last one up to a frame shorter, and overlap evenly by at
    least OVERLAP_SECONDS. A recording that fits in one window has one; so has any if
    `window_seconds` is 0.
    """
    if not window_seconds or duration_seconds <= window_seconds:
        return [0.0]
    rest = duration_seconds - window_seconds
    number = math.ceil(rest / (window_seconds - OVERLAP_SECONDS))
    frames = (math.ceil(k * rest / number / frame_seconds - 1e-6) for k in range(number + 1))
    return [frame * frame_seconds for frame in frames]


def merge_windows(
    windows: Sequence[Hypotheses],
    starts_seconds: Sequence[float],
    tokenizer: Tokenizer,
    *,
    window_seconds: float,
    frame_seconds: float,
) -> Hypotheses:
    """Merge the best hypotheses of overlapping windows into one of the whole recording.

    The result has no axis B, its frames count from the recording's start, and its score is the sum
    of the windows' scores.

    Each window replaces the labels merged so far from a join on. A join is a label in the overlap
    that both have within SAME_SECONDS. Preferred is a join at the start of a word, then with the
    most agreeing labels around it, then nearest to the overlap's middle, since recognition is least
    reliable at a window's ends. Without a join, words that begin before the middle come from the
    earlier window, and words that begin after it from the later one.
    """
    merged = _emissions(windows[0], 0)
    for k in range(1, len(windows)):
        first = round(starts_seconds[k] / frame_seconds)
        end = (starts_seconds[k - 1] + window_seconds) / frame_seconds
        merged = _append(
            merged, _emissions(windows[k], first), (float(first), end), tokenizer, frame_seconds
        )
    score = sum(float(window.scores[0]) for window in windows)
    fields = (merged.labels, len(merged.labels), merged.frames, merged.log_probabilities, score)
    rows = (np.array([field]) for field in fields)
    return Hypotheses(*rows)  # pyright: ignore[reportArgumentType]


class _Emissions(NamedTuple):
    """Labels in order, with the frames at which they are emitted."""

    labels: Int64[np.ndarray, " N"]
    frames: Int64[np.ndarray, " N"]
    """Encoded frames, counted from the start of the recording."""
    log_probabilities: Float64[np.ndarray, " N"]


def _emissions(window: Hypotheses, first_frame: int) -> _Emissions:
    """Return the best hypothesis of a window that begins at the recording's `first_frame`."""
    count = window.counts[0]
    return _Emissions(
        np.asarray(window.labels[0, :count], np.int64),
        np.asarray(window.frames[0, :count], np.int64) + first_frame,
        np.asarray(window.log_probabilities[0, :count], np.float64),
    )


def _append(
    before: _Emissions,
    after: _Emissions,
    shared: tuple[float, float],
    tokenizer: Tokenizer,
    frame_seconds: float,
) -> _Emissions:
    """Merge labels that overlap from frame shared[0] to frame shared[1]."""
    place = _join(before, after, shared, tokenizer, frame_seconds)
    if place is not None:
        i, j = place
        between = []
    else:
        i = _end_before(before, sum(shared) / 2, tokenizer)
        j = _end_before(after, sum(shared) / 2, tokenizer)
        # The first word of a window has no separator before it.
        between = tokenizer.separator if i and j == 0 and len(after.labels) else []
    return _Emissions(
        np.concatenate([before.labels[:i], np.array(between, np.int64), after.labels[j:]]),
        np.concatenate(
            [before.frames[:i], after.frames[:1].repeat(len(between)), after.frames[j:]]
        ),
        np.concatenate(
            [
                before.log_probabilities[:i],
                np.zeros(len(between)),
                after.log_probabilities[j:],
            ]
        ),
    )


def _join(
    before: _Emissions,
    after: _Emissions,
    shared: tuple[float, float],
    tokenizer: Tokenizer,
    frame_seconds: float,
) -> tuple[int, int] | None:
    """Return the best join (i, j): before.labels[i] is after.labels[j]. None if none exists."""

    def places(emissions: _Emissions) -> np.ndarray:
        frames = emissions.frames
        return np.flatnonzero((frames >= shared[0]) & (frames <= shared[1]))

    middle = sum(shared) / 2
    begins = _word_starts(after.labels, tokenizer)
    of_before, of_after = places(before), places(after)
    apart = np.abs(before.frames[of_before, None] - after.frames[of_after]) * frame_seconds
    differ = before.labels[of_before, None] != after.labels[of_after]
    apart[differ | (apart > SAME_SECONDS)] = np.inf
    best, place = None, None
    for a, b in np.argwhere(np.isfinite(apart)):
        # Of repeated labels, pair those that are nearest to each other.
        if apart[a, b] > min(apart[a].min(), apart[:, b].min()):
            continue
        i, j = int(of_before[a]), int(of_after[b])
        run = _same(before.labels[:i][::-1], after.labels[:j][::-1])
        run += _same(before.labels[i:], after.labels[j:])
        rank = (j in begins, min(run, LONGEST_RUN), -abs(after.frames[j] - middle))
        if best is None or rank > best:
            best, place = rank, (i, j)
    return place


def _same(first: np.ndarray, second: np.ndarray) -> int:
    """Return how many labels agree at the start of both, up to LONGEST_RUN."""
    n = min(len(first), len(second), LONGEST_RUN)
    differs = np.flatnonzero(first[:n] != second[:n])
    return int(differs[0]) if len(differs) else n


def _word_starts(labels: np.ndarray, tokenizer: Tokenizer) -> set[int]:
    """Return the indices of word boundaries: of the separator, or of the word's first label."""
    firsts = [places[0] for _, places in tokenizer.words(labels)]
    return {place - len(tokenizer.separator) for place in firsts[1:]}


def _end_before(emissions: _Emissions, frame: float, tokenizer: Tokenizer) -> int:
    """Return the index after the last word that begins before the frame."""
    words = tokenizer.words(emissions.labels)
    ends = [places[-1] + 1 for _, places in words if emissions.frames[places[0]] < frame]
    return ends[-1] if ends else 0
