"""The lattice of token-and-duration alignments (Xu et al. 2023, arXiv 2304.06795).

From node (t, u) a label of duration d goes to (t + d, u + 1) and a blank to (t + d, u), blanks for
at least one frame. The last edge of an alignment is a blank that ends at the last frame exactly.
Edges advance by 1 to max(durations) + 1 anti-diagonals t + u. A scan over the anti-diagonals
carries the log-probabilities of reaching each node of the next ones.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from asr_jax.losses._lattice import diagonals

NEVER = -1e30  # finite, so that differences of impossible nodes are not NaN in the derivative


def log_likelihood(
    blank: Float[Array, "B T U1"],
    label: Float[Array, "B T U"],
    duration: Float[Array, "B T U1 X"],
    frame_lengths: Int[Array, " B"],
    label_lengths: Int[Array, " B"],
    durations: tuple[int, ...],
    plus: Callable = jnp.logaddexp,
) -> Float[Array, " B"]:
    """Return the log of the summed probability of all alignments, in nats.

    blank, label and duration are log-probabilities of edges that leave (t, u), for X durations.
    Padding beyond the lengths is never read. No alignment: -inf and a zero gradient.
    plus: combines two paths to a node; `first_largest` returns the best alignment's instead.
    """
    _, frames, cells = blank.shape
    label = jnp.pad(label, ((0, 0), (0, 0), (0, 1)))
    edges = [diagonals(*jnp.moveaxis(duration, -1, 0)), *diagonals(blank, label)]
    u, t_end, u_end = jnp.arange(cells), frame_lengths[:, None], label_lengths[:, None]
    possible = (t_end > 0) & (t_end <= frames) & (u_end >= 0) & (u_end < cells)
    start = jnp.where(possible & (u == 0), 0.0, NEVER) + jnp.zeros_like(blank[:, 0])
    never = jnp.full_like(start, NEVER)
    numbers = jnp.arange(frames + cells - 1)
    step = jax.checkpoint(partial(_step, (u, possible, t_end, u_end), durations, plus))
    (last, *_), shifts = jax.lax.scan(
        step, (start, *[never] * (max(durations) + 1)), (numbers, *edges)
    )
    total = jnp.where(u == u_end, last, 0.0).sum(-1) + shifts.sum(0)
    never = ~possible[:, 0] | (total <= NEVER / 2)  # NaN compares false and stays NaN
    return jnp.where(never, -jnp.inf, total)


def _step(ends, durations, plus, reached, edges):
    """Advance by one anti-diagonal, as the body of a scan.

    ends: label positions; which utterances are possible; their last frames and labels.
    reached: log-probabilities [B, U1] of reaching this anti-diagonal and each of the next ones.
    """
    u, possible, t_end, u_end = ends
    number, duration, blank, label = edges
    alpha, *reached = reached
    reached.append(jnp.full_like(alpha, NEVER))
    t = number - u
    inside = possible & (t >= 0) & (t < t_end) & (u <= u_end)

    def by_blank(before, log_prob, allowed):
        return plus(before, jnp.where(allowed, alpha + log_prob, NEVER))

    # A free edge from an utterance's end to the last anti-diagonal of the batch.
    reached[0] = by_blank(reached[0], 0.0, possible & (t >= t_end) & (u == u_end))
    for d, log_prob in zip(durations, duration):
        if d > 0:
            reached[d - 1] = by_blank(reached[d - 1], blank + log_prob, inside & (t + d <= t_end))
        moved = jnp.pad((alpha + label + log_prob)[:, :-1], ((0, 0), (1, 0)))
        came = jnp.roll(inside & (u < u_end) & (t + d < t_end), 1, -1)
        reached[d] = plus(reached[d], jnp.where(came, moved, NEVER))
    # Keep the largest entry near 0, where float32 is most precise: see `_lattice.walk`.
    top = jax.lax.stop_gradient(reached[0].max(-1, keepdims=True))
    shift = jnp.where(top > NEVER / 2, top, 0.0)
    return tuple(x - shift for x in reached), shift[:, 0]
