"""The numbers that the lattice needs from the joint network's logits, computed tile by tile.

logits = activation(encoded + predicted) @ kernel + bias has V numbers in each of B * T * (U + 1)
cells, but a loss needs only the logsumexp, the blank's logit and the next label's. Loops over tiles
of real cells compute these. The backward pass computes the logits of each tile again, so that only
one step's logits exist at a time.

Axes: S shards of the batch; N tiles or blocks in each; G tiles in a step; `rows`, the cells of
tiles.
"""

from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int

from asr_jax.losses._cells import Planes, VocabularyLayout, select_logits, select_logits_vjp
from asr_jax.losses._dropout import CellHashes, dropout_scales
from asr_jax.losses._first_order import first_order_only
from asr_jax.losses._tiles import (
    Tile,
    Tiles,
    from_blocks,
    list_tiles,
    pack,
    to_blocks,
    unpack,
    with_cotangents,
)

Activation = Literal["tanh", "relu"]
ACTIVATIONS = {"tanh": jnp.tanh, "relu": jax.nn.relu}


class TilePlan(NamedTuple):
    """The static part of the computation, the same for all batches of one shape.

    shards: number of equal parts of the batch within which utterances are packed; 1 for
        "mosaic_gpu".
    """

    layout: VocabularyLayout
    activation: Activation
    tile: Tile
    shards: int
    implementation: Literal["xla", "mosaic_gpu"]
    negligible_gradient: float
    dropout: float


class Blocks(NamedTuple):
    """Frames, label positions, their labels and hashes, in blocks of a tile's size."""

    encoded: Float[Array, "S N frames D"]
    predicted: Float[Array, "S N cells D"]
    labels: Int[Array, "S N cells"]
    hashes: CellHashes


class StepTiles(NamedTuple):
    """The tiles of one step of the backward pass: their block numbers, blocks, and planes."""

    encoded_block: Int[Array, "S G"]
    predicted_block: Int[Array, "S G"]
    blocks: Blocks
    normalizer: Float32[Array, "S G rows"]
    cotangents: Planes


class TileRows(NamedTuple):
    """Hidden states of a step's cells, and gradients of their logits."""

    hidden: Float[Array, "S rows D"]
    d_logits: Float[Array, "S rows V"]


class GradientSums(NamedTuple):
    """Gradients summed over the tiles so far; encoded and predicted are in blocks."""

    encoded: Float32[Array, "S N frames D"]
    predicted: Float32[Array, "S N cells D"]
    kernel: Float32[Array, "S D V"]
    bias: Float32[Array, "S V"]


@partial(jax.custom_vjp, nondiff_argnames=("plan",))
def joint_planes(
    encoded: Float[Array, "B T D"],
    predicted: Float[Array, "B U1 D"],
    kernel: Float[Array, "D V"],
    bias: Float[Array, " V"],
    labels: Int[Array, "B U1"],
    lengths: tuple[Int[Array, " B"], Int[Array, " B"]],
    hashes: CellHashes,
    plan: TilePlan,
) -> Planes:
    """Return the planes of dropout(activation(encoded + predicted)) @ kernel + bias.

    The lengths in frames and in cells must fit the axes, and padding must be finite. Matrix
    products take the inputs' dtype and accumulate in float32.
    """
    return _fwd(encoded, predicted, kernel, bias, labels, lengths, hashes, plan)[0]


def _fwd(encoded, predicted, kernel, bias, labels, lengths, hashes, plan):
    blocks = _cut_blocks(encoded, predicted, labels, hashes, plan)
    tiles = _list_shard_tiles(encoded, predicted, lengths, plan)
    planes_of = tile_planes
    if plan.implementation == "mosaic_gpu":
        from asr_jax.losses import _joint_kernel  # imports Pallas

        planes_of = _joint_kernel.tile_planes
    packed = planes_of(blocks, tiles, kernel, bias, plan)
    batch, frames, cells = len(encoded) // plan.shards, encoded.shape[1], predicted.shape[1]
    unpacked = jax.vmap(partial(unpack, tile=plan.tile, batch=batch, frames=frames, cells=cells))
    planes = jax.tree.map(lambda x: _merge_shards(unpacked(x, tiles)), packed)
    arrays = encoded, predicted, kernel, bias
    return planes, (arrays, labels, lengths, hashes, packed.normalizer)


def _bwd(plan, residuals, cotangents):
    arrays, labels, lengths, hashes, normalizer = residuals
    encoded, predicted, kernel, bias = arrays
    blocks = _cut_blocks(encoded, predicted, labels, hashes, plan)
    tiles = _list_shard_tiles(encoded, predicted, lengths, plan)
    pack_shards = jax.vmap(partial(pack, tile=plan.tile))
    packed = jax.tree.map(lambda x: pack_shards(_split_shards(x, plan.shards), tiles), cotangents)
    limits = _negligible_cotangents(cotangents, tiles, encoded.shape[1], plan)
    order, counts = jax.vmap(with_cotangents)(packed, limits)
    if plan.implementation == "mosaic_gpu":
        from asr_jax.losses import _joint_kernel  # imports Pallas

        kernel, bias = _joint_kernel.pad_vocabulary(kernel, bias)
        rows_of = partial(_joint_kernel.tile_gradient_rows, blocks, kernel, bias, plan)
    else:
        rows_of = jax.vmap(partial(tile_gradient_rows, kernel, bias, plan))
    add = jax.vmap(partial(add_tiles, kernel, plan))

    def add_step(step, sums):
        chosen = _slice_step(order, step, plan)
        (encoded_block, predicted_block), kept = _take((tiles[:2], (normalizer, packed)), chosen)
        met = _take_blocks(blocks, encoded_block, predicted_block)
        step_tiles = StepTiles(encoded_block, predicted_block, met, *kept)
        return add(sums, step_tiles, rows_of(step_tiles))

    zeros = partial(jnp.zeros_like, encoded, jnp.float32)
    shapes = *(x.shape[1:] for x in blocks[:2]), kernel.shape, bias.shape
    sums = GradientSums(*(zeros(shape=(plan.shards, *shape)) for shape in shapes))
    sums = jax.lax.fori_loop(0, _steps(counts, plan), add_step, sums)
    gradients = _whole_gradients(sums, arrays)
    gradients = tuple(d.astype(x.dtype) for d, x in zip(gradients, arrays))
    return *first_order_only(gradients), None, None, None


joint_planes.defvjp(_fwd, _bwd)


def tile_planes(
    blocks: Blocks,
    tiles: Tiles,
    kernel: Float[Array, "D V"],
    bias: Float[Array, " V"],
    plan: TilePlan,
) -> Planes:
    """Return the planes [S, N, rows] of all tiles, computed one step at a time."""
    shards, room = tiles.plane_block.shape
    plane_shape = shards, room, plan.tile.frames * plan.tile.cells
    plane = jnp.zeros_like(blocks.encoded, jnp.float32, shape=plane_shape)
    rest = jnp.zeros((kernel.shape[1] - plan.layout.symbols,), jnp.float32)
    planes_of = jax.vmap(partial(_planes_of_blocks, kernel, bias, plan))

    def compute_step(step, planes):
        index = _slice_step(tiles[:2], step, plan)
        computed = planes_of(_take_blocks(blocks, *index))
        put, start = jax.lax.dynamic_update_slice_in_dim, step * plan.tile.per_step
        return jax.tree.map(lambda plane, x: put(plane, x, start, 1), planes, computed)

    planes = Planes(plane, plane, plane, plane[..., None] + rest)
    return jax.lax.fori_loop(0, _steps(tiles.count, plan), compute_step, planes)


def _planes_of_blocks(kernel, bias, plan, blocks):
    """Return the planes [G, rows] of one shard's tiles, given the blocks that meet in each."""
    hidden = _hidden(blocks, kernel, plan)
    labels = _labels_of_rows(blocks.labels, plan)
    planes = select_logits(_logits(hidden, kernel, bias), labels, plan.layout)
    rows = plan.tile.frames * plan.tile.cells
    return jax.tree.map(lambda x: x.reshape(len(x) // rows, rows, *x.shape[1:]), planes)


def tile_gradient_rows(
    kernel: Float[Array, "D V"], bias: Float[Array, " V"], plan: TilePlan, tiles: StepTiles
) -> TileRows:
    """Return hidden states and logits' gradients of one shard's tiles."""
    hidden = _hidden(tiles.blocks, kernel, plan)
    normalizer, cotangents = jax.tree.map(_merge_shards, (tiles.normalizer, tiles.cotangents))
    logits, labels = _logits(hidden, kernel, bias), _labels_of_rows(tiles.blocks.labels, plan)
    d_logits = select_logits_vjp(logits, labels, normalizer, cotangents, plan.layout)
    return TileRows(hidden, d_logits)


def add_tiles(
    kernel: Float[Array, "D V"],
    plan: TilePlan,
    sums: GradientSums,
    tiles: StepTiles,
    rows: TileRows,
) -> GradientSums:
    """Return one shard's sums with the gradients of its tiles added."""
    d_bias = sums.bias + rows.d_logits.sum(0, dtype=jnp.float32)
    d_logits = rows.d_logits.astype(rows.hidden.dtype)
    d_kernel = sums.kernel + _dot("nd,nv->dv", rows.hidden, d_logits)
    slope = _slope(tiles.blocks, plan) * _scales(tiles.blocks, plan)
    d_sum = _dot("nv,dv->nd", d_logits, kernel).reshape(slope.shape) * slope
    d_encoded = _add_blocks(sums.encoded, tiles.encoded_block, d_sum.sum(2))
    d_predicted = _add_blocks(sums.predicted, tiles.predicted_block, d_sum.sum(1))
    return GradientSums(d_encoded, d_predicted, d_kernel, d_bias)


def _whole_gradients(sums, arrays):
    """Return the gradients of encoded, predicted, kernel and bias, without their padding."""
    encoded, predicted, _, bias = arrays
    return (
        from_blocks(_merge_shards(sums.encoded), *encoded.shape[:2]),
        from_blocks(_merge_shards(sums.predicted), *predicted.shape[:2]),
        sums.kernel.sum(0)[:, : len(bias)],
        sums.bias.sum(0)[: len(bias)],
    )


def _cut_blocks(encoded, predicted, labels, hashes, plan):
    frames, cells, _ = plan.tile

    def cut(arrays, size):
        cut_shards = jax.vmap(partial(to_blocks, size=size))
        return jax.tree.map(lambda x: cut_shards(_split_shards(x, plan.shards)), arrays)

    encoded, frame_hashes = cut((encoded, hashes.frames), frames)
    predicted, labels, cell_hashes = cut((predicted, labels, hashes.cells), cells)
    return Blocks(encoded, predicted, labels, CellHashes(frame_hashes, cell_hashes))


def _list_shard_tiles(encoded, predicted, lengths, plan):
    """Return the tiles of each shard."""
    padded = partial(list_tiles, frames=encoded.shape[1], cells=predicted.shape[1], tile=plan.tile)
    return jax.vmap(padded)(*(_split_shards(x, plan.shards) for x in lengths))


def _steps(counts, plan):
    """Return the number of steps, which the shard with the most tiles determines."""
    return -(-counts.max() // plan.tile.per_step)


def _negligible_cotangents(cotangents, tiles, frames, plan):
    """Return the largest cotangent of each tile [S, N] that counts as zero.

    It is a fraction of the utterance's largest cotangent, that of its first cell, where all
    alignments start.
    """
    if plan.negligible_gradient == 0:
        return jnp.zeros_like(tiles.encoded_block, jnp.float32)
    largest = [jnp.abs(x).max(range(1, x.ndim)) for x in cotangents if x.size]
    limit = plan.negligible_gradient * jnp.stack(largest).max(0)
    limit = _split_shards(jnp.where(jnp.isfinite(limit), limit, 0), plan.shards)
    across = -(-frames // plan.tile.frames)
    return _take(limit, tiles.encoded_block // across)


def _split_shards(x, shards):
    return x.reshape(shards, x.shape[0] // shards, *x.shape[1:])


def _merge_shards(x):
    """Merge the two leading axes, such as [S, n, ...]."""
    return x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])


def _take_blocks(blocks, encoded_block, predicted_block):
    """Return the blocks [S, G, ...] whose numbers are [S, G]."""
    encoded, predicted, labels, hashes = blocks
    encoded, frame_hashes = _take((encoded, hashes.frames), encoded_block)
    predicted, labels, cell_hashes = _take((predicted, labels, hashes.cells), predicted_block)
    return Blocks(encoded, predicted, labels, CellHashes(frame_hashes, cell_hashes))


def _take(arrays, index):
    """Return arrays [S, n, ...] at index [S, m]."""
    return jax.tree.map(lambda x: jax.vmap(lambda x, index: x[index])(x, index), arrays)


def _slice_step(arrays, step, plan):
    """Return the part of arrays [S, N, ...] that a step works on."""
    take = partial(jax.lax.dynamic_slice_in_dim, slice_size=plan.tile.per_step, axis=1)
    return jax.tree.map(lambda x: take(x, step * plan.tile.per_step), arrays)


def _sum(blocks):
    """Return encoded + predicted, [G, frames, cells, D]."""
    encoded, predicted = blocks[:2]
    return encoded[:, :, None].astype(jnp.float32) + predicted[:, None].astype(jnp.float32)


def _hidden(blocks, kernel, plan):
    dtype = jnp.result_type(blocks.encoded, blocks.predicted, kernel)
    hidden = ACTIVATIONS[plan.activation](_sum(blocks)) * _scales(blocks, plan)
    return hidden.astype(dtype).reshape(-1, hidden.shape[-1])


def _scales(blocks, plan):
    """Return dropout's factors of hidden states, [G, frames, cells, D], or 1 without dropout."""
    return dropout_scales(blocks.hashes, blocks.encoded.shape[-1], plan.dropout)


def _slope(blocks, plan):
    before = _sum(blocks)
    return 1 - jnp.tanh(before) ** 2 if plan.activation == "tanh" else before > 0


def _labels_of_rows(labels, plan):
    """Repeat labels [G, cells] for every frame: [rows]."""
    tiles, cells = labels.shape
    return jnp.broadcast_to(labels[:, None], (tiles, plan.tile.frames, cells)).reshape(-1)


def _logits(hidden, kernel, bias):
    return _dot("nd,dv->nv", hidden, kernel) + bias.astype(jnp.float32)


def _dot(subscripts, a, b):
    return jnp.einsum(subscripts, a, b.astype(a.dtype), preferred_element_type=jnp.float32)


def _add_blocks(sums, index, blocks):
    """Return sums with blocks added at index; blocks of equal index are summed first.

    That sum is a matrix product, which needs no loop over tiles. The scatter's indices are unique,
    so no result depends on the order of atomic additions.
    """
    count = len(index)
    same = index[:, None] == index
    first = jnp.argmax(same, axis=1) == jnp.arange(count)
    finite = jnp.isfinite(blocks)
    terms = same.astype(blocks.dtype), jnp.where(finite, blocks, 0)
    totals = jnp.einsum("ij,jlw->ilw", *terms, precision="highest")
    # Zero times NaN is NaN: non-finite values must stay in their own sums.
    spoiled = jnp.any(same[:, :, None] & ~finite.all(-1), axis=1)
    totals = jnp.where(spoiled[..., None], jnp.nan, totals)
    place = jnp.where(first, index, len(sums) + jnp.arange(count))
    return sums.at[place].add(totals, mode="drop", unique_indices=True)
