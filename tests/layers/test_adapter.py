"""Low-rank adapters: the residual layer without its diagonal, over a matrix that is frozen."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from asr_jax.config import AdapterConfig, Config, EncoderConfig, JointConfig, PredictorConfig
from asr_jax.layers.adapter import AdaptedLinear, merged
from asr_jax.layers.linear import Linear
from asr_jax.layers.residual import ResidualLinear
from asr_jax.models.composition import make_model, merge_adapters

CONFIG = Config(
    encoder=EncoderConfig(
        layers=2,
        width=8,
        heads=2,
        kernel_frames=3,
        feedforward_factor=2,
        subsampling="conv1d",
        subsampling_channels=4,
        dropout=0.0,
        remat="none",
    ),
    predictor=PredictorConfig(embedding_width=6, width=6),
    joint=JointConfig(width=8),
)
ADAPTED = replace(CONFIG, adapter=AdapterConfig(rank=2, pattern=("encoder.blocks.*", "joint.out")))
VOCABULARY = 5


def test_an_adapter_is_the_residual_layer_without_its_diagonal():
    rngs = nnx.Rngs(0)
    residual = ResidualLinear(6, 4, rank=2, rngs=rngs)
    adapted = AdaptedLinear(Linear(6, 4, rngs=rngs), 2, rngs=rngs)
    keys = iter(jax.random.split(jax.random.key(1), 4))
    for name in ("kernel", "down", "up", "bias"):
        value = jax.random.normal(next(keys), getattr(residual, name)[...].shape)
        getattr(residual, name)[...] = value
        getattr(adapted, name)[...] = value
    x = jax.random.normal(jax.random.key(2), (3, 5, 6))

    def gradients(layer):
        graphdef, params = nnx.split(layer)
        total = lambda params, x: jnp.sum(jnp.sin(nnx.merge(graphdef, params)(x)))
        of_params, of_x = jax.grad(total, (0, 1))(params, x)
        return nnx.to_pure_dict(of_params) | {"x": of_x}

    np.testing.assert_array_equal(adapted(x), residual(x))
    expected = gradients(residual)
    del expected["diagonal"]
    jax.tree.map(np.testing.assert_array_equal, gradients(adapted), expected)


def test_an_adapted_model_starts_as_the_model_and_merges_into_it():
    base = make_model(CONFIG, VOCABULARY, rngs=nnx.Rngs(0))
    model = make_model(ADAPTED, VOCABULARY, rngs=nnx.Rngs(0))
    features = jax.random.normal(jax.random.key(0), (2, 20, 80))
    lengths = jnp.array([20, 12])

    def outputs(model):
        encoded, _ = model.encoder(features, lengths)
        projected = model.joint.encoder_projection(encoded)
        return encoded, model.joint(projected, jnp.ones_like(projected))

    jax.tree.map(np.testing.assert_array_equal, outputs(model), outputs(base))

    graphdef, params = nnx.split(model, nnx.Param)
    pure = nnx.to_pure_dict(params)
    ups = [path for path, _ in jax.tree_util.tree_leaves_with_path(pure) if path[-1].key == "up"]
    assert len(ups) == 12  # eleven layers of the blocks, and the joint's
    moved = jax.tree_util.tree_map_with_path(
        lambda path, x: (
            x + 0.1 * jnp.cos(jnp.arange(x.size)).reshape(x.shape) if path[-1].key == "up" else x
        ),
        pure,
    )
    config, alone = merge_adapters(ADAPTED, moved)
    assert config == CONFIG
    graph_of_base, _ = nnx.split(base, nnx.Param)
    adapted, plain = (
        outputs(nnx.merge(graph, params))
        for graph, params in ((graphdef, moved), (graph_of_base, alone))
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), adapted, plain
    )
    assert not np.allclose(adapted[0], outputs(base)[0], atol=1e-3)


def test_merging_a_stack_adds_each_layer_its_own_product():
    rng = np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    of = {"kernel": normal(3, 4, 5), "bias": jnp.ones((3, 5))}
    low = {"down": normal(3, 4, 2), "up": normal(3, 2, 5)}
    result = merged({"a": of | low, "b": of})
    assert result["b"] is not None and result["a"].keys() == of.keys()
    for layer in range(3):
        expected = of["kernel"][layer] + low["down"][layer] @ low["up"][layer]
        np.testing.assert_allclose(result["a"]["kernel"][layer], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(result["b"]["kernel"], of["kernel"])


def test_a_pattern_without_a_layer_names_the_layers():
    config = replace(CONFIG, adapter=AdapterConfig(rank=2, pattern=("*.querry",)))
    with pytest.raises(ValueError, match=r"'\*.querry': matches no linear layer.*attention.query"):
        make_model(config, VOCABULARY, rngs=nnx.Rngs(0))
