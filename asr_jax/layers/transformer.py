"""The Transformer block (arXiv 1706.03762) with pre-normalization (arXiv 2002.04745)."""

from typing import Literal

import jax
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from asr_jax.layers.attention import Context, KeyValueCache, RelativeAttention, RotaryAttention
from asr_jax.layers.dropout import dropout
from asr_jax.layers.feedforward import FeedForward
from asr_jax.layers.linear import Linear, MakeLinear
from asr_jax.layers.norm import MakeNorm


class TransformerBlock(nnx.Module):
    """Attention and feed-forward. The output of the last block still needs a norm.

    The constructor has many parameters because it takes the sizes and the layers of both parts.
    """

    def __init__(
        self,
        width: int,
        *,
        attention: Literal["relative", "rotary"],
        heads: int,
        feedforward_factor: int,
        dropout: float,
        linear: MakeLinear = Linear,
        norm: MakeNorm = nnx.LayerNorm,
        rngs: nnx.Rngs,
    ):
        kind = {"relative": RelativeAttention, "rotary": RotaryAttention}[attention]
        self.attention = kind(width, heads=heads, linear=linear, norm=norm, rngs=rngs)
        self.feedforward = FeedForward(
            width, factor=feedforward_factor, linear=linear, norm=norm, rngs=rngs
        )
        self.dropout = dropout

    def __call__(
        self,
        x: Float[Array, "B T D"],
        positions: Float[Array, "R D"] | None,
        lengths: Int[Array, " B"],
        *,
        context: Context | None = None,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "B T D"]:
        """Padding changes no real frame. Without a key, nothing is dropped; without a context,
        attention sees all frames."""
        keys = [None] * 2 if key is None else jax.random.split(key)
        x = x + dropout(self.attention(x, positions, lengths, context), self.dropout, keys[0])
        return x + dropout(self.feedforward(x), self.dropout, keys[1])

    def start(self, batch: int, *, cache_frames: int) -> KeyValueCache:
        """Return a stream's cache before its first chunk; attention sees `cache_frames` back."""
        return self.attention.start(batch, cache_frames=cache_frames)

    def step(
        self,
        state: KeyValueCache,
        x: Float[Array, "B C D"],
        positions: Float[Array, "R D"] | None,
        lengths: Int[Array, " B"],
        seen: Int[Array, " B"],
    ) -> tuple[KeyValueCache, Float[Array, "B C D"]]:
        """Process a stream's next chunk, with `lengths` real frames, after `seen` others."""
        state, y = self.attention.step(state, x, positions, lengths, seen)
        x = x + y
        return state, x + self.feedforward(x)
