"""Padding: which frames are real, and how many remain after a strided layer."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


def frame_mask(lengths: Int[Array, " B"], frames: int) -> Bool[Array, "B {frames}"]:
    """True where a frame lies within its utterance."""
    return jnp.arange(frames) < lengths[:, None]


def halved(length):
    """Frames that remain of `length` after a convolution of kernel 3, stride 2, padding 1."""
    return (length + 1) // 2


def subsampled(length, factor: int):
    """Frames that remain of `length` after as many of them as make one frame of `factor`.

    Halving a power of two, rounding up each time, is rounding up once: ceil(length / factor).
    """
    return -(-length // factor)


def exceeds(frames, most: int) -> bool:
    """frames > most; False for a number that jax.export leaves open.

    What is done in pieces beyond `most` is done at once there: a loop has a known number of steps.
    """
    return isinstance(frames, int) and frames > most
