"""The joint network and the loss of a transducer, computed together."""

from functools import partial

from jaxtyping import Array, Float, Float32, Integer, Key

from asr_jax.losses._arguments import Computation, Implementation, JointArguments
from asr_jax.losses._cells import Factorization, VocabularyLayout
from asr_jax.losses._checks import check_joint, check_objective
from asr_jax.losses._edges import joint_loss, lattice_walker
from asr_jax.losses._joint import Activation
from asr_jax.losses._lattice import Topology, log_likelihood


def transducer_loss(
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
    fastemit_lambda: float = 0.0,
    chunk_frames: int | None = None,
    utterances_per_group: int | None = None,
    negligible_gradient: float = 0.0,
    implementation: Implementation = None,
    dropout: float = 0.0,
    key: Key[Array, ""] | None = None,
) -> Float32[Array, " B"]:
    """Return -log P(labels | encoded) of each utterance, in nats, without a 4-D tensor of logits.

    logits[b, t, u] = activation(encoded[b, t] + predicted[b, u]) @ kernel + bias, and the loss is
    exactly `rnnt_loss` of them (Graves 2012, arXiv 1211.3711). Logits are computed a few tiles at a
    time, and again in the backward pass. The arrays are separate arguments, as is usual for losses.

    Args:
        encoded: encoder frames, projected to the joint's width.
        predicted: predictor outputs after 0..U labels, projected likewise; U1 = U + 1.
        kernel: output layer. The product takes the inputs' dtype; all sums are float32.
        bias: bias of the output layer; may be None.
        labels: label ids without blanks.
        encoded_lengths: frames of each utterance. Zero frames: loss inf, gradient zero.
        label_lengths: labels of each utterance; zero, or more than frames, are fine.
        blank_id: index of the blank in the vocabulary.
        activation: applied to encoded + predicted.
        topology: "rnnt", or "one_symbol_per_frame" (k2's "modified"): one label or blank per frame.
        factorization: "softmax" over all symbols; "hat": a sigmoid of the blank's logit, and a
            softmax over the labels' logits (Variani et al. 2020, arXiv 2003.07705).
        fastemit_lambda: adds this share to gradients of label edges (arXiv 2010.11148, eq. 14).
        chunk_frames: cells per step, in frames of the padded batch; None: chosen by device.
        utterances_per_group: utterances per pass; None: all, but few of a very large batch.
        negligible_gradient: tiles without a larger occupancy are left out of the backward pass.
        implementation: "xla" (None), "reference" (4-D), "mosaic_gpu" (Hopper); see `Computation`.
        dropout: fraction of hidden states set to zero, by a hash of key, utterance and cell.
        key: seed of dropout; None: no dropout. Under shard_map each device needs its own.

    Padding beyond the lengths may hold anything, even NaN. A length beyond its axis gives inf, a
    label outside the vocabulary NaN. Devices that share the batch exchange gradients of kernel and
    bias, and the number of steps; devices that share the vocabulary, sums over it.

    Raises:
        ValueError: a shape, dtype or option does not fit.
    """
    joint = JointArguments(encoded, predicted, kernel, bias, labels, encoded_lengths, label_lengths)
    computation = Computation(
        activation, chunk_frames, utterances_per_group, negligible_gradient, implementation, dropout
    )
    return _loss(joint, computation, blank_id, topology, factorization, fastemit_lambda, key)


def _loss(joint, computation, blank_id, topology, factorization, fastemit_lambda, key):
    check_joint(joint, computation, blank_id=blank_id)
    check_objective(topology, factorization, fastemit_lambda)
    score = partial(_score, topology, fastemit_lambda, lattice_walker(computation.implementation))
    layout = VocabularyLayout(blank_id, joint.kernel.shape[1], factorization)
    return joint_loss(score, joint, computation, layout, key)


def _score(topology, fastemit_lambda, walk, edges, *lengths) -> Float32[Array, " B"]:
    losses = log_likelihood(edges.blank, edges.label, *lengths, topology, fastemit_lambda, walk)
    return losses  # pyright: ignore[reportReturnType]
