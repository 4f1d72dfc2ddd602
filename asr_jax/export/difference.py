"""Difference between the outputs of an exported program and those of the model."""

import numpy as np


def relative_difference(actual: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference, as a fraction of the largest finite expected magnitude.

    The result is infinite if a value is NaN or infinite in one array and differs in the other.
    """
    finite = np.isfinite(expected)
    if not np.array_equal(actual[~finite], expected[~finite], equal_nan=True):
        return np.inf
    if not finite.any():
        return 0.0
    actual, expected = (x[finite].astype(np.float64) for x in (actual, expected))
    difference = np.abs(actual - expected).max() / max(np.abs(expected).max(), 1e-9)
    return float(difference) if np.isfinite(difference) else np.inf
