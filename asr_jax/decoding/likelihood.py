"""The likelihood of given labels, by the networks that a search would use."""

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from asr_jax.config import DecodingConfig
from asr_jax.layers.length import frame_mask
from asr_jax.losses import tdt_loss, transducer_loss
from asr_jax.models.composition import Model
from asr_jax.models.ctc import CTC
from asr_jax.models.transducer import Transducer


def label_log_likelihoods(
    model: Model,
    encoded: Float[Array, "B T D"],
    lengths: Int[Array, " B"],
    labels: Int[Array, "B U"],
    label_lengths: Int[Array, " B"],
    *,
    config: DecodingConfig,
) -> Float[Array, " B"]:
    """Return log P(labels | encoded) in nats of a transducer, TDT, HAT or CTC model.

    With config.head = "ctc" it is that of the CTC head. Padding may hold anything. Labels that have
    no path through the frames of a CTC model have a value below -10,000.
    """
    if isinstance(model, CTC) or config.head == "ctc":
        assert model.ctc_head is not None  # Config requires it.
        logits = model.ctc_head(encoded).astype(jnp.float32)
        after_frames = 1.0 - frame_mask(lengths, logits.shape[1])
        after_labels = 1.0 - frame_mask(label_lengths, labels.shape[1])
        return -optax.ctc_loss(logits, after_frames, labels, after_labels)
    assert isinstance(model, Transducer)
    joint = model.joint
    arguments = (*model.loss_arguments(encoded, labels), labels, lengths, label_lengths)
    if joint.durations:
        return -tdt_loss(*arguments, durations=joint.durations, activation=joint.activation)
    return -transducer_loss(
        *arguments, factorization=joint.factorization, activation=joint.activation
    )
