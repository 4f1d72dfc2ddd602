"""When labels come: posteriors over all alignments, and the best alignment."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int32, Integer

from asr_jax.losses import _durations, _lattice
from asr_jax.losses._cells import Columns, Factorization
from asr_jax.losses._checks import check_durations, check_joint, check_objective, signed
from asr_jax.losses._edges import joint_edges
from asr_jax.losses._joint import Activation
from asr_jax.losses._lattice import Topology


class Alignment(NamedTuple):
    """When each label is emitted.

    posteriors: P(label u + 1 comes at frame t | encoded, labels). Sums to one over the frames for
        every label; zero beyond the lengths, and where there is no alignment.
    best_frames: the frame of each label in the most probable alignment; -1 beyond the labels, and
        where there is none.
    best_log_probability: of that alignment, in nats; -inf if there is none.
    """

    posteriors: Float32[Array, "B T U"]
    best_frames: Int32[Array, "B U"]
    best_log_probability: Float32[Array, " B"]


def transducer_alignment(
    encoded: Float[Array, "B T D"],
    predicted: Float[Array, "B U1 D"],
    kernel: Float[Array, "D V"],
    bias: Float[Array, " V"] | None,
    labels: Integer[Array, "B U"],
    encoded_lengths: Integer[Array, " B"],
    label_lengths: Integer[Array, " B"],
    *,
    blank_id: int = 0,
    activation: Activation = "tanh",
    topology: Topology = "rnnt",
    factorization: Factorization = "softmax",
    durations: Sequence[int] = (),
    chunk_frames: int | None = None,
) -> Alignment:
    """Labels aligned with frames, softly and hard: for timestamps and forced alignment.

    A posterior is the derivative of the log-likelihood by the log-probability of the label's edge;
    so is the best alignment, with maxima in place of sums over alignments (Viterbi). Under jit,
    what is not used of the result is not computed.

    Arguments as in `transducer_loss`; with durations, as in `tdt_loss`, where best_frames says when
    a label starts. No gradient.

    Raises:
        ValueError: a shape, dtype or option does not fit.
    """
    durations = tuple(durations)
    joint = encoded, predicted, kernel, bias, labels, encoded_lengths, label_lengths
    check_joint(
        *joint,
        blank_id=blank_id,
        activation=activation,
        chunk_frames=chunk_frames,
        durations=durations,
    )
    check_objective(topology, factorization, 0.0)
    floats = jax.lax.stop_gradient((encoded, predicted, kernel, bias))
    labels, frame_lengths, label_lengths = signed(labels, encoded_lengths, label_lengths)
    lengths = frame_lengths, label_lengths
    columns = Columns(blank_id, kernel.shape[1] - len(durations), factorization)
    edges = joint_edges(
        *floats,
        labels,
        *lengths,
        columns=columns,
        activation=activation,
        chunk_frames=chunk_frames,
        implementation=None,
    )
    if durations:
        check_durations(durations)
        duration = jax.nn.log_softmax(edges.rest, -1)

        def score(label, *, plus):
            return _durations.log_likelihood(
                edges.blank, label, duration, *lengths, durations, plus
            )

        all_of = partial(score, plus=jnp.logaddexp)
        best_of = partial(score, plus=_lattice.first_largest)
    else:
        all_of = lambda label: _lattice.log_likelihood(edges.blank, label, *lengths, topology, 0.0)
        best_of = lambda label: _lattice.best_alignment(edges.blank, label, *lengths, topology)

    _, posteriors = _with_derivative(all_of, edges.label)
    best, taken = _with_derivative(best_of, edges.label)
    frames = jnp.where(taken.any(1), taken.argmax(1), -1).astype(jnp.int32)
    return Alignment(posteriors, frames, best)


def _with_derivative(score, label):
    scores, pull = jax.vjp(score, label)
    return scores, pull(jnp.ones_like(scores))[0]
