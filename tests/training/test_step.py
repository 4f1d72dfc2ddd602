"""Laws of the training step: devices, accumulation, padding rows, skipped steps."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from asr_jax.config import (
    AugmentConfig,
    Config,
    EncoderConfig,
    FeaturesConfig,
    JointConfig,
    MeshConfig,
    ObjectiveConfig,
    OptimizerConfig,
    PredictorConfig,
    TrainConfig,
)
from asr_jax.distributed.mesh import batch_sharding, make_mesh
from asr_jax.features.logmel import log_mel
from asr_jax.models.composition import split_model
from asr_jax.training.optimizer import make_optimizer
from asr_jax.training.state import abstract_state, initial_state
from asr_jax.training.step import augmented_features, batch_gradients, train_step
from asr_jax.types import Batch

VOCABULARY = 7
CONFIG = Config(
    augment=AugmentConfig(tempo_range=(0.9, 1.2), frequency_mask_bins=4, time_masks=2),
    features=FeaturesConfig(sample_rate_hz=4000, mel_bins=16),
    encoder=EncoderConfig(
        layers=2, width=16, heads=2, kernel_frames=3, subsampling="conv1d", subsampling_channels=16
    ),
    predictor=PredictorConfig(embedding_width=8, width=8),
    joint=JointConfig(width=8),
    objective=ObjectiveConfig(ctc_weight=0.3),
    optimizer=OptimizerConfig(ema_decay=0.5),
    train=TrainConfig(steps=100),
)
STILL = dataclasses.replace(
    CONFIG,
    encoder=dataclasses.replace(CONFIG.encoder, dropout=0.0),
    predictor=dataclasses.replace(CONFIG.predictor, dropout=0.0),
)
SGD = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.01, momentum=0.5))


def batch(rows=8, *, seed=0, samples=4800, labels=5):
    random = np.random.default_rng(seed)
    return Batch(
        samples=random.normal(size=(rows, samples), scale=0.1).astype(np.float32),
        sample_lengths=random.integers(samples // 2, samples, rows).astype(np.int32),
        labels=random.integers(1, VOCABULARY, (rows, labels)).astype(np.int32),
        label_lengths=random.integers(1, labels + 1, rows).astype(np.int32),
        tempo=random.uniform(0.9, 1.2, rows).astype(np.float32),
        utterances=np.arange(rows, dtype=np.int32),
        second_utterance=np.full(rows, -1, np.int32),
    )


def setup(config, mesh_config, devices, optimizer=SGD):
    """Return a state on the devices, and the compiled step and gradients for it."""
    mesh = make_mesh(mesh_config, jax.devices()[:devices])
    graphdef, _ = split_model(config, VOCABULARY)
    state = initial_state(config, VOCABULARY, optimizer, mesh)
    abstract = abstract_state(config, VOCABULARY, optimizer, mesh)
    static = dict(graphdef=graphdef, config=config, mesh=mesh)
    shardings = jax.tree.map(lambda a: a.sharding, abstract)
    step = jax.jit(
        functools.partial(train_step, optimizer=optimizer, **static),
        out_shardings=(shardings, None),
    )
    gradients = jax.jit(functools.partial(batch_gradients, **static))
    place = lambda b: jax.device_put(b, batch_sharding(mesh))
    return state, (lambda s, b: step(s, place(b))), (lambda p, b, k: gradients(p, place(b), k))


def assert_close(a, b, tolerance):
    """Compare relative to the largest entry of an array: sums round relative to their terms."""
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * np.max(np.abs(y))),
        a,
        b,
    )


def clipped_gradient(after_one_step):
    """Return the gradient that the optimizer received: its momentum after the first step."""
    return optax.tree.get(after_one_step.optimizer, "trace")


@pytest.fixture(scope="module")
def alone():
    return setup(CONFIG, MeshConfig(), 1)


@pytest.mark.parametrize(
    "mesh_config",
    [
        pytest.param(MeshConfig(data=8), id="data 8", marks=pytest.mark.slow),
        pytest.param(MeshConfig(data=2, fsdp=4), id="data 2 fsdp 4", marks=pytest.mark.slow),
        pytest.param(MeshConfig(data=2, fsdp=2, model=2), id="data 2 fsdp 2 model 2"),
    ],
)
def test_eight_devices_equal_one(alone, mesh_config):
    state, step, _ = alone
    spread_state, spread_step, _ = setup(CONFIG, mesh_config, 8)
    assert_close(state.params, spread_state.params, 0)

    for i in range(50):
        state, metrics = step(state, batch(seed=i))
        spread_state, spread_metrics = spread_step(spread_state, batch(seed=i))
        assert_close(metrics.loss, spread_metrics.loss, 1e-5)
        if i == 0:
            assert_close(clipped_gradient(state), clipped_gradient(spread_state), 1e-5)
    assert_close(state.params, spread_state.params, 1e-5)
    assert int(state.step) == int(state.data_position) == 50 and int(state.skipped) == 0


@pytest.mark.slow
def test_layer_drop_and_two_views_on_eight_devices_equal_one():
    config = dataclasses.replace(
        CONFIG,
        encoder=dataclasses.replace(CONFIG.encoder, layer_drop=0.5),
        objective=ObjectiveConfig(
            ctc_weight=0.3, intermediate_ctc_weight=0.2, consistency_weight=0.1
        ),
    )
    state, _, gradients = setup(config, MeshConfig(), 1)
    spread_state, _, spread_gradients = setup(config, MeshConfig(data=2, fsdp=4), 8)
    key = jax.random.key(5)
    assert_close(
        gradients(state.params, batch(), key),
        spread_gradients(spread_state.params, batch(), key),
        1e-5,
    )


@pytest.mark.parametrize("kind, copies", [("adamw", 4), ("muon", 3)])
def test_fsdp_splits_parameters_averages_and_moments(kind, copies):
    mesh = make_mesh(MeshConfig(data=2, fsdp=4), jax.devices())
    optimizer = make_optimizer(OptimizerConfig(kind=kind), steps=10)
    state = initial_state(CONFIG, VOCABULARY, optimizer, mesh)
    kernels = [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
        if [getattr(part, "key", None) for part in path[-3:]] == ["attention", "query", "kernel"]
    ]
    assert len(kernels) == copies
    for kernel in kernels:
        assert kernel.addressable_shards[0].data.size * 4 == kernel.size


@pytest.mark.slow
def test_accumulated_micro_batches_give_the_gradient_of_the_batch():
    parted = dataclasses.replace(STILL, train=TrainConfig(accumulate=4))
    state, _, gradients = setup(STILL, MeshConfig(), 1)
    _, _, parted_gradients = setup(parted, MeshConfig(), 1)
    key = jax.random.key(0)
    # Other batch shapes use kernels that sum in another order: 1e-5 is out of reach.
    assert_close(
        gradients(state.params, batch(), key), parted_gradients(state.params, batch(), key), 1e-4
    )


def test_padding_rows_add_nothing():
    state, _, gradients = setup(STILL, MeshConfig(), 1)
    real = batch()
    nonsense = real._replace(
        samples=real.samples.copy(),
        sample_lengths=np.where(np.arange(8) < 5, real.sample_lengths, 0).astype(np.int32),
        label_lengths=np.where(np.arange(8) < 5, real.label_lengths, 0).astype(np.int32),
        utterances=np.where(np.arange(8) < 5, real.utterances, -1).astype(np.int32),
    )
    nonsense.samples[5:] = np.nan
    key = jax.random.key(0)
    zeros = nonsense._replace(samples=np.nan_to_num(nonsense.samples))
    got = gradients(state.params, nonsense, key)
    assert_close(got, gradients(state.params, zeros, key), 0)
    # A batch of five rows has other shapes but the same rows and masks. Dropout would differ.
    five = jax.tree.map(lambda x: x[:5], real)
    assert_close(got, gradients(state.params, five, key), 1e-5)


def test_step_that_is_not_finite_changes_only_the_counters(alone):
    state, step, _ = alone
    poisoned = batch()
    poisoned.samples[3] = np.inf
    after, metrics = step(state, poisoned)
    assert not np.isfinite(metrics.loss)
    assert jax.tree.leaves(state.optimizer)
    for name in ("params", "averaged", "optimizer"):
        assert_close(getattr(after, name), getattr(state, name), 0)
    assert (int(after.step), int(after.skipped), int(after.skipped_in_a_row)) == (1, 1, 1)
    after, _ = step(after, poisoned)
    assert (int(after.skipped), int(after.skipped_in_a_row)) == (2, 2)
    after, metrics = step(after, batch())
    assert np.isfinite(metrics.loss)
    assert (int(after.step), int(after.skipped), int(after.skipped_in_a_row)) == (3, 2, 0)


def without_rows(b, rows):
    """Return the batch with these rows as padding."""
    kept = ~np.isin(np.arange(len(b.utterances)), rows)
    return Batch(
        *((np.where(kept.reshape(-1, *[1] * (x.ndim - 1)), x, 0).astype(x.dtype)) for x in b[:4]),
        tempo=np.where(kept, b.tempo, 1).astype(np.float32),
        utterances=np.where(kept, b.utterances, -1).astype(np.int32),
        second_utterance=b.second_utterance,
    )


def test_batch_without_an_utterance_changes_only_counters(alone):
    state, step, _ = alone
    nothing = without_rows(batch(), range(8))
    after, metrics = step(state, nothing)
    assert metrics.idle and int(metrics.utterances["loss"]) == 0
    for name in set(state._fields) - {"key", "step", "data_position", "skipped"}:
        jax.tree.map(np.testing.assert_array_equal, getattr(after, name), getattr(state, name))
    assert (int(after.step), int(after.data_position), int(after.skipped)) == (1, 1, 1)
    # The first batch with utterances is the first of the mean, the schedule and the averages.
    after, metrics = step(after, batch())
    assert float(after.smoothed_loss) == float(after.lowest_loss) == float(metrics.loss) > 0
    assert not metrics.idle
    _, fresh = step(state, batch())
    assert float(metrics.learning_rate) == float(fresh.learning_rate)
    # A batch without utterances neither begins nor ends a sequence of skipped steps.
    poisoned = batch()
    poisoned.samples[3] = np.inf
    after, _ = step(after, poisoned)
    later, _ = step(after, nothing)
    assert int(after.skipped_in_a_row) == int(later.skipped_in_a_row) == 1
    assert float(later.smoothed_loss) == float(after.smoothed_loss) > 0
    assert_close(later.params, after.params, 0)


def too_short_for_ctc(b, rows):
    """Return the batch with so few frames in these rows that CTC cannot align their labels."""
    short = np.isin(np.arange(len(b.utterances)), rows)
    return b._replace(
        sample_lengths=np.where(short, 400, b.sample_lengths).astype(np.int32),
        label_lengths=np.where(short, b.labels.shape[1], b.label_lengths).astype(np.int32),
    )


@pytest.mark.parametrize("accumulate", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_utterances_that_ctc_cannot_align_have_no_part_in_its_loss(accumulate):
    """The first of two micro-batches has nothing but such rows."""
    train, rows = TrainConfig(accumulate=accumulate), [0, 2, 4, 6]
    short = too_short_for_ctc(batch(), rows)
    key = jax.random.key(0)
    alone = dataclasses.replace(STILL, objective=ObjectiveConfig(kind="ctc"), train=train)
    state, step, gradients = setup(alone, MeshConfig(), 1)
    got = gradients(state.params, short, key)
    assert int(got[2]["loss"]) == 4
    assert_close(got, gradients(state.params, without_rows(short, rows), key), 1e-6)
    # A batch of nothing but these changes nothing, though all of them are real.
    after, metrics = step(state, too_short_for_ctc(batch(), range(8)))
    assert metrics.idle and int(metrics.ctc_left_out) == 8
    assert_close(after.params, state.params, 0)
    assert (float(after.smoothed_loss), float(after.lowest_loss)) == (0, np.inf)


def test_auxiliary_ctc_loss_is_a_mean_over_the_utterances_that_ctc_can_align(alone):
    state, _, gradients = setup(STILL, MeshConfig(), 1)
    short, key = too_short_for_ctc(batch(), [0, 5]), jax.random.key(0)
    _, losses, counted = gradients(state.params, short, key)
    assert (int(counted["loss"]), int(counted["ctc_loss"])) == (8, 6)
    _, others, _ = gradients(state.params, without_rows(short, [0, 5]), key)
    np.testing.assert_allclose(losses["ctc_loss"], others["ctc_loss"], rtol=1e-5)
    assert abs(float(losses["loss"]) - float(others["loss"])) > 0.01
    # Without any such utterance, the transducer still learns.
    state, step, _ = alone
    after, metrics = step(state, too_short_for_ctc(batch(), range(8)))
    assert not metrics.idle and int(metrics.utterances["ctc_loss"]) == 0
    assert np.isfinite(metrics.loss) and float(after.smoothed_loss) == float(metrics.loss) > 0


@pytest.mark.slow
def test_masks_of_unnormalized_features_contain_the_mean():
    config = dataclasses.replace(
        CONFIG,
        augment=AugmentConfig(frequency_mask_bins=4, time_masks=2, time_mask_fraction=0.2),
        features=dataclasses.replace(CONFIG.features, normalization="none"),
    )
    b = batch()._replace(tempo=np.ones(8, np.float32))
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    plain, lengths = log_mel(jnp.asarray(b.samples), jnp.asarray(b.sample_lengths), config.features)
    masked, same_lengths = augmented_features(b, jax.random.key(1), config=config, mesh=mesh)
    np.testing.assert_array_equal(lengths, same_lengths)
    for row, (before, after) in enumerate(zip(np.asarray(plain), np.asarray(masked))):
        before, after = before[: lengths[row]], after[: lengths[row]]
        changed = np.abs(before - after) > 1e-4
        assert 0.02 < changed.mean() < 0.9
        np.testing.assert_allclose(after[changed], before.mean(), rtol=1e-4)


def test_every_parameter_has_a_gradient(alone):
    """A gradient that is always zero marks a useless parameter, whose rounding Adam amplifies."""
    state, step, _ = alone
    after, _ = step(state, batch())
    for path, gradient in jax.tree_util.tree_leaves_with_path(clipped_gradient(after)):
        assert float(jnp.max(jnp.abs(gradient))) > 1e-6, jax.tree_util.keystr(path)


@pytest.mark.slow
def test_bfloat16_activations_keep_parameters_in_float32():
    config = dataclasses.replace(CONFIG, train=TrainConfig(compute_dtype="bfloat16"))
    state, step, _ = setup(config, MeshConfig(), 1)
    exact, exact_step, _ = setup(CONFIG, MeshConfig(), 1)
    after, metrics = step(state, batch())
    _, exact_metrics = exact_step(exact, batch())
    assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(after.params))
    np.testing.assert_allclose(metrics.loss, exact_metrics.loss, rtol=0.02)
    assert float(metrics.loss) != float(exact_metrics.loss)


def test_average_follows_the_parameters(alone):
    """The average equals its definition written out."""
    state, step, _ = alone
    averaged = state.params
    for i in range(12):
        state, _ = step(state, batch(seed=i))
        decay = min(0.5, (1 + i) / (10 + i))
        averaged = jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, averaged, state.params)
    assert_close(state.averaged, averaged, 1e-5)
