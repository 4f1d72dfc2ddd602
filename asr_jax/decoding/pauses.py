"""Pauses between words, by the level of the sound around the times of their labels."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32

FRAMES_PER_SECOND = 100
# A word's labels may come this long before it starts and after it ends.
EARLY_SECONDS, LATE_SECONDS = 0.15, 0.3
# Shorter quiet is within a word, such as before the P of "apple".
CLOSURE_SECONDS = 0.2
# Levels are compared with those of this much sound around.
AROUND_SECONDS = 5.0
# Where speech is so little above the sound of the pause, only labels tell where it ends.
LEAST_CONTRAST_DB = 6.0
# The level between the pause's and that of loud speech that separates them.
THRESHOLD = 0.4
# Delays of labels that are tried, in seconds.
DELAYS = np.arange(-0.08, 0.81, 0.04)
SILENCE_POWER = 1e-10

Levels = Float32[np.ndarray, " T"]
"""Level in dB of each hundredth of a second, above which speech lies."""


class Pause(NamedTuple):
    """The longest quiet between a recognized word and the next one."""

    start_seconds: float
    end_seconds: float
    quiet_seconds: float
    """From the start of the first quiet between the words to the end of the last one.

    Infinite if a part of the recording in between cannot be read."""


def sound_levels(blocks: Iterable[np.ndarray], *, sample_rate_hz: int) -> Levels:
    """Return the levels of a recording that arrives in blocks of samples.

    They are levels of the differences of samples, which hum and rumble hardly have, in dB, averaged
    over three frames. A last part of a frame is left out.
    """
    per_frame = sample_rate_hz // FRAMES_PER_SECOND
    rest, parts = np.zeros(0, np.float32), []
    for block in blocks:
        samples = np.concatenate([rest, block])
        frames = max(0, len(samples) - 1) // per_frame
        change = np.diff(samples[: frames * per_frame + 1]).reshape(frames, per_frame)
        parts.append(10 * np.log10(np.mean(change**2, axis=1) + SILENCE_POWER))
        rest = samples[frames * per_frame :]
    levels = np.concatenate([np.zeros(0, np.float32), *parts])
    if not len(levels):
        return levels.astype(np.float32)
    levels = np.convolve(np.pad(levels, 1, mode="edge"), np.full(3, 1 / 3), "valid")
    return levels.astype(np.float32)


def pieces(levels: Levels, *, longest_seconds: float) -> Iterator[tuple[float, float]]:
    """Yield (start, end) in seconds of pieces that make up the recording.

    Each ends in the quietest third of a second of its second half, so that hardly a word is cut.
    """
    longest = round(longest_seconds * FRAMES_PER_SECOND)
    width = FRAMES_PER_SECOND // 3
    start = 0
    while len(levels) - start > longest:
        first, last = start + longest // 2, start + longest
        around = levels[first - width // 2 : last - width // 2 + width - 1]
        means = np.convolve(around, np.full(width, 1 / width), "valid")
        end = first + int(np.argmin(means))
        yield start / FRAMES_PER_SECOND, end / FRAMES_PER_SECOND
        start = end
    yield start / FRAMES_PER_SECOND, len(levels) / FRAMES_PER_SECOND


def label_delay(levels: Levels, times_seconds: np.ndarray) -> float:
    """Return the delay in seconds of a model's labels behind the sound.

    It is the delay without which the fewest `times_seconds` of labels lie in quiet; the shortest
    of several. A streaming model delays its labels by up to half a second.
    """
    if not len(times_seconds) or not len(levels):
        return 0.0
    low, high = np.percentile(levels, [10, 90])
    is_quiet = levels < low + THRESHOLD * (high - low)
    for start, end in _runs(is_quiet):
        if end - start < CLOSURE_SECONDS * FRAMES_PER_SECOND:
            is_quiet[start:end] = False
    frames = np.rint((times_seconds[:, None] - DELAYS) * FRAMES_PER_SECOND).astype(int)
    in_quiet = is_quiet[np.clip(frames, 0, len(levels) - 1)].sum(0)
    fewest = np.flatnonzero(in_quiet <= in_quiet.min() + 0.02 * len(times_seconds))
    return float(DELAYS[fewest[np.argmin(np.abs(DELAYS[fewest]))]])


def pause_between(levels: Levels, end_seconds: float, start_seconds: float) -> Pause:
    """Return the pause between a word whose labels end, and one whose labels start, at these times.

    What is quieter than a level between that of the pause and that of loud speech around is quiet.
    Sounds may divide it, if each quiet takes at least CLOSURE_SECONDS: breath, or speech that was
    not recognized. They count as part of the words beside, since speech must not be cut off.
    """
    rate = FRAMES_PER_SECOND
    first = max(0, round((end_seconds - LATE_SECONDS) * rate))
    last = min(len(levels), max(round((start_seconds + EARLY_SECONDS) * rate), first + 1))
    inside = levels[first:last]
    around = levels[
        max(0, first - round(AROUND_SECONDS * rate)) : last + round(AROUND_SECONDS * rate)
    ]
    if not len(inside):
        return Pause(end_seconds, max(end_seconds, start_seconds), 0.0)
    # The middle is the level of the pause if there is one: labels end near to where words do.
    gap = levels[round(end_seconds * rate) : round(start_seconds * rate)]
    is_long = len(gap) > LATE_SECONDS * rate
    floor = np.median(gap) if is_long else np.percentile(around, 10)
    high = np.percentile(around, 90)
    if high - floor < LEAST_CONTRAST_DB:
        return Pause(end_seconds, start_seconds, max(0.0, start_seconds - end_seconds))
    runs = list(_runs(inside < floor + THRESHOLD * (high - floor)))
    longest = max(runs, key=lambda run: run[1] - run[0], default=(0, 0))
    if longest == (0, 0):
        middle = (end_seconds + max(end_seconds, start_seconds)) / 2
        return Pause(middle, middle, 0.0)
    closure = round(CLOSURE_SECONDS * rate)
    ended, starting = round(end_seconds * rate) - first, round(start_seconds * rate) - first
    # Quiet just before the last label, or just after the first one, is between letters of a word.
    quiet = [
        run
        for run in runs
        if run[1] - run[0] >= closure and run[1] >= ended + closure and run[0] <= starting - closure
    ] or [longest]
    start, end = max(quiet, key=lambda run: run[1] - run[0])
    return Pause((first + start) / rate, (first + end) / rate, (quiet[-1][1] - quiet[0][0]) / rate)


def _runs(holds: Bool[np.ndarray, " T"]) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of the runs of frames that hold."""
    edges = np.flatnonzero(np.diff(np.pad(holds, 1).astype(np.int8)))
    yield from zip(edges[::2].tolist(), edges[1::2].tolist())
