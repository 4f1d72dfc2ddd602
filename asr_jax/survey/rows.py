"""Figures of every recording in 50 bytes, and the recordings that stand out by them."""

import struct
from typing import NamedTuple

import numpy as np

from asr_jax.audio.levels import Levels

ROW = np.dtype(
    [
        ("seconds", "<f8"),
        ("rms", "<f4"),
        ("peak", "<f4"),
        ("clipped", "<f4"),
        ("leading_seconds", "<f4"),
        ("trailing_seconds", "<f4"),
        ("rate_hz", "<u4"),
        ("channels", "<u2"),
        ("digest", "<u8", 2),
    ]
)
# Text lengths are judged among at least this many recordings of similar length.
FEWEST_ALIKE = 30
LEAST_DEVIATION = 0.05


class Groups(NamedTuple):
    """Recordings in groups, which are in the order of their first recordings."""

    numbers: np.ndarray
    groups: np.ndarray
    """The group of each, from 1."""


def row_bytes(seconds: float, levels: Levels) -> bytes:
    """Return a recording's figures as an element of ROW; `np.frombuffer` reads many of them."""
    return struct.pack(
        "<d5fIH16s",
        seconds,
        levels.rms,
        levels.peak,
        levels.clipped,
        levels.leading_seconds,
        levels.trailing_seconds,
        levels.rate_hz,
        levels.channels,
        levels.digest,
    )


def sound_seconds(rows: np.ndarray) -> np.ndarray:
    """Return the durations without the silence at both ends."""
    return np.maximum(rows["seconds"] - rows["leading_seconds"] - rows["trailing_seconds"], 0.02)


def rate_deviations(rows: np.ndarray, characters: np.ndarray) -> np.ndarray:
    """Return how far each recording's characters per second are from those that are usual.

    The unit is the robust standard deviation, 1.4826 times the median absolute deviation (MAD) of
    the logarithm, among the recordings with texts of similar length. Positive values have too much
    text for their sound. All are 0 for fewer than FEWEST_ALIKE recordings.
    """
    rates = np.log(characters / sound_seconds(rows))
    deviations = np.zeros(len(rows))
    if len(rows) < FEWEST_ALIKE:
        return deviations
    parts = max(1, min(20, len(rows) // FEWEST_ALIKE))
    for part in np.array_split(np.argsort(characters, kind="stable"), parts):
        distance = rates[part] - np.median(rates[part])
        spread = max(1.4826 * float(np.median(np.abs(distance))), LEAST_DEVIATION)
        deviations[part] = distance / spread
    return deviations


def repeated_audio(rows: np.ndarray, texts: np.ndarray) -> tuple[Groups, Groups]:
    """Return the recordings with the samples of another: in groups of several texts, and of one.

    `texts` are hashes of their texts.
    """
    digests = rows["digest"]
    order = np.lexsort(digests.T)  # stable: a group begins with its first recording
    is_start = np.append(True, (digests[order[1:]] != digests[order[:-1]]).any(axis=1))
    starts = np.flatnonzero(is_start)
    sizes = np.diff(np.append(starts, len(order)))
    hashes = texts[order]
    differ = np.minimum.reduceat(hashes, starts) != np.maximum.reduceat(hashes, starts)

    def groups(wanted: np.ndarray) -> Groups:
        numbers = order[np.repeat(wanted, sizes)]
        first = np.repeat(order[starts[wanted]], sizes[wanted])
        by_first = np.argsort(first, kind="stable")
        return Groups(numbers[by_first], np.unique(first, return_inverse=True)[1][by_first] + 1)

    return groups((sizes > 1) & differ), groups((sizes > 1) & ~differ)
