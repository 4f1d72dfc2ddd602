"""NaN, and infinity on one side only, never pass for a small difference."""

import numpy as np

from asr_jax.export.difference import relative_difference


def test_difference_is_a_fraction_of_the_largest():
    expected = np.array([[1.0, -4.0], [0.0, 2.0]], np.float32)
    assert relative_difference(expected + np.float32(0.5), expected) == 0.125
    assert relative_difference(expected[:0], expected[:0]) == 0


def test_values_that_are_not_finite_must_be_equal_on_both_sides():
    expected = np.array([1.0, -np.inf, np.nan], np.float32)
    assert relative_difference(expected, expected) == 0
    for place, value in [(0, np.nan), (0, np.inf), (1, np.inf), (1, 0.0), (2, 0.0)]:
        actual = expected.copy()
        actual[place] = value
        assert relative_difference(actual, expected) == np.inf
