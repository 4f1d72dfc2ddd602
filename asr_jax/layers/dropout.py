"""Dropout, active exactly when a key is given."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key


def dropout(
    x: Float[Array, "*batch D"], probability: float, key: Key[Array, ""] | None
) -> Float[Array, "*batch D"]:
    """Sets elements to zero with a probability (rounded to 1/256) and rescales the others.

    The generator is most of dropout's cost, so each 32-bit word that it gives serves four elements.
    """
    cut = round(probability * 256)
    if key is None or cut == 0:
        return x
    *batch, width = x.shape
    words = jax.random.bits(key, (*batch, -(-width // 4)), jnp.uint32)
    octets = jax.lax.bitcast_convert_type(words, jnp.uint8).reshape(*batch, -1)[..., :width]
    return jnp.where(octets >= cut, x * (256 / (256 - cut)), 0).astype(x.dtype)
