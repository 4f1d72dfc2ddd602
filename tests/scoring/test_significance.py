"""The matched-pairs test keeps its level, and agrees with the paired statistic of a library."""

import math

import numpy as np
import pytest
import scipy.stats

from asr_jax.scoring.significance import compare
from asr_jax.scoring.wer import ErrorCounts


def counts_of(errors, words=10) -> list[ErrorCounts]:
    return [ErrorCounts(int(e), 0, 0, words) for e in errors]


def test_it_is_the_paired_statistic_taken_for_normal():
    rng = np.random.default_rng(0)
    ours, theirs = rng.poisson(1.0, 200), rng.poisson(1.2, 200)
    found = compare(counts_of(ours), counts_of(theirs), seed=0)
    statistic = scipy.stats.ttest_rel(ours, theirs).statistic
    assert found.p_value == pytest.approx(2 * scipy.stats.norm.sf(abs(statistic)), rel=1e-9)
    assert found.difference == pytest.approx((ours.sum() - theirs.sum()) / 2000)
    assert (found.better, found.worse) == (np.sum(ours < theirs), np.sum(ours > theirs))
    # That of a mean, where all utterances have as many words.
    half = 1.96 * np.std((ours - theirs) / 10) / math.sqrt(200)
    middle = found.difference
    assert (found.low, found.high) == pytest.approx((middle - half, middle + half), abs=0.1 * half)
    other_way = compare(counts_of(theirs), counts_of(ours), seed=0)
    assert other_way.p_value == found.p_value and other_way.difference == -found.difference


def test_of_equal_recognisers_one_in_twenty_differs():
    """Errors that utterances share, as hard ones are hard for both, do not blur the test."""
    rng = np.random.default_rng(1)
    below = 0
    for _ in range(400):
        shared = rng.poisson(3.0, 100)
        both = (counts_of(shared + rng.poisson(0.5, 100)) for _ in range(2))
        below += compare(*both, seed=0, samples=1).p_value < 0.05
    # Four deviations of 400 draws at 5 %.
    assert abs(below - 20) <= 4 * math.sqrt(400 * 0.05 * 0.95)


def test_what_cannot_be_told():
    same = compare(counts_of([1, 0, 2]), counts_of([1, 0, 2]), seed=0)
    assert (same.difference, same.low, same.high, same.p_value) == (0, 0, 0, 1)
    assert math.isnan(compare(counts_of([1]), counts_of([0]), seed=0).p_value)
    silent = compare(counts_of([1, 2], words=0), counts_of([0, 0], words=0), seed=0)
    assert math.isnan(silent.difference) and math.isnan(silent.low)
    with pytest.raises(ValueError, match=r"^others: 1 utterances of 10 words, must be the same"):
        compare(counts_of([1, 2]), counts_of([1]), seed=0)
