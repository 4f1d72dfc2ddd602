"""The real cells of a batch, as a list of tiles.

About half of a padded batch's B * T * (U + 1) cells are beyond their utterance's lengths. So only
tiles of `frames` x `cells` (cells: label positions 0..U) that cover each utterance's own
T_b * (U_b + 1) cells are computed. Loops take a few tiles per step, and as many steps as the actual
lengths need. Shapes are static: the list has room for the whole padded batch.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree, Shaped


class Tile(NamedTuple):
    """Frames and cells of one tile, and the number of tiles per step."""

    frames: int
    cells: int
    per_step: int


class Tiles(NamedTuple):
    """A batch's tiles, by utterance, then frames, then cells; only the first `count` of N are real.

    A tile is a block of `encoded` together with a block of `predicted`. Blocks are numbered through
    the padded batch, as are the M blocks of a plane. slot: position in the list of each block of a
    plane, N if it is not listed.
    """

    encoded_block: Int[Array, " N"]
    predicted_block: Int[Array, " N"]
    plane_block: Int[Array, " N"]
    slot: Int[Array, " M"]
    count: Int[Array, ""]


def choose_tile(
    batch: int,
    frames: int,
    cells: int,
    width: int,
    vocabulary: int,
    *,
    itemsize: int,
    shards: int,
    chunk_frames: int | None,
) -> Tile:
    """Return even tiles of at most 16 frames x 8 cells, which the longest utterance fills.

    A step takes tiles of each of the batch's shards, which together have as many cells as
    `chunk_frames` frames of the padded batch. None: as many as matrix products need for full speed.
    On a CPU these are 2 MB of logits or hidden states, which stay in its caches; on other devices
    16 MB for each shard, assuming one shard per device.
    """
    batch //= shards
    even = lambda size, most: -(-size // -(-size // most)) if size else 1
    tile_frames, tile_cells = even(frames, 16), even(cells, 8)
    if chunk_frames is None:
        size = 2**21 // shards if _platform() == "cpu" else 2**24
        rows = size // (itemsize * max(vocabulary, width))
    else:
        rows = chunk_frames * batch * cells
    room = batch * -(-frames // tile_frames) * -(-cells // tile_cells)
    return Tile(tile_frames, tile_cells, even(room, max(1, rows // (tile_frames * tile_cells))))


def _platform() -> str:
    """Return the platform of the mesh in use, or else the default backend."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def choose_kernel_tile(
    batch: int, frames: int, cells: int, vocabulary: int, chunk_frames: int | None
) -> Tile:
    """Return the tiles of `_mosaic_gpu`, 64 frames x 1 cell, an even number per step.

    chunk_frames None: about 32 million logits (64 MB in bfloat16), in full waves of two tiles for
    each of the 132 multiprocessors of a Hopper GPU.
    """
    room = batch * -(-frames // 64) * cells
    if chunk_frames is None:
        wave = 2 * 132
        per_step = wave * max(1, 2**25 // (64 * wave * vocabulary))
    else:
        per_step = -(-chunk_frames * batch * cells // 64)
    return Tile(64, 1, 2 * -(-min(per_step, room) // 2))


def list_tiles(
    frame_lengths: Int[Array, " B"],
    cell_lengths: Int[Array, " B"],
    frames: int,
    cells: int,
    tile: Tile,
) -> Tiles:
    """Return the tiles of a batch padded to these frames and cells; none for lengths of zero."""
    across, down = -(-frames // tile.frames), -(-cells // tile.cells)
    rows, columns = -(-frame_lengths // tile.frames), -(-cell_lengths // tile.cells)
    ends = jnp.cumsum(rows * columns)
    starts = ends - rows * columns
    room = len(ends) * across * down
    index = jnp.arange(-(-room // tile.per_step) * tile.per_step)
    # The number of utterances that end at or before each tile.
    utterance = jnp.cumsum(jnp.zeros_like(index).at[ends].add(1, mode="drop"))
    utterance = jnp.minimum(utterance, len(ends) - 1)
    row, column = jnp.divmod(index - starts[utterance], jnp.maximum(columns[utterance], 1))
    exists = index < ends[-1]
    encoded = jnp.where(exists, utterance * across + row, 0)
    predicted = jnp.where(exists, utterance * down + column, 0)
    plane = jnp.where(exists, (utterance * across + row) * down + column, 0)

    row, column = jnp.arange(across)[:, None], jnp.arange(down)
    rows, columns, starts = (x[:, None, None] for x in (rows, columns, starts))
    slot = jnp.where((row < rows) & (column < columns), starts + row * columns + column, len(index))
    return Tiles(encoded, predicted, plane, slot.reshape(-1), ends[-1])


def with_cotangents(
    packed: PyTree[Shaped[Array, "N ..."]], negligible: Float[Array, " N"]
) -> tuple[Int[Array, " N"], Int[Array, ""]]:
    """Return an order of the tiles that starts with those that have a cotangent, and their number.

    Occupancies are zero wherever no alignment is probable enough for float32; with a trained model
    that is nearly everywhere. Such tiles contribute nothing to any gradient. A tile has a cotangent
    if any of its cotangents exceeds its `negligible`, or is NaN.
    """

    def matters(x):
        limit = negligible.reshape(-1, *[1] * (x.ndim - 1))
        return jnp.any(~(jnp.abs(x) <= limit), axis=range(1, x.ndim))

    given = jnp.stack([matters(x) for x in jax.tree.leaves(packed) if x.size]).any(0)
    return jnp.argsort(~given, stable=True), given.sum()


def to_blocks(rows: Shaped[Array, "B L ..."], size: int) -> Shaped[Array, "blocks size ..."]:
    """Cut each utterance's rows into blocks of `size`, padded with zeros."""
    batch, length, *rest = rows.shape
    count = -(-length // size)
    rows = jnp.pad(rows, [(0, 0), (0, count * size - length)] + [(0, 0)] * len(rest))
    return rows.reshape(batch * count, size, *rest)


def from_blocks(
    blocks: Shaped[Array, "blocks size ..."], batch: int, length: int
) -> Shaped[Array, "B L ..."]:
    """Return the rows that `to_blocks` has cut, without its padding."""
    count, size, *rest = blocks.shape
    return blocks.reshape(batch, count // batch * size, *rest)[:, :length]


def pack(
    plane: Shaped[Array, "B T U1 ..."], tiles: Tiles, tile: Tile
) -> Shaped[Array, "N rows ..."]:
    """Return a plane in the list's order; tiles that are not real are zero.

    A tile's rows are one axis, usually of length 128, to which TPUs pad the last axis.
    """
    blocks = to_blocks(plane, tile.frames)  # [B * across, frames, U1]
    blocks = to_blocks(jnp.moveaxis(blocks, 2, 1), tile.cells)  # [M, cells, frames]
    index = jnp.where(
        jnp.arange(len(tiles.plane_block)) < tiles.count, tiles.plane_block, len(blocks)
    )
    packed = jnp.moveaxis(blocks, 2, 1).reshape(
        len(blocks), tile.frames * tile.cells, *blocks.shape[3:]
    )
    return packed.at[index].get(mode="fill", fill_value=0)


def unpack(
    packed: Shaped[Array, "N rows ..."],
    tiles: Tiles,
    tile: Tile,
    batch: int,
    frames: int,
    cells: int,
) -> Shaped[Array, "B T U1 ..."]:
    """Return the plane that `pack` has packed; cells outside every tile are zero."""
    blocks = packed.at[tiles.slot].get(mode="fill", fill_value=0)
    blocks = blocks.reshape(len(blocks), tile.frames, tile.cells, *blocks.shape[2:])
    blocks = jnp.moveaxis(blocks, 2, 1)
    across = -(-frames // tile.frames)
    blocks = from_blocks(blocks, batch * across, cells)
    return from_blocks(jnp.moveaxis(blocks, 2, 1), batch, frames)
