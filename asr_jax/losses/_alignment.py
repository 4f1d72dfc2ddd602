"""When labels are emitted: posteriors over all alignments, and the best alignment."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int32, Integer

from asr_jax.losses import _durations, _lattice
from asr_jax.losses._arguments import Computation, JointArguments
from asr_jax.losses._cells import Factorization, VocabularyLayout
from asr_jax.losses._checks import check_durations, check_joint, check_objective
from asr_jax.losses._edges import as_one_kind, joint_edges
from asr_jax.losses._joint import Activation
from asr_jax.losses._lattice import Topology


class Alignment(NamedTuple):
    """When each label is emitted.

    posteriors: P(label u + 1 is emitted at frame t | encoded, labels). Sums to one over the frames
        for every label; zero beyond the lengths, and if there is no alignment.
    best_frames: frame of each label in the most probable alignment; -1 beyond the labels, and if
        there is no alignment.
    best_log_probability: log-probability of that alignment, in nats; -inf if there is none, NaN if
        anything in the utterance is NaN.
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
    """Align labels with frames, for timestamps and forced alignment.

    A posterior is the derivative of the log-likelihood with respect to the log-probability of the
    label's edge. The best alignment is the same derivative with maxima instead of sums over
    alignments (Viterbi). Under jit, unused parts of the result are not computed.

    Arguments are those of `transducer_loss`, the arrays separate for the same reason. With
    durations they are those of `tdt_loss`, and best_frames has the frames at which labels start.
    There is no gradient.

    Raises:
        ValueError: a shape, dtype or option does not fit.
    """
    durations = () if durations == () else check_durations(durations)
    if topology != "rnnt" and durations:
        raise ValueError(f"{topology = }: must be 'rnnt' with durations")
    joint = JointArguments(encoded, predicted, kernel, bias, labels, encoded_lengths, label_lengths)
    computation = Computation(activation, chunk_frames)
    check_joint(joint, computation, blank_id=blank_id, durations=durations)
    check_objective(topology, factorization, 0.0)
    joint = as_one_kind(JointArguments(*jax.lax.stop_gradient(joint[:4]), *joint[4:]))
    lengths = joint.encoded_lengths, joint.label_lengths
    layout = VocabularyLayout(blank_id, kernel.shape[1] - len(durations), factorization)
    edges = joint_edges(joint, computation, layout)
    score_all, score_best = _scores(edges, lengths, topology, durations)
    _, posteriors = _with_derivative(score_all, edges.label)
    best, taken = _with_derivative(score_best, edges.label)
    emitted = jnp.isfinite(best)[:, None] & taken.any(1)
    frames = jnp.where(emitted, taken.argmax(1), -1).astype(jnp.int32)
    return Alignment(posteriors[:, : encoded.shape[1]], frames, best)


def _scores(edges, lengths, topology, durations):
    """Return log P of all alignments, and of the best one, as functions of the label edges."""
    frames, labels = lengths
    blank = edges.blank
    if durations:
        duration = jax.nn.log_softmax(edges.rest, -1)

        def score(plus, label):
            return _durations.log_likelihood(
                blank, label, duration, frames, labels, durations, plus
            )

        return partial(score, jnp.logaddexp), partial(score, _lattice.first_largest)

    def score_all(label):
        return _lattice.log_likelihood(blank, label, frames, labels, topology, 0.0)

    def score_best(label):
        return _lattice.best_alignment(blank, label, frames, labels, topology)

    return score_all, score_best


def _with_derivative(score, label):
    scores, pull = jax.vjp(score, label)
    return scores, pull(jnp.ones_like(scores))[0]
