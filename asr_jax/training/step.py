"""One training step: a pure function of state and batch."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from asr_jax.config import Config
from asr_jax.distributed.mesh import batch_sharding, over_rows
from asr_jax.distributed.sharding import gather_fsdp
from asr_jax.features.augment import spec_augment, time_stretch
from asr_jax.features.frames import frame_count
from asr_jax.features.logmel import log_mel
from asr_jax.layers.length import frame_mask
from asr_jax.training.frozen import frozen_mask, keep_frozen, without_gradients
from asr_jax.training.objective import loss_weights, utterance_losses
from asr_jax.training.optimizer import learning_rate_schedule
from asr_jax.training.state import TrainState
from asr_jax.types import Batch

_LOSS_DECAY = 0.99


class Metrics(NamedTuple):
    loss: Float[Array, ""]
    """The objective's, nats per label."""
    auxiliary_losses: dict[str, Float[Array, ""]]
    """Those beside it, by name, likewise."""
    grad_norm: Float[Array, ""]
    """Before clipping."""
    learning_rate: Float[Array, ""]
    audio_seconds: Float[Array, ""]
    data_position: Int[Array, ""]
    skipped: Int[Array, ""]
    skipped_in_a_row: Int[Array, ""]
    smoothed_loss: Float[Array, ""]
    lowest_loss: Float[Array, ""]


def bucket_frames(samples: int, config: Config) -> int:
    """Feature frames that a batch of this many samples is padded to, after the tempo change."""
    return frame_count(round(samples / config.augment.tempo_range[1]), config.features)


def augmented_features(
    batch: Batch, key: jax.Array, *, config: Config, mesh: Mesh
) -> tuple[Float[Array, "B *views T F"], Int[Array, " B"]]:
    """Log-mel features, stretched in time and masked; with objective.consistency_weight two views
    of each utterance, masked apart. Of texts, which have no audio, no frames."""
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
            # A masked bin is to say nothing; of such features zero would be a loud one.
            real = frame_mask(lengths, features.shape[1])[..., None]
            mean = jnp.mean(features, axis=(1, 2), keepdims=True, where=real)
            return jnp.where(real, mask(features - mean, lengths, key) + mean, 0)
        return mask(features, lengths, key)

    if config.objective.consistency_weight:
        return jnp.stack([view(key) for key in jax.random.split(key)], axis=1), lengths
    return view(key), lengths


def cast(params: Any, dtype: str) -> Any:
    return jax.tree.map(lambda p: p.astype(dtype), params)


def batch_gradients(
    params: Any,
    batch: Batch,
    key: jax.Array,
    *,
    graphdef: nnx.GraphDef,
    config: Config,
    mesh: Mesh,
) -> tuple[Any, dict[str, Float[Array, ""]]]:
    """Gradients of the weighted sum of the batch's losses, and these losses, each per label.

    Those of frozen parameters are zeros.
    """
    augment_key, dropout_key = jax.random.split(key)
    features, lengths = augmented_features(batch, augment_key, config=config, mesh=mesh)
    real = batch.utterances >= 0
    dtype, weights = config.train.compute_dtype, loss_weights(config)
    fixed = frozen_mask(params, config.optimizer.frozen)

    # Gathered once a step, also where its batch is taken in parts.
    whole = gather_fsdp(cast(params, dtype), mesh)

    def objective(whole, rows, key):
        features, lengths, labels, label_lengths, real = rows
        losses = utterance_losses(
            nnx.merge(graphdef, without_gradients(whole, fixed)),
            features.astype(dtype),
            lengths,
            labels,
            label_lengths,
            config=config,
            key=key,
        )
        totals = {name: jnp.sum(jnp.where(real, loss, 0)) for name, loss in losses.items()}
        return sum(weights[name] * total for name, total in totals.items()), totals

    def gradients_of(rows, key):
        gradients, losses = jax.grad(objective, has_aux=True)(whole, rows, key)
        # Summed over the devices as they are, before the optimizer takes its part of them.
        return cast(gather_fsdp(gradients, mesh), "float32"), losses

    rows = (features, lengths, batch.labels, batch.label_lengths, real)
    parts = config.train.accumulate
    if parts == 1:
        sums = gradients_of(rows, dropout_key)
    else:
        # Row i goes to micro-batch i % parts: each stays spread over the devices as the batch was.
        micro = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), rows)
        keys = jax.random.split(dropout_key, parts)
        add = lambda sums, row: (jax.tree.map(jnp.add, sums, gradients_of(*row)), None)
        zeros = (
            gather_fsdp(jax.tree.map(jnp.zeros_like, params), mesh),
            {name: jnp.float32(0) for name in weights},
        )
        sums, _ = jax.lax.scan(add, zeros, (micro, keys))
    labels = jnp.maximum(jnp.sum(jnp.where(real, batch.label_lengths, 0)), 1)
    return jax.tree.map(lambda x: x / labels, sums)


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    config: Config,
    mesh: Mesh,
) -> tuple[TrainState, Metrics]:
    """Takes one step; a non-finite loss or gradient changes nothing but the counters."""
    key = jax.random.fold_in(state.key, state.step)
    gradients, losses = batch_gradients(
        state.params, batch, key, graphdef=graphdef, config=config, mesh=mesh
    )
    loss = losses.pop("loss")
    grad_norm = optax.tree.norm(gradients)
    finite = jnp.all(jnp.isfinite(jnp.stack([loss, *losses.values(), grad_norm])))

    updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.params)
    rate_share = config.train.rollback_learning_rate_factor**state.rollbacks
    updates = jax.tree.map(lambda update: rate_share * update, updates)
    params = optax.apply_updates(state.params, updates)
    # The average of a young run must not remember its random start.
    taken = state.step - state.skipped
    young = (1 + taken) / (10 + taken)
    decay = jnp.minimum(config.optimizer.ema_decay, young)
    averaged = optax.incremental_update(params, state.averaged, 1 - decay)
    keep = lambda new, old: jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)
    fixed = frozen_mask(params, config.optimizer.frozen)
    params = keep_frozen(params, state.params, fixed)
    averaged = keep_frozen(averaged, state.averaged, fixed)

    decay = jnp.where(taken == 0, 0, jnp.minimum(_LOSS_DECAY, young))
    smoothed_loss = decay * state.smoothed_loss + (1 - decay) * loss
    smoothed_loss = jnp.where(finite, smoothed_loss, state.smoothed_loss)
    lowest_loss = jnp.where(
        finite, jnp.minimum(state.lowest_loss, smoothed_loss), state.lowest_loss
    )

    audio_seconds = jnp.sum(batch.sample_lengths) / config.features.sample_rate_hz
    skipped_in_a_row = jnp.where(finite, 0, state.skipped_in_a_row + 1)
    schedule = learning_rate_schedule(config.optimizer, steps=config.train.steps)
    new_state = TrainState(
        step=state.step + 1,
        data_position=state.data_position + 1,
        key=state.key,
        params=keep(params, state.params),
        averaged=keep(averaged, state.averaged),
        optimizer=keep(optimizer_state, state.optimizer),
        skipped=state.skipped + (~finite),
        skipped_in_a_row=skipped_in_a_row,
        smoothed_loss=smoothed_loss,
        lowest_loss=lowest_loss,
        rollbacks=state.rollbacks,
    )
    metrics = Metrics(
        loss=loss,
        auxiliary_losses=losses,
        grad_norm=grad_norm,
        learning_rate=jnp.asarray(rate_share * schedule(taken), jnp.float32),
        audio_seconds=audio_seconds,
        data_position=new_state.data_position,
        skipped=new_state.skipped,
        skipped_in_a_row=skipped_in_a_row,
        smoothed_loss=smoothed_loss,
        lowest_loss=lowest_loss,
    )
    return new_state, metrics


def jitted_step(
    config: Config,
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    abstract: TrainState,
    mesh: Mesh,
) -> Any:
    """`train_step` under jit: it takes states that lie as `abstract` says, and gives them up."""
    shardings = jax.tree.map(lambda a: a.sharding, abstract)
    return jax.jit(
        functools.partial(
            train_step, graphdef=graphdef, optimizer=optimizer, config=config, mesh=mesh
        ),
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=(shardings, NamedSharding(mesh, P())),
        donate_argnums=0,
    )
