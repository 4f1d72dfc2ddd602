"""Self-attention that knows how far frames lie apart, in two ways."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float


def relative_positions(frames: int, width: int) -> Float[Array, "R {width}"]:
    """Sinusoids of the distances frames - 1 down to -(frames - 1): R = 2 frames - 1 rows."""
    distances = jnp.arange(frames - 1, -frames, -1, dtype=jnp.float32)
    rates = jnp.exp(jnp.arange(0, width, 2) * (-jnp.log(10_000.0) / width))
    angles = distances[:, None] * rates
    return jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1).reshape(len(distances), -1)[
        :, :width
    ]


def shift_relative(scores: Float[Array, "B H T R"]) -> Float[Array, "B H T T"]:
    """From scores[t, r] over distances r to scores[t, s] over frames s: r = T - 1 - t + s."""
    *batch, frames, distances = scores.shape
    skewed = jnp.pad(scores, ((0, 0), (0, 0), (0, 0), (1, 0))).reshape(
        *batch, distances + 1, frames
    )
    return skewed[..., 1:, :].reshape(*batch, frames, distances)[..., :frames]


class RelativeAttention(nnx.Module):
    """Norm, multi-head attention over the utterance's own frames, projection (arXiv 1901.02860,
    section 3.3, as the Conformer has it).

    Queries and keys have no bias: the two position-independent vectors of the paper (u and v) stand
    for the former, and a key's bias has no gradient.
    """

    def __init__(self, width: int, *, heads: int, rngs: nnx.Rngs):
        head_width = width // heads
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.query = nnx.Linear(width, width, use_bias=False, rngs=rngs)
        self.key = nnx.Linear(width, width, use_bias=False, rngs=rngs)
        self.value = nnx.Linear(width, width, rngs=rngs)
        self.position = nnx.Linear(width, width, use_bias=False, rngs=rngs)
        self.content_bias = nnx.Param(jnp.zeros((heads, head_width)))
        self.position_bias = nnx.Param(jnp.zeros((heads, head_width)))
        self.out = nnx.Linear(width, width, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        positions: Float[Array, "R D"],
        mask: Bool[Array, "B T"],
    ) -> Float[Array, "B T D"]:
        """`positions` of relative_positions; frames where the mask is False are not seen."""
        heads, head_width = self.content_bias.shape
        split = lambda y: y.reshape(*y.shape[:-1], heads, head_width)
        x = self.norm(x)
        query, key, value = split(self.query(x)), split(self.key(x)), split(self.value(x))
        position = split(self.position(positions))
        by_content = jnp.einsum("bthd,bshd->bhts", query + self.content_bias[...], key)
        by_position = jnp.einsum("bthd,rhd->bhtr", query + self.position_bias[...], position)
        scores = (by_content + shift_relative(by_position)) * head_width**-0.5
        # Finite, so that a row without any frame gives numbers, not NaN.
        scores = jnp.where(mask[:, None, None], scores.astype(jnp.float32), -1e30)
        weights = jax.nn.softmax(scores).astype(value.dtype)
        attended = jnp.einsum("bhts,bshd->bthd", weights, value)
        return self.out(attended.reshape(x.shape))


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

    def __init__(self, width: int, *, heads: int, rngs: nnx.Rngs):
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.query = nnx.Linear(width, width, rngs=rngs)
        self.key = nnx.Linear(width, width, use_bias=False, rngs=rngs)
        self.value = nnx.Linear(width, width, rngs=rngs)
        self.out = nnx.Linear(width, width, rngs=rngs)
        self.heads = heads

    def __call__(
        self, x: Float[Array, "B T D"], positions: None, mask: Bool[Array, "B T"]
    ) -> Float[Array, "B T D"]:
        """Frames where the mask is False are not seen."""
        split = lambda y: y.reshape(*y.shape[:-1], self.heads, -1)
        x = self.norm(x)
        attended = jax.nn.dot_product_attention(
            rotate(split(self.query(x))),
            rotate(split(self.key(x))),
            split(self.value(x)),
            mask=mask[:, None, None],
        )
        return self.out(attended.reshape(x.shape))
