"""How far what an exported program computes is from what the model computes."""

import numpy as np


def relative_difference(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference, as a share of the largest finite magnitude that is expected.

    Infinite where one of both is NaN or infinite and the other is not the same.
    """
    finite = np.isfinite(expected)
    if not np.array_equal(found[~finite], expected[~finite], equal_nan=True):
        return np.inf
    if not finite.any():
        return 0.0
    found, expected = (x[finite].astype(np.float64) for x in (found, expected))
    difference = np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-9)
    return float(difference) if np.isfinite(difference) else np.inf
