"""Lengths: masks of real frames, and lengths after strided layers."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


def frame_mask(lengths: Int[Array, " B"], frames: int) -> Bool[Array, "B {frames}"]:
    """Return a mask that is True for frames within the lengths."""
    return jnp.arange(frames) < lengths[:, None]


def halved(length):
    """Return the length after a convolution of kernel 3, stride 2 and padding 1."""
    return (length + 1) // 2


def subsampled(length, factor: int, *, lead: int = 0):
    """Return the length after subsampling by `factor`, a power of two: ceil(length / factor).

    Halving repeatedly and rounding up each time equals rounding up once. With `lead` frames of
    padding before the first, it is ceil((length + lead) / factor), or 0 without a frame.
    """
    if lead:
        length = length + lead * (length > 0)
    return -(-length // factor)


def exceeds(frames, most: int) -> bool:
    """Return frames > most; False for a symbolic number of jax.export.

    A symbolic number of frames is processed at once, since a loop needs a static number of steps.
    """
    return isinstance(frames, int) and frames > most
