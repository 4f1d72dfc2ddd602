"""Alignment of a transcript's labels to the encoded frames."""

from jaxtyping import Array, Float, Int

from asr_jax.losses import Alignment, transducer_alignment
from asr_jax.models.transducer import Transducer


def align_labels(
    model: Transducer,
    encoded: Float[Array, "B T D"],
    lengths: Int[Array, " B"],
    labels: Int[Array, "B U"],
    label_lengths: Int[Array, " B"],
) -> Alignment:
    """Return `losses.transducer_alignment` for a transducer, TDT or HAT model."""
    joint = model.joint
    return transducer_alignment(
        *model.loss_arguments(encoded, labels),
        labels,
        lengths,
        label_lengths,
        activation=joint.activation,
        factorization=joint.factorization,
        durations=joint.durations,
    )
