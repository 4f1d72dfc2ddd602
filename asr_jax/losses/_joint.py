"""What the lattice needs of the joint's logits, computed tile by tile instead of in 4-D.

logits = activation(encoded + predicted) @ kernel + bias has V numbers in each of B * T * (U + 1)
cells, of which a loss needs few: the logsumexp, the blank's and the next label's. Loops over tiles
of existing cells compute those, and the backward pass makes each tile's logits once more, so that
no more than a step's tiles of them ever exist.
"""

from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from asr_jax.losses._cells import Planes, VocabularyLayout, select_logits, select_logits_vjp
from asr_jax.losses._first_order import first_order_only
from asr_jax.losses._tiles import (
    Tile,
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
    """What does not change from batch to batch.

    shards: utterances are packed within each of so many equal parts of the batch. The kernels of
        "mosaic_gpu" know of one only.
    """

    columns: VocabularyLayout
    activation: Activation
    tile: Tile
    shards: int
    implementation: Literal["xla", "mosaic_gpu"]
    negligible_gradient: float


@partial(jax.custom_vjp, nondiff_argnames=("options",))
def joint_planes(
    encoded: Float[Array, "B T D"],
    predicted: Float[Array, "B U1 D"],
    kernel: Float[Array, "D V"],
    bias: Float[Array, " V"],
    labels: Int[Array, "B U1"],
    frame_lengths: Int[Array, " B"],
    cell_lengths: Int[Array, " B"],
    options: TilePlan,
) -> Planes:
    """The planes of activation(encoded + predicted) @ kernel + bias.

    Lengths have to fit the axes, and padding to be finite. Matrix products take the inputs' dtype
    and accumulate in float32.
    """
    arrays = encoded, predicted, kernel, bias, labels, frame_lengths, cell_lengths
    return _fwd(*arrays, options)[0]


def _fwd(encoded, predicted, kernel, bias, labels, frame_lengths, cell_lengths, options):
    blocks = _blocks(encoded, predicted, labels, options)
    tiles, steps = _tiles(encoded, predicted, frame_lengths, cell_lengths, options)
    if options.implementation == "mosaic_gpu":
        packed = _by_kernel().planes(blocks, tiles, kernel, bias, options)
    else:
        packed = _packed_planes(blocks, tiles, steps, kernel, bias, options)
    batch = encoded.shape[0] // options.shards, encoded.shape[1], predicted.shape[1]
    merge = lambda plane, tiles: unpack(plane, tiles, options.tile, *batch)
    planes = jax.tree.map(lambda x: _unshard(jax.vmap(merge)(x, tiles)), packed)
    arrays = encoded, predicted, kernel, bias
    return planes, (arrays, labels, frame_lengths, cell_lengths, packed.normalizer)


def _packed_planes(blocks, tiles, steps, kernel, bias, options):
    """Planes [shards, N, rows] in the order of the tiles."""
    shards, room = tiles.plane_block.shape
    rows = options.tile.frames * options.tile.cells
    plane = jnp.zeros_like(blocks[0], jnp.float32, shape=(shards, room, rows))
    rest = jnp.zeros((kernel.shape[1] - options.columns.symbols,), jnp.float32)
    planes = Planes(plane, plane, plane, plane[..., None] + rest)

    def body(step, planes):
        def one(encoded, predicted, labels):
            hidden = _hidden(encoded, predicted, kernel, options)
            planes = select_logits(
                _logits(hidden, kernel, bias), _rows(labels, options), options.columns
            )
            return jax.tree.map(lambda x: x.reshape(len(x) // rows, rows, *x.shape[1:]), planes)

        found = jax.vmap(one)(*_meet(blocks, *_slice(tiles[:2], step, options)))
        put = jax.lax.dynamic_update_slice_in_dim
        place = step * options.tile.per_step
        return jax.tree.map(lambda plane, x: put(plane, x, place, 1), planes, found)

    return jax.lax.fori_loop(0, steps, body, planes)


def _bwd(options, residuals, cotangents):
    arrays, labels, frame_lengths, cell_lengths, normalizers = residuals
    encoded, predicted, kernel, bias = arrays
    blocks = _blocks(encoded, predicted, labels, options)
    tiles, _ = _tiles(encoded, predicted, frame_lengths, cell_lengths, options)
    split = lambda plane, tiles: pack(plane, tiles, options.tile)
    packed = jax.tree.map(lambda x: jax.vmap(split)(_shard(x, options.shards), tiles), cotangents)
    limits = _negligible(cotangents, tiles, encoded.shape[1], options)
    order, counts = jax.vmap(with_cotangents)(packed, limits)
    steps = -(-counts.max() // options.tile.per_step)
    if options.implementation == "mosaic_gpu":
        kernel, bias = _by_kernel().pad_vocabulary(kernel, bias)

    def rows(encoded, predicted, labels, given):
        """Hidden states and gradients of logits of a shard's tiles."""
        hidden = _hidden(encoded, predicted, kernel, options)
        normalizer, cotangents = jax.tree.map(_unshard, given)
        logits, labels = _logits(hidden, kernel, bias), _rows(labels, options)
        return hidden, select_logits_vjp(logits, labels, normalizer, cotangents, options.columns)

    def add(sums, encoded, predicted, index, found):
        """The sums with a shard's tiles added, in float32."""
        d_encoded, d_predicted, d_kernel, d_bias = sums
        (encoded_block, predicted_block), (hidden, d_logits) = index, found
        d_bias += d_logits.sum(0, dtype=jnp.float32)
        d_logits = d_logits.astype(hidden.dtype)
        d_kernel += _dot("nd,nv->dv", hidden, d_logits)
        slope = _slope(encoded, predicted, options)
        d_sum = _dot("nv,dv->nd", d_logits, kernel).reshape(slope.shape) * slope
        d_encoded = _add_blocks(d_encoded, encoded_block, d_sum.sum(2))
        d_predicted = _add_blocks(d_predicted, predicted_block, d_sum.sum(1))
        return d_encoded, d_predicted, d_kernel, d_bias

    def body(step, sums):
        chosen = _slice(order, step, options)
        index, given = _take((tiles[:2], (normalizers, packed)), chosen)
        encoded, predicted, labels = _meet(blocks, *index)
        if options.implementation == "mosaic_gpu":
            found = _by_kernel().gradient_rows(blocks, index, kernel, bias, given, options)
        else:
            found = jax.vmap(rows)(encoded, predicted, labels, given)
        return jax.vmap(add)(sums, encoded, predicted, index, found)

    zeros = lambda *shape: jnp.zeros_like(encoded, jnp.float32, shape=(options.shards, *shape))
    sums = *(zeros(*x.shape[1:]) for x in blocks[:2]), zeros(*kernel.shape), zeros(*bias.shape)
    d_encoded, d_predicted, d_kernel, d_bias = jax.lax.fori_loop(0, steps, body, sums)
    join = lambda x, rows: from_blocks(_unshard(x), *rows.shape[:2])
    symbols = arrays[3].shape[0]
    d_output = d_kernel.sum(0)[:, :symbols], d_bias.sum(0)[:symbols]
    grads = join(d_encoded, encoded), join(d_predicted, predicted), *d_output
    return (
        *first_order_only(tuple(g.astype(x.dtype) for g, x in zip(grads, arrays))),
        None,
        None,
        None,
    )


joint_planes.defvjp(_fwd, _bwd)


def _blocks(encoded, predicted, labels, options):
    """Of each shard, in blocks of a tile's size: [shards, blocks, size, ...]."""
    block = lambda x, size: jax.vmap(partial(to_blocks, size=size))(_shard(x, options.shards))
    frames, cells, _ = options.tile
    return block(encoded, frames), block(predicted, cells), block(labels, cells)


def _tiles(encoded, predicted, frame_lengths, cell_lengths, options):
    """The tiles of each shard, and the steps that the shard with the most of them takes."""
    padded = dict(frames=encoded.shape[1], cells=predicted.shape[1], tile=options.tile)
    lengths = (_shard(x, options.shards) for x in (frame_lengths, cell_lengths))
    tiles = jax.vmap(partial(list_tiles, **padded))(*lengths)
    return tiles, -(-tiles.count.max() // options.tile.per_step)


def _negligible(cotangents, tiles, frames, options):
    """Which cotangents of each tile count as none: [shards, N].

    They are a share of the utterance's largest one, which is its first cell's: all alignments
    begin there.
    """
    if options.negligible_gradient == 0:
        return jnp.zeros_like(tiles.encoded_block, jnp.float32)
    largest = [jnp.abs(x).max(range(1, x.ndim)) for x in cotangents if x.size]
    limit = options.negligible_gradient * jnp.stack(largest).max(0)
    limit = _shard(jnp.where(jnp.isfinite(limit), limit, 0), options.shards)
    across = -(-frames // options.tile.frames)
    return _take(limit, tiles.encoded_block // across)


def _shard(x, shards):
    return x.reshape(shards, x.shape[0] // shards, *x.shape[1:])


def _unshard(x):
    """[shards, n, ...], or anything else of two leading axes, to one."""
    return x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])


def _meet(blocks, encoded_block, predicted_block):
    """Blocks of encoded, predicted and labels that meet in these tiles: [shards, tiles, ...]."""
    encoded, predicted_and_labels = blocks[0], blocks[1:]
    return _take(encoded, encoded_block), *_take(predicted_and_labels, predicted_block)


def _by_kernel():
    """Pallas is imported where it is used: the rest of the losses runs without it."""
    from asr_jax.losses import _joint_kernel

    return _joint_kernel


def _take(arrays, index):
    """arrays [shards, n, ...] at index [shards, m]."""
    return jax.tree.map(lambda x: jax.vmap(lambda x, index: x[index])(x, index), arrays)


def _slice(arrays, step, options):
    """A step's part of arrays [shards, N, ...]."""
    take = partial(jax.lax.dynamic_slice_in_dim, slice_size=options.tile.per_step, axis=1)
    return jax.tree.map(lambda x: take(x, step * options.tile.per_step), arrays)


def _sum(encoded, predicted):
    """[tiles, frames, D] and [tiles, cells, D] to [tiles, frames, cells, D]."""
    return encoded[:, :, None].astype(jnp.float32) + predicted[:, None].astype(jnp.float32)


def _hidden(encoded, predicted, kernel, options):
    dtype = jnp.result_type(encoded, predicted, kernel)
    hidden = ACTIVATIONS[options.activation](_sum(encoded, predicted)).astype(dtype)
    return hidden.reshape(-1, hidden.shape[-1])


def _rows(cells, options):
    """[tiles, cells] to one number for every frame and cell of them: [rows]."""
    tiles, count = cells.shape
    return jnp.broadcast_to(cells[:, None], (tiles, options.tile.frames, count)).reshape(-1)


def _slope(encoded, predicted, options):
    before = _sum(encoded, predicted)
    return 1 - jnp.tanh(before) ** 2 if options.activation == "tanh" else before > 0


def _logits(hidden, kernel, bias):
    return _dot("nd,dv->nv", hidden, kernel) + bias.astype(jnp.float32)


def _dot(subscripts, a, b):
    return jnp.einsum(subscripts, a, b.astype(a.dtype), preferred_element_type=jnp.float32)


def _add_blocks(sums, index, blocks):
    """sums with blocks added at index, where an index may come often: those are summed up first.

    The sum is a product and the scatter's indices are unique, so that neither the order of atomic
    additions nor a loop over tiles comes into it.
    """
    count = len(index)
    same = index[:, None] == index
    first = jnp.argmax(same, axis=1) == jnp.arange(count)
    finite = jnp.isfinite(blocks)
    terms = same.astype(blocks.dtype), jnp.where(finite, blocks, 0)
    totals = jnp.einsum("ij,jlw->ilw", *terms, precision="highest")
    # Zero times NaN is NaN: what is not finite must stay in its own sums.
    spoiled = jnp.any(same[:, :, None] & ~finite.all(-1), axis=1)
    totals = jnp.where(spoiled[..., None], jnp.nan, totals)
    place = jnp.where(first, index, len(sums) + jnp.arange(count))
    return sums.at[place].add(totals, mode="drop", unique_indices=True)
