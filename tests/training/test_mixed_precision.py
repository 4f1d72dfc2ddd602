"""Activations are bfloat16; parameters, their gradients and sums stay float32."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from asr_jax.config import (
    AugmentConfig,
    Config,
    EncoderConfig,
    FeaturesConfig,
    JointConfig,
    MeshConfig,
    ObjectiveConfig,
    PredictorConfig,
    TrainConfig,
)
from asr_jax.distributed.mesh import make_mesh
from asr_jax.models.composition import split_model
from asr_jax.training.optimizer import make_optimizer
from asr_jax.training.state import initial_state
from asr_jax.training.step import batch_gradients, cast
from asr_jax.types import Batch

# No other axis has this size.
ROWS, LABELS, VOCABULARY = 11, 5, 7
CONFIG = Config(
    augment=AugmentConfig(frequency_mask_bins=4, time_masks=1),
    features=FeaturesConfig(sample_rate_hz=4000, mel_bins=16),
    encoder=EncoderConfig(
        layers=1,
        width=32,
        heads=2,
        kernel_frames=3,
        subsampling="conv1d",
        subsampling_channels=16,
        remat="none",
    ),
    predictor=PredictorConfig(embedding_width=8, width=8),
    joint=JointConfig(width=24),
    objective=ObjectiveConfig(ctc_weight=0.3),
    train=TrainConfig(compute_dtype="bfloat16"),
)


@pytest.fixture(scope="module")
def problem():
    random = np.random.default_rng(0)
    batch = Batch(
        samples=random.normal(size=(ROWS, 4800), scale=0.1).astype(np.float32),
        sample_lengths=np.full(ROWS, 4800, np.int32),
        labels=random.integers(1, VOCABULARY, (ROWS, LABELS)).astype(np.int32),
        label_lengths=np.full(ROWS, LABELS, np.int32),
        tempo=np.ones(ROWS, np.float32),
        utterances=np.arange(ROWS, dtype=np.int32),
        second_utterance=np.full(ROWS, -1, np.int32),
    )
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    optimizer = make_optimizer(CONFIG.optimizer, steps=10)
    params = initial_state(CONFIG, VOCABULARY, optimizer, mesh).params

    def gradients(dtype):
        train = dataclasses.replace(CONFIG.train, compute_dtype=dtype)
        config = dataclasses.replace(CONFIG, train=train)
        graphdef, _ = split_model(config, VOCABULARY)
        return functools.partial(batch_gradients, graphdef=graphdef, config=config, mesh=mesh)

    return gradients, (params, batch, jax.random.key(0))


@pytest.mark.slow
def test_bfloat16_gradients_equal_float32_gradients_up_to_rounding(problem):
    gradients, arguments = problem
    exact = jax.jit(gradients("float32"))(*arguments)[0]
    rounded = jax.jit(gradients("bfloat16"))(*arguments)[0]
    assert {leaf.dtype for leaf in jax.tree.leaves(rounded)} == {jnp.dtype("float32")}
    norm = lambda tree: np.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves(tree)))
    error = norm(jax.tree.map(jnp.subtract, rounded, exact)) / norm(exact)
    # 0.011 for two layers: a few dozen roundings, each of at most 2^-9.
    assert 0 < error < 0.02


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in equation.params.values():
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def test_products_that_sum_over_the_batch_are_float32(problem):
    """Otherwise devices would round their partial sums to bfloat16 before adding them."""
    gradients, arguments = problem
    traced = jax.make_jaxpr(gradients("bfloat16"))(*arguments)
    outputs = []
    for equation in equations(traced.jaxpr):
        if equation.primitive.name == "dot_general":
            (summed, _), _ = equation.params["dimension_numbers"]
            if ROWS in [equation.invars[0].aval.shape[axis] for axis in summed]:
                outputs.append(equation.outvars[0].aval)
    assert len(outputs) > 10
    assert {x.dtype for x in outputs} == {jnp.dtype("float32")}, outputs


@pytest.mark.parametrize("kind", ["stateless", "lstm", "attention"])
def test_label_networks_compute_in_bfloat16(kind):
    """Otherwise the joint network's products, which combine both inputs, would be float32."""
    config = CONFIG
    if kind == "attention":
        objective = dataclasses.replace(CONFIG.objective, kind="attention")
        config = dataclasses.replace(CONFIG, objective=objective)
    else:
        predictor = dataclasses.replace(CONFIG.predictor, kind=kind)
        config = dataclasses.replace(CONFIG, predictor=predictor)
    graphdef, params = split_model(config, VOCABULARY)

    def read(params, labels, encoded, key):
        model = nnx.merge(graphdef, cast(params, "bfloat16"))
        if kind == "attention":
            return model.decoder(labels, encoded, jnp.full(ROWS, 3), key=key)
        return model.joint.predictor_projection(model.predictor(labels, key=key))

    encoded = jnp.zeros((ROWS, 3, 32), jnp.bfloat16)
    arguments = jnp.ones((ROWS, LABELS), jnp.int32), encoded, jax.random.key(0)
    assert jax.eval_shape(read, params, *arguments).dtype == jnp.bfloat16
