"""Significance of the difference between two recognizers on the same utterances."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from asr_jax.scoring.wer import ErrorCounts, total


class Comparison(NamedTuple):
    """Errors of a recognizer compared with those of another; rates are fractions."""

    rate: float
    other_rate: float
    low: float
    high: float
    """95 % confidence interval of rate - other_rate."""
    p_value: float
    """Probability of a difference at least this large, in either direction, if there were none."""
    better: int
    worse: int
    """Numbers of utterances with fewer errors than the other recognizer's, and with more."""

    @property
    def difference(self) -> float:
        return self.rate - self.other_rate


def compare(
    counts: Sequence[ErrorCounts], others: Sequence[ErrorCounts], *, seed: int, samples: int = 1000
) -> Comparison:
    """Compare two recognizers' errors in the same n utterances, pair by pair.

    The test is the matched-pairs test (Gillick and Cox, ICASSP 1989, section 3) with utterances as
    segments: Z is the difference of the errors in an utterance, and mean(Z) / (std(Z) / sqrt(n)) is
    taken as standard normal. This holds if errors of different utterances are independent and n is
    at least about fifty. The interval is the paired bootstrap's (Bisani and Ney, ICASSP 2004):
    both recognizers are scored on the same `samples` draws of n utterances.

    p_value and interval are nan where they are undefined: for one utterance, and without words.

    Raises ValueError unless both have the same number of utterances, at least one, with the same
    numbers of reference words.
    """
    words = np.array([c.reference_words for c in counts], np.int64)
    other_words = np.array([c.reference_words for c in others], np.int64)
    if not len(words) or not np.array_equal(words, other_words):
        raise ValueError(
            f"others: {len(others)} utterances of {other_words.sum()} words, must be the same as "
            f"in counts: {len(counts)} utterances of {words.sum()} words"
        )
    differences = np.array([a.errors - b.errors for a, b in zip(counts, others)], np.int64)
    drawn_differences = []
    rng = np.random.default_rng(seed)
    for _ in range(samples):
        drawn = rng.integers(len(differences), size=len(differences))
        if drawn_words := words[drawn].sum():
            drawn_differences.append(differences[drawn].sum() / drawn_words)
    low, high = np.quantile(drawn_differences or [math.nan], [0.025, 0.975])
    return Comparison(
        total(counts).rate,
        total(others).rate,
        float(low),
        float(high),
        _matched_pairs(differences),
        int(np.sum(differences < 0)),
        int(np.sum(differences > 0)),
    )


def _matched_pairs(differences: np.ndarray) -> float:
    n = len(differences)
    if n < 2:
        return math.nan
    mean, error = differences.mean(), differences.std(ddof=1) / math.sqrt(n)
    if error == 0:
        return 0.0 if mean else 1.0
    return math.erfc(abs(mean) / error / math.sqrt(2))
