"""Self-attention that knows how far frames lie apart, in two ways."""

from collections.abc import Callable
from typing import NamedTuple, TypeGuard

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from asr_jax.layers.length import exceeds, frame_mask
from asr_jax.layers.linear import Linear, MakeLinear

# Queries that meet all frames at a time: 20 seconds of speech, as long as LibriSpeech's batches.
BLOCK_FRAMES = 512


def relative_positions(frames: int, width: int) -> Float[Array, "R {width}"]:
    """Sinusoids of the distances frames down to -(frames - 1): R = 2 frames rows.

    The first is no pair's; shift_relative has use for it.
    """
    distances = jnp.arange(frames, -frames, -1, dtype=jnp.float32)
    rates = jnp.exp(jnp.arange(0, width, 2) * (-jnp.log(10_000.0) / width))
    angles = distances[:, None] * rates
    return jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1).reshape(2 * frames, -1)[:, :width]


def shift_relative(scores: Float[Array, "B H Q R"]) -> Float[Array, "B H Q T"]:
    """From scores[q, r] over distances to scores[q, t] over frames: r = Q - q + t, R = Q + T.

    A row of R and a column of T + Q - 1 numbers lie alike in memory, but for the first Q.
    """
    *batch, queries, distances = scores.shape
    skewed = scores.reshape(*batch, distances, queries)[..., 1:, :]
    return skewed.reshape(*batch, queries, distances - 1)[..., : distances - queries]


class Context(NamedTuple):
    """Which frames a frame sees: those of its own chunk, and of some chunks before and after.

    In chunks of one frame: so many frames to either side.
    """

    chunk_frames: int | Int[Array, ""]
    """An array where it is drawn anew for every step; the frames seen are then no static number."""
    left_chunks: int
    right_chunks: int = 0

    def sees(self, queries: Int[Array, " Q"], keys: Int[Array, " T"]) -> Bool[Array, "Q T"]:
        """Frames by their numbers, which may be negative, from the start of any chunk."""
        ahead = queries[:, None] // self.chunk_frames - keys // self.chunk_frames
        return (-self.right_chunks <= ahead) & (ahead <= self.left_chunks)

    def window(self) -> tuple[int, int, int]:
        """Queries that make a block of whole chunks, and what they see before and after it."""
        assert isinstance(self.chunk_frames, int)
        left, right = (n * self.chunk_frames for n in (self.left_chunks, self.right_chunks))
        chunks = -(-max(left, right, BLOCK_FRAMES) // self.chunk_frames)
        return chunks * self.chunk_frames, left, right


def is_windowed(context: Context | None, frames: int) -> TypeGuard[Context]:
    """Whether so many frames attend within windows, rather than to a masked whole."""
    return (
        context is not None
        and isinstance(context.chunk_frames, int)
        and exceeds(frames, BLOCK_FRAMES)
    )


def farthest_frames(frames: int, context: Context | None) -> int:
    """The distance at which the relative_positions of so many frames must begin."""
    if is_windowed(context, frames):
        queries, left, right = context.window()
        return queries + max(left, right)
    return frames


Attend = Callable[..., Float[Array, "B Q H D"]]


def in_blocks(
    attend: Attend,
    query: Float[Array, "B T H D"],
    key: Float[Array, "B T H D"],
    value: Float[Array, "B T H D"],
    lengths: Int[Array, " B"],
    context: Context | None,
) -> Float[Array, "B T H D"]:
    """attend(queries, keys, values, ahead, mask) of what a context lets see: all at once, or where
    there are more than BLOCK_FRAMES queries, one block of neighbouring queries after the other.

    Then scores exist for one block at a time, and are computed once more in the backward pass; of a
    context whose size is known, they exist for the keys within reach alone. `ahead` is how many
    frames the first query lies behind the first key; the mask, [B, 1 or Q, T], says what is seen.
    """
    frames = query.shape[1]
    if is_windowed(context, frames):
        return _in_windows(attend, query, key, value, lengths, context)

    def mask(first, queries, lengths):
        real = frame_mask(lengths, frames)[:, None]
        if context is None:
            return real
        return real & context.sees(first + jnp.arange(queries), jnp.arange(frames))

    if not exceeds(frames, BLOCK_FRAMES):
        return attend(query, key, value, 0, mask(0, frames, lengths))
    blocks = -(-frames // BLOCK_FRAMES)
    size = -(-frames // blocks)

    # Lengths are carried through this loop, and that over the layers: what depends only on things
    # from outside of a loop JAX computes outside, and would keep masks as large as the scores.
    @jax.checkpoint
    def run(lengths, block_and_first):
        block, first = block_and_first
        return lengths, attend(block, key, value, first, mask(first, size, lengths))

    _, attended = jax.lax.scan(run, lengths, (_split(query, size), size * jnp.arange(blocks)))
    return _merge_blocks(attended, frames)


def _in_windows(
    attend: Attend,
    query: Float[Array, "B T H D"],
    key: Float[Array, "B T H D"],
    value: Float[Array, "B T H D"],
    lengths: Int[Array, " B"],
    context: Context,
) -> Float[Array, "B T H D"]:
    frames = query.shape[1]
    size, left, right = context.window()
    seen = context.sees(left + jnp.arange(size), jnp.arange(left + size + right))

    def windows(x):
        before = jnp.pad(x, ((1, 0), *[(0, 0)] * 4))[:-1, :, size - left :]
        after = jnp.pad(x, ((0, 1), *[(0, 0)] * 4))[1:, :, :right]
        return jnp.concatenate([before, x, after], axis=2)

    @jax.checkpoint
    def run(lengths, block):
        query, key, value, first = block
        number = first - left + jnp.arange(key.shape[1])
        real = (number >= 0) & (number < lengths[:, None])
        return lengths, attend(query, key, value, left, real[:, None] & seen)

    query, key, value = (_split(x, size) for x in (query, key, value))
    firsts = size * jnp.arange(len(query))
    _, attended = jax.lax.scan(run, lengths, (query, windows(key), windows(value), firsts))
    return _merge_blocks(attended, frames)


def _split(x: Float[Array, "B T H D"], size: int) -> Float[Array, "N B size H D"]:
    blocks = -(-x.shape[1] // size)
    padded = jnp.pad(x, ((0, 0), (0, blocks * size - x.shape[1]), (0, 0), (0, 0)))
    return jnp.moveaxis(padded.reshape(len(x), blocks, size, *x.shape[2:]), 1, 0)


def _merge_blocks(blocks: Float[Array, "N B Q H D"], frames: int) -> Float[Array, "B {frames} H D"]:
    count, batch, size, *rest = blocks.shape
    return jnp.moveaxis(blocks, 0, 1).reshape(batch, count * size, *rest)[:, :frames]


class KeyValueCache(NamedTuple):
    """What the next chunk's queries see of the chunks before: L = left_chunks * chunk_frames."""

    key: Float[Array, "B L H D"]
    value: Float[Array, "B L H D"]


def attend_next(
    attend: Attend,
    cache: KeyValueCache,
    query: Float[Array, "B C H D"],
    key: Float[Array, "B C H D"],
    value: Float[Array, "B C H D"],
    lengths: Int[Array, " B"],
    seen: Int[Array, " B"],
) -> tuple[KeyValueCache, Float[Array, "B C H D"]]:
    """attend, as in_blocks, of one chunk, of which `lengths` frames are real, after `seen` others.
    The last cache.key.shape[1] of them are kept in the cache."""
    cache_frames, chunk = cache.key.shape[1], query.shape[1]
    key = jnp.concatenate([cache.key, key], axis=1)
    value = jnp.concatenate([cache.value, value], axis=1)
    number = jnp.arange(cache_frames + chunk) - cache_frames
    mask = (number >= -seen[:, None]) & (number < lengths[:, None])
    attended = attend(query, key, value, cache_frames, mask[:, None])
    return KeyValueCache(key[:, chunk:], value[:, chunk:]), attended


class RelativeAttention(nnx.Module):
    """Norm, multi-head attention over the utterance's own frames, projection (arXiv 1901.02860,
    section 3.3, as the Conformer has it).

    Queries and keys have no bias: the two position-independent vectors of the paper (u and v) stand
    for the former, and a key's bias has no gradient.
    """

    def __init__(self, width: int, *, heads: int, linear: MakeLinear = Linear, rngs: nnx.Rngs):
        head_width = width // heads
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.query = linear(width, width, use_bias=False, rngs=rngs)
        self.key = linear(width, width, use_bias=False, rngs=rngs)
        self.value = linear(width, width, rngs=rngs)
        self.position = linear(width, width, use_bias=False, rngs=rngs)
        self.content_bias = nnx.Param(jnp.zeros((heads, head_width)))
        self.position_bias = nnx.Param(jnp.zeros((heads, head_width)))
        self.out = linear(width, width, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        positions: Float[Array, "R D"],
        lengths: Int[Array, " B"],
        context: Context | None = None,
    ) -> Float[Array, "B T D"]:
        """`positions` are relative_positions of at least farthest_frames; frames beyond the lengths
        or out of context are not seen."""
        attended = in_blocks(self._attend(positions), *self._project(x), lengths, context)
        return self.out(attended.reshape(x.shape))

    def start(self, batch: int, *, cache_frames: int) -> KeyValueCache:
        """Of a stream, before its first chunk."""
        zeros = jnp.zeros(
            (batch, cache_frames, *self.content_bias.shape), self.content_bias[...].dtype
        )
        return KeyValueCache(zeros, zeros)

    def step(
        self,
        cache: KeyValueCache,
        x: Float[Array, "B C D"],
        positions: Float[Array, "R D"],
        lengths: Int[Array, " B"],
        seen: Int[Array, " B"],
    ) -> tuple[KeyValueCache, Float[Array, "B C D"]]:
        """The next chunk of a stream, after `seen` frames; positions of cache and chunk."""
        cache, attended = attend_next(
            self._attend(positions), cache, *self._project(x), lengths, seen
        )
        return cache, self.out(attended.reshape(x.shape))

    def _project(self, x):
        x, shape = self.norm(x), (*x.shape[:-1], *self.content_bias.shape)
        query, key, value = self.query(x), self.key(x), self.value(x)
        return query.reshape(shape), key.reshape(shape), value.reshape(shape)

    def _attend(self, positions):
        heads, head_width = self.content_bias.shape
        position = self.position(positions).reshape(-1, heads, head_width)

        def attend(query, key, value, ahead, mask):
            queries, keys = query.shape[1], key.shape[1]
            # The last block may be filled up with queries beyond the end, far from every frame.
            filled = -keys % queries
            near = jax.lax.dynamic_slice_in_dim(
                jnp.pad(position, ((filled, 0), (0, 0), (0, 0))),
                filled + position.shape[0] // 2 - queries - ahead,
                queries + keys,
            )
            # For each utterance, lest the compiler should transpose scores of all distances.
            near = jnp.broadcast_to(near, (query.shape[0], *near.shape))
            by_content = jnp.einsum("bqhd,bthd->bhqt", query + self.content_bias[...], key)
            by_distance = jnp.einsum("bqhd,brhd->bhqr", query + self.position_bias[...], near)
            scores = by_content.astype(jnp.float32) + shift_relative(by_distance)
            # Finite, so that a row without any frame gives numbers, not NaN. Added, not selected:
            # the constant would be kept in the shape of the scores.
            hidden = jnp.where(mask, 0.0, -1e30)[:, None]
            weights = jax.nn.softmax(scores * head_width**-0.5 + hidden).astype(value.dtype)
            return jnp.einsum("bhqt,bthd->bqhd", weights, value)

        return attend


def rotate(x: Float[Array, "B T H D"], first: int | Int[Array, ""] = 0) -> Float[Array, "B T H D"]:
    """Turns channels i and i + D/2 of frame t by (first + t) / 10000^(2i/D) (arXiv 2104.09864)."""
    half = x.shape[-1] // 2
    rates = 10_000.0 ** (-jnp.arange(half) / half)
    angles = ((first + jnp.arange(x.shape[1]))[:, None] * rates)[:, None]
    cos, sin = jnp.cos(angles).astype(x.dtype), jnp.sin(angles).astype(x.dtype)
    first_half, second_half = x[..., :half], x[..., half:]
    return jnp.concatenate(
        [first_half * cos - second_half * sin, first_half * sin + second_half * cos], axis=-1
    )


class RotaryAttention(nnx.Module):
    """The same with rotary positions: the product of a query and a key depends on their distance.

    It needs no scores by position, and so costs about half of the other on a CPU, and can use a
    device's fused attention.
    """

    def __init__(self, width: int, *, heads: int, linear: MakeLinear = Linear, rngs: nnx.Rngs):
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.query = linear(width, width, rngs=rngs)
        self.key = linear(width, width, use_bias=False, rngs=rngs)
        self.value = linear(width, width, rngs=rngs)
        self.out = linear(width, width, rngs=rngs)
        self.heads = heads

    def __call__(
        self,
        x: Float[Array, "B T D"],
        positions: None,
        lengths: Int[Array, " B"],
        context: Context | None = None,
    ) -> Float[Array, "B T D"]:
        """Frames beyond the lengths or out of context are not seen."""
        attended = in_blocks(_attend_rotated, *self._project(x), lengths, context)
        return self.out(attended.reshape(x.shape))

    def start(self, batch: int, *, cache_frames: int) -> KeyValueCache:
        """As RelativeAttention's."""
        scale: Array = self.norm.scale[...]  # pyright: ignore[reportOptionalSubscript]
        head_width = len(scale) // self.heads
        zeros = jnp.zeros((batch, cache_frames, self.heads, head_width), scale.dtype)
        return KeyValueCache(zeros, zeros)

    def step(
        self,
        cache: KeyValueCache,
        x: Float[Array, "B C D"],
        positions: None,
        lengths: Int[Array, " B"],
        seen: Int[Array, " B"],
    ) -> tuple[KeyValueCache, Float[Array, "B C D"]]:
        """As RelativeAttention's. Cached keys are not rotated yet: positions are counted from
        the first key, so that they stay small however long the stream is."""
        cache, attended = attend_next(_attend_rotated, cache, *self._project(x), lengths, seen)
        return cache, self.out(attended.reshape(x.shape))

    def _project(self, x):
        x, shape = self.norm(x), (*x.shape[:-1], self.heads, -1)
        query, key, value = self.query(x), self.key(x), self.value(x)
        return query.reshape(shape), key.reshape(shape), value.reshape(shape)


def _attend_rotated(query, key, value, ahead, mask):
    return jax.nn.dot_product_attention(
        rotate(query, ahead), rotate(key), value, mask=mask[:, None]
    )
