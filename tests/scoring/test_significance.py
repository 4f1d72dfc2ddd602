"""The matched-pairs test keeps its level and agrees with scipy's paired statistic."""

import math

import numpy as np
import pytest
import scipy.stats

from asr_jax.scoring.significance import compare
from asr_jax.scoring.wer import ErrorCounts


def counts_of(errors, words=10) -> list[ErrorCounts]:
    return [ErrorCounts(int(e), 0, 0, words) for e in errors]


def test_p_value_is_that_of_the_paired_statistic_as_normal():
    rng = np.random.default_rng(0)
    ours, theirs = rng.poisson(1.0, 200), rng.poisson(1.2, 200)
    result = compare(counts_of(ours), counts_of(theirs), seed=0)
    statistic = scipy.stats.ttest_rel(ours, theirs).statistic
    assert result.p_value == pytest.approx(2 * scipy.stats.norm.sf(abs(statistic)), rel=1e-9)
    assert result.difference == pytest.approx((ours.sum() - theirs.sum()) / 2000)
    assert (result.better, result.worse) == (np.sum(ours < theirs), np.sum(ours > theirs))
    # With equal numbers of words the interval is that of a mean.
    half = 1.96 * np.std((ours - theirs) / 10) / math.sqrt(200)
    middle = result.difference
    assert (result.low, result.high) == pytest.approx(
        (middle - half, middle + half), abs=0.1 * half
    )
    other_way = compare(counts_of(theirs), counts_of(ours), seed=0)
    assert other_way.p_value == result.p_value and other_way.difference == -result.difference


def test_one_in_twenty_pairs_of_equal_recognizers_differs():
    """Errors that both recognizers share, as in hard utterances, do not blur the test."""
    rng = np.random.default_rng(1)
    below = 0
    for _ in range(400):
        shared = rng.poisson(3.0, 100)
        both = (counts_of(shared + rng.poisson(0.5, 100)) for _ in range(2))
        below += compare(*both, seed=0, samples=1).p_value < 0.05
    # Four standard deviations of 400 draws at 5 %.
    assert abs(below - 20) <= 4 * math.sqrt(400 * 0.05 * 0.95)


def test_undefined_results_are_nan():
    same = compare(counts_of([1, 0, 2]), counts_of([1, 0, 2]), seed=0)
    assert (same.difference, same.low, same.high, same.p_value) == (0, 0, 0, 1)
    assert math.isnan(compare(counts_of([1]), counts_of([0]), seed=0).p_value)
    silent = compare(counts_of([1, 2], words=0), counts_of([0, 0], words=0), seed=0)
    assert math.isnan(silent.difference) and math.isnan(silent.low)
    with pytest.raises(ValueError, match=r"^others: 1 utterances of 10 words, must be the same"):
        compare(counts_of([1, 2]), counts_of([1]), seed=0)
