"""From features to encoded frames: subsampling and a stack of blocks."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from asr_jax.config import Config, chunk_frames
from asr_jax.layers.attention import (
    Context,
    KeyValueCache,
    farthest_frames,
    relative_positions,
)
from asr_jax.layers.conformer import BlockState, ConformerBlock
from asr_jax.layers.dropout import dropout
from asr_jax.layers.length import frame_mask
from asr_jax.layers.linear import Linear
from asr_jax.layers.residual import ResidualLinear, folded
from asr_jax.layers.stack import scan_layers, stacked
from asr_jax.layers.subsampling import Subsampling1D, Subsampling2D, following, subsample
from asr_jax.layers.transformer import TransformerBlock

_REMAT = {
    "none": lambda body: body,
    "layer": jax.checkpoint,
    "dots": functools.partial(
        jax.checkpoint, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    ),
}


# More frames than there are of anything: one chunk holds them all.
_WHOLE = 2**30


class EncoderState(NamedTuple):
    """What a stream leaves behind for its next chunk: arrays of fixed shapes."""

    seen: Int[Array, " B"]
    """Frames encoded so far."""
    features: Float[Array, "B factor F"]
    """The last ones."""
    blocks: BlockState | KeyValueCache
    """Of every block, along a layer axis."""


class Encoder(nnx.Module):
    """Conformer (arXiv 2005.08100) or Transformer.

    With `shared_layers` above 1 neighbouring blocks share matrices (arXiv 2310.02489).

    Attention sees the whole utterance; with `context_frames` = (left, right) that many frames to
    either side. With `chunk_frames` it sees whole chunks, its own and `left_chunks` before, and
    convolutions see no later frame, so that a stream can be encoded chunk by chunk: sizes (0: the
    whole utterance) of which each call with a key draws one (arXiv 2012.05481).

    Of L blocks a call with a key leaves out the l-th with probability `layer_drop` l / L, of each
    utterance by itself, and scales what the others add so that the mean of a block is that without
    a key (stochastic depth, arXiv 1603.09382).
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
        subsampling: Literal["conv1d", "conv2d", "separable"],
        subsampling_factor: int = 4,
        subsampling_channels: int,
        context_frames: Sequence[int] = (),
        chunk_frames: Sequence[int] = (),
        left_chunks: int = 0,
        dropout: float,
        layer_drop: float = 0.0,
        remat: str,
        rngs: nnx.Rngs,
    ):
        of_subsampling = {
            "conv1d": Subsampling1D,
            "conv2d": Subsampling2D,
            "separable": functools.partial(Subsampling2D, separable=True),
        }[subsampling]
        self.subsampling = of_subsampling(
            mel_bins, width, channels=subsampling_channels, factor=subsampling_factor, rngs=rngs
        )
        of_kind = {
            "conformer": functools.partial(
                ConformerBlock, kernel_frames=kernel_frames, causal=len(chunk_frames) > 0
            ),
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
        self.mel_bins = mel_bins
        self.layers = layers
        self.shared_layers = shared_layers
        self.dropout = dropout
        self.layer_drop = layer_drop
        self.remat = remat
        self.attention = attention
        self.context_frames = tuple(context_frames)
        self.chunk_frames = tuple(chunk_frames)
        self.left_chunks = left_chunks

    def __call__(
        self,
        features: Float[Array, "B T F"],
        lengths: Int[Array, " B"],
        *,
        chunk_frames: int = 0,
        key: Key[Array, ""] | None = None,
    ) -> tuple[Float[Array, "B T2 D"], Int[Array, " B"]]:
        """Returns a frame for every four (or eight) of the features', and how many are real.

        What the padding holds changes no real frame. Without a key nothing is dropped, and chunks
        are of `chunk_frames` (0: all frames are one), as of an encoder that has chunks they may be.
        """
        encoded, _, lengths = self._encoded(features, lengths, chunk_frames, key, middle=False)
        return encoded, lengths

    def with_middle(
        self,
        features: Float[Array, "B T F"],
        lengths: Int[Array, " B"],
        *,
        key: Key[Array, ""] | None = None,
    ) -> tuple[Float[Array, "B T2 D"], Float[Array, "B T2 D"], Int[Array, " B"]]:
        """The same, and between both what an encoder of the first half of the blocks (rounded down)
        would return."""
        return self._encoded(features, lengths, 0, key, middle=True)

    def _encoded(
        self,
        features: Float[Array, "B T F"],
        lengths: Int[Array, " B"],
        chunk_frames: int,
        key: Key[Array, ""] | None,
        *,
        middle: bool,
    ) -> tuple[Float[Array, "B T2 D"], Any, Int[Array, " B"]]:
        x, lengths = subsample(self.subsampling, features, lengths)
        context = self._context(chunk_frames, key)
        positions = self._positions(farthest_frames(x.shape[1], context), x)
        keys = shares = None
        if key is not None:
            if self.layer_drop:
                # Beyond the keys that are split off for dropout.
                shares = self._shares(jax.random.fold_in(key, self.layers + 1), len(x))
            key, *_ = keys = jax.random.split(key, self.layers + 1)
            x, keys = dropout(x, self.dropout, key), keys[1:]

        @_REMAT[self.remat]
        def run(x_and_lengths, block_and_inputs):
            (x, lengths), (block, (key, share)) = x_and_lengths, block_and_inputs
            y = block(x, positions, lengths, context=context, key=key)
            return (y if share is None else x + share.astype(x.dtype) * (y - x), lengths), None

        def run_and_keep(carry, block_and_inputs):
            (before, kept), (block, (number, *inputs)) = carry, block_and_inputs
            after, _ = run(before, (block, inputs))
            return (after, jnp.where(number == self.layers // 2, after[0], kept)), None

        blocks = functools.partial(scan_layers, shared_layers=self.shared_layers)
        if middle:
            inputs = (jnp.arange(1, self.layers + 1), keys, shares)
            ((x, _), kept), _ = blocks(run_and_keep, ((x, lengths), x), self.blocks, inputs)
        else:
            (x, _), _ = blocks(run, (x, lengths), self.blocks, (keys, shares))
            kept = None
        between = None if kept is None else self._finished(kept, lengths)
        return self._finished(x, lengths), between, lengths

    def _shares(self, key: Key[Array, ""], rows: int) -> Float[Array, "L B 1 1"]:
        """How much of what each block adds is taken: none, or so much that the mean is all."""
        survival = 1 - self.layer_drop * jnp.arange(1, self.layers + 1) / self.layers
        survival = survival[:, None, None, None]
        kept = jax.random.uniform(key, (self.layers, rows, 1, 1)) < survival
        return jnp.where(kept, 1 / survival, 0)

    def _finished(
        self, x: Float[Array, "B T D"], lengths: Int[Array, " B"]
    ) -> Float[Array, "B T D"]:
        x = x if self.norm is None else self.norm(x)
        return jnp.where(frame_mask(lengths, x.shape[1])[..., None], x, 0)

    def start(self, batch: int, *, chunk_frames: int) -> EncoderState:
        """The state before the first chunk of streams whose chunks make so many frames each."""
        cache_frames = self.left_chunks * chunk_frames
        dtype = self.subsampling.project.kernel[...].dtype
        tail = jnp.zeros((batch, self.subsampling.factor, self.mel_bins), dtype)
        _, blocks = scan_layers(
            lambda none, block_and_none: (
                none,
                block_and_none[0].start(batch, cache_frames=cache_frames),
            ),
            None,
            self.blocks,
            None,
            shared_layers=self.shared_layers,
        )
        return EncoderState(jnp.zeros(batch, jnp.int32), tail, blocks)

    def step(
        self, state: EncoderState, features: Float[Array, "B T F"], lengths: Int[Array, " B"]
    ) -> tuple[EncoderState, Float[Array, "B C D"], Int[Array, " B"]]:
        """The next chunk of every stream: its encoded frames, and how many of them are real.

        They are those that `__call__` gives there for the whole under the same chunk_frames.

        Args:
            state: of the chunk before, or `start`.
            features: T = C times the subsampling factor, C being `start`'s chunk_frames.
            lengths: how many of the features are real: T, or fewer where the stream ends; then 0.
        """
        tail, x, lengths = following(
            self.subsampling, state.features, features, lengths, begins=state.seen == 0
        )
        # Of the cached frames and the chunk.
        positions = self._positions((self.left_chunks + 1) * x.shape[1], x)

        def run(x, block_and_state):
            block, before = block_and_state
            after, x = block.step(before, x, positions, lengths, state.seen)
            return x, after

        x, blocks = scan_layers(run, x, self.blocks, state.blocks, shared_layers=self.shared_layers)
        x = self._finished(x, lengths)
        return EncoderState(state.seen + lengths, tail, blocks), x, lengths

    def _context(self, chunk_frames: int, key: Key[Array, ""] | None) -> Context | None:
        if self.context_frames:
            left, right = self.context_frames
            return Context(1, left, right)
        if self.chunk_frames and key is not None:
            sizes = jnp.array([size or _WHOLE for size in self.chunk_frames])
            # Beyond the keys that are split off for dropout, fold_in(key, i) being split(key)[i].
            key = jax.random.fold_in(key, self.layers + 2)
            return Context(jax.random.choice(key, sizes), self.left_chunks)
        return Context(chunk_frames, self.left_chunks) if chunk_frames else None

    def _positions(self, farthest: int, x: Float[Array, "B T D"]) -> Float[Array, "R D"] | None:
        if self.attention != "relative":
            return None
        return relative_positions(farthest, x.shape[2]).astype(x.dtype)


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
        subsampling_factor=encoder.subsampling_factor,
        subsampling_channels=encoder.subsampling_channels,
        context_frames=encoder.context_frames,
        chunk_frames=[chunk_frames(size, config) for size in encoder.chunk_ms],
        left_chunks=encoder.left_chunks,
        dropout=encoder.dropout,
        layer_drop=encoder.layer_drop,
        remat=encoder.remat,
        rngs=rngs,
    )


def fold_shared_layers(config: Config, params: dict[str, Any]) -> tuple[Config, dict[str, Any]]:
    """The same model with a matrix for each layer: faster, and as large as if none were shared."""
    encoder = dataclasses.replace(config.encoder, shared_layers=1, residual_rank=0)
    return dataclasses.replace(config, encoder=encoder), folded(params)
