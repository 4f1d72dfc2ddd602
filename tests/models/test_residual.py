"""Encoders with shared matrices against encoders whose blocks own their matrices."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from asr_jax.config import Config, EncoderConfig, FeaturesConfig
from asr_jax.layers.residual import Shared
from asr_jax.layers.stack import scan_layers, stacked
from asr_jax.models.composition import split_model
from asr_jax.models.encoder import fold_shared_layers

CONFIG = Config(
    features=FeaturesConfig(mel_bins=20),
    encoder=EncoderConfig(
        layers=4,
        shared_layers=2,
        residual_rank=2,
        width=12,
        heads=2,
        feedforward_factor=2,
        kernel_frames=5,
        subsampling="conv1d",
        subsampling_channels=4,
    ),
)


@functools.cache
def parameter_count(layers=18, **sharing):
    encoder = EncoderConfig(
        kind="transformer", layers=layers, width=512, heads=8, attention="rotary", **sharing
    )
    _, params = split_model(Config(encoder=encoder), 5)
    blocks = {"blocks": params["encoder"]["blocks"], "norm": params["encoder"]["norm"]}
    return sum(leaf.size for leaf in jax.tree.leaves(blocks))


@pytest.mark.parametrize(
    "shared_layers, rank, percent", [(3, 2, 34.0), (3, 16, 38.1), (6, 16, 21.5), (9, 16, 15.9)]
)
def test_parameter_counts_are_the_papers(shared_layers, rank, percent):
    """The paper has 18 layers of width 512 with feed-forward width 2048 (arXiv 2310.02489)."""
    assert abs(parameter_count() / 1e6 - 56.7) < 0.1
    count = parameter_count(shared_layers=shared_layers, residual_rank=rank)
    assert abs(100 * count / parameter_count() - percent) < 0.3


@pytest.mark.parametrize(
    "kind, attention",
    [
        pytest.param("conformer", "relative", marks=pytest.mark.slow),
        ("transformer", "rotary"),
    ],
)
def test_encoder_and_its_gradient_equal_the_folded_encoders(kind, attention):
    encoder = dataclasses.replace(CONFIG.encoder, kind=kind, attention=attention)
    config = dataclasses.replace(CONFIG, encoder=encoder)
    graphdef, abstract = split_model(config, 5)
    keys = iter(jax.random.split(jax.random.key(0), 100))
    params = jax.tree.map(lambda a: 0.3 * jax.random.normal(next(keys), a.shape), abstract)
    features = jax.random.normal(jax.random.key(1), (2, 21, 20))
    lengths, weight = jnp.array([21, 13]), jax.random.normal(jax.random.key(2), (2, 6, 12))
    assert params["encoder"]["blocks"]["attention"]["query"]["kernel"].shape == (2, 12, 12)

    def total(graphdef, params):
        model = nnx.merge(graphdef, params)
        return jnp.sum(weight * model.encoder(features, lengths, key=jax.random.key(3))[0])

    plain_config, plain_params = fold_shared_layers(config, params)
    plain_graphdef, plain_abstract = split_model(plain_config, 5)
    shapes = lambda tree: jax.tree.map(lambda a: a.shape, tree)
    assert shapes(plain_params) == shapes(plain_abstract)
    through_fold = lambda params: total(plain_graphdef, fold_shared_layers(config, params)[1])

    got = jax.jit(jax.value_and_grad(functools.partial(total, graphdef)))(params)
    expected = jax.jit(jax.value_and_grad(through_fold))(params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * np.abs(b).max() + 1e-9),
        got,
        expected,
    )


class Pair(nnx.Module):
    def __init__(self, rngs):
        self.common = Shared(jax.random.normal(rngs.params()))
        self.own = nnx.Param(jax.random.normal(rngs.params()))


def test_layers_run_in_order_for_any_sharing():
    inputs = jnp.arange(6.0)
    for shared_layers in (1, 2, 3, 6):
        blocks = stacked(Pair, 6, shared_layers=shared_layers, rngs=nnx.Rngs(0))
        assert len(blocks.common[...]) == 6 // shared_layers
        body = lambda carry, given: (
            2 * carry + given[1] * given[0].common[...] + given[0].own[...],
            carry,
        )
        last, outputs = scan_layers(body, 1.0, blocks, inputs, shared_layers=shared_layers)
        carry, carries = 1.0, []
        for layer in range(6):
            carries.append(carry)
            common = blocks.common[...][layer // shared_layers]
            carry = 2 * carry + inputs[layer] * common + blocks.own[...][layer]
        np.testing.assert_allclose(last, carry, rtol=1e-6)
        np.testing.assert_allclose(outputs, jnp.stack(carries), rtol=1e-6)
