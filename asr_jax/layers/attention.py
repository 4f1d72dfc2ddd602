"""Self-attention with relative or rotary positions."""

from collections.abc import Callable
from typing import NamedTuple, TypeGuard

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from asr_jax.layers.length import exceeds, frame_mask
from asr_jax.layers.linear import Linear, MakeLinear
from asr_jax.layers.norm import MakeNorm

# Queries in a block: 20 seconds of speech, enough for a LibriSpeech utterance in one block.
BLOCK_FRAMES = 512


def relative_positions(frames: int, width: int) -> Float[Array, "R {width}"]:
    """Return sinusoids of the distances from `frames` down to -(frames - 1): R = 2 frames rows.

    No pair of frames has the first distance; `shift_relative` needs its row.
    """
    distances = jnp.arange(frames, -frames, -1, dtype=jnp.float32)
    rates = jnp.exp(jnp.arange(0, width, 2) * (-jnp.log(10_000.0) / width))
    angles = distances[:, None] * rates
    return jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1).reshape(2 * frames, -1)[:, :width]


def shift_relative(scores: Float[Array, "B H Q R"]) -> Float[Array, "B H Q T"]:
    """Turn scores[q, r] over distances into scores[q, t] over frames: r = Q - q + t, R = Q + T.

    A reshape does it: without the first Q numbers, rows of length R - 1 begin one distance later
    than rows of length R.
    """
    *batch, queries, distances = scores.shape
    skewed = scores.reshape(*batch, distances, queries)[..., 1:, :]
    return skewed.reshape(*batch, queries, distances - 1)[..., : distances - queries]


class Context(NamedTuple):
    """The frames that a frame sees: its own chunk and a number of chunks before and after.

    With chunks of one frame, the numbers of chunks are numbers of frames.
    """

    chunk_frames: int | Int[Array, ""]
    """Size of a chunk; an array if every step draws another size, so that it is not static."""
    left_chunks: int | Int[Array, ""]
    right_chunks: int = 0

    def sees(self, queries: Int[Array, " Q"], keys: Int[Array, " T"]) -> Bool[Array, "Q T"]:
        """Return which keys the queries see; frame numbers count from the start of any chunk."""
        ahead = queries[:, None] // self.chunk_frames - keys // self.chunk_frames
        return (-self.right_chunks <= ahead) & (ahead <= self.left_chunks)

    def window(self) -> tuple[int, int, int]:
        """Return the queries of a block of whole chunks, and the frames it sees on either side."""
        assert isinstance(self.chunk_frames, int) and isinstance(self.left_chunks, int)
        left, right = (n * self.chunk_frames for n in (self.left_chunks, self.right_chunks))
        chunks = -(-max(left, right, BLOCK_FRAMES) // self.chunk_frames)
        return chunks * self.chunk_frames, left, right


def is_windowed(context: Context | None, frames: int) -> TypeGuard[Context]:
    """Return True if attention over `frames` runs in windows, False if it masks all frames."""
    return (
        context is not None
        and isinstance(context.chunk_frames, int)
        and exceeds(frames, BLOCK_FRAMES)
    )


def farthest_frames(frames: int, context: Context | None) -> int:
    """Return the `frames` of `relative_positions` that attention over `frames` needs."""
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
    """Apply attend(queries, keys, values, ahead, mask) to all queries, in blocks if they are many.

    More than BLOCK_FRAMES queries are processed in blocks of neighbors. Scores then exist for one
    block at a time, and are recomputed in the backward pass; with a context of static size, they
    exist only for the keys within reach. `ahead` is the number of frames from the first key to the
    first query; the mask, [B, 1 or Q, T], is True for keys that a query sees.
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

    # Lengths are carried through this loop and the loop over layers. JAX would hoist masks that
    # depend only on values from outside a loop, and keep masks as large as the scores.
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
    """Attend in windows: each block of queries sees only its own frames and those within reach."""
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
    """Keys and values of the L = left_chunks * chunk_frames frames before the next chunk."""

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
    """Apply attend, as `in_blocks` does, to a stream's next chunk; also return the next cache.

    The chunk has `lengths` real frames and follows `seen` others. The cache keeps its size.
    """
    cache_frames, chunk = cache.key.shape[1], query.shape[1]
    key = jnp.concatenate([cache.key, key], axis=1)
    value = jnp.concatenate([cache.value, value], axis=1)
    number = jnp.arange(cache_frames + chunk) - cache_frames
    mask = (number >= -seen[:, None]) & (number < lengths[:, None])
    attended = attend(query, key, value, cache_frames, mask[:, None])
    return KeyValueCache(key[:, chunk:], value[:, chunk:]), attended


class RelativeAttention(nnx.Module):
    """Norm, multi-head self-attention with relative positions, projection.

    Scores are those of arXiv 1901.02860, section 3.3, as in the Conformer.
    Queries and keys have no bias: the paper's position-independent vectors u and v replace the
    former, and the latter would have no gradient.
    """

    def __init__(
        self,
        width: int,
        *,
        heads: int,
        linear: MakeLinear = Linear,
        norm: MakeNorm = nnx.LayerNorm,
        rngs: nnx.Rngs,
    ):
        head_width = width // heads
        self.norm = norm(width, rngs=rngs)
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
        """Attend to the frames within the lengths and the context.

        Args:
            positions: `relative_positions` of at least `farthest_frames`.
        """
        attended = in_blocks(self._attend(positions), *self._project(x), lengths, context)
        return self.out(attended.reshape(x.shape))

    def start(self, batch: int, *, cache_frames: int) -> KeyValueCache:
        """Return the cache of a stream before its first chunk."""
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
        """Attend in a stream's next chunk, after `seen` frames; positions cover cache and chunk."""
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
            # Padding queries of the last block are farther from every frame than any real one.
            filled = -keys % queries
            near = jax.lax.dynamic_slice_in_dim(
                jnp.pad(position, ((filled, 0), (0, 0), (0, 0))),
                filled + position.shape[0] // 2 - queries - ahead,
                queries + keys,
            )
            # One copy per utterance; otherwise XLA transposes the scores of all distances.
            near = jnp.broadcast_to(near, (query.shape[0], *near.shape))
            by_content = jnp.einsum("bqhd,bthd->bhqt", query + self.content_bias[...], key)
            by_distance = jnp.einsum("bqhd,brhd->bhqr", query + self.position_bias[...], near)
            scores = by_content.astype(jnp.float32) + shift_relative(by_distance)
            # Finite, so that a row without frames gives numbers, not NaN. Added, not selected:
            # jnp.where would keep a constant of the scores' shape for the backward pass.
            hidden = jnp.where(mask, 0.0, -1e30)[:, None]
            weights = jax.nn.softmax(scores * head_width**-0.5 + hidden).astype(value.dtype)
            return jnp.einsum("bhqt,bthd->bqhd", weights, value)

        return attend


def rotate(x: Float[Array, "B T H D"], first: int | Int[Array, ""] = 0) -> Float[Array, "B T H D"]:
    """Rotate channels i and i + D/2 of frame t by (first + t) / 10000^(2i/D) (arXiv 2104.09864)."""
    half = x.shape[-1] // 2
    rates = 10_000.0 ** (-jnp.arange(half) / half)
    angles = ((first + jnp.arange(x.shape[1]))[:, None] * rates)[:, None]
    cos, sin = jnp.cos(angles).astype(x.dtype), jnp.sin(angles).astype(x.dtype)
    first_half, second_half = x[..., :half], x[..., half:]
    return jnp.concatenate(
        [first_half * cos - second_half * sin, first_half * sin + second_half * cos], axis=-1
    )


class RotaryAttention(nnx.Module):
    """Norm, multi-head self-attention with rotary positions, projection.

    The product of a query and a key depends on their distance. Without separate scores by position
    it costs about half as much as RelativeAttention on a CPU, and can use fused attention kernels.
    """

    def __init__(
        self,
        width: int,
        *,
        heads: int,
        linear: MakeLinear = Linear,
        norm: MakeNorm = nnx.LayerNorm,
        rngs: nnx.Rngs,
    ):
        self.norm = norm(width, rngs=rngs)
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
        """Attend to the frames within the lengths and the context."""
        attended = in_blocks(_attend_rotated, *self._project(x), lengths, context)
        return self.out(attended.reshape(x.shape))

    def start(self, batch: int, *, cache_frames: int) -> KeyValueCache:
        """Return the cache of a stream before its first chunk."""
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
        """Attend in a stream's next chunk, after `seen` frames.

        Cached keys are not rotated: positions count from the first key of the cache, so that they
        stay small in a long stream.
        """
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
