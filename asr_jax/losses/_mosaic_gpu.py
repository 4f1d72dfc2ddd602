"""The transducer's joint and lattice as kernels for Hopper GPUs (sm_90a), in Pallas Mosaic GPU.

A tile is 64 frames of one utterance at one label position. So everything that depends on the labels
is one row (the predictor's) or one scalar (the next label) per tile. A block computes two tiles:
two warpgroups each keep a tile's hidden rows in shared memory and multiply them by the kernel, of
which a third warpgroup streams pieces to both, 128 symbols after 128 symbols. The logits never
leave the registers.

Imports Pallas: import this module only if `_mosaic_gpu_support.obstacle` returns None.
"""

# Wrong annotations in JAX, or annotations of versions that never import this module:
# pyright: reportAbstractUsage=false, reportCallIssue=false

import math
from collections import namedtuple
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, BFloat16, Float32, Int32

ROWS = 64  # frames of a tile: a warpgroup's rows of a matrix product
SYMBOLS = 128  # vocabulary columns per step
DEPTH = 64  # rows of a piece of the kernel; also the width of a row of swizzled shared memory
TILES = 2  # per block, one for each computing warpgroup
SHARED_MEMORY = 232_448  # bytes per block
AHEAD = 4  # anti-diagonals whose edges are prefetched
LANES = 128  # threads of a warpgroup
NOTHING = -1e30  # replaces -inf where -inf - -inf must be a number
LOG2E = math.log2(math.e)

LAYOUT = plgpu.Layout.WGMMA
BY_ROW, BY_COLUMN = LAYOUT.reduce(1), LAYOUT.reduce(0)
SWIZZLED = (plgpu.TilingTransform((8, DEPTH)), plgpu.SwizzleTransform(2 * DEPTH))
ACTIVATIONS = {"tanh": jnp.tanh, "relu": lambda x: jnp.maximum(x, 0.0)}


def pad_vocabulary(kernel, bias):
    """Pad kernel [D, V] and bias [V] with symbols of probability 0, to a multiple of 128 symbols.

    Call it once, outside of any loop over tiles. The gradient of the added symbols is zero.
    """
    missing = -bias.shape[0] % SYMBOLS
    bias = jnp.pad(bias.astype(jnp.float32), (0, missing), constant_values=NOTHING)
    return jnp.pad(kernel, ((0, 0), (0, missing))), bias


class JointOperands(NamedTuple):
    """The arrays of the joint that its kernels read.

    encoded: T is a multiple of 64. Finite, padding included.
    predicted: finite.
    kernel, bias: padded by `pad_vocabulary`. D is a multiple of 64, at most 640.
    labels: next label of each position, in the vocabulary even if there is none.
    """

    encoded: BFloat16[Array, "B T D"]
    predicted: BFloat16[Array, "B U1 D"]
    kernel: BFloat16[Array, "D V"]
    bias: Float32[Array, " V"]
    labels: Int32[Array, "B U1"]


class CellPlanes(NamedTuple):
    """Logsumexp of each cell's logits, the blank's logit and the next label's; or cotangents."""

    normalizer: Float32[Array, "N 64"]
    blank: Float32[Array, "N 64"]
    label: Float32[Array, "N 64"]


def joint_forward(
    joint: JointOperands,
    tiles: Int32[Array, "N 3"],
    count: Int32[Array, ""],
    *,
    blank_id: int,
    activation: str,
    normalize_blank: bool,
    interpret=False,
) -> CellPlanes:
    """Return planes of logits = activation(encoded[b, t0 + r] + predicted[b, u]) @ kernel + bias.

    Row r is 0..63 of the tile (b, t0, u).

    Args:
        tiles: N rows (b, t0, u), t0 a multiple of 64, N even. All must be valid.
        count: number of tiles to compute. Results of later tiles are arbitrary.
        normalize_blank: include the blank in the logsumexp (not for HAT).
        interpret: `plgpu.InterpretGPUParams` to run on a CPU.
    """
    encoded, predicted, kernel, bias, labels = joint
    body = partial(_forward_body, blank_id=blank_id, activation=activation)
    plane = jax.ShapeDtypeStruct((len(tiles), ROWS), jnp.float32)
    call = _two_tiles_a_block("joint_forward", body, (plane,) * 3, tiles, kernel, interpret)
    normalized_bias = _normalized_bias(bias, blank_id, normalize_blank)
    planes = call(
        encoded, predicted, kernel, bias, normalized_bias, labels, tiles, count.reshape(1)
    )
    return CellPlanes(*planes)


def joint_gradient_rows(
    joint: JointOperands,
    tiles: Int32[Array, "G 3"],
    normalizer: Float32[Array, "G 64"],
    cotangents: CellPlanes,
    *,
    blank_id: int,
    activation: str,
    normalize_blank: bool,
    interpret=False,
) -> tuple[BFloat16[Array, "rows V"], BFloat16[Array, "rows D"]]:
    """Return the gradient with respect to the logits of 64 G cells, and the cells' hidden rows.

    d_logits = cotangents.normalizer * softmax + cotangents.blank at the blank + cotangents.label at
    the label (their sum if the label is the blank), where softmax = exp(logits - normalizer), with
    the logits computed again. Row 64 i + r of the results is row r of tile i. A row without a
    cotangent is exactly zero, whatever its normalizer. See `joint_forward` for other arguments.
    """
    encoded, predicted, kernel, bias, labels = joint
    body = partial(_gradient_body, blank_id=blank_id, activation=activation)
    width, vocabulary = kernel.shape
    rows = lambda columns: jax.ShapeDtypeStruct((ROWS * len(tiles), columns), jnp.bfloat16)
    results, staged = (rows(vocabulary), rows(width)), (TILES, ROWS, DEPTH)
    name = "joint_gradient_rows"
    call = _two_tiles_a_block(name, body, results, tiles, kernel, interpret, staged)
    normalized_bias = _normalized_bias(bias, blank_id, normalize_blank)
    arrays = encoded, predicted, kernel, normalized_bias, labels, tiles
    return call(*arrays, normalizer * LOG2E, *cotangents)


def _normalized_bias(bias, blank_id, normalize_blank):
    """Return the bias in units of log 2, without the blank if it is not normalized."""
    return LOG2E * (bias if normalize_blank else bias.at[blank_id].set(NOTHING))


def _two_tiles_a_block(name, body, results, tiles, kernel, interpret, *staged):
    """Return the kernel of this body, with scratch for hidden rows, pieces, barriers, `staged`.

    Each block has two warpgroups that compute, and one that streams the pieces of the kernel to
    them. staged: shapes of additional bfloat16 buffers.
    """
    (width, vocabulary), count = kernel.shape, len(tiles)
    if count % TILES:
        raise ValueError(f"{count} tiles: must be a multiple of {TILES}")
    if vocabulary % SYMBOLS:
        raise ValueError(f"{vocabulary = }: must be a multiple of {SYMBOLS}; see pad_vocabulary")
    hidden = (TILES, ROWS, width)
    buffer = lambda *shape: plgpu.SMEM(shape, jnp.bfloat16, transforms=SWIZZLED)
    barriers = 1024  # bytes, more than needed
    left = SHARED_MEMORY - barriers - 2 * sum(map(math.prod, (hidden, *staged)))
    slots = min(4, left // (2 * DEPTH * SYMBOLS))
    return plgpu.kernel(
        body,
        out_type=results,
        grid=(count // TILES,),
        grid_names=("block",),
        num_threads=TILES + 1,
        thread_name="warpgroup",
        kernel_name=name,
        scratch_types=[
            buffer(*hidden),
            buffer(slots, DEPTH, SYMBOLS),
            plgpu.Barrier(num_barriers=TILES),
            plgpu.Barrier(num_barriers=slots),
            plgpu.Barrier(num_arrivals=TILES, num_barriers=slots),
            *(buffer(*shape) for shape in staged),
        ],
        # A warp holds whole rows of an accumulator: their sum and maximum need no shared memory.
        compiler_params=plgpu.CompilerParams(approx_math=True, reduction_scratch_bytes=0),
        interpret=interpret,
    )


# Arguments of the bodies: inputs, results, and the scratch memory of `_two_tiles_a_block`.
ForwardRefs = namedtuple(
    "ForwardRefs",
    "encoded predicted kernel bias normalized_bias labels tiles count normalizer blank label "
    "hidden pieces arrived full free",
)
GradientRefs = namedtuple(
    "GradientRefs",
    "encoded predicted kernel normalized_bias labels tiles normalizer d_normalizer d_blank d_label "
    "d_logits hidden_rows hidden pieces arrived full free staged",
)


def _forward_body(*given, blank_id, activation):
    refs = ForwardRefs(*given)
    block, warpgroup = lax.axis_index("block"), lax.axis_index("warpgroup")
    live = TILES * block < refs.count[0]

    @pl.when(live & (warpgroup == TILES))
    def _():
        plgpu.set_max_registers(24, action="decrease")
        _stream(refs)

    @pl.when(live & (warpgroup < TILES))
    def _():
        plgpu.set_max_registers(240, action="increase")
        tile = TILES * block + warpgroup
        b, t0, u = (refs.tiles[tile, axis] for axis in range(3))
        hidden = refs.hidden.at[warpgroup]
        _activate(refs, hidden, warpgroup, b, t0, u, activation)

        def more_symbols(v, carry):
            largest, total = carry
            row = _bias_row(refs.normalized_bias, v)
            product = _product(refs, hidden, v)
            for part, values in _halves(product, v):
                for plane, symbol in ((refs.blank, blank_id), (refs.label, refs.labels[b, u])):

                    @pl.when(symbol // DEPTH == part)
                    def _():
                        chosen = jnp.where(_column(symbol), values, 0.0).sum(axis=1)
                        plane[tile] = chosen + refs.bias[symbol]

            logits = product * LOG2E + _along_rows(row)
            larger = jnp.maximum(largest, logits.max(axis=1))
            terms = jnp.exp2(logits - _along_columns(larger))
            return larger, total * jnp.exp2(largest - larger) + terms.sum(axis=1)

        start = (_constant(NOTHING), _constant(0.0))
        steps = refs.kernel.shape[1] // SYMBOLS
        largest, total = lax.fori_loop(0, steps, more_symbols, start)
        refs.normalizer[tile] = (largest + jnp.log2(total)) * (1 / LOG2E)


def _gradient_body(*given, blank_id, activation):
    refs = GradientRefs(*given)
    block, warpgroup = lax.axis_index("block"), lax.axis_index("warpgroup")

    @pl.when(warpgroup == TILES)
    def _():
        plgpu.set_max_registers(24, action="decrease")
        _stream(refs)

    @pl.when(warpgroup < TILES)
    def _():
        plgpu.set_max_registers(240, action="increase")
        tile = TILES * block + warpgroup
        rows = pl.ds(pl.multiple_of(tile * ROWS, ROWS), ROWS)
        b, t0, u = (refs.tiles[tile, axis] for axis in range(3))
        symbol = refs.labels[b, u]
        hidden = refs.hidden.at[warpgroup]
        _activate(refs, hidden, warpgroup, b, t0, u, activation)
        plgpu.copy_smem_to_gmem(hidden, refs.hidden_rows.at[rows])

        load = lambda plane: plgpu.load(plane.at[tile], layout=BY_ROW, optimized=False)
        scale, at_blank, at_label = map(load, (refs.d_normalizer, refs.d_blank, refs.d_label))
        # 0 * exp2(garbage) could be 0 * inf.
        shift = jnp.where(scale == 0.0, -NOTHING, load(refs.normalizer))

        @pl.loop(0, refs.kernel.shape[1] // SYMBOLS)
        def _(v):
            row = _bias_row(refs.normalized_bias, v)
            logits = _product(refs, hidden, v) * LOG2E + _along_rows(row)
            for part, values in _halves(logits, v):
                gradient = jnp.exp2(values - _along_columns(shift, DEPTH))
                gradient *= _along_columns(scale, DEPTH)
                for chosen, more in ((blank_id, at_blank), (symbol, at_label)):
                    added = lambda x: jnp.where(_column(chosen), x + _along_columns(more, DEPTH), x)
                    gradient = lax.cond(chosen // DEPTH == part, added, lambda x: x, gradient)
                plgpu.wait_smem_to_gmem(0, wait_read_only=True)
                refs.staged[warpgroup] = gradient.astype(jnp.bfloat16)
                plgpu.commit_smem()
                columns = pl.ds(pl.multiple_of(part * DEPTH, DEPTH), DEPTH)
                plgpu.copy_smem_to_gmem(refs.staged.at[warpgroup], refs.d_logits.at[rows, columns])

        plgpu.wait_smem_to_gmem(0)


def _stream(refs):
    """Copy the kernel to shared memory in pieces: down 128 columns, then the next 128."""
    kernel, pieces, full, free = refs.kernel, refs.pieces, refs.full, refs.free
    slots, depths = pieces.shape[0], kernel.shape[0] // DEPTH
    count = depths * (kernel.shape[1] // SYMBOLS)

    @pl.loop(0, count)
    def _(i):
        slot = lax.rem(i, slots)

        @pl.when(i >= slots)
        def _():
            plgpu.barrier_wait(free.at[slot])

        rows = pl.ds(pl.multiple_of(lax.rem(i, depths) * DEPTH, DEPTH), DEPTH)
        columns = pl.ds(pl.multiple_of(lax.div(i, depths) * SYMBOLS, SYMBOLS), SYMBOLS)
        plgpu.copy_gmem_to_smem(kernel.at[rows, columns], pieces.at[slot], full.at[slot])

    for slot in range(min(slots, count)):
        plgpu.barrier_wait(free.at[slot])


def _activate(refs, hidden, warpgroup, b, t0, u, activation):
    """Write activation(encoded + predicted) of a tile to shared memory, for matrix products."""
    frames, arrived = pl.ds(pl.multiple_of(t0, ROWS), ROWS), refs.arrived.at[warpgroup]
    plgpu.copy_gmem_to_smem(refs.encoded.at[b, frames], hidden, arrived)
    parts = [pl.ds(start, DEPTH) for start in range(0, hidden.shape[1], DEPTH)]
    # Load all of them together, and while the frames are copied.
    row = [_load_columns(refs.predicted.at[b, u, columns]) for columns in parts]
    plgpu.barrier_wait(arrived)
    for columns, part in zip(parts, row):
        frame = plgpu.load(hidden.at[:, columns], layout=LAYOUT).astype(jnp.float32)
        total = frame + _along_rows(part.astype(jnp.float32))
        hidden[:, columns] = ACTIVATIONS[activation](total).astype(jnp.bfloat16)
    plgpu.commit_smem()


def _product(refs, hidden, v):
    """Return hidden @ kernel [64, 128] for the v-th 128 symbols."""
    pieces, full, free = refs.pieces, refs.full, refs.free
    slots, depths = pieces.shape[0], hidden.shape[1] // DEPTH
    # A static slot number saves a quarter of the loop's instructions.
    slot = lambda k: k % slots if depths % slots == 0 else lax.rem(v * depths + k, slots)

    def accumulate(accumulator):
        for k in range(depths):
            plgpu.barrier_wait(full.at[slot(k)])
            rows = hidden.at[:, pl.ds(k * DEPTH, DEPTH)]
            plgpu.wgmma(accumulator, rows, pieces.at[slot(k)])
            if k:
                plgpu.wgmma_wait(1)
                plgpu.barrier_arrive(free.at[slot(k - 1)])
        plgpu.wgmma_wait(0)
        plgpu.barrier_arrive(free.at[slot(depths - 1)])
        return accumulator[...]

    return pl.run_scoped(accumulate, plgpu.WGMMAAccumulatorRef((ROWS, SYMBOLS), jnp.float32))


def _bias_row(bias, v):
    """Load the bias of the v-th 128 symbols; call it before their product, which hides the wait."""
    return _load_columns(bias.at[pl.ds(pl.multiple_of(v * SYMBOLS, SYMBOLS), SYMBOLS)])


def _load_columns(values):
    return plgpu.load(values, layout=BY_COLUMN, optimized=False)


def _halves(x, v):
    """Return the halves of an array for the v-th 128 symbols, each with its number."""
    parts = range(SYMBOLS // DEPTH)
    return [(len(parts) * v + i, x[:, i * DEPTH : (i + 1) * DEPTH]) for i in parts]


def _column(symbol):
    """Return the mask of the symbol's column in its block of 64 symbols."""
    column = plgpu.broadcasted_iota(jnp.int32, (ROWS, DEPTH), 1, layout=LAYOUT)
    return column == symbol % DEPTH


def _constant(value):
    return plgpu.layout_cast(jnp.full((ROWS,), value, jnp.float32), BY_ROW)


def _along_columns(per_row, columns=SYMBOLS):
    return lax.broadcast_in_dim(per_row, (ROWS, columns), [0])


def _along_rows(per_column):
    return lax.broadcast_in_dim(per_column, (ROWS, *per_column.shape), [1])


def lattice_forward(
    blank: Float32[Array, "S ... U1"],
    label: Float32[Array, "S ... U1"],
    start: Float32[Array, "... U1"],
    end: Float32[Array, "... U1"],
    *,
    interpret=False,
) -> tuple[Float32[Array, "..."], Float32[Array, "S ... U1"], Float32[Array, "S ..."]]:
    """Compute `_lattice.walk` in one kernel, in which each block walks along one lattice.

    Arguments and results are the same: total log-likelihood, alpha before each step minus a shift,
    and the cumulative shifts.
    """
    steps, *many, cells = blank.shape
    lattices, columns = math.prod(many), LANES * pl.cdiv(cells, LANES)
    # One more step would start from the last alpha; each step prefetches the next ones.
    rows = AHEAD * (steps // AHEAD + 1)

    def padded(plane):
        missing = rows + AHEAD - steps, columns - plane.shape[-1]
        plane = plane.reshape(steps, lattices, plane.shape[-1])
        padding = (0, missing[0]), (0, 0), (0, missing[1])
        return jnp.pad(plane, padding, constant_values=-jnp.inf)

    alpha, shifts = plgpu.kernel(
        _lattice_body,
        out_type=(
            jax.ShapeDtypeStruct((rows, lattices, columns), jnp.float32),
            jax.ShapeDtypeStruct((rows, lattices), jnp.float32),
        ),
        grid=(lattices,),
        grid_names=("lattice",),
        kernel_name="lattice_forward",
        scratch_types=[plgpu.SMEM((columns + LANES,), jnp.float32)],
        interpret=interpret,
    )(
        padded(blank),
        padded(label[..., :-1]),  # no label leaves the last column
        jnp.pad(
            start.reshape(lattices, cells), ((0, 0), (0, columns - cells)), constant_values=-jnp.inf
        ),
    )
    alpha, shifts = alpha.reshape(rows, *many, columns), shifts.reshape(rows, *many)
    shifts = jnp.cumsum(shifts[:steps], axis=0)
    alpha = alpha[..., :cells]
    return (alpha[steps] + end).max(-1) + shifts[-1], alpha[:steps], shifts


def _lattice_body(blank, label, start, alphas, shifts, moved):
    lattice, columns = lax.axis_index("lattice"), blank.shape[2]
    layout = plgpu.Layout.WG_STRIDED((columns,), vec_size=1)
    stay, move = pl.ds(1, columns), pl.ds(0, columns)  # `moved` is read one column to the left

    # A maximum on the GPU may lose NaN.
    at_least_nothing = lambda x: jnp.where(x < NOTHING, NOTHING, x)

    def edges(step):
        load = lambda plane: plgpu.load(plane.at[step, lattice], layout=layout, optimized=False)
        return load(blank), load(label)

    def advance(step, alpha, blank, label):
        alphas[step, lattice] = jnp.where(alpha <= NOTHING / 2, -jnp.inf, alpha)
        moved[stay] = alpha + at_least_nothing(label)
        emitted = plgpu.load(moved.at[move], layout=layout)
        waited = alpha + at_least_nothing(blank)
        larger = jnp.maximum(waited, emitted)
        reached = larger + jnp.log(jnp.exp(waited - larger) + jnp.exp(emitted - larger))
        shift = reached.max()
        shift = jnp.where(shift > NOTHING / 2, shift, 0.0)
        shifts[step, lattice] = shift
        return at_least_nothing(reached - shift)

    def some_steps(i, carry):
        alpha, now = carry
        later = [edges((i + 1) * AHEAD + k) for k in range(AHEAD)]
        for k, pair in enumerate(now):
            alpha = advance(i * AHEAD + k, alpha, *pair)
        return alpha, later

    moved[move] = plgpu.layout_cast(jnp.full((columns,), NOTHING, jnp.float32), layout)
    alpha = plgpu.load(start.at[lattice], layout=layout, optimized=False)
    first = [edges(k) for k in range(AHEAD)]
    lax.fori_loop(0, alphas.shape[0] // AHEAD, some_steps, (jnp.maximum(alpha, NOTHING), first))
