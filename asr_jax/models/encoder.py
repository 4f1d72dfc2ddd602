"""From features to encoded frames: subsampling and a stack of blocks."""

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from asr_jax.config import Config
from asr_jax.layers.attention import relative_positions
from asr_jax.layers.conformer import ConformerBlock
from asr_jax.layers.dropout import dropout
from asr_jax.layers.length import frame_mask
from asr_jax.layers.linear import Linear
from asr_jax.layers.residual import ResidualLinear, folded
from asr_jax.layers.stack import scan_layers, stacked
from asr_jax.layers.subsampling import Subsampling1D, Subsampling2D
from asr_jax.layers.transformer import TransformerBlock

_REMAT = {
    "none": lambda body: body,
    "layer": jax.checkpoint,
    "dots": functools.partial(
        jax.checkpoint, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    ),
}


class Encoder(nnx.Module):
    """Conformer (arXiv 2005.08100) or Transformer.

    With `shared_layers` above 1 neighbouring blocks share matrices (arXiv 2310.02489).
    """

    def __init__(
        self,
        mel_bins: int,
        *,
        kind: Literal["conformer", "transformer"],
        layers: int,
        width: int,
        attention: Literal["relative", "rotary"],
        heads: int,
        feedforward_factor: int,
        kernel_frames: int,
        shared_layers: int,
        residual_rank: int,
        subsampling: str,
        subsampling_channels: int,
        dropout: float,
        remat: str,
        rngs: nnx.Rngs,
    ):
        subsample = {"conv1d": Subsampling1D, "conv2d": Subsampling2D}[subsampling]
        self.subsampling = subsample(mel_bins, width, channels=subsampling_channels, rngs=rngs)
        of_kind = {
            "conformer": functools.partial(ConformerBlock, kernel_frames=kernel_frames),
            "transformer": TransformerBlock,
        }[kind]
        residual = functools.partial(ResidualLinear, rank=residual_rank)

        def block(rngs: nnx.Rngs) -> ConformerBlock | TransformerBlock:
            return of_kind(
                width,
                attention=attention,
                heads=heads,
                feedforward_factor=feedforward_factor,
                dropout=dropout,
                linear=Linear if shared_layers == 1 else residual,
                rngs=rngs,
            )

        self.blocks = stacked(block, layers, shared_layers=shared_layers, rngs=rngs)
        # A Conformer block ends in a norm of its own.
        self.norm = nnx.LayerNorm(width, rngs=rngs) if kind == "transformer" else None
        self.layers = layers
        self.shared_layers = shared_layers
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

        (x, _), _ = scan_layers(
            _REMAT[self.remat](run),
            (x, lengths),
            self.blocks,
            keys,
            shared_layers=self.shared_layers,
        )
        x = x if self.norm is None else self.norm(x)
        return jnp.where(frame_mask(lengths, x.shape[1])[..., None], x, 0), lengths


def make_encoder(config: Config, *, rngs: nnx.Rngs) -> Encoder:
    """An encoder of a config's sizes."""
    encoder = config.encoder
    return Encoder(
        config.features.mel_bins,
        kind=encoder.kind,
        layers=encoder.layers,
        width=encoder.width,
        attention=encoder.attention,
        heads=encoder.heads,
        feedforward_factor=encoder.feedforward_factor,
        kernel_frames=encoder.kernel_frames,
        shared_layers=encoder.shared_layers,
        residual_rank=encoder.residual_rank,
        subsampling=encoder.subsampling,
        subsampling_channels=encoder.subsampling_channels,
        dropout=encoder.dropout,
        remat=encoder.remat,
        rngs=rngs,
    )


def fold_shared_layers(config: Config, params: dict[str, Any]) -> tuple[Config, dict[str, Any]]:
    """The same model with a matrix for each layer: faster, and as large as if none were shared."""
    encoder = dataclasses.replace(config.encoder, shared_layers=1, residual_rank=0)
    return dataclasses.replace(config, encoder=encoder), folded(params)
