"""Everything that training changes, in one tree."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key, PyTree

from asr_jax.config import Config
from asr_jax.distributed.sharding import state_shardings
from asr_jax.models.composition import make_model


class TrainState(NamedTuple):
    step: Int[Array, ""]
    """Steps taken, skipped ones included."""
    data_position: Int[Array, ""]
    """Batches consumed since the first step of the run: all there is to know about the data."""
    key: Key[Array, ""]
    """Root of the run's randomness; a step folds its number in."""
    params: PyTree
    averaged: PyTree
    """Exponential moving average of the parameters, which evaluation uses."""
    optimizer: optax.OptState
    skipped: Int[Array, ""]
    """Steps that changed nothing because loss or gradient was not finite."""
    skipped_in_a_row: Int[Array, ""]
    smoothed_loss: Float[Array, ""]
    """Mean of the last hundred or so losses, nats per label."""
    lowest_loss: Float[Array, ""]
    """Lowest `smoothed_loss` so far."""
    rollbacks: Int[Array, ""]
    """Times that the run went back to a checkpoint since it diverged."""


def _initial_state(
    config: Config, vocabulary_size: int, optimizer: optax.GradientTransformation
) -> TrainState:
    init_key, key = jax.random.split(jax.random.key(config.train.seed))
    model = make_model(config, vocabulary_size, rngs=nnx.Rngs(init_key))
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    zero = functools.partial(jnp.zeros, (), jnp.int32)
    return TrainState(
        step=zero(),
        data_position=zero(),
        key=key,
        params=params,
        averaged=jax.tree.map(jnp.copy, params),
        optimizer=optimizer.init(params),
        skipped=zero(),
        skipped_in_a_row=zero(),
        smoothed_loss=jnp.float32(0),
        lowest_loss=jnp.float32(jnp.inf),
        rollbacks=zero(),
    )


def abstract_state(
    config: Config, vocabulary_size: int, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """The state's shapes, dtypes and shardings: what a restored checkpoint must match."""
    abstract = jax.eval_shape(lambda: _initial_state(config, vocabulary_size, optimizer))
    return jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s),
        abstract,
        state_shardings(abstract, mesh),
    )


def initial_state(
    config: Config, vocabulary_size: int, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """Random parameters, created where they are to lie."""
    abstract = abstract_state(config, vocabulary_size, optimizer, mesh)
    shardings = jax.tree.map(lambda a: a.sharding, abstract)
    return jax.jit(
        lambda: _initial_state(config, vocabulary_size, optimizer), out_shardings=shardings
    )()
