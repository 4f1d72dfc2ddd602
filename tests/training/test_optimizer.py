"""The schedule's corners, the parameters that decay, and Muon's orthogonal updates."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asr_jax.config import Config, EncoderConfig, ObjectiveConfig, OptimizerConfig
from asr_jax.models.composition import split_model
from asr_jax.training.optimizer import learning_rate_schedule, make_optimizer


def test_schedule_rises_linearly_and_decays_as_a_cosine():
    config = OptimizerConfig(peak_learning_rate=2.0, warmup_steps=10, final_learning_rate_ratio=0.1)
    rate = learning_rate_schedule(config, steps=110)
    np.testing.assert_allclose([rate(0), rate(5), rate(10)], [0, 1, 2], rtol=1e-6)
    np.testing.assert_allclose(rate(60), (2 + 0.2) / 2, rtol=1e-6)
    np.testing.assert_allclose([rate(110), rate(500)], [0.2, 0.2], rtol=1e-6)


def test_decay_may_end_before_or_after_the_run():
    config = OptimizerConfig(peak_learning_rate=2.0, warmup_steps=10, decay_steps=110)
    of_steps = dataclasses.replace(config, decay_steps=0)
    for steps in (20, 110, 500):
        rate, expected = (
            learning_rate_schedule(c, steps=n) for c, n in [(config, steps), (of_steps, 110)]
        )
        assert [float(rate(n)) for n in range(0, 600, 7)] == [
            float(expected(n)) for n in range(0, 600, 7)
        ]
    # Warm-up is no longer than the decay.
    assert learning_rate_schedule(OptimizerConfig(decay_steps=1), steps=100)(0) > 0


def test_run_shorter_than_its_warmup_still_warms_up():
    rate = learning_rate_schedule(OptimizerConfig(warmup_steps=1000), steps=5)
    rates = [float(rate(step)) for step in range(5)]
    assert rates == sorted(rates) and rates[-1] > 0
    assert learning_rate_schedule(OptimizerConfig(warmup_steps=0), steps=1)(0) > 0


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_the_encoder_has_a_learning_rate_of_its_own(kind):
    params = {"encoder": {"kernel": jnp.eye(3), "bias": jnp.ones(3)}, "ctc_head": jnp.ones((3, 2))}
    updates = {}
    for ratio in (1.0, 0.25):
        config = OptimizerConfig(kind=kind, warmup_steps=0, encoder_learning_rate_ratio=ratio)
        optimizer = make_optimizer(config, steps=10)
        gradients = jax.tree.map(lambda x: 0.5 * x, params)
        updates[ratio], _ = optimizer.update(gradients, optimizer.init(params), params)
    of_encoder = {name: 0.25 * update for name, update in updates[1.0]["encoder"].items()}
    expected = updates[1.0] | {"encoder": of_encoder}
    jax.tree.map(np.testing.assert_array_equal, updates[0.25], expected)


def test_biases_norms_and_embeddings_do_not_decay():
    encoder = EncoderConfig(
        layers=2, shared_layers=2, residual_rank=2, width=8, heads=2, subsampling_channels=2
    )
    config = Config(encoder=encoder)
    _, abstract = split_model(config, 5)
    params = jax.tree.map(lambda a: jnp.ones(a.shape), abstract)
    optimizer = make_optimizer(
        OptimizerConfig(weight_decay=0.5, peak_learning_rate=1.0, warmup_steps=0), steps=10
    )
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = jax.jit(optimizer.update)(zeros, jax.jit(optimizer.init)(params), params)
    for path, update in jax.tree_util.tree_leaves_with_path(updates):
        decays = path[-1].key in ("kernel", "depthwise", "down", "up", "diagonal")
        assert bool(jnp.all(update != 0)) == decays, jax.tree_util.keystr(path)
        assert bool(jnp.all(update == 0)) == (not decays), jax.tree_util.keystr(path)


def test_gradients_are_clipped_to_the_norm():
    optimizer = make_optimizer(OptimizerConfig(clip_norm=1.0, warmup_steps=0), steps=10)
    params = {"kernel": jnp.zeros(4)}
    big, small = {"kernel": jnp.full(4, 1e6)}, {"kernel": jnp.full(4, 0.5)}
    first, _ = optimizer.update(big, optimizer.init(params), params)
    second, _ = optimizer.update(small, optimizer.init(params), params)
    np.testing.assert_allclose(first["kernel"], second["kernel"], rtol=1e-5)


@pytest.mark.parametrize("subsampling", [pytest.param("conv1d", marks=pytest.mark.slow), "conv2d"])
def test_muon_orthogonalizes_every_inner_matrix_and_adam_updates_the_rest(subsampling):
    encoder = EncoderConfig(
        layers=4,
        shared_layers=2,
        residual_rank=3,
        width=8,
        heads=2,
        subsampling=subsampling,
        subsampling_channels=4,
    )
    _, abstract = split_model(Config(encoder=encoder, objective=ObjectiveConfig(ctc_weight=0.3)), 5)
    random = np.random.default_rng(0)
    gradients = jax.tree_util.tree_map_with_path(
        lambda path, a: _stretched(random.normal(size=a.shape), path), abstract
    )
    config = OptimizerConfig(
        kind="muon", peak_learning_rate=0.5, warmup_steps=0, weight_decay=0.0, clip_norm=1e9
    )
    optimizer = make_optimizer(config, steps=10)
    params = jax.tree.map(jnp.zeros_like, gradients)
    updates, _ = jax.jit(optimizer.update)(gradients, jax.jit(optimizer.init)(params), params)
    orthogonal = 0
    for path, update in jax.tree_util.tree_leaves_with_path(updates):
        names = [part.key for part in path]
        if names[-1] not in ("kernel", "down", "up") or names[:-1] in (
            ["joint", "out"],
            ["ctc_head"],
        ):
            # Adam's first step depends only on the gradient's sign, so its size is uniform.
            size = np.abs(update)
            assert size.min() > 0.99 * size.max() > 0, names
            continue
        for matrix in _matrices(update, path):
            singular = np.linalg.svd(matrix, compute_uv=False) / max(matrix.shape) ** 0.5
            # The learning rate times 0.2; five Newton-Schulz iterations come within a third.
            np.testing.assert_allclose(singular, 0.5 * 0.2, rtol=0.35, err_msg=str(names))
            orthogonal += 1
    assert orthogonal > (2 + 4 + 4) * 8


def _matrices(array, path):
    """Return the matrices of an array: one per stacked layer; a convolution's taps are rows."""
    layers = len(array) if "blocks" in [part.key for part in path] else 1
    return np.asarray(array).reshape(layers, -1, array.shape[-1])


def _stretched(array, path):
    """Return the array with singular values evenly spaced from 1 to 10."""
    if path[-1].key not in ("kernel", "down", "up"):
        return jnp.asarray(array)
    u, s, v = np.linalg.svd(_matrices(array, path), full_matrices=False)
    return jnp.asarray(np.einsum("lik,k,lko->lio", u, np.linspace(1, 10, s.shape[-1]), v)).reshape(
        array.shape
    )
