"""What training minimises: the transducer's loss, and CTC beside it."""

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from asr_jax.config import JointConfig
from asr_jax.layers.length import frame_mask
from asr_jax.losses import transducer_loss
from asr_jax.models.transducer import Transducer


def utterance_losses(
    model: Transducer,
    features: Float[Array, "B T F"],
    feature_lengths: Int[Array, " B"],
    labels: Int[Array, "B U"],
    label_lengths: Int[Array, " B"],
    *,
    config: JointConfig,
    key: Key[Array, ""] | None = None,
) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
    """Transducer and CTC losses in nats, one of each per utterance (CTC zero without its head).

    An utterance that CTC cannot align (more labels and repeats than frames) has CTC loss zero.
    """
    encoded, lengths, predicted = model(features, feature_lengths, labels, key=key)
    joint = model.joint
    transducer = transducer_loss(
        joint.encoder_projection(encoded),
        joint.predictor_projection(predicted),
        joint.out.kernel[...],
        joint.out.bias[...],  # pyright: ignore[reportOptionalSubscript]
        labels,
        lengths,
        label_lengths,
        activation=config.activation,
        chunk_frames=config.chunk_frames,
    )
    if model.ctc_head is None:
        return transducer, jnp.zeros_like(transducer)
    label_mask = frame_mask(label_lengths, labels.shape[1])
    repeats = jnp.sum((labels[:, 1:] == labels[:, :-1]) & label_mask[:, 1:], axis=1)
    ctc = optax.ctc_loss(
        model.ctc_head(encoded).astype(jnp.float32),
        1.0 - frame_mask(lengths, encoded.shape[1]),
        labels,
        1.0 - label_mask,
    )
    return transducer, jnp.where(label_lengths + repeats <= lengths, ctc, 0)
