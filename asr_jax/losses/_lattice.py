"""The lattice of alignments: forward and backward variables, all utterances and directions at once.

Node (t, u) means that t frames are consumed and u labels emitted. A blank goes to (t + 1, u), a
label to (t, u + 1). An alignment is a path from (0, 0) to (T, U), and its probability is the
product of its edges (Graves 2012, arXiv 1211.3711, section 2.4). All edges from one anti-diagonal
t + u end in the next one, so a scan over T + U anti-diagonals needs one logaddexp per step. If a
label also consumes a frame, going to (t + 1, u + 1), the same scan runs over the frames.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from asr_jax.losses._first_order import first_order_only

Lengths = Int[Array, " B"]
Topology = Literal["rnnt", "one_symbol_per_frame"]


@partial(jax.custom_vjp, nondiff_argnames=("topology", "fastemit_lambda", "walker"))
def log_likelihood(
    blank: Float[Array, "B T U1"],
    label: Float[Array, "B T U"],
    frame_lengths: Lengths,
    label_lengths: Lengths,
    topology: Topology,
    fastemit_lambda: float,
    walker: Callable | None = None,
) -> Float[Array, " B"]:
    """Return the log of the summed probability of all alignments, in nats.

    blank and label are log-probabilities of the edges that leave node (t, u); U1 = U + 1. Padding
    beyond the lengths is never read. No alignment: -inf and a zero gradient. The gradient is the
    occupancy of each edge, for labels times 1 + fastemit_lambda. walker replaces `walk`, if given.
    """
    steps = _steps(blank, label, frame_lengths, label_lengths, topology)
    return (walker or walk)(*steps)[0]


def _fwd(blank, label, frame_lengths, label_lengths, topology, fastemit_lambda, walker):
    lengths = frame_lengths, label_lengths
    total, *occupancies = occupancy(blank, label, *lengths, topology, walker or walk)
    return total, occupancies


def _bwd(topology, fastemit_lambda, walker, occupancies, cotangent):
    blank, label = occupancies
    # An edge that no alignment takes has no gradient, even if the cotangent is infinite.
    scaled = lambda taken, by: jnp.where(taken == 0, 0.0, by * cotangent[:, None, None] * taken)
    return *first_order_only((scaled(blank, 1.0), scaled(label, 1.0 + fastemit_lambda))), None, None


log_likelihood.defvjp(_fwd, _bwd)


def best_alignment(
    blank: Float[Array, "B T U1"],
    label: Float[Array, "B T U"],
    frame_lengths: Lengths,
    label_lengths: Lengths,
    topology: Topology,
) -> Float[Array, " B"]:
    """Return the best alignment's log-probability; its gradient is one on that path's edges."""
    steps = _steps(blank, label, frame_lengths, label_lengths, topology)
    total = walk(*steps, plus=first_largest)[0]
    return jnp.where(total == -jnp.inf, -jnp.inf, total)  # a constant, without a gradient


def first_largest(a, b):
    """Return the maximum; for equal values, the first gets the whole gradient. NaN if either is."""
    return jnp.where((a >= b) | (a != a), a, b)


def occupancy(
    blank: Float[Array, "B T U1"],
    label: Float[Array, "B T U"],
    frame_lengths: Lengths,
    label_lengths: Lengths,
    topology: Topology,
    walker: Callable,
) -> tuple[Float[Array, " B"], Float[Array, "B T U1"], Float[Array, "B T U"]]:
    """Return the log-likelihood, and the probability that an alignment takes each edge.

    Occupancies of a label sum to one over the frames. Occupancies of blanks sum to one in every
    frame, if every frame ends in a blank.
    """
    frames, labels = label.shape[1:]
    steps = _steps(blank, label, frame_lengths, label_lengths, topology)
    total, _, through_blank, through_label = forward_backward(*steps, walker)
    real = jnp.arange(frames)[:, None] < frame_lengths[:, None, None]
    back = _from_diagonals if topology == "rnnt" else lambda x, _: jnp.moveaxis(x, 0, 1)
    taken = (back(jnp.exp(x), frames) for x in (through_blank, through_label))
    taken_blank, taken_label = (jnp.where(real, x, 0.0) for x in taken)
    return total, taken_blank, taken_label[..., :labels]


def _steps(blank, label, frame_lengths, label_lengths, topology):
    """Return edges [steps, B, U1] of each scan step, and log indicators of starts and ends.

    After an utterance's end, a free blank loops on its last node. So the code below does not need
    the lengths, and the reversed lattice is a lattice of the same kind.
    """
    _, frames, cells = blank.shape
    label = jnp.pad(label, ((0, 0), (0, 0), (0, 1)))
    step, u = jnp.arange(frames)[:, None, None], jnp.arange(cells)
    t = step
    if topology == "rnnt":
        blank, label = diagonals(blank, label)
        t = jnp.arange(frames + cells - 1)[:, None, None] - u
    else:
        blank, label = (jnp.moveaxis(x, 1, 0) for x in (blank, label))
    t_end, u_end = frame_lengths[:, None], label_lengths[:, None]
    possible = (t_end > 0) & (t_end <= frames) & (u_end >= 0) & (u_end < cells)
    inside = possible & (t >= 0) & (t < t_end)
    free = possible & (t >= t_end) & (u == u_end)
    indicator = lambda x: jnp.where(x, 0.0, -jnp.inf)
    return (
        jnp.where(inside & (u <= u_end), blank, indicator(free)),
        jnp.where(inside & (u < u_end), label, -jnp.inf),
        indicator(possible & (u == 0)),
        indicator(possible & (u == u_end)),
    )


def diagonals(*planes: Float[Array, "B T U1"]) -> tuple[Float[Array, "steps B U1"], ...]:
    """Move element (t, u) to anti-diagonal t + u, column u; T + U anti-diagonals have edges.

    Reading the rows of a transposed and padded plane with a stride that is one short shifts each
    row by one more: a skew without a gather.
    """

    def skew(plane):
        batch, frames, cells = plane.shape
        padded = jnp.pad(plane.mT, ((0, 0), (0, 0), (0, cells)))
        padded = padded.reshape(batch, cells * (frames + cells))[:, :-cells]
        return jnp.moveaxis(padded.reshape(batch, cells, frames + cells - 1), 2, 0)

    return tuple(map(skew, planes))


def _from_diagonals(plane, frames):
    """Return the plane [B, T, U + 1] of anti-diagonals [T + U, B, U + 1]."""
    steps, batch, cells = plane.shape
    plane = jnp.moveaxis(plane, 0, 2).reshape(batch, cells * steps)
    plane = jnp.pad(plane, ((0, 0), (0, cells))).reshape(batch, cells, steps + 1)
    return plane[..., :frames].mT


def walk(blank, label, start, end, plus: Callable = jnp.logaddexp):
    """Compute alpha along the steps of all lattices of a batch at once.

    blank, label: log-probabilities of edges [steps, ..., U1]; start, end: log indicators [..., U1].
    Returns the total log-likelihood, alpha before each step minus a shift, and the cumulative
    shifts.

    Far into the lattice alpha is in the thousands, where float32 has four decimals left. So each
    step subtracts its largest entry, and sums these shifts separately.
    """

    def step(alpha, edges):
        blank, label = edges
        padding = [(0, 0)] * (alpha.ndim - 1) + [(1, 0)]
        moved = jnp.pad((alpha + label)[..., :-1], padding, constant_values=-jnp.inf)
        reached = plus(alpha + blank, moved)
        shift = jax.lax.stop_gradient(reached.max(-1, keepdims=True))
        shift = jnp.where(shift > -jnp.inf, shift, 0.0)
        return reached - shift, (alpha, shift[..., 0])

    last, (alpha, shifts) = jax.lax.scan(step, start, (blank, label))
    shifts = jnp.cumsum(shifts, axis=0)
    return (last + end).max(-1) + shifts[-1], alpha, shifts


def forward_backward(blank, label, start, end, walker):
    """Return the total log-likelihood, the same from each step's edges, and log occupancies.

    Every alignment takes exactly one edge in every step. So the second result [steps, B], the
    log-likelihood summed over the edges of each step, repeats the total. The last two results, log
    occupancies of blanks and labels, are normalized by it and do not accumulate rounding errors.
    beta is alpha of the reversed lattice; both advance in one scan.
    """
    reverse = lambda x: jnp.flip(x, (0, -1))
    left = lambda x: jnp.pad(x[..., 1:], ((0, 0), (0, 0), (0, 1)), constant_values=-jnp.inf)
    edges = jnp.stack([blank, reverse(blank)], 1), jnp.stack([label, left(reverse(label))], 1)
    ends = jnp.stack([start, jnp.flip(end, -1)]), jnp.stack([end, jnp.flip(start, -1)])
    total, alpha, shifts = walker(*edges, *ends)
    alpha, beta = alpha[:, 0], reverse(alpha[:, 1])  # beta: at the end of the step
    through = jnp.stack([alpha + blank + beta, alpha + label + left(beta)])
    sums = jax.nn.logsumexp(through, axis=(0, -1))
    possible = (sums != -jnp.inf)[..., None]  # true for NaN: a NaN loss has a NaN gradient
    occupancies = jnp.where(possible, through - jnp.where(possible, sums[..., None], 0), -jnp.inf)
    before = jnp.pad(shifts[:-1], ((1, 0), (0, 0), (0, 0)))
    return total[0], sums + before[:, 0] + jnp.flip(before[:, 1], 0), *occupancies
