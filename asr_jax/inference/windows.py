"""Long recordings, recognised in windows that overlap and are merged where both say the same."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from asr_jax.decoding.hypotheses import Hypotheses
from asr_jax.text import Tokenizer

OVERLAP_SECONDS = 4.0
# How far apart in two windows the same label may be emitted.
SAME_SECONDS = 0.2
# Agreement beyond so many labels around a join makes it no better.
LONGEST_RUN = 6


def window_starts(
    duration_seconds: float, *, window_seconds: float, frame_seconds: float
) -> list[float]:
    """Where the windows of a recording begin, in seconds: multiples of the encoder's frame.

    All are `window_seconds` long, the last one but for less than a frame, and overlap by at least
    OVERLAP_SECONDS, evenly. One window where it holds the recording, or is 0.
    """
    if not window_seconds or duration_seconds <= window_seconds:
        return [0.0]
    beyond = duration_seconds - window_seconds
    number = math.ceil(beyond / (window_seconds - OVERLAP_SECONDS))
    frames = (math.ceil(k * beyond / number / frame_seconds - 1e-6) for k in range(number + 1))
    return [frame * frame_seconds for frame in frames]


def merge_windows(
    windows: Sequence[Hypotheses],
    starts_seconds: Sequence[float],
    tokenizer: Tokenizer,
    *,
    window_seconds: float,
    frame_seconds: float,
) -> Hypotheses:
    """The best hypothesis of the whole recording, one row without axis B, frames counted from its
    beginning; its score is the sum of the windows'.

    Each window after the first replaces what the ones before it say from one label on. That is a
    label both have, within SAME_SECONDS, in the stretch that they share: one that begins a word if
    there is any, then one with most labels the same around it, then the one nearest to the middle,
    since a window's ends know the least. Where they share no label, words of the one before begin
    before the middle, those of the one after behind it.
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
    """Labels of a recording in order, with the frames at which they are emitted."""

    labels: Int64[np.ndarray, " N"]
    frames: Int64[np.ndarray, " N"]
    """From the recording's beginning."""
    log_probabilities: Float64[np.ndarray, " N"]


def _emissions(window: Hypotheses, first_frame: int) -> _Emissions:
    """The best hypothesis of a window that begins at the recording's `first_frame`."""
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
    """Merge the labels of two windows that share the frames from shared[0] to shared[1]."""
    place = _join(before, after, shared, tokenizer, frame_seconds)
    if place is not None:
        i, j = place
        between = []
    else:
        i = _end_before(before, sum(shared) / 2, tokenizer)
        j = _end_before(after, sum(shared) / 2, tokenizer)
        # A window's first word has no space before it.
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
    """(i, j) of the best label to go over at, before's i being after's j."""

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
        # Of a label said several times in a row, those nearest to each other.
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
    """Labels at the beginning of both, up to LONGEST_RUN."""
    n = min(len(first), len(second), LONGEST_RUN)
    differs = np.flatnonzero(first[:n] != second[:n])
    return int(differs[0]) if len(differs) else n


def _word_starts(labels: np.ndarray, tokenizer: Tokenizer) -> set[int]:
    """Places where one word ends and the next begins: of a separator, or of its first label."""
    firsts = [places[0] for _, places in tokenizer.words(labels)]
    return {place - len(tokenizer.separator) for place in firsts[1:]}


def _end_before(emissions: _Emissions, frame: float, tokenizer: Tokenizer) -> int:
    """The place behind the last word that begins before the frame."""
    words = tokenizer.words(emissions.labels)
    ends = [places[-1] + 1 for _, places in words if emissions.frames[places[0]] < frame]
    return ends[-1] if ends else 0
