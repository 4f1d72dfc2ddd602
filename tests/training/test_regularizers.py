"""Intermediate CTC and the consistency of two views: laws of the losses that they add."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from asr_jax.config import (
    AdapterConfig,
    AugmentConfig,
    Config,
    EncoderConfig,
    JointConfig,
    MeshConfig,
    ObjectiveConfig,
)
from asr_jax.distributed.mesh import make_mesh
from asr_jax.models.composition import make_model, merge_adapters
from asr_jax.models.transducer import Transducer
from asr_jax.training.objective import (
    consistency_losses,
    ctc_losses,
    transducer_losses,
    utterance_losses,
)
from asr_jax.training.step import augmented_features
from asr_jax.types import Batch

VOCABULARY = 5
CONFIG = Config(
    augment=AugmentConfig(frequency_mask_bins=20),
    encoder=EncoderConfig(
        kind="transformer",
        layers=2,
        width=8,
        heads=2,
        attention="rotary",
        remat="none",
        subsampling="conv1d",
        subsampling_channels=4,
    ),
    objective=ObjectiveConfig(kind="ctc"),
)
BOTH = replace(
    CONFIG,
    objective=replace(CONFIG.objective, intermediate_ctc_weight=0.5, consistency_weight=0.2),
)


def test_consistency_is_half_the_sum_of_both_divergences():
    logits, lengths = jax.random.normal(jax.random.key(0), (4, 6, VOCABULARY)), [6, 6, 4, 4]
    rubbish = jnp.where(jnp.arange(6)[:, None] < jnp.array(lengths)[:, None, None], logits, 1e30)
    loss = lambda x: consistency_losses(x, jnp.array(lengths))
    p = np.asarray(jax.nn.softmax(logits), np.float64)
    expected, gradient = [], np.zeros(logits.shape)
    for a, b, length in [(0, 1, 6), (2, 3, 4)]:
        real = slice(None, length)
        both = (p[a, real] - p[b, real]) * np.log(p[a, real] / p[b, real])
        expected.append(0.5 * both.sum())
        gradient[a, real] = 0.5 * (p[a, real] - p[b, real])
        gradient[b, real] = -gradient[a, real]
    np.testing.assert_allclose(loss(rubbish), expected, rtol=1e-5)
    np.testing.assert_allclose(jax.grad(lambda x: loss(x).sum())(rubbish), gradient, atol=1e-6)
    assert not np.any(loss(jnp.repeat(logits[:2], 2, axis=0)))


def test_losses_of_two_views_are_means_of_both():
    # The two views of the first utterance are equal.
    views = jax.random.normal(jax.random.key(1), (2, 2, 40, 80))
    views = views.at[0, 1].set(views[0, 0])
    model = make_model(CONFIG, VOCABULARY, rngs=nnx.Rngs(0))
    lengths, labels, counts = (
        jnp.array([40, 25]),
        jnp.array([[1, 2, 3], [4, 7, 7]]),
        jnp.array([3, 1]),
    )
    twice = lambda x: jnp.repeat(x, 2, axis=0)

    @jax.jit
    def run(views):
        actual = utterance_losses(model, views, lengths, labels, counts, config=BOTH)
        encoded, middle, frames = model.encoder.with_middle(
            views.reshape(4, *views.shape[2:]), twice(lengths)
        )
        of = lambda x: ctc_losses(model.ctc_head(x), frames, twice(labels), twice(counts))
        expected = {
            "loss": of(encoded).reshape(2, 2).mean(axis=1),
            "intermediate_ctc_loss": of(middle).reshape(2, 2).mean(axis=1),
            "consistency_loss": consistency_losses(model.ctc_head(encoded), frames),
        }
        return actual, expected

    actual, expected = run(views)
    assert actual.keys() == expected.keys()
    for name, losses in actual.items():
        np.testing.assert_allclose(losses, expected[name], rtol=1e-5, atol=1e-6)
    assert actual["consistency_loss"][0] < 1e-6 < actual["consistency_loss"][1]


@pytest.mark.slow
@pytest.mark.parametrize("normalization", ["utterance", "none"])
def test_each_view_is_masked_as_a_batch_of_one_view(normalization):
    random = np.random.default_rng(0)
    batch = Batch(
        samples=random.normal(size=(2, 8000)).astype(np.float32),
        sample_lengths=np.array([8000, 5000], np.int32),
        labels=np.zeros((2, 1), np.int32),
        label_lengths=np.zeros(2, np.int32),
        tempo=np.ones(2, np.float32),
        utterances=np.arange(2, dtype=np.int32),
        second_utterance=np.full(2, -1, np.int32),
    )
    mesh, key = make_mesh(MeshConfig(), jax.devices()[:1]), jax.random.key(3)
    of = lambda config, key: augmented_features(
        batch,
        key,
        config=replace(config, features=replace(config.features, normalization=normalization)),
        mesh=mesh,
    )
    views, lengths = of(BOTH, key)
    for view, view_key in enumerate(jax.random.split(key)):
        alone, alone_lengths = of(CONFIG, view_key)
        np.testing.assert_array_equal(views[:, view], alone)
        np.testing.assert_array_equal(lengths, alone_lengths)
    assert np.any(views[:, 0] != views[:, 1])


def test_an_adapter_of_the_joint_output_is_part_of_the_loss():
    config = replace(CONFIG, objective=ObjectiveConfig(kind="tdt"), joint=JointConfig(width=8))
    config = replace(config, adapter=AdapterConfig(rank=2, pattern=("joint.out",)))
    model = make_model(config, VOCABULARY, rngs=nnx.Rngs(0))
    graphdef, params = nnx.split(model, nnx.Param)
    pure = nnx.to_pure_dict(params)
    encoded, labels = jax.random.normal(jax.random.key(1), (2, 6, 8)), jnp.array([[1, 2], [3, 0]])
    lengths = jnp.array([6, 4]), labels, jnp.array([2, 1])

    def total(out, config, graphdef):
        whole = pure | {"joint": pure["joint"] | {"out": out}}
        model = nnx.merge(graphdef, whole)
        return transducer_losses(model, encoded, *lengths, config=config).sum()

    gradient = jax.grad(total)(pure["joint"]["out"], config, graphdef)
    assert np.any(gradient["up"]) and not np.any(gradient["down"])  # up is zero
    moved = pure["joint"]["out"] | {"up": jnp.cos(jnp.arange(20.0)).reshape(2, 10)}
    alone, plain = merge_adapters(config, {"joint": {"out": moved}})
    base, _ = nnx.split(make_model(alone, VOCABULARY, rngs=nnx.Rngs(0)), nnx.Param)
    np.testing.assert_allclose(
        total(moved, config, graphdef), total(plain["joint"]["out"], alone, base), rtol=1e-5
    )
    assert total(moved, config, graphdef) != total(pure["joint"]["out"], config, graphdef)


def test_dropout_in_the_joint_is_active_in_training_only():
    config = replace(CONFIG, objective=ObjectiveConfig(kind="tdt"), joint=JointConfig(width=8))
    config = replace(config, predictor=replace(config.predictor, width=8, dropout=0.0))
    dropping = replace(config, joint=replace(config.joint, dropout=0.5))
    model = make_model(config, VOCABULARY, rngs=nnx.Rngs(0))
    assert isinstance(model, Transducer)
    encoded, labels = jax.random.normal(jax.random.key(1), (2, 6, 8)), jnp.array([[1, 2], [3, 0]])
    lengths = jnp.array([6, 4]), labels, jnp.array([2, 1])

    def losses(config, key=None):
        return transducer_losses(model, encoded, *lengths, config=config, key=key)

    np.testing.assert_array_equal(losses(dropping), losses(config))
    one, other = (losses(dropping, jax.random.key(n)) for n in (0, 1))
    assert np.all(one != losses(config, jax.random.key(0))) and np.all(one != other)
