"""Facts on each recording of a dataset, and recordings that repeat each other."""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from asr_jax.audio.levels import Levels

# Text lengths are judged among at least this many recordings of similar length.
FEWEST_ALIKE = 30
# Robust standard deviations from the usual duration of a text of that length.
UNLIKELY = 4.0
LEAST_DEVIATION = 0.05


class Row(NamedTuple):
    """One recording, without its samples."""

    id: str
    text: str
    speaker: str
    seconds: float
    levels: Levels


def sound_seconds(row: Row) -> float:
    """Return the duration without the silence at both ends."""
    ends = row.levels.leading_seconds + row.levels.trailing_seconds
    return max(row.seconds - ends, 0.02)


def rate_deviations(rows: Sequence[Row]) -> np.ndarray:
    """Return how far each recording's characters per second are from those that are usual.

    The unit is the robust standard deviation, 1.4826 times the median absolute deviation (MAD) of
    the logarithm, among the recordings with texts of similar length. Positive values have too much
    text for their sound. All are 0 for fewer than FEWEST_ALIKE recordings.
    """
    lengths = np.array([len(row.text) for row in rows], float)
    rates = np.log(lengths / np.array([sound_seconds(row) for row in rows]))
    deviations = np.zeros(len(rows))
    if len(rows) < FEWEST_ALIKE:
        return deviations
    parts = max(1, min(20, len(rows) // FEWEST_ALIKE))
    for part in np.array_split(np.argsort(lengths, kind="stable"), parts):
        distance = rates[part] - np.median(rates[part])
        spread = max(1.4826 * float(np.median(np.abs(distance))), LEAST_DEVIATION)
        deviations[part] = distance / spread
    return deviations


def unlikely_texts(rows: Sequence[Row]) -> list[tuple[Row, float]]:
    """Return the recordings whose text is likely wrong, the least likely first."""
    deviations = rate_deviations(rows)
    order = np.argsort(-np.abs(deviations), kind="stable")
    return [(rows[n], float(deviations[n])) for n in order if abs(deviations[n]) > UNLIKELY]


def same_audio(rows: Sequence[Row]) -> tuple[list[list[Row]], list[list[Row]]]:
    """Return groups of recordings with the same samples: those of different texts, and of one."""
    groups: dict[bytes, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.levels.digest].append(row)
    repeated = [group for group in groups.values() if len(group) > 1]
    different = [group for group in repeated if len({row.text for row in group}) > 1]
    return different, [group for group in repeated if len({row.text for row in group}) == 1]
