"""Self-attention with relative positions (arXiv 1901.02860, section 3.3), as the Conformer has it."""

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
    """From scores[t, r] over distances r to scores[t, s] over frames s, where r = T - 1 - t + s."""
    *batch, frames, distances = scores.shape
    skewed = jnp.pad(scores, ((0, 0), (0, 0), (0, 0), (1, 0))).reshape(
        *batch, distances + 1, frames
    )
    return skewed[..., 1:, :].reshape(*batch, frames, distances)[..., :frames]


class RelativeAttention(nnx.Module):
    """Norm, multi-head attention over the utterance's own frames, projection.

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
        """`positions` as relative_positions gives them; frames where the mask is False are not seen."""
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
