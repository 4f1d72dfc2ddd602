"""Dropout between the joint's activation and its output layer, without a 4-D mask.

A hash of utterance, frame, label position and channel decides which hidden states are zero. A tile
computes the hash of its own cells only, and computes it again in the backward pass, so that no mask
is stored, and every tiling has the same one, and under jit every mesh.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Key, UInt32


class CellHashes(NamedTuple):
    """The random parts of the hashes of all cells; a cell's is the sum of its frame's and label's.

    frames: hash of utterance and frame.
    cells: hash of the label position.

    Both are None without dropout.
    """

    frames: UInt32[Array, "*B T"] | None = None
    cells: UInt32[Array, "*B U1"] | None = None


def cell_hashes(
    key: Key[Array, ""] | None, batch: int, frames: int, cells: int, *, dropout: float
) -> CellHashes:
    """Return hashes that do not depend on the sizes; empty ones without a key or dropout."""
    if key is None or dropped_of_256(dropout) == 0:
        return CellHashes()
    utterance_seed, frame_seed, cell_seed = jax.random.bits(key, (3,), jnp.uint32)
    of_utterances, of_frames, of_cells = (
        _mix(jnp.arange(size, dtype=jnp.uint32) + seed)
        for size, seed in ((batch, utterance_seed), (frames, frame_seed), (cells, cell_seed))
    )
    of_cells = jnp.broadcast_to(of_cells, (batch, cells))
    return CellHashes(_mix(of_frames + of_utterances[:, None]), of_cells)


def dropout_scales(
    hashes: CellHashes, width: int, probability: float
) -> Float32[Array, "*B T U1 D"] | float:
    """Return the factors of hidden states, 0 or 1 / (1 - probability), or 1 without hashes.

    The probability is rounded to 1/256, and each 32-bit hash serves four channels.
    """
    if hashes.frames is None or hashes.cells is None:
        return 1.0
    channels = jnp.arange(-(-width // 4), dtype=jnp.uint32) * jnp.uint32(0x9E3779B9)
    cells = hashes.frames[..., :, None] + hashes.cells[..., None, :]
    words = _mix(cells[..., None] + channels)
    octets = jax.lax.bitcast_convert_type(words, jnp.uint8).reshape(*cells.shape, -1)[..., :width]
    cut = dropped_of_256(probability)
    return jnp.where(octets >= cut, jnp.float32(256 / (256 - cut)), 0)


def dropped_of_256(probability: float) -> int:
    """Return how many of 256 equally probable values set a hidden state to zero."""
    return round(probability * 256)


def _mix(h: UInt32[Array, "*N"]) -> UInt32[Array, "*N"]:
    """Return Murmur3's finalizer of h, in which every input bit affects all bits."""
    h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
    return h ^ (h >> 16)
