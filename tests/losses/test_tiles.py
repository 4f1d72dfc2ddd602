"""The list of tiles covers every real cell, with few tiles more than needed."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asr_jax.losses import transducer_loss
from asr_jax.losses._tiles import Tile, choose_tile, list_tiles, pack, unpack, with_cotangents

FRAMES, CELLS = 37, 13
LENGTHS = [37, 1, 0, 16, 17], [13, 5, 0, 4, 1]


@pytest.mark.parametrize("tile", [Tile(16, 4, 3), Tile(1, 1, 7), Tile(37, 13, 1), Tile(8, 5, 100)])
def test_tiles_cover_the_lengths_and_unpack_what_they_pack(tile):
    rows, columns = (np.array(x) for x in LENGTHS)
    listed = jax.jit(partial(list_tiles, frames=FRAMES, cells=CELLS, tile=tile))
    tiles = listed(*map(jnp.array, LENGTHS))
    assert tiles.count == sum(-(-rows // tile.frames) * -(-columns // tile.cells))
    assert len(tiles.plane_block) % tile.per_step == 0
    plane = jnp.asarray(np.random.default_rng(0).normal(size=(5, FRAMES, CELLS)), jnp.float32)
    packed = jax.jit(partial(pack, tile=tile))(plane, tiles)
    assert not packed[int(tiles.count) :].any()
    back = np.asarray(unpack(packed, tiles, tile, 5, FRAMES, CELLS))
    for b, (row, column) in enumerate(zip(rows, columns)):
        np.testing.assert_array_equal(back[b, :row, :column], plane[b, :row, :column])


def test_padding_is_not_computed():
    """Tiles have hardly more cells than the utterances, for any amount of padding."""
    lengths = jnp.array([400, 210, 333]), jnp.array([90, 47, 61])

    def tiles_computed(frames, cells):
        tile = choose_tile(3, frames, cells, 8, 8, itemsize=4, shards=1, chunk_frames=None)
        tiles = jax.jit(partial(list_tiles, frames=frames, cells=cells, tile=tile))(*lengths)
        return int(tiles.count) * tile.frames * tile.cells

    cells = int(lengths[0] @ lengths[1])
    assert cells <= tiles_computed(400, 90) < 1.1 * cells
    assert cells <= tiles_computed(1600, 360) < 1.1 * cells


def test_tiles_without_cotangents_come_last_and_are_not_counted():
    planes = jnp.zeros((2, 5, 3)).at[0, 3, 1].set(-2.0).at[1, 1, 0].set(jnp.nan)
    planes = planes.at[0, 4, 2].set(1e-10)
    find = lambda negligible: jax.jit(with_cotangents)(tuple(planes), jnp.full(5, negligible))
    order, count = find(0.0)
    assert (order.tolist(), int(count)) == ([1, 3, 4, 0, 2], 3)
    order, count = find(1e-9)
    assert (order.tolist(), int(count)) == ([1, 3, 0, 2, 4], 2)


def test_a_batch_without_cells_takes_no_steps():
    """NaN weights do not affect the gradient, as nothing is computed from them."""
    zeros = jnp.zeros
    rest = None, zeros((2, 8), int)

    @jax.jit
    def gradient(frame_lengths):
        lengths = frame_lengths, jnp.array([8, 3])
        loss = lambda k: transducer_loss(zeros((2, 20, 4)), zeros((2, 9, 4)), k, *rest, *lengths)
        return jax.grad(lambda kernel: loss(kernel).sum())(jnp.full((4, 5), jnp.nan))

    assert not gradient(jnp.array([0, 0])).any()
    assert np.isnan(gradient(jnp.array([20, 0]))).all()
