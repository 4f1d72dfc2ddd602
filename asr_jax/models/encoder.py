"""The encoder: subsampling and a stack of blocks, from features to encoded frames."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key, PyTree

from asr_jax.config import Config, EncoderConfig, chunk_frames
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
from asr_jax.layers.norm import Affine, MakeNorm
from asr_jax.layers.residual import ResidualLinear, folded
from asr_jax.layers.stack import scan_layers, stacked
from asr_jax.layers.subsampling import (
    Subsampling,
    Subsampling1D,
    Subsampling2D,
    following,
    subsample,
)
from asr_jax.layers.transformer import TransformerBlock

_REMAT = {
    "none": lambda body: body,
    "layer": jax.checkpoint,
    "dots": functools.partial(
        jax.checkpoint, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    ),
}


# A chunk of more frames than any utterance has.
_WHOLE = 2**30


class EncoderState(NamedTuple):
    """The state of a stream between chunks: arrays of fixed shapes."""

    seen: Int[Array, " B"]
    """Frames encoded so far."""
    features: Float[Array, "B factor F"]
    """Last features of the chunk before."""
    blocks: BlockState | KeyValueCache
    """States of the blocks, stacked along a layer axis."""


class Encoder(nnx.Module):
    """A Conformer (arXiv 2005.08100) or Transformer with config.encoder's sizes.

    With `shared_layers` above 1, neighboring blocks share matrices (arXiv 2310.02489).

    Attention sees the whole utterance, or, with `context_frames` = (left, right), that many frames
    on either side. With chunk sizes (`chunk_ms`; 0 stands for the whole utterance), attention sees
    its own chunk and the `left_chunks` before it (if given, those that `left_context_frames` hold),
    and convolutions see no later frame, so a stream can be encoded chunk by chunk. Each call with a
    key draws one of the sizes (arXiv 2012.05481).

    A call with a key skips block l of L with probability `layer_drop` l / L, independently for each
    utterance, and scales the output of the branches kept so that its mean equals that of a call
    without a key (stochastic depth, arXiv 1603.09382).
    """

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        encoder = config.encoder
        self.subsampling = _make_subsampling(config, rngs=rngs)
        self.blocks = stacked(
            functools.partial(_make_block, encoder),
            encoder.layers,
            shared_layers=encoder.shared_layers,
            rngs=rngs,
        )
        # A Conformer block ends in a norm of its own.
        has_norm = encoder.kind == "transformer"
        self.norm = _make_layer_norm(encoder)(encoder.width, rngs=rngs) if has_norm else None
        self.mel_bins = config.features.mel_bins
        self.layers = encoder.layers
        self.shared_layers = encoder.shared_layers
        self.dropout = encoder.dropout
        self.layer_drop = encoder.layer_drop
        self.remat = encoder.remat
        self.attention = encoder.attention
        self.context_frames = encoder.context_frames
        self.chunk_frames = tuple(chunk_frames(size, config) for size in encoder.chunk_ms)
        self.left_chunks = encoder.left_chunks
        self.left_context_frames = encoder.left_context_frames

    def __call__(
        self,
        features: Float[Array, "B T F"],
        lengths: Int[Array, " B"],
        *,
        chunk_frames: int = 0,
        key: Key[Array, ""] | None = None,
    ) -> tuple[Float[Array, "B T2 D"], Int[Array, " B"]]:
        """Return an encoded frame per `subsampling_factor` features, and how many are real.

        Padding may hold anything. Without a key, nothing is dropped, and chunks have `chunk_frames`
        frames (0: one chunk), which must be 0 for an encoder trained without chunks.
        """
        encoded, _, lengths = self._encode(features, lengths, chunk_frames, key, middle=False)
        return encoded, lengths

    def with_middle(
        self,
        features: Float[Array, "B T F"],
        lengths: Int[Array, " B"],
        *,
        key: Key[Array, ""] | None = None,
    ) -> tuple[Float[Array, "B T2 D"], Float[Array, "B T2 D"], Int[Array, " B"]]:
        """Return the encoded frames, the output of an encoder with the first half of the blocks
        (rounded down), and the lengths."""
        encoded, middle, lengths = self._encode(features, lengths, 0, key, middle=True)
        assert middle is not None
        return encoded, middle, lengths

    def _encode(
        self,
        features: Float[Array, "B T F"],
        lengths: Int[Array, " B"],
        chunk_frames: int,
        key: Key[Array, ""] | None,
        *,
        middle: bool,
    ) -> tuple[Float[Array, "B T2 D"], Float[Array, "B T2 D"] | None, Int[Array, " B"]]:
        x, lengths = subsample(self.subsampling, features, lengths)
        context = self._context(chunk_frames, key)
        positions = self._positions(farthest_frames(x.shape[1], context), x)
        keys = scales = None
        if key is not None:
            if self.layer_drop:
                # fold_in(key, i) is split(key)[i]: an index past the keys split for dropout.
                scales = self._branch_scales(jax.random.fold_in(key, self.layers + 1), len(x))
            key, *_ = keys = jax.random.split(key, self.layers + 1)
            x, keys = dropout(x, self.dropout, key), keys[1:]

        @_REMAT[self.remat]
        def run(x_and_lengths, block_and_inputs):
            (x, lengths), (block, (key, scale)) = x_and_lengths, block_and_inputs
            y = block(x, positions, lengths, context=context, key=key)
            return (y if scale is None else x + scale.astype(x.dtype) * (y - x), lengths), None

        def run_and_keep(carry, block_and_inputs):
            (before, kept), (block, (number, *inputs)) = carry, block_and_inputs
            after, _ = run(before, (block, inputs))
            return (after, jnp.where(number == self.layers // 2, after[0], kept)), None

        scan = functools.partial(scan_layers, shared_layers=self.shared_layers)
        if not middle:
            (x, _), _ = scan(run, (x, lengths), self.blocks, (keys, scales))
            return self._finish(x, lengths), None, lengths
        numbers = jnp.arange(1, self.layers + 1)
        ((x, _), kept), _ = scan(
            run_and_keep, ((x, lengths), x), self.blocks, (numbers, keys, scales)
        )
        between = self._finish(kept, lengths)
        return self._finish(x, lengths), between, lengths

    def _branch_scales(self, key: Key[Array, ""], rows: int) -> Float[Array, "L B 1 1"]:
        """Draw a factor for each block's branch: 0 if it is skipped, else 1 / survival rate."""
        survival = 1 - self.layer_drop * jnp.arange(1, self.layers + 1) / self.layers
        survival = survival[:, None, None, None]
        survives = jax.random.uniform(key, (self.layers, rows, 1, 1)) < survival
        return jnp.where(survives, 1 / survival, 0)

    def _finish(self, x: Float[Array, "B T D"], lengths: Int[Array, " B"]) -> Float[Array, "B T D"]:
        x = x if self.norm is None else self.norm(x)
        return jnp.where(frame_mask(lengths, x.shape[1])[..., None], x, 0)

    def start(self, batch: int, *, chunk_frames: int) -> EncoderState:
        """Return the state before the first chunk, for chunks of `chunk_frames` encoded frames."""
        cache_frames = left_chunks(self, chunk_frames) * chunk_frames
        dtype = self.subsampling.project.kernel[...].dtype
        tail = jnp.zeros((batch, self.subsampling.factor, self.mel_bins), dtype)

        def start(nothing, block_and_none):
            block, _ = block_and_none
            return nothing, block.start(batch, cache_frames=cache_frames)

        _, blocks = scan_layers(start, None, self.blocks, None, shared_layers=self.shared_layers)
        return EncoderState(jnp.zeros(batch, jnp.int32), tail, blocks)

    def step(
        self, state: EncoderState, features: Float[Array, "B T F"], lengths: Int[Array, " B"]
    ) -> tuple[EncoderState, Float[Array, "B C D"], Int[Array, " B"]]:
        """Encode the next chunk of every stream; return its frames and how many are real.

        The frames equal those of `__call__` on the whole utterance with the same chunk_frames.

        Args:
            state: the state after the previous chunk, or of `start`.
            features: T = C times the subsampling factor, with C the chunk_frames of `start`. With
                causal subsampling, a stream begins with factor - 1 features that may hold anything.
            lengths: features up to the last real one: T, or fewer at the end of the stream, and 0
                after it.
        """
        tail, x, lengths = following(
            self.subsampling, state.features, features, lengths, seen=state.seen
        )
        # Positions of the cached frames and the chunk.
        chunk = x.shape[1]
        positions = self._positions((int(left_chunks(self, chunk)) + 1) * chunk, x)

        def run(x, block_and_state):
            block, before = block_and_state
            after, x = block.step(before, x, positions, lengths, state.seen)
            return x, after

        x, blocks = scan_layers(run, x, self.blocks, state.blocks, shared_layers=self.shared_layers)
        x = self._finish(x, lengths)
        return EncoderState(state.seen + lengths, tail, blocks), x, lengths

    def _context(self, chunk_frames: int, key: Key[Array, ""] | None) -> Context | None:
        if self.context_frames:
            left, right = self.context_frames
            return Context(1, left, right)
        if self.chunk_frames and key is not None:
            sizes = jnp.array([size or _WHOLE for size in self.chunk_frames])
            # Another index past the keys split for dropout.
            key = jax.random.fold_in(key, self.layers + 2)
            size = jax.random.choice(key, sizes)
            return Context(size, left_chunks(self, size))
        return Context(chunk_frames, left_chunks(self, chunk_frames)) if chunk_frames else None

    def _positions(self, farthest: int, x: Float[Array, "B T D"]) -> Float[Array, "R D"] | None:
        if self.attention != "relative":
            return None
        return relative_positions(farthest, x.shape[2]).astype(x.dtype)


def left_chunks(
    sizes: "EncoderConfig | Encoder", chunk_frames: int | Int[Array, ""]
) -> int | Int[Array, ""]:
    """Return the number of chunks before its own that a frame attends to, for a size of chunks."""
    if sizes.left_context_frames is None:
        return sizes.left_chunks
    return sizes.left_context_frames // chunk_frames


def _make_subsampling(config: Config, *, rngs: nnx.Rngs) -> Subsampling:
    encoder = config.encoder
    make = {
        "conv1d": Subsampling1D,
        "conv2d": Subsampling2D,
        "separable": functools.partial(Subsampling2D, separable=True),
    }[encoder.subsampling]
    return make(
        config.features.mel_bins,
        encoder.width,
        channels=encoder.subsampling_channels,
        factor=encoder.subsampling_factor,
        causal=encoder.subsampling_padding == "causal",
        rngs=rngs,
    )


def _make_layer_norm(encoder: EncoderConfig) -> MakeNorm:
    return functools.partial(nnx.LayerNorm, epsilon=encoder.norm_epsilon)


def _make_block(encoder: EncoderConfig, rngs: nnx.Rngs) -> ConformerBlock | TransformerBlock:
    norm = _make_layer_norm(encoder)
    make = {
        "conformer": functools.partial(
            ConformerBlock,
            kernel_frames=encoder.kernel_frames,
            causal=len(encoder.chunk_ms) > 0,
            depthwise_norm={"layer": norm, "affine": Affine}[encoder.convolution_norm],
        ),
        "transformer": TransformerBlock,
    }[encoder.kind]
    residual = functools.partial(ResidualLinear, rank=encoder.residual_rank)
    linear = Linear if encoder.shared_layers == 1 else residual
    return make(
        encoder.width,
        attention=encoder.attention,
        heads=encoder.heads,
        feedforward_factor=encoder.feedforward_factor,
        dropout=encoder.dropout,
        linear=functools.partial(linear, use_bias=encoder.bias),
        norm=norm,
        rngs=rngs,
    )


def fold_shared_layers(
    config: Config, params: dict[str, PyTree]
) -> tuple[Config, dict[str, PyTree]]:
    """Return the same model with its own matrices in every layer: faster, but larger."""
    encoder = dataclasses.replace(config.encoder, shared_layers=1, residual_rank=0)
    return dataclasses.replace(config, encoder=encoder), folded(params)
