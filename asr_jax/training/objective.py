"""The losses that training minimizes: the objective's own loss and auxiliary losses."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from asr_jax.config import Config
from asr_jax.layers.length import frame_mask, subsampled
from asr_jax.losses import tdt_loss, transducer_loss
from asr_jax.models.composition import Model
from asr_jax.models.ctc import CTC
from asr_jax.models.encoder_decoder import END_ID, AttentionModel
from asr_jax.models.language_model import LanguageModel
from asr_jax.models.transducer import Transducer

Losses = dict[str, Float[Array, " B"]]


def loss_weights(config: Config) -> dict[str, float]:
    """Return the weights of the losses in use, by name; "loss" is the objective's own."""
    objective = config.objective
    auxiliary = {
        "ctc_loss": objective.ctc_weight if objective.kind != "ctc" else 0,
        "intermediate_ctc_loss": objective.intermediate_ctc_weight,
        "consistency_loss": objective.consistency_weight,
    }
    return {"loss": 1.0} | {name: weight for name, weight in auxiliary.items() if weight}


def counted_utterances(
    feature_lengths: Int[Array, " B"],
    labels: Int[Array, "B U"],
    label_lengths: Int[Array, " B"],
    *,
    config: Config,
) -> dict[str, Bool[Array, " B"]]:
    """Return for every loss of `loss_weights` the utterances that it is defined for.

    An utterance that CTC cannot align has no CTC loss, and no loss at all if the objective is CTC.
    """
    encoder = config.encoder
    lengths = subsampled(feature_lengths, encoder.subsampling_factor, lead=encoder.subsampling_lead)
    aligned, every = has_ctc_path(lengths, labels, label_lengths), jnp.ones(len(lengths), bool)
    of_ctc = ("ctc_loss", "intermediate_ctc_loss")
    is_ctc = config.objective.kind == "ctc"
    return {name: aligned if is_ctc or name in of_ctc else every for name in loss_weights(config)}


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
    """Return the losses named by `loss_weights`, in nats per utterance.

    With objective.consistency_weight, `features` hold two views of each utterance (*views is 2),
    and every loss that is defined for one view is the mean over both. A language model reads only
    the labels.
    """
    if isinstance(model, LanguageModel):
        return {"loss": text_losses(model, labels, label_lengths, key=key)}
    objective = config.objective
    target = (feature_lengths, labels, label_lengths)
    if objective.consistency_weight:
        # The views of an utterance become adjacent rows, so that no row changes its device.
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
        logits = ctc_logits(model, middle)
        losses["intermediate_ctc_loss"] = ctc_losses(logits, lengths, *target)
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
    """Return the losses that need only the encoder's output, in nats per utterance."""
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
    """Return the loss of the transducer, TDT or HAT, in nats."""
    objective = config.objective
    arguments = (*model.loss_arguments(encoded, labels, key=key), labels, lengths, label_lengths)
    options = {
        "activation": config.joint.activation,
        "chunk_frames": config.joint.chunk_frames,
        "dropout": config.joint.dropout,
        # Another key than the predictor's, which existing runs have drawn their masks with.
        "key": None if key is None else jax.random.fold_in(key, 1),
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
    """Return the cross-entropy of the labels and the end symbol after them, in nats.

    Without label smoothing (arXiv 1512.00567, section 7), this is -log P(labels, end | encoded).
    """
    labels = _without_padding(labels, label_lengths)
    logits = model.decoder(labels, encoded, lengths, key=key)
    smoothing = config.objective.label_smoothing
    return _cross_entropies(logits, labels, label_lengths, label_smoothing=smoothing)


def text_losses(
    model: LanguageModel,
    labels: Int[Array, "B U"],
    label_lengths: Int[Array, " B"],
    *,
    key: Key[Array, ""] | None = None,
) -> Float[Array, " B"]:
    """Return -log P(labels, end) in nats."""
    labels = _without_padding(labels, label_lengths)
    return _cross_entropies(model(labels, key=key), labels, label_lengths)


def _without_padding(
    labels: Int[Array, "B U"], label_lengths: Int[Array, " B"]
) -> Int[Array, "B U"]:
    """Return the labels with END_ID as padding, since padding may hold ids without embedding."""
    return jnp.where(frame_mask(label_lengths, labels.shape[1]), labels, END_ID)


def _cross_entropies(
    logits: Float[Array, "B U1 V"],
    labels: Int[Array, "B U"],
    label_lengths: Int[Array, " B"],
    *,
    label_smoothing: float = 0.0,
) -> Float[Array, " B"]:
    """Return cross-entropies summed over the labels and the end, in nats.

    Padding labels are END_ID.
    """
    targets = jnp.pad(labels, ((0, 0), (0, 1)), constant_values=END_ID)
    log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32))
    picked = jnp.take_along_axis(log_probabilities, targets[..., None], axis=-1)[..., 0]
    losses = -(1 - label_smoothing) * picked
    losses -= label_smoothing * jnp.mean(log_probabilities, axis=-1)
    counted = frame_mask(label_lengths + 1, targets.shape[1])
    return jnp.sum(jnp.where(counted, losses, 0), axis=1)


def ctc_logits(model: Model, encoded: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
    assert model.ctc_head is not None  # checked by Config
    return model.ctc_head(encoded)


def consistency_losses(
    logits: Float[Array, "B2 T V"], lengths: Int[Array, " B2"]
) -> Float[Array, " B"]:
    """Return the divergence between the CTC posteriors of two views, in nats, summed over frames.

    It is (D(b || a) + D(a || b)) / 2 for the posteriors a and b. The first argument of each D is
    the target, through which no gradient flows (CR-CTC, arXiv 2410.05101, equation 5).

    Args:
        logits: CTC logits; rows 2 i and 2 i + 1 are the views of utterance i.
        lengths: real frames, equal for both views.
    """
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    log_p = log_p.reshape(-1, 2, *log_p.shape[1:])
    target = jax.lax.stop_gradient(log_p[:, ::-1])
    divergence = jnp.sum(jnp.exp(target) * (target - log_p), axis=-1)
    real = frame_mask(lengths, logits.shape[1]).reshape(divergence.shape)
    return 0.5 * jnp.sum(jnp.where(real, divergence, 0), axis=(1, 2))


def has_ctc_path(
    lengths: Int[Array, " B"], labels: Int[Array, "B U"], label_lengths: Int[Array, " B"]
) -> Bool[Array, " B"]:
    """Return whether CTC can align the labels: every label and repeat needs a frame."""
    label_mask = frame_mask(label_lengths, labels.shape[1])
    repeats = jnp.sum((labels[:, 1:] == labels[:, :-1]) & label_mask[:, 1:], axis=1)
    return label_lengths + repeats <= lengths


def ctc_losses(
    logits: Float[Array, "B T V"],
    lengths: Int[Array, " B"],
    labels: Int[Array, "B U"],
    label_lengths: Int[Array, " B"],
) -> Float[Array, " B"]:
    """Return -log P(labels) in nats.

    It is zero for an utterance that CTC cannot align (`has_ctc_path`): nothing is learned from it.
    """
    losses = optax.ctc_loss(
        logits.astype(jnp.float32),
        1.0 - frame_mask(lengths, logits.shape[1]),
        labels,
        1.0 - frame_mask(label_lengths, labels.shape[1]),
    )
    return jnp.where(has_ctc_path(lengths, labels, label_lengths), losses, 0)
