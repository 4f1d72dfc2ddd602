"""Norms of a block: LayerNorm, or a scale and a bias for each channel."""

from collections.abc import Callable

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

# A constructor of norms for a block: nnx.LayerNorm, a partial of it, or Affine.
MakeNorm = Callable[..., Callable[[Array], Array]]


class Affine(nnx.Module):
    """scale * x + bias, with a scale and a bias for each channel, initially 1 and 0.

    This is what a BatchNorm computes with fixed statistics: scale = w / sqrt(variance + epsilon)
    and bias = b - scale * mean (arXiv 1502.03167, algorithm 2). As in LayerNorm, the result has the
    type of x, and the arithmetic and the sums of the gradients are in float32.
    """

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.scale = nnx.Param(jnp.ones(width))
        self.bias = nnx.Param(jnp.zeros(width))

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        scale, bias = (p[...].astype(jnp.float32) for p in (self.scale, self.bias))
        return (x.astype(jnp.float32) * scale + bias).astype(x.dtype)
