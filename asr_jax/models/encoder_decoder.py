"""The attention encoder-decoder: Listen, Attend and Spell (arXiv 1508.01211)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from asr_jax.config import Config
from asr_jax.layers.attention import KeyValueCache
from asr_jax.layers.cross_attention import DecoderBlock
from asr_jax.layers.dropout import dropout
from asr_jax.layers.embedding import Embedding
from asr_jax.layers.linear import Linear
from asr_jax.layers.stack import scan_layers, stacked
from asr_jax.models.ctc import make_ctc_head
from asr_jax.models.encoder import Encoder

# The label before the first and after the last; the blank, which no transcript contains.
END_ID = 0


class DecoderState(NamedTuple):
    """Caches of K label sequences per row, stacked along a layer axis."""

    labels: KeyValueCache
    """Self-attention's cache, with B K rows."""
    frames: KeyValueCache
    """Cross-attention's cache, with B rows."""
    lengths: Int[Array, " B"]
    seen: Int[Array, ""]
    """Number of labels so far, including the initial END_ID."""


class AttentionDecoder(nnx.Module):
    """A Transformer over the labels so far that attends to the encoded frames.

    As in the paper, whose decoder is recurrent, it gives the probability of each label, or of the
    end, given the labels before it and all frames.
    """

    def __init__(self, config: Config, vocabulary_size: int, *, rngs: nnx.Rngs):
        decoder = config.decoder
        self.embedding = Embedding(vocabulary_size, decoder.width, rngs=rngs)

        def make_block(rngs: nnx.Rngs) -> DecoderBlock:
            return DecoderBlock(
                decoder.width,
                config.encoder.width,
                heads=decoder.heads,
                feedforward_factor=decoder.feedforward_factor,
                dropout=decoder.dropout,
                rngs=rngs,
            )

        self.blocks = stacked(make_block, decoder.layers, shared_layers=1, rngs=rngs)
        self.norm = nnx.LayerNorm(decoder.width, rngs=rngs)
        self.out = Linear(decoder.width, vocabulary_size, rngs=rngs)
        self.layers = decoder.layers
        self.dropout = decoder.dropout

    def __call__(
        self,
        labels: Int[Array, "B U"],
        encoded: Float[Array, "B T E"],
        lengths: Int[Array, " B"],
        *,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "B U1 V"]:
        """Return the logits of the label after 0, 1, ..., U labels.

        They depend neither on later labels nor on padding frames.
        """
        x = self.embedding(jnp.pad(labels, ((0, 0), (1, 0)), constant_values=END_ID))
        keys = None
        if key is not None:
            key, *_ = keys = jax.random.split(key, self.layers + 1)
            x, keys = dropout(x, self.dropout, key), keys[1:]

        def run(x, block_and_key):
            block, key = block_and_key
            return block(x, encoded, lengths, key=key), None

        x, _ = scan_layers(run, x, self.blocks, keys, shared_layers=1)
        return self.out(self.norm(x))

    def start(
        self,
        encoded: Float[Array, "B T E"],
        lengths: Int[Array, " B"],
        *,
        size: int,
        max_labels: int,
    ) -> DecoderState:
        """Return the state before the first label of `size` sequences of every row."""

        def start(nothing, block_and_none):
            block, _ = block_and_none
            # The label that is read next is not cached yet.
            before = block.attention.start(len(encoded) * size, cache_frames=max_labels)
            return nothing, (before, block.cross_attention.cache(encoded))

        _, (labels, frames) = scan_layers(start, None, self.blocks, None, shared_layers=1)
        return DecoderState(labels, frames, lengths, jnp.int32(0))

    def step(
        self, state: DecoderState, labels: Int[Array, "B K"]
    ) -> tuple[DecoderState, Float[Array, "B K V"]]:
        """Read a label of every sequence, first END_ID; return the logits of the next label."""

        def run(x, block_and_memories):
            block, (before, frames) = block_and_memories
            after, x = block.step(before, x, frames, state.lengths, state.seen)
            return x, after

        x, after = scan_layers(
            run,
            self.embedding(labels),
            self.blocks,
            (state.labels, state.frames),
            shared_layers=1,
        )
        logits = self.out(self.norm(x))
        return state._replace(labels=after, seen=state.seen + 1), logits

    def reorder(self, state: DecoderState, parents: Int[Array, "B K"]) -> DecoderState:
        """Return the state of sequences that extend the `parents`, indices into the K sequences."""
        rows = (jnp.arange(len(parents))[:, None] * parents.shape[1] + parents).reshape(-1)
        return state._replace(labels=jax.tree.map(lambda leaf: leaf[:, rows], state.labels))


class AttentionModel(nnx.Module):
    """Encoder, decoder and optional CTC head with a config's sizes and random parameters."""

    def __init__(self, config: Config, vocabulary_size: int, *, rngs: nnx.Rngs):
        self.encoder = Encoder(config, rngs=rngs)
        self.decoder = AttentionDecoder(config, vocabulary_size, rngs=rngs)
        self.ctc_head = (
            make_ctc_head(config, vocabulary_size, rngs=rngs)
            if config.objective.has_ctc_head
            else None
        )
