"""The recordings that a person should look at first."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from asr_jax.survey.gathered import MOST_LISTED
from asr_jax.survey.rows import Groups, rate_deviations, repeated_audio, sound_seconds

# Robust standard deviations from the usual duration of a text of that length.
UNLIKELY = 4.0
CLIPPED, QUIET_PEAK, LONG_SILENCE_SECONDS, FAR_BEYOND = 2e-4, 1e-3, 2.0, 64.0

# What is looked for, the worst first: what a recording is or has, and the rule.
EXPLAINED = {
    "different": (
        "has the same audio as another, with a different text",
        "Samples are equal to 16 bits. At most one text of a group is right.",
    ),
    "texts": (
        "has a text that is likely wrong",
        "The characters per second, without silence at the ends, are more than 4 robust standard "
        "deviations (1.4826 times the median absolute deviation of the logarithm, MAD) from the "
        "median of texts of similar length. A wrong text of the right length is not found.",
    ),
    "quiet": ("is nearly silent", "The peak is below -60 dBFS."),
    "beyond": (
        "has samples far beyond full scale",
        "They may be 16-bit integers in a float file.",
    ),
    "clipped": (
        "is clipped",
        "More than 0.02 % of the samples are in runs of three or more at the recording's peak, or "
        "at full scale and beyond.",
    ),
    "same": ("has the same audio and text as another", "Samples are equal to 16 bits."),
    "ends": (
        "has long silence at an end",
        "More than 2 s of 20 ms frames that are 40 dB below the loudest frame.",
    ),
}


class Finding(NamedTuple):
    """Recordings that a person should look at."""

    anchor: str
    predicate: str
    """The property that the recordings share, as the rest of a sentence."""
    explanation: str
    count: int
    listed: Sequence[tuple[int, str]]
    """The numbers of the worst ones, at most MOST_LISTED, each with a note."""


def findings(rows: np.ndarray, characters: np.ndarray, texts: np.ndarray) -> list[Finding]:
    """Return what stands out among the recordings, the worst first; empty ones are left out.

    `characters` are the lengths of the texts, and `texts` their hashes.
    """
    rates, deviations = characters / sound_seconds(rows), rate_deviations(rows, characters)
    peaks, clipped = rows["peak"], rows["clipped"]
    before, after = rows["leading_seconds"], rows["trailing_seconds"]
    different, same = repeated_audio(rows, texts)

    def peak(n: int) -> str:
        return f"peak {20 * np.log10(max(peaks[n], 1e-9)):.1f} dBFS"

    def rate(n: int) -> str:
        return f"{rates[n]:.1f} characters/s, {deviations[n]:+.1f} MAD"

    def ends(n: int) -> str:
        return f"{before[n]:.1f} s before, {after[n]:.1f} s after"

    found = {
        "different": _grouped(different),
        "texts": _worst(np.abs(deviations), UNLIKELY, rate),
        "quiet": _worst(-peaks, -QUIET_PEAK, peak),
        "beyond": _worst(peaks, FAR_BEYOND, peak),
        "clipped": _worst(clipped, CLIPPED, lambda n: f"{100 * clipped[n]:.2f} % of samples"),
        "same": _grouped(same),
        "ends": _worst(np.maximum(before, after), LONG_SILENCE_SECONDS, ends),
    }
    every = [Finding(anchor, *words, *found[anchor]) for anchor, words in EXPLAINED.items()]
    return [finding for finding in every if finding.count]


def _worst(
    severity: np.ndarray, limit: float, note: Callable[[int], str]
) -> tuple[int, list[tuple[int, str]]]:
    """Return how many recordings are above the limit, and the worst ones."""
    above = np.flatnonzero(severity > limit)
    worst = above[np.argsort(-severity[above], kind="stable")[:MOST_LISTED]]
    return len(above), [(n, note(n)) for n in worst.tolist()]


def _grouped(groups: Groups) -> tuple[int, list[tuple[int, str]]]:
    listed = zip(groups.numbers[:MOST_LISTED].tolist(), groups.groups)
    return len(groups.numbers), [(n, f"group {group}") for n, group in listed]
