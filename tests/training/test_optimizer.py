"""The schedule at its corners, and what weight decay touches."""

import jax
import jax.numpy as jnp
import numpy as np

from asr_jax.config import Config, EncoderConfig, OptimizerConfig
from asr_jax.training.optimizer import learning_rate_schedule, make_optimizer
from asr_jax.training.state import split_model


def test_schedule_rises_linearly_and_falls_as_a_cosine():
    config = OptimizerConfig(peak_learning_rate=2.0, warmup_steps=10, final_learning_rate_share=0.1)
    rate = learning_rate_schedule(config, steps=110)
    np.testing.assert_allclose([rate(0), rate(5), rate(10)], [0, 1, 2], rtol=1e-6)
    np.testing.assert_allclose(rate(60), (2 + 0.2) / 2, rtol=1e-6)
    np.testing.assert_allclose([rate(110), rate(500)], [0.2, 0.2], rtol=1e-6)


def test_a_run_shorter_than_its_warm_up_still_warms_up():
    rate = learning_rate_schedule(OptimizerConfig(warmup_steps=1000), steps=5)
    rates = [float(rate(step)) for step in range(5)]
    assert rates == sorted(rates) and rates[-1] > 0
    assert learning_rate_schedule(OptimizerConfig(warmup_steps=0), steps=1)(0) > 0


def test_weight_decay_spares_biases_norms_and_embeddings():
    config = Config(encoder=EncoderConfig(layers=2, width=8, heads=2, subsampling_channels=2))
    _, abstract = split_model(config, 5)
    params = jax.tree.map(lambda a: jnp.ones(a.shape), abstract)
    optimizer = make_optimizer(
        OptimizerConfig(weight_decay=0.5, peak_learning_rate=1.0, warmup_steps=0), steps=10
    )
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    for path, update in jax.tree_util.tree_leaves_with_path(updates):
        decays = path[-1].key in ("kernel", "depthwise")
        assert bool(jnp.all(update != 0)) == decays, jax.tree_util.keystr(path)
        assert bool(jnp.all(update == 0)) == (not decays), jax.tree_util.keystr(path)


def test_gradients_are_clipped_to_the_norm():
    optimizer = make_optimizer(OptimizerConfig(clip_norm=1.0, warmup_steps=0), steps=10)
    params = {"kernel": jnp.zeros(4)}
    big, small = {"kernel": jnp.full(4, 1e6)}, {"kernel": jnp.full(4, 0.5)}
    first, _ = optimizer.update(big, optimizer.init(params), params)
    second, _ = optimizer.update(small, optimizer.init(params), params)
    np.testing.assert_allclose(first["kernel"], second["kernel"], rtol=1e-5)
