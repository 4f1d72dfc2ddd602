"""The joint network and the loss of a transducer, computed together."""

from functools import partial

from jaxtyping import Array, Float, Float32, Integer

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
) -> Float32[Array, " B"]:
    """Return -log P(labels | encoded) of each utterance, in nats, without a 4-D tensor of logits.

    logits[b, t, u] = activation(encoded[b, t] + predicted[b, u]) @ kernel + bias, and the loss is
    exactly `rnnt_loss` of them (Graves 2012, arXiv 1211.3711). Logits are computed a few tiles at a
    time, and again in the backward pass. The arrays are separate arguments, as is usual for losses.

    Args:
        encoded: encoder frames, projected to the joint's width.
        predicted: predictor outputs after 0..U labels, projected likewise; U1 = U + 1.
        kernel: output layer. The product runs in the inputs' dtype and accumulates in float32, as
            does everything after it.
        bias: bias of the output layer; may be None.
        labels: label ids without blanks.
        encoded_lengths: frames of each utterance. Zero frames: loss inf, gradient zero.
        label_lengths: labels of each utterance; zero, or more than frames, are fine.
        blank_id: index of the blank in the vocabulary.
        activation: applied to encoded + predicted.
        topology: "rnnt" allows any number of labels per frame, "one_symbol_per_frame" one label or
            blank (Tripathi et al. 2019; k2's "modified"; more labels than frames: loss inf).
        factorization: "softmax" over all symbols; "hat": a sigmoid of the blank's logit, and a
            softmax over the labels' logits (Variani et al. 2020, arXiv 2003.07705).
        fastemit_lambda: the gradient of label edges is multiplied by 1 + fastemit_lambda, for early
            labels (Yu et al. 2020, arXiv 2010.11148, equation 14). The loss stays -log P.
        chunk_frames: cells per step, in frames of the padded batch; None: chosen by device.
        utterances_per_group: utterances per pass; None: all, but few of a very large batch.
        negligible_gradient: tiles without a larger occupancy are left out of the backward pass.
        implementation: "xla" (None), "reference" (4-D) or "mosaic_gpu" (Hopper); `Computation`
            explains these four options.

    Padding beyond the lengths may hold anything, even NaN. A length beyond its axis gives inf, a
    label outside the vocabulary NaN. Devices that share the batch exchange gradients of kernel and
    bias, and the number of steps; devices that share the vocabulary, sums over it.

    Raises:
        ValueError: a shape, dtype or option does not fit.
    """
    joint = JointArguments(encoded, predicted, kernel, bias, labels, encoded_lengths, label_lengths)
    computation = Computation(
        activation, chunk_frames, utterances_per_group, negligible_gradient, implementation
    )
    return _loss(joint, computation, blank_id, topology, factorization, fastemit_lambda)


def _loss(joint, computation, blank_id, topology, factorization, fastemit_lambda):
    check_joint(joint, computation, blank_id=blank_id)
    check_objective(topology, factorization, fastemit_lambda)
    objective = topology, fastemit_lambda, lattice_walker(computation.implementation)
    layout = VocabularyLayout(blank_id, joint.kernel.shape[1], factorization)
    return joint_loss(partial(_score, objective), joint, computation, layout)


def _score(objective, edges, *lengths) -> Float32[Array, " B"]:
    return log_likelihood(edges.blank, edges.label, *lengths, *objective)  # pyright: ignore[reportReturnType]
