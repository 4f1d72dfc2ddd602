"""Attention from labels to encoded frames, and the decoder block that contains it."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from asr_jax.layers.attention import Context, KeyValueCache, RotaryAttention
from asr_jax.layers.dropout import dropout
from asr_jax.layers.feedforward import FeedForward
from asr_jax.layers.length import frame_mask
from asr_jax.layers.linear import Linear


class CrossAttention(nnx.Module):
    """Norm, multi-head attention over another sequence, projection (arXiv 1706.03762)."""

    def __init__(self, width: int, memory_width: int, *, heads: int, rngs: nnx.Rngs):
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.query = Linear(width, width, rngs=rngs)
        self.key = Linear(memory_width, width, use_bias=False, rngs=rngs)
        self.value = Linear(memory_width, width, rngs=rngs)
        self.out = Linear(width, width, rngs=rngs)
        self.heads = heads

    def cache(self, encoded: Float[Array, "B T E"]) -> KeyValueCache:
        """Return the keys and values of a sequence, which all queries share."""
        return KeyValueCache(self._split(self.key(encoded)), self._split(self.value(encoded)))

    def __call__(
        self, x: Float[Array, "B Q D"], cache: KeyValueCache, lengths: Int[Array, " B"]
    ) -> Float[Array, "B Q D"]:
        """Attend to the frames within the lengths. Queries do not see each other."""
        seen = frame_mask(lengths, cache.key.shape[1])[:, None, None]
        query = self._split(self.query(self.norm(x)))
        attended = jax.nn.dot_product_attention(query, cache.key, cache.value, mask=seen)
        return self.out(attended.reshape(x.shape))

    def _split(self, x: Float[Array, "B T D"]) -> Float[Array, "B T H W"]:
        return x.reshape(*x.shape[:-1], self.heads, -1)


class DecoderBlock(nnx.Module):
    """Attention to the labels so far, attention to the encoded frames, feed-forward, each after a
    norm (arXiv 1706.03762, 2002.04745); label positions are rotary (2104.09864)."""

    def __init__(
        self,
        width: int,
        encoder_width: int,
        *,
        heads: int,
        feedforward_factor: int,
        dropout: float,
        rngs: nnx.Rngs,
    ):
        self.attention = RotaryAttention(width, heads=heads, rngs=rngs)
        self.cross_attention = CrossAttention(width, encoder_width, heads=heads, rngs=rngs)
        self.feedforward = FeedForward(width, factor=feedforward_factor, rngs=rngs)
        self.dropout = dropout

    def __call__(
        self,
        x: Float[Array, "B U D"],
        encoded: Float[Array, "B T E"],
        lengths: Int[Array, " B"],
        *,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "B U D"]:
        """Process all labels at once. A label sees neither later labels nor padding frames."""
        keys = [None] * 3 if key is None else jax.random.split(key, 3)
        drop = functools.partial(dropout, probability=self.dropout)
        labels = jnp.full(len(x), x.shape[1])
        # Chunks of one label and none later. The size is an array, so that no windows are cut.
        earlier = Context(jnp.int32(1), left_chunks=x.shape[1])
        x = x + drop(self.attention(x, None, labels, earlier), key=keys[0])
        cache = self.cross_attention.cache(encoded)
        x = x + drop(self.cross_attention(x, cache, lengths), key=keys[1])
        return x + drop(self.feedforward(x), key=keys[2])

    def step(
        self,
        before: KeyValueCache,
        x: Float[Array, "B K D"],
        cache: KeyValueCache,
        lengths: Int[Array, " B"],
        seen: Int[Array, ""],
    ) -> tuple[KeyValueCache, Float[Array, "B K D"]]:
        """Process the next label of K sequences per row, after `seen` others.

        Args:
            before: cache of `attention`, with B K rows.
            cache: cache of `cross_attention`, with B rows.
        """
        single = x.reshape(-1, 1, x.shape[2])
        ones = jnp.ones(len(single), jnp.int32)
        before, attended = self.attention.step(before, single, None, ones, seen * ones)
        x = x + attended.reshape(x.shape)
        x = x + self.cross_attention(x, cache, lengths)
        return before, x + self.feedforward(x)
