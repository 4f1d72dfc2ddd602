"""Tensors of another program's checkpoint, described before they are read."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

# The types that values are read from. Others would lose precision (float64), or are quantized
# (float8, int8) and mean nothing without their scales.
READABLE = {
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype(jnp.bfloat16),
}


class Weight(NamedTuple):
    """A tensor: what its file says about it, and how to read it."""

    shape: tuple[int, ...]
    dtype: str
    """Its type as NumPy names it, such as float32, float64 or float8_e4m3fn."""
    read: Callable[[], np.ndarray]
    """Reads the values, in the stored type."""

    def values(self) -> np.ndarray:
        """Read the values as float32."""
        return self.read().astype(np.float32)


Weights = Mapping[str, Weight]
