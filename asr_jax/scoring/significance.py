"""Whether two recognisers differ by more than chance, on utterances that both have recognised."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from asr_jax.scoring.wer import ErrorCounts, total


class Comparison(NamedTuple):
    """One recogniser beside another; rates are fractions."""

    rate: float
    other_rate: float
    low: float
    high: float
    """95 % interval of rate - other_rate."""
    p_value: float
    """Of a difference as large as this one, either way, if there were none."""
    better: int
    worse: int
    """Utterances with fewer errors than the other's, and with more."""

    @property
    def difference(self) -> float:
        return self.rate - self.other_rate


def compare(
    counts: Sequence[ErrorCounts], others: Sequence[ErrorCounts], *, seed: int, samples: int = 1000
) -> Comparison:
    """Two recognisers' errors in the same utterances, pair by pair.

    The test is that of matched pairs (Gillick and Cox, ICASSP 1989, section 3), an utterance being
    a segment: Z is the difference of the errors in one, and mean(Z) / (std(Z) / sqrt(n)) is taken
    for normal. It is where errors of different utterances are independent and n is not small: some
    fifty. The interval is the bootstrap's (Bisani and Ney, ICASSP 2004): both are scored on
    the same `samples` draws of n utterances.

    p_value and interval are nan where they are not defined: of one utterance, and without words.

    Raises ValueError unless both have as many utterances, at least one, with the same numbers of
    reference words.
    """
    words = np.array([c.reference_words for c in counts], np.int64)
    other_words = np.array([c.reference_words for c in others], np.int64)
    if not len(words) or not np.array_equal(words, other_words):
        raise ValueError(
            f"others: {len(others)} utterances of {other_words.sum()} words, must be the same as "
            f"the {len(counts)} of {words.sum()} words they are compared with"
        )
    gains = np.array([a.errors - b.errors for a, b in zip(counts, others)], np.int64)
    drawn_differences = []
    rng = np.random.default_rng(seed)
    for _ in range(samples):
        drawn = rng.integers(len(gains), size=len(gains))
        if drawn_words := words[drawn].sum():
            drawn_differences.append(gains[drawn].sum() / drawn_words)
    low, high = np.quantile(drawn_differences or [math.nan], [0.025, 0.975])
    return Comparison(
        total(counts).rate,
        total(others).rate,
        float(low),
        float(high),
        _matched_pairs(gains),
        int(np.sum(gains < 0)),
        int(np.sum(gains > 0)),
    )


def _matched_pairs(gains: np.ndarray) -> float:
    n = len(gains)
    if n < 2:
        return math.nan
    mean, error = gains.mean(), gains.std(ddof=1) / math.sqrt(n)
    if error == 0:
        return 0.0 if mean else 1.0
    return math.erfc(abs(mean) / error / math.sqrt(2))
