"""The lattice of alignments: forward and backward variables over its anti-diagonals.

Node (t, u) means that t frames are consumed and u labels emitted. A blank goes to (t + 1, u), a
label to (t, u + 1); an alignment is a path from (0, 0) to (T, U), and its probability the product
of its edges (Graves 2012, arXiv 1211.3711, section 2.4). All edges from one anti-diagonal t + u end
in the next one, so a scan over T + U anti-diagonals needs one logaddexp a step.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Lengths = Int[Array, " B"]


@jax.custom_vjp
def log_likelihood(
    blank: Float[Array, "B T U1"],
    label: Float[Array, "B T U"],
    frame_lengths: Lengths,
    label_lengths: Lengths,
) -> Float[Array, " B"]:
    """log of the summed probability of all alignments, in nats.

    blank and label are the log-probabilities of the edges that leave node (t, u); U1 = U + 1. What
    lies beyond the lengths is never looked at. No alignment (zero frames, or lengths that the axes
    cannot hold): -inf and a zero gradient. The gradient is the occupancy of each edge.
    """
    return _forward(*diagonals(*_close(blank, label, frame_lengths, label_lengths)))[0]


def _log_likelihood_fwd(blank, label, frame_lengths, label_lengths):
    total, *occupancies = occupancy(blank, label, frame_lengths, label_lengths)
    return total, occupancies


def _log_likelihood_bwd(occupancies, cotangent):
    blank, label = occupancies
    scale = cotangent[:, None, None]
    return scale * blank, scale * label, None, None


log_likelihood.defvjp(_log_likelihood_fwd, _log_likelihood_bwd)


def occupancy(
    blank: Float[Array, "B T U1"],
    label: Float[Array, "B T U"],
    frame_lengths: Lengths,
    label_lengths: Lengths,
) -> tuple[Float[Array, " B"], Float[Array, "B T U1"], Float[Array, "B T U"]]:
    """The log-likelihood, and how probable it is that an alignment takes each blank and label.

    Blank occupancies sum to one in every frame, label occupancies to one for every label.
    """
    frames, labels = label.shape[1:]
    edges = diagonals(*_close(blank, label, frame_lengths, label_lengths))
    total, _, through_blank, through_label = forward_backward(*edges)
    real = jnp.arange(frames)[:, None] < frame_lengths[:, None, None]
    taken = (_from_diagonals(jnp.exp(x), frames) for x in (through_blank, through_label))
    taken_blank, taken_label = (jnp.where(real, x, 0.0) for x in taken)
    return total, taken_blank, taken_label[..., :labels]


def _close(blank, label, frame_lengths, label_lengths):
    """Edges of all (T + 1, U + 1) nodes, with one free way from each utterance's end to (T, U).

    The free edges give every utterance of a batch the same last node, so that nothing below has to
    know the lengths, and the reversed lattice is a lattice of the same kind.
    """
    frames, labels = label.shape[1:]
    t, u = jnp.arange(frames + 1)[:, None], jnp.arange(labels + 1)
    t_end, u_end = frame_lengths[:, None, None], label_lengths[:, None, None]
    blank = jnp.pad(blank, ((0, 0), (0, 1), (0, 0)))
    label = jnp.pad(label, ((0, 0), (0, 1), (0, 1)))
    possible = (t_end > 0) & (t_end <= frames) & (u_end >= 0) & (u_end <= labels)
    inside = possible & (t < t_end)
    free_blank = possible & (t >= t_end) & (t < frames) & (u == u_end)
    free_label = possible & (t == frames) & (u >= u_end) & (u < labels)
    return (
        jnp.where(inside & (u <= u_end), blank, jnp.where(free_blank, 0.0, -jnp.inf)),
        jnp.where(inside & (u < u_end), label, jnp.where(free_label, 0.0, -jnp.inf)),
    )


def diagonals(*planes):
    """[B, T+1, U+1] planes to [T+U, B, U+1]: element (t, u) moves to diagonal t + u, column u.

    Rows of a transposed and padded plane, read with a stride that is one short, slide by one each:
    a skew without a gather. The last anti-diagonal has no edges and is left out.
    """

    def skew(plane):
        batch, rows, columns = plane.shape
        plane = jnp.pad(plane.mT, ((0, 0), (0, 0), (0, columns)), constant_values=-jnp.inf).reshape(
            batch, -1
        )
        plane = plane[:, :-columns].reshape(batch, columns, -1)
        return jnp.moveaxis(plane[..., :-1], 2, 0)

    return tuple(map(skew, planes))


def _from_diagonals(plane, frames):
    """The inverse: [T+U, B, U+1] to [B, T, U+1]."""
    count, batch, columns = plane.shape
    plane = jnp.pad(jnp.moveaxis(plane, 0, 2), ((0, 0), (0, 0), (0, 1))).reshape(batch, -1)
    plane = jnp.pad(plane, ((0, 0), (0, columns))).reshape(batch, columns, -1)
    return plane[..., :frames].mT


def _forward(blank, label):
    """Total log-likelihood; alpha on each anti-diagonal, less a shift; the shifts, summed up.

    Far into the lattice alpha is in the thousands, where float32 has four decimals left. So the
    largest entry of each anti-diagonal is moved out of it, to 0, and added up on its own.
    """

    def step(alpha, edges):
        blank, label = edges
        padding = [(0, 0)] * (alpha.ndim - 1) + [(1, 0)]
        moved = jnp.pad((alpha + label)[..., :-1], padding, constant_values=-jnp.inf)
        reached = jnp.logaddexp(alpha + blank, moved)
        shift = reached.max(-1, keepdims=True)
        shift = jnp.where(shift > -jnp.inf, shift, 0.0)
        return reached - shift, (alpha, shift[..., 0])

    start = jnp.full_like(blank[0], -jnp.inf).at[..., 0].set(0.0)
    last, (alpha, shifts) = jax.lax.scan(step, start, (blank, label))
    shifts = jnp.cumsum(shifts, axis=0)
    return last[..., -1] + shifts[-1], alpha, shifts


def forward_backward(blank, label):
    """Total log-likelihood of edges [T+U, B, U+1], and what of it goes through each edge.

    Every alignment takes exactly one edge from every anti-diagonal. So the second result [T+U, B],
    the log-likelihood summed over the edges of each, is the total over and over; and the last two,
    log occupancies of blanks and labels, are normalised by it and keep no error that has piled up
    on the way. beta is alpha of the reversed lattice; both advance in one scan.
    """
    reverse = lambda x: jnp.flip(x, (0, -1))
    left = lambda x: jnp.pad(x[..., 1:], ((0, 0), (0, 0), (0, 1)), constant_values=-jnp.inf)
    edges = jnp.stack([blank, reverse(blank)], 1), jnp.stack([label, left(reverse(label))], 1)
    total, alpha, shifts = _forward(*edges)
    alpha, beta = alpha[:, 0], reverse(alpha[:, 1])  # beta: of the anti-diagonal where edges end
    through = jnp.stack([alpha + blank + beta, alpha + label + left(beta)])
    sums = jax.nn.logsumexp(through, axis=(0, -1))
    finite = (sums > -jnp.inf)[..., None]
    occupancies = jnp.where(finite, through - jnp.where(finite, sums[..., None], 0.0), -jnp.inf)
    before = jnp.pad(shifts[:-1], ((1, 0), (0, 0), (0, 0)))
    return total[0], sums + before[:, 0] + jnp.flip(before[:, 1], 0), *occupancies
