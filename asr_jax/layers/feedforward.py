"""The feed-forward module of the Conformer (arXiv 2005.08100, section 2.3)."""

import jax
from flax import nnx
from jaxtyping import Array, Float

from asr_jax.layers.linear import Linear, MakeLinear
from asr_jax.layers.norm import MakeNorm


class FeedForward(nnx.Module):
    """Norm, expansion, swish, projection back."""

    def __init__(
        self,
        width: int,
        *,
        factor: int,
        linear: MakeLinear = Linear,
        norm: MakeNorm = nnx.LayerNorm,
        rngs: nnx.Rngs,
    ):
        self.norm = norm(width, rngs=rngs)
        self.expand = linear(width, factor * width, rngs=rngs)
        self.project = linear(factor * width, width, rngs=rngs)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        return self.project(jax.nn.silu(self.expand(self.norm(x))))
