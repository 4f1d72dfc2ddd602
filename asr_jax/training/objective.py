"""What training minimises: the objective's own loss, and others beside it."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from asr_jax.config import Config
from asr_jax.layers.length import frame_mask
from asr_jax.losses import tdt_loss, transducer_loss
from asr_jax.models.composition import Model
from asr_jax.models.ctc import CTC
from asr_jax.models.encoder_decoder import END_ID, AttentionModel
from asr_jax.models.language_model import LanguageModel
from asr_jax.models.transducer import Transducer

Losses = dict[str, Float[Array, " B"]]


def loss_weights(config: Config) -> dict[str, float]:
    """The losses that there are, by name, and what each counts for; "loss" is the objective's."""
    objective = config.objective
    beside = {
        "ctc_loss": objective.ctc_weight if objective.kind != "ctc" else 0,
        "intermediate_ctc_loss": objective.intermediate_ctc_weight,
        "consistency_loss": objective.consistency_weight,
    }
    return {"loss": 1.0} | {name: weight for name, weight in beside.items() if weight}


def utterance_losses(
    model: Model | LanguageModel,
    features: Float[Array, "B *views T F"],
    feature_lengths: Int[Array, " B"],
    labels: Int[Array, "B U"],
    label_lengths: Int[Array, " B"],
    *,
    config: Config,
    key: Key[Array, ""] | None = None,
) -> Losses:
    """The losses of `loss_weights` in nats, one of each per utterance.

    With objective.consistency_weight there are two views of each utterance's features, and those
    losses that are of one view are the mean over both. A language model looks at labels alone.
    """
    if isinstance(model, LanguageModel):
        return {"loss": text_losses(model, labels, label_lengths, key=key)}
    objective = config.objective
    target = (feature_lengths, labels, label_lengths)
    if objective.consistency_weight:
        # Side by side, so that a batch stays spread over the devices as it was.
        features = features.reshape(-1, *features.shape[2:])
        target = tuple(jnp.repeat(x, 2, axis=0) for x in target)
    feature_lengths, *target = target
    keys = (None, None) if key is None else jax.random.split(key)
    middle = None
    if objective.intermediate_ctc_weight:
        encoded, middle, lengths = model.encoder.with_middle(features, feature_lengths, key=keys[0])
    else:
        encoded, lengths = model.encoder(features, feature_lengths, key=keys[0])
    losses = losses_of_encoded(model, encoded, lengths, *target, config=config, key=keys[1])
    if middle is not None:
        losses["intermediate_ctc_loss"] = ctc_losses(ctc_logits(model, middle), lengths, *target)
    if objective.consistency_weight:
        losses = {name: jnp.mean(loss.reshape(-1, 2), axis=1) for name, loss in losses.items()}
        losses["consistency_loss"] = consistency_losses(ctc_logits(model, encoded), lengths)
    return losses


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
    """Those among them that frames which are encoded already are enough for."""
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
    labels = _without_padding(labels, label_lengths)
    logits = model.decoder(labels, encoded, lengths, key=key)
    share = config.objective.label_smoothing
    return _cross_entropies(logits, labels, label_lengths, label_smoothing=share)


def text_losses(
    model: LanguageModel,
    labels: Int[Array, "B U"],
    label_lengths: Int[Array, " B"],
    *,
    key: Key[Array, ""] | None = None,
) -> Float[Array, " B"]:
    """-log P(labels, end) in nats."""
    labels = _without_padding(labels, label_lengths)
    return _cross_entropies(model(labels, key=key), labels, label_lengths)


def _without_padding(
    labels: Int[Array, "B U"], label_lengths: Int[Array, " B"]
) -> Int[Array, "B U"]:
    """Not even the numbers of padding labels are to be looked up."""
    return jnp.where(frame_mask(label_lengths, labels.shape[1]), labels, END_ID)


def _cross_entropies(
    logits: Float[Array, "B U1 V"],
    labels: Int[Array, "B U"],
    label_lengths: Int[Array, " B"],
    *,
    label_smoothing: float = 0.0,
) -> Float[Array, " B"]:
    """Of the labels and the end after them, sums in nats; padding labels are END_ID."""
    targets = jnp.pad(labels, ((0, 0), (0, 1)), constant_values=END_ID)
    log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32))
    picked = jnp.take_along_axis(log_probabilities, targets[..., None], axis=-1)[..., 0]
    losses = -(1 - label_smoothing) * picked
    losses -= label_smoothing * jnp.mean(log_probabilities, axis=-1)
    counted = frame_mask(label_lengths + 1, targets.shape[1])
    return jnp.sum(jnp.where(counted, losses, 0), axis=1)


def ctc_logits(model: Model, encoded: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
    assert model.ctc_head is not None  # Config sees to that
    return model.ctc_head(encoded)


def consistency_losses(
    logits: Float[Array, "B2 T V"], lengths: Int[Array, " B2"]
) -> Float[Array, " B"]:
    """By how much the posteriors of two views differ, in nats, summed over frames: half of
    D(b || a) + D(a || b), where the first of each is what the second is drawn to and has no
    gradient (CR-CTC, arXiv 2410.05101, equation 5).

    Args:
        logits: of CTC, rows 2 i and 2 i + 1 being the views of utterance i.
        lengths: real frames, the same of both views.
    """
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    log_p = log_p.reshape(-1, 2, *log_p.shape[1:])
    other = jax.lax.stop_gradient(log_p[:, ::-1])
    divergence = jnp.sum(jnp.exp(other) * (other - log_p), axis=-1)
    real = frame_mask(lengths, logits.shape[1]).reshape(divergence.shape)
    return 0.5 * jnp.sum(jnp.where(real, divergence, 0), axis=(1, 2))


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
