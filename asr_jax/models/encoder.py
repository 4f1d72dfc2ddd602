"""From features to encoded frames: subsampling and a stack of Conformer blocks."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from asr_jax.layers.attention import relative_positions
from asr_jax.layers.conformer import ConformerBlock
from asr_jax.layers.dropout import dropout
from asr_jax.layers.length import frame_mask
from asr_jax.layers.subsampling import Subsampling1D, Subsampling2D

_REMAT = {
    "none": lambda body: body,
    "layer": jax.checkpoint,
    "dots": functools.partial(
        jax.checkpoint, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    ),
}


class ConformerEncoder(nnx.Module):
    """Conformer (arXiv 2005.08100). The blocks' parameters are stacked along a layer axis."""

    def __init__(
        self,
        mel_bins: int,
        *,
        layers: int,
        width: int,
        attention: Literal["relative", "rotary"],
        heads: int,
        feedforward_factor: int,
        kernel_frames: int,
        subsampling: str,
        subsampling_channels: int,
        dropout: float,
        remat: str,
        rngs: nnx.Rngs,
    ):
        kind = {"conv1d": Subsampling1D, "conv2d": Subsampling2D}[subsampling]
        self.subsampling = kind(mel_bins, width, channels=subsampling_channels, rngs=rngs)

        @nnx.vmap
        def stacked(rngs: nnx.Rngs) -> ConformerBlock:
            return ConformerBlock(
                width,
                attention=attention,
                heads=heads,
                feedforward_factor=feedforward_factor,
                kernel_frames=kernel_frames,
                dropout=dropout,
                rngs=rngs,
            )

        self.blocks = stacked(rngs.split(layers))
        self.layers = layers
        self.dropout = dropout
        self.remat = remat
        self.attention = attention

    def __call__(
        self,
        features: Float[Array, "B T F"],
        lengths: Int[Array, " B"],
        *,
        key: Key[Array, ""] | None = None,
    ) -> tuple[Float[Array, "B T4 D"], Int[Array, " B"]]:
        """Returns a frame for every four of the features', and how many of them are real.

        What the padding holds changes no real frame. Without a key nothing is dropped.
        """
        x, lengths = self.subsampling(features, lengths)
        positions = None
        if self.attention == "relative":
            positions = relative_positions(x.shape[1], x.shape[2]).astype(x.dtype)
        keys = None
        if key is not None:
            key, *_ = keys = jax.random.split(key, self.layers + 1)
            x, keys = dropout(x, self.dropout, key), keys[1:]

        def run(x_and_lengths, block_and_key):
            (x, lengths), (block, key) = x_and_lengths, block_and_key
            return (block(x, positions, lengths, key=key), lengths), None

        (x, _), _ = jax.lax.scan(_REMAT[self.remat](run), (x, lengths), (self.blocks, keys))
        return jnp.where(frame_mask(lengths, x.shape[1])[..., None], x, 0), lengths
