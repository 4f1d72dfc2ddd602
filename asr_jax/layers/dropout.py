"""Dropout, active exactly when a key is passed."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, UInt32


def dropout(
    x: Float[Array, "*batch D"], probability: float, key: Key[Array, ""] | None
) -> Float[Array, "*batch D"]:
    """Set elements to zero with a probability (rounded to 1/256) and rescale the others.

    JAX's random generator would be most of dropout's cost, and half of the encoder's compile time
    on a CPU. Instead, the key seeds a hash of each element's position, and each 32-bit hash serves
    four elements. Like JAX's generator, it runs on the device that holds the element, and gives the
    same result on any mesh.
    """
    cut = round(probability * 256)
    if key is None or cut == 0:
        return x
    *batch, width = x.shape
    words = _hashed_positions((*batch, -(-width // 4)), key)
    octets = jax.lax.bitcast_convert_type(words, jnp.uint8).reshape(*batch, -1)[..., :width]
    return jnp.where(octets >= cut, x * (256 / (256 - cut)), 0).astype(x.dtype)


def _hashed_positions(shape: tuple[int, ...], key: Key[Array, ""]) -> UInt32[Array, "..."]:
    """Hash position and key with Murmur3's finalizer, in which every input bit affects all bits.

    It is applied twice, each time with another word of the key, so that the masks of two keys are
    not shifted copies of each other.
    """
    first, second = jax.random.bits(key, (2,), jnp.uint32)
    position = jnp.zeros(shape, jnp.uint32)
    for axis in range(len(shape)):
        stride = jnp.uint32(math.prod(shape[axis + 1 :]) % 2**32)
        position += jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * stride
    return _mix(_mix(position ^ first) + second)


def _mix(h: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
    return h ^ (h >> 16)
