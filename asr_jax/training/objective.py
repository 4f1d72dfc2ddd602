"""What training minimises: the objective's own loss, and others beside it."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from asr_jax.config import Config
from asr_jax.layers.length import frame_mask
from asr_jax.losses import tdt_loss, transducer_loss
from asr_jax.models.attention import END_ID, AttentionModel
from asr_jax.models.composition import Model
from asr_jax.models.ctc import CTC
from asr_jax.models.transducer import Transducer

Losses = dict[str, Float[Array, " B"]]


def loss_weights(config: Config) -> dict[str, float]:
    """The losses that there are, by name, and what each counts for; "loss" is the objective's."""
    objective = config.objective
    beside = objective.kind != "ctc" and objective.has_ctc_head
    return {"loss": 1.0} | ({"ctc_loss": objective.ctc_weight} if beside else {})


def utterance_losses(
    model: Model,
    features: Float[Array, "B T F"],
    feature_lengths: Int[Array, " B"],
    labels: Int[Array, "B U"],
    label_lengths: Int[Array, " B"],
    *,
    config: Config,
    key: Key[Array, ""] | None = None,
) -> Losses:
    """The losses of `loss_weights` in nats, one of each per utterance."""
    keys = (None, None) if key is None else jax.random.split(key)
    encoded, lengths = model.encoder(features, feature_lengths, key=keys[0])
    return losses_of_encoded(
        model, encoded, lengths, labels, label_lengths, config=config, key=keys[1]
    )


def losses_of_encoded(
    model: Model,
    encoded: Float[Array, "B T D"],
    lengths: Int[Array, " B"],
    labels: Int[Array, "B U"],
    label_lengths: Int[Array, " B"],
    *,
    config: Config,
    key: Key[Array, ""] | None = None,
) -> Losses:
    """The same, of frames that are encoded already."""
    target = (lengths, labels, label_lengths)
    if isinstance(model, CTC):
        return {"loss": ctc_losses(model.ctc_head(encoded), *target)}
    if isinstance(model, AttentionModel):
        loss = attention_losses(model, encoded, *target, config=config, key=key)
    else:
        loss = transducer_losses(model, encoded, *target, config=config, key=key)
    losses = {"loss": loss}
    if model.ctc_head is not None:
        losses["ctc_loss"] = ctc_losses(model.ctc_head(encoded), *target)
    return losses


def transducer_losses(
    model: Transducer,
    encoded: Float[Array, "B T D"],
    lengths: Int[Array, " B"],
    labels: Int[Array, "B U"],
    label_lengths: Int[Array, " B"],
    *,
    config: Config,
    key: Key[Array, ""] | None = None,
) -> Float[Array, " B"]:
    """The transducer's loss, TDT's, or HAT's."""
    joint, objective = model.joint, config.objective
    arguments = (
        joint.encoder_projection(encoded),
        joint.predictor_projection(model.predictor(labels, key=key)),
        joint.out.kernel[...],
        joint.out.bias[...],  # pyright: ignore[reportOptionalSubscript]
        labels,
        lengths,
        label_lengths,
    )
    options = {
        "activation": config.joint.activation,
        "chunk_frames": config.joint.chunk_frames,
    }
    if objective.kind == "tdt":
        return tdt_loss(*arguments, durations=objective.durations, sigma=objective.sigma, **options)
    return transducer_loss(
        *arguments,
        factorization="hat" if objective.kind == "hat" else "softmax",
        fastemit_lambda=objective.fastemit_lambda,
        **options,
    )


def attention_losses(
    model: AttentionModel,
    encoded: Float[Array, "B T D"],
    lengths: Int[Array, " B"],
    labels: Int[Array, "B U"],
    label_lengths: Int[Array, " B"],
    *,
    config: Config,
    key: Key[Array, ""] | None = None,
) -> Float[Array, " B"]:
    """Cross-entropy of the labels and the end after them, in nats: -log P(labels, end | encoded),
    where the target is not smoothed (arXiv 1512.00567, section 7)."""
    # Not even the numbers of padding labels are looked up.
    labels = jnp.where(frame_mask(label_lengths, labels.shape[1]), labels, END_ID)
    logits = model.decoder(labels, encoded, lengths, key=key)
    targets = jnp.pad(labels, ((0, 0), (0, 1)), constant_values=END_ID)
    log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32))
    picked = jnp.take_along_axis(log_probabilities, targets[..., None], axis=-1)[..., 0]
    share = config.objective.label_smoothing
    losses = -(1 - share) * picked - share * jnp.mean(log_probabilities, axis=-1)
    counted = frame_mask(label_lengths + 1, targets.shape[1])
    return jnp.sum(jnp.where(counted, losses, 0), axis=1)


def ctc_losses(
    logits: Float[Array, "B T V"],
    lengths: Int[Array, " B"],
    labels: Int[Array, "B U"],
    label_lengths: Int[Array, " B"],
) -> Float[Array, " B"]:
    """-log P(labels), in nats; zero where CTC has no alignment, labels and repeats being more than
    frames: nothing is learned of such an utterance."""
    label_mask = frame_mask(label_lengths, labels.shape[1])
    repeats = jnp.sum((labels[:, 1:] == labels[:, :-1]) & label_mask[:, 1:], axis=1)
    losses = optax.ctc_loss(
        logits.astype(jnp.float32),
        1.0 - frame_mask(lengths, logits.shape[1]),
        labels,
        1.0 - label_mask,
    )
    return jnp.where(label_lengths + repeats <= lengths, losses, 0)
