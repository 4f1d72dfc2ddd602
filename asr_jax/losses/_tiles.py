"""The cells that exist, as a list of tiles.

Of a padded batch's B * T * (U + 1) cells about half lie beyond their utterance's lengths. So what
is computed is a list of tiles of `frames` x `cells` (cells: label positions 0..U), cut from each
utterance's own T_b * (U_b + 1); loops take a few tiles a step, and as many steps as the lengths at
hand ask for. Shapes stay static: the list has room for the whole padded batch.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree, Shaped


class Tile(NamedTuple):
    """Frames and cells of one tile, and how many tiles a step takes."""

    frames: int
    cells: int
    per_step: int


class Tiles(NamedTuple):
    """A batch's tiles, by utterance, then frames, then cells; the first `count` of N exist.

    A tile is where a block of `encoded` meets one of `predicted`; blocks are numbered through the
    padded batch, as are a plane's M blocks of both. slot: where in the list a plane's block stands,
    or N.
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
    """Tiles of at most 16 frames x 8 cells, evened out so that the longest utterance fills them.

    A step takes tiles of each of the batch's shards; together these have as many rows as
    `chunk_frames` frames of the padded batch. None: as many as products need to run at full speed.
    On a CPU that is 2 MB of logits or hidden states, which stay in its caches; elsewhere 16 MB for
    each shard, which is taken to be a device's.
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
    """Of the devices that are traced for, where a mesh in use says so; else of those at hand."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def choose_kernel_tile(
    batch: int, frames: int, cells: int, vocabulary: int, chunk_frames: int | None
) -> Tile:
    """The tiles of `_mosaic_gpu`, 64 frames x 1 cell; a step has an even number of them.

    None: about 32 million logits (64 MB in bfloat16), in whole waves of two tiles for each of the
    132 multiprocessors of a Hopper GPU.
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
    """The tiles of a batch padded to these frames and cells. A length of zero has none."""
    across, down = -(-frames // tile.frames), -(-cells // tile.cells)
    rows, columns = -(-frame_lengths // tile.frames), -(-cell_lengths // tile.cells)
    ends = jnp.cumsum(rows * columns)
    starts = ends - rows * columns
    room = len(ends) * across * down
    index = jnp.arange(-(-room // tile.per_step) * tile.per_step)
    # How many utterances end at or before each tile.
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
    """The list's order with those tiles first that have a cotangent, and how many these are.

    Where no alignment that matters in float32 passes, occupancies are zero; with a trained model
    that is nearly everywhere. Such tiles add nothing to any gradient. A tile has one if any of its
    cotangents is larger than its `negligible`, or NaN.
    """

    def matters(x):
        limit = negligible.reshape(-1, *[1] * (x.ndim - 1))
        return jnp.any(~(jnp.abs(x) <= limit), axis=range(1, x.ndim))

    given = jnp.stack([matters(x) for x in jax.tree.leaves(packed) if x.size]).any(0)
    return jnp.argsort(~given, stable=True), given.sum()


def to_blocks(rows: Shaped[Array, "B L ..."], size: int) -> Shaped[Array, "blocks size ..."]:
    """Each utterance's rows in blocks of `size`; rows added at the end are zero."""
    batch, length, *rest = rows.shape
    count = -(-length // size)
    rows = jnp.pad(rows, [(0, 0), (0, count * size - length)] + [(0, 0)] * len(rest))
    return rows.reshape(batch * count, size, *rest)


def from_blocks(
    blocks: Shaped[Array, "blocks size ..."], batch: int, length: int
) -> Shaped[Array, "B L ..."]:
    """The inverse."""
    count, size, *rest = blocks.shape
    return blocks.reshape(batch, count // batch * size, *rest)[:, :length]


def pack(
    plane: Shaped[Array, "B T U1 ..."], tiles: Tiles, tile: Tile
) -> Shaped[Array, "N rows ..."]:
    """A plane in the list's order; tiles that do not exist are zero.

    A tile's rows are one axis: TPUs pad the last one to 128, which they then are.
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
    """The inverse; cells outside every tile are zero."""
    blocks = packed.at[tiles.slot].get(mode="fill", fill_value=0)
    blocks = blocks.reshape(len(blocks), tile.frames, tile.cells, *blocks.shape[2:])
    blocks = jnp.moveaxis(blocks, 2, 1)
    across = -(-frames // tile.frames)
    blocks = from_blocks(blocks, batch * across, cells)
    return from_blocks(jnp.moveaxis(blocks, 2, 1), batch, frames)
