"""One training step, a pure function of state and batch."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from asr_jax.config import Config
from asr_jax.distributed.mesh import batch_sharding, over_rows
from asr_jax.distributed.sharding import gather_fsdp
from asr_jax.features.augment import spec_augment, time_stretch
from asr_jax.features.frames import frame_count
from asr_jax.features.logmel import log_mel
from asr_jax.layers.length import frame_mask
from asr_jax.training.frozen import frozen_mask, keep_frozen, without_gradients
from asr_jax.training.objective import counted_utterances, loss_weights, utterance_losses
from asr_jax.training.optimizer import learning_rate_schedule
from asr_jax.training.state import TrainState
from asr_jax.types import Batch

# Decay of the moving average `smoothed_loss`.
_LOSS_DECAY = 0.99


class Metrics(NamedTuple):
    loss: Float[Array, ""]
    """The objective's loss, in nats per label."""
    auxiliary_losses: dict[str, Float[Array, ""]]
    """The auxiliary losses by name, unweighted, in nats per label."""
    grad_norm: Float[Array, ""]
    """Global norm of the gradients before clipping."""
    learning_rate: Float[Array, ""]
    audio_seconds: Float[Array, ""]
    data_position: Int[Array, ""]
    skipped: Int[Array, ""]
    skipped_in_a_row: Int[Array, ""]
    smoothed_loss: Float[Array, ""]
    lowest_loss: Float[Array, ""]
    idle: Bool[Array, ""]
    """True if the batch had no utterance to train on, so that the step changed nothing."""
    utterances: dict[str, Int[Array, ""]]
    """The number of utterances that each loss is a mean of, by name."""
    ctc_left_out: Int[Array, ""]
    """Utterances that a loss does not count, because CTC cannot align them."""


def bucket_frames(samples: int, config: Config) -> int:
    """Return the number of frames to which features of S = `samples` are padded after tempo."""
    return frame_count(round(samples / config.augment.tempo_range[1]), config.features)


def augmented_features(
    batch: Batch, key: jax.Array, *, config: Config, mesh: Mesh
) -> tuple[Float[Array, "B *views T F"], Int[Array, " B"]]:
    """Return log-mel features, stretched in time and masked, and their lengths.

    With objective.consistency_weight, there are two views of each utterance, masked independently
    (*views is 2). Texts, which have no audio, have no frames.
    """
    rows, samples = batch.samples.shape
    if samples == 0:
        return jnp.zeros((rows, 0, config.features.mel_bins)), jnp.zeros(rows, jnp.int32)
    mel = over_rows(functools.partial(log_mel, config=config.features), mesh)
    features, lengths = mel(batch.samples, batch.sample_lengths)
    features, lengths = time_stretch(
        features,
        lengths,
        jnp.asarray(batch.tempo),
        frames=bucket_frames(samples, config),
    )
    augment = config.augment
    mask = functools.partial(
        spec_augment,
        frequency_masks=augment.frequency_masks,
        frequency_mask_bins=augment.frequency_mask_bins,
        time_masks=augment.time_masks,
        time_mask_fraction=augment.time_mask_fraction,
    )

    def view(key: jax.Array) -> Float[Array, "B T F"]:
        if config.features.normalization == "none":
            # A masked bin must carry no information. Zero is loud in features like these, so
            # masked bins get the mean.
            real = frame_mask(lengths, features.shape[1])[..., None]
            mean = jnp.mean(features, axis=(1, 2), keepdims=True, where=real)
            return jnp.where(real, mask(features - mean, lengths, key) + mean, 0)
        return mask(features, lengths, key)

    if config.objective.consistency_weight:
        return jnp.stack([view(key) for key in jax.random.split(key)], axis=1), lengths
    return view(key), lengths


def cast(params: PyTree, dtype: str) -> PyTree:
    return jax.tree.map(lambda p: p.astype(dtype), params)


class _Rows(NamedTuple):
    """The rows of a batch or micro-batch for which losses are computed."""

    features: Float[Array, "B *views T F"]
    feature_lengths: Int[Array, " B"]
    labels: Int[Array, "B U"]
    label_lengths: Int[Array, " B"]
    counted: dict[str, Bool[Array, " B"]]
    """The rows that each loss counts, by name; never a padding row."""


def _counted_rows(
    batch: Batch,
    features: Float[Array, "B *views T F"],
    lengths: Int[Array, " B"],
    *,
    config: Config,
) -> _Rows:
    labels, label_lengths = jnp.asarray(batch.labels), jnp.asarray(batch.label_lengths)
    real = jnp.asarray(batch.utterances) >= 0
    defined = counted_utterances(lengths, labels, label_lengths, config=config)
    counted = {name: real & mask for name, mask in defined.items()}
    return _Rows(features, lengths, labels, label_lengths, counted)


def _labels_counted(rows: _Rows, name: str) -> Int[Array, ""]:
    """Return the number of labels that the named loss is divided by, at least 1."""
    return jnp.maximum(jnp.sum(jnp.where(rows.counted[name], rows.label_lengths, 0)), 1)


def batch_gradients(
    params: PyTree,
    batch: Batch,
    key: Key[Array, ""],
    *,
    graphdef: nnx.GraphDef,
    config: Config,
    mesh: Mesh,
) -> tuple[PyTree, dict[str, Float[Array, ""]], dict[str, Int[Array, ""]]]:
    """Return the gradients of the weighted sum of the batch's losses, and the losses by name.

    Each loss is per label: divided by the number of labels of the utterances that it counts, and
    zero without any. Gradients of frozen parameters are zero. The third value is the number of
    utterances that each loss counts.
    """
    augment_key, dropout_key = jax.random.split(key)
    features, lengths = augmented_features(batch, augment_key, config=config, mesh=mesh)
    dtype, weights = config.train.compute_dtype, loss_weights(config)
    frozen = frozen_mask(params, config.optimizer)

    # Gathered once per step, also when the batch is split into micro-batches.
    gathered = gather_fsdp(cast(params, dtype), mesh)

    rows = _counted_rows(batch, features, lengths, config=config)
    labels_of = {name: _labels_counted(rows, name) for name in weights}
    # Gradients are divided by the objective's count; the ratio is 1 unless the counts differ.
    weights = {n: weight * (labels_of["loss"] / labels_of[n]) for n, weight in weights.items()}

    def objective(params, rows, key):
        losses = utterance_losses(
            nnx.merge(graphdef, without_gradients(params, frozen)),
            rows.features.astype(dtype),
            rows.feature_lengths,
            rows.labels,
            rows.label_lengths,
            config=config,
            key=key,
        )
        totals = {n: jnp.sum(jnp.where(rows.counted[n], loss, 0)) for n, loss in losses.items()}
        return sum(weights[name] * total for name, total in totals.items()), totals

    def gradients_of(rows, key):
        gradients, losses = jax.grad(objective, has_aux=True)(gathered, rows, key)
        # Gathered, gradients are summed over the devices before the optimizer splits them.
        return cast(gather_fsdp(gradients, mesh), "float32"), losses

    if config.train.accumulate == 1:
        gradients, totals = gradients_of(rows, dropout_key)
    else:
        zeros = (
            gather_fsdp(jax.tree.map(jnp.zeros_like, params), mesh),
            {name: jnp.float32(0) for name in weights},
        )
        parts = config.train.accumulate
        gradients, totals = _accumulated(gradients_of, rows, dropout_key, parts, zeros)
    return (
        jax.tree.map(lambda gradient: gradient / labels_of["loss"], gradients),
        {name: total / labels_of[name] for name, total in totals.items()},
        {name: jnp.sum(mask) for name, mask in rows.counted.items()},
    )


def _accumulated(
    gradients_of: Callable[[_Rows, Key[Array, ""]], PyTree],
    rows: _Rows,
    key: Key[Array, ""],
    parts: int,
    zeros: PyTree,
) -> PyTree:
    """Return the sum of `gradients_of` over the micro-batches."""
    # Row i goes to micro-batch i % parts, so a micro-batch is spread over the devices like a batch.
    micro = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), rows)
    keys = jax.random.split(key, parts)

    def add(sums, part):
        return jax.tree.map(jnp.add, sums, gradients_of(*part)), None

    sums, _ = jax.lax.scan(add, zeros, (micro, keys))
    return sums


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    config: Config,
    mesh: Mesh,
) -> tuple[TrainState, Metrics]:
    """Take one step; if a loss or gradient is not finite, change only the counters.

    A batch without an utterance to train on changes only the counters that are not about
    divergence: `step`, `data_position` and `skipped`.
    """
    key = jax.random.fold_in(state.key, state.step)
    gradients, losses, utterances = batch_gradients(
        state.params, batch, key, graphdef=graphdef, config=config, mesh=mesh
    )
    loss = losses.pop("loss")
    grad_norm = optax.tree.norm(gradients)
    finite = jnp.all(jnp.isfinite(jnp.stack([loss, *losses.values(), grad_norm])))
    idle = utterances["loss"] == 0
    learned = finite & ~idle

    taken = state.step - state.skipped
    rate_factor = config.train.rollback_learning_rate_factor**state.rollbacks
    new = _updated(state, gradients, rate_factor, taken, optimizer=optimizer, config=config)
    smoothed_loss, lowest_loss = _loss_means(state, loss, taken, learned)
    keep = functools.partial(jax.tree.map, lambda a, b: jnp.where(learned, a, b))
    new_state = TrainState(
        step=state.step + 1,
        data_position=state.data_position + 1,
        key=state.key,
        params=keep(new.params, state.params),
        averaged=keep(new.averaged, state.averaged),
        optimizer=keep(new.optimizer, state.optimizer),
        skipped=state.skipped + (~learned),
        skipped_in_a_row=jnp.where(learned, 0, state.skipped_in_a_row + (~idle)),
        smoothed_loss=smoothed_loss,
        lowest_loss=lowest_loss,
        rollbacks=state.rollbacks,
    )
    schedule = learning_rate_schedule(config.optimizer, steps=config.train.steps)
    metrics = Metrics(
        loss=loss,
        auxiliary_losses=losses,
        grad_norm=grad_norm,
        learning_rate=jnp.asarray(rate_factor * schedule(taken), jnp.float32),
        audio_seconds=jnp.sum(batch.sample_lengths) / config.features.sample_rate_hz,
        data_position=new_state.data_position,
        skipped=new_state.skipped,
        skipped_in_a_row=new_state.skipped_in_a_row,
        smoothed_loss=smoothed_loss,
        lowest_loss=lowest_loss,
        idle=idle,
        utterances=utterances,
        ctc_left_out=jnp.sum(jnp.asarray(batch.utterances) >= 0)
        - functools.reduce(jnp.minimum, utterances.values()),
    )
    return new_state, metrics


def _updated(
    state: TrainState,
    gradients: PyTree,
    rate_factor: Float[Array, ""],
    taken: Int[Array, ""],
    *,
    optimizer: optax.GradientTransformation,
    config: Config,
) -> TrainState:
    """Return the state with the parameters, average and moments that the gradients give."""
    updates, moments = optimizer.update(gradients, state.optimizer, state.params)
    updates = jax.tree.map(lambda update: rate_factor * update, updates)
    params = optax.apply_updates(state.params, updates)
    decay = jnp.minimum(config.optimizer.ema_decay, _largest_decay(taken))
    averaged = optax.incremental_update(params, state.averaged, 1 - decay)
    frozen = frozen_mask(params, config.optimizer)
    return state._replace(
        params=keep_frozen(params, state.params, frozen),
        averaged=keep_frozen(averaged, state.averaged, frozen),
        optimizer=moments,
    )


def _loss_means(
    state: TrainState, loss: Float[Array, ""], taken: Int[Array, ""], learned: Bool[Array, ""]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Return `smoothed_loss` and `lowest_loss` after a step with this loss, if it was learned."""
    decay = jnp.where(taken == 0, 0, jnp.minimum(_LOSS_DECAY, _largest_decay(taken)))
    smoothed = decay * state.smoothed_loss + (1 - decay) * loss
    smoothed = jnp.where(learned, smoothed, state.smoothed_loss)
    lowest = jnp.where(learned, jnp.minimum(state.lowest_loss, smoothed), state.lowest_loss)
    return smoothed, lowest


def _largest_decay(taken: Int[Array, ""]) -> Float[Array, ""]:
    """Return the largest decay of an average after `taken` steps.

    The average of a young run must not remember its random initialization.
    """
    return (1 + taken) / (10 + taken)


def jitted_step(
    config: Config,
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    abstract: TrainState,
    mesh: Mesh,
) -> jax.stages.Wrapped:
    """Return `train_step` under jit, for states with the shardings of `abstract`.

    The state that is passed in is donated.
    """
    shardings = jax.tree.map(lambda a: a.sharding, abstract)
    return jax.jit(
        functools.partial(
            train_step, graphdef=graphdef, optimizer=optimizer, config=config, mesh=mesh
        ),
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=(shardings, NamedSharding(mesh, P())),
        donate_argnums=0,
    )
