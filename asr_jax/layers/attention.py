"""Self-attention that knows how far frames lie apart, in two ways."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from asr_jax.layers.length import frame_mask
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
    return jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1).reshape(len(distances), -1)[
        :, :width
    ]


def shift_relative(scores: Float[Array, "B H Q R"]) -> Float[Array, "B H Q T"]:
    """From scores[q, r] over distances to scores[q, t] over frames: r = Q - q + t, R = Q + T.

    A row of R and a column of T + Q - 1 numbers lie alike in memory, but for the first Q.
    """
    *batch, queries, distances = scores.shape
    skewed = scores.reshape(*batch, distances, queries)[..., 1:, :]
    return skewed.reshape(*batch, queries, distances - 1)[..., : distances - queries]


def in_blocks(
    attend: Callable[..., Float[Array, "B Q H D"]],
    query: Float[Array, "B T H D"],
    lengths: Int[Array, " B"],
) -> Float[Array, "B T H D"]:
    """attend(block, first, lengths) of blocks of neighbouring queries, the first being frame
    `first`: all at once, or where there are more than BLOCK_FRAMES, one block after the other.

    Then scores exist for one block at a time, and are computed once more in the backward pass.
    """
    frames = query.shape[1]
    blocks = -(-frames // BLOCK_FRAMES)
    if blocks == 1:
        return attend(query, 0, lengths)
    size = -(-frames // blocks)
    padded = jnp.pad(query, ((0, 0), (0, blocks * size - frames), (0, 0), (0, 0)))
    apart = jnp.moveaxis(padded.reshape(len(query), blocks, size, *query.shape[2:]), 1, 0)

    # Lengths are carried through this loop, and that over the layers: what depends only on things
    # from outside of a loop JAX computes outside, and would keep masks as large as the scores.
    @jax.checkpoint
    def run(lengths, block_and_first):
        return lengths, attend(*block_and_first, lengths)

    _, attended = jax.lax.scan(run, lengths, (apart, size * jnp.arange(blocks)))
    return jnp.moveaxis(attended, 0, 1).reshape(padded.shape)[:, :frames]


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
    ) -> Float[Array, "B T D"]:
        """`positions` of relative_positions; frames beyond the lengths are not seen."""
        heads, head_width = self.content_bias.shape
        split = lambda y: y.reshape(*y.shape[:-1], heads, head_width)
        x = self.norm(x)
        query, key, value = split(self.query(x)), split(self.key(x)), split(self.value(x))
        position = split(self.position(positions))
        frames = x.shape[1]

        def attend(query, first, lengths):
            queries = query.shape[1]
            # The last block may be filled up with queries beyond the end, far from every frame.
            filled = -frames % queries
            near = jax.lax.dynamic_slice_in_dim(
                jnp.pad(position, ((filled, 0), (0, 0), (0, 0))),
                filled + frames - queries - first,
                queries + frames,
            )
            # For each utterance, lest the compiler should transpose scores of all distances.
            near = jnp.broadcast_to(near, (len(query), *near.shape))
            by_content = jnp.einsum("bqhd,bthd->bhqt", query + self.content_bias[...], key)
            by_distance = jnp.einsum("bqhd,brhd->bhqr", query + self.position_bias[...], near)
            scores = by_content.astype(jnp.float32) + shift_relative(by_distance)
            # Finite, so that a row without any frame gives numbers, not NaN. Added, not selected:
            # the constant would be kept in the shape of the scores.
            hidden = jnp.where(frame_mask(lengths, frames), 0.0, -1e30)[:, None, None]
            weights = jax.nn.softmax(scores * head_width**-0.5 + hidden).astype(value.dtype)
            return jnp.einsum("bhqt,bthd->bqhd", weights, value)

        return self.out(in_blocks(attend, query, lengths).reshape(x.shape))


def rotate(x: Float[Array, "B T H D"]) -> Float[Array, "B T H D"]:
    """Turns channels i and i + D/2 of frame t by t / 10000^(2i/D) (arXiv 2104.09864)."""
    half = x.shape[-1] // 2
    rates = 10_000.0 ** (-jnp.arange(half) / half)
    angles = (jnp.arange(x.shape[1])[:, None] * rates)[:, None]
    cos, sin = jnp.cos(angles).astype(x.dtype), jnp.sin(angles).astype(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return jnp.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1)


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
        self, x: Float[Array, "B T D"], positions: None, lengths: Int[Array, " B"]
    ) -> Float[Array, "B T D"]:
        """Frames beyond the lengths are not seen."""
        split = lambda y: y.reshape(*y.shape[:-1], self.heads, -1)
        x = self.norm(x)
        query, key = rotate(split(self.query(x))), rotate(split(self.key(x)))
        value = split(self.value(x))

        def attend(query, _, lengths):
            return jax.nn.dot_product_attention(query, key, value, key_value_seq_lengths=lengths)

        return self.out(in_blocks(attend, query, lengths).reshape(x.shape))
