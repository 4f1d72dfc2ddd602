"""The Conformer block (arXiv 2005.08100, section 2.4)."""

import functools
from typing import Literal, NamedTuple

import jax
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from asr_jax.layers.attention import Context, KeyValueCache, RelativeAttention, RotaryAttention
from asr_jax.layers.convolution import ConvolutionModule
from asr_jax.layers.dropout import dropout
from asr_jax.layers.feedforward import FeedForward
from asr_jax.layers.linear import Linear, MakeLinear
from asr_jax.layers.norm import MakeNorm


class BlockState(NamedTuple):
    """The state of a block between the chunks of a stream."""

    attention: KeyValueCache
    convolution: Float[Array, "B K1 D"]


class ConformerBlock(nnx.Module):
    """Half a feed-forward step, attention, convolution, another half step, norm.

    The convolution of a causal block sees no later frame. The constructor has many parameters
    because it takes the sizes and the layers of all four parts.
    """

    def __init__(
        self,
        width: int,
        *,
        attention: Literal["relative", "rotary"],
        heads: int,
        feedforward_factor: int,
        kernel_frames: int,
        dropout: float,
        causal: bool = False,
        linear: MakeLinear = Linear,
        norm: MakeNorm = nnx.LayerNorm,
        depthwise_norm: MakeNorm = nnx.LayerNorm,
        rngs: nnx.Rngs,
    ):
        self.first_feedforward = FeedForward(
            width, factor=feedforward_factor, linear=linear, norm=norm, rngs=rngs
        )
        kind = {"relative": RelativeAttention, "rotary": RotaryAttention}[attention]
        self.attention = kind(width, heads=heads, linear=linear, norm=norm, rngs=rngs)
        self.convolution = ConvolutionModule(
            width,
            kernel_frames=kernel_frames,
            causal=causal,
            linear=linear,
            norm=norm,
            depthwise_norm=depthwise_norm,
            rngs=rngs,
        )
        self.second_feedforward = FeedForward(
            width, factor=feedforward_factor, linear=linear, norm=norm, rngs=rngs
        )
        self.norm = norm(width, rngs=rngs)
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
        keys = [None] * 4 if key is None else jax.random.split(key, 4)
        drop = functools.partial(dropout, probability=self.dropout)
        x = x + 0.5 * drop(self.first_feedforward(x), key=keys[0])
        x = x + drop(self.attention(x, positions, lengths, context), key=keys[1])
        x = x + drop(self.convolution(x, lengths), key=keys[2])
        x = x + 0.5 * drop(self.second_feedforward(x), key=keys[3])
        return self.norm(x)

    def start(self, batch: int, *, cache_frames: int) -> BlockState:
        """Return a stream's state before its first chunk; attention sees `cache_frames` back."""
        return BlockState(
            self.attention.start(batch, cache_frames=cache_frames), self.convolution.start(batch)
        )

    def step(
        self,
        state: BlockState,
        x: Float[Array, "B C D"],
        positions: Float[Array, "R D"] | None,
        lengths: Int[Array, " B"],
        seen: Int[Array, " B"],
    ) -> tuple[BlockState, Float[Array, "B C D"]]:
        """Process a stream's next chunk, with `lengths` real frames, after `seen` others."""
        x = x + 0.5 * self.first_feedforward(x)
        attention, y = self.attention.step(state.attention, x, positions, lengths, seen)
        x = x + y
        convolution, y = self.convolution.step(state.convolution, x, lengths)
        x = x + y
        x = x + 0.5 * self.second_feedforward(x)
        return BlockState(attention, convolution), self.norm(x)
