"""The transducer's joint network and loss in one."""

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
    """-log P(labels | encoded), in nats, for each utterance, without the 4-D tensor of logits.

    logits[b, t, u] = activation(encoded[b, t] + predicted[b, u]) @ kernel + bias, and the loss is
    `rnnt_loss` of them (Graves 2012, arXiv 1211.3711), exactly: tiles of the cells that exist are
    computed a few at a time, and once more in the backward pass. Reverse-mode differentiable in
    every float argument.

    Args:
        encoded: the encoder's frames, projected to the joint's width.
        predicted: the predictor's outputs after 0..U labels, projected likewise; U1 = U + 1.
        kernel: output layer. Its product runs in the inputs' dtype and accumulates in float32, as
            does everything behind it.
        bias: of the output layer, or None.
        labels: without blanks.
        encoded_lengths: frames of each utterance. Zero frames: loss inf, gradient zero.
        label_lengths: labels of each utterance; zero, or more than frames, are fine.
        blank_id: index of the blank in the vocabulary.
        activation: between the sum and the output layer.
        topology: "rnnt" lets a frame emit any number of labels. In "one_symbol_per_frame" every
            frame emits one symbol, a label or a blank (Tripathi et al. 2019; k2's "modified"); more
            labels than frames have no alignment: loss inf, gradient zero.
        factorization: "softmax" over all symbols; or "hat": a sigmoid of the blank's logit decides
            on blank, a softmax of the other logits on the label (Variani et al. 2020, arXiv
            2003.07705).
        fastemit_lambda: the gradient of every label's edge is multiplied by 1 + fastemit_lambda, so
            that labels come early (Yu et al. 2020, arXiv 2010.11148, equation 14). The loss itself
            stays -log P, and comparable.
        chunk_frames: logits exist for as many cells at a time as so many frames of the padded batch
            have; None chooses by the machine.
        utterances_per_group: planes of [T, U1] exist for at most so many utterances at a time, a
            divisor of the batch, and at least one on each device; None takes all, but few of very
            large batches.
        negligible_gradient: tiles in which no occupancy is larger than this are left out of the
            backward pass. At 0, where all are zero, that is exact; 1e-9 is far below what float32
            sums of occupancies keep, and saves most of it with a trained model.
        implementation: "xla", in tiles; "reference", the plain 4-D form; "mosaic_gpu", kernels for
            Hopper GPUs and bfloat16, on one device or under shard_map with check_vma=False. None
            takes "xla".

    What lies beyond the lengths never matters, not even NaN. A length beyond its axis gives inf; a
    label outside the vocabulary NaN. With the batch sharded over devices, these exchange the
    gradients of kernel and bias, and how many steps the slowest takes; with the vocabulary sharded
    too, sums over it.

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
