"""The training state: everything that training changes, in one tree."""

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
    """Steps taken, including skipped steps."""
    data_position: Int[Array, ""]
    """Batches taken since the first step of the run: the whole state of the data."""
    key: Key[Array, ""]
    """The key from which all randomness derives; a step folds in its number."""
    params: PyTree
    averaged: PyTree
    """Exponential moving average of the parameters, used by evaluation."""
    optimizer: optax.OptState
    skipped: Int[Array, ""]
    """Steps that learned nothing: a loss or gradient was not finite, or no utterance usable."""
    skipped_in_a_row: Int[Array, ""]
    """Steps with a loss or gradient that was not finite, since the last step that learned."""
    smoothed_loss: Float[Array, ""]
    """Moving average of about the last 100 losses, in nats per label."""
    lowest_loss: Float[Array, ""]
    """The lowest `smoothed_loss` so far."""
    rollbacks: Int[Array, ""]
    """Number of times that the run diverged and went back to a checkpoint."""


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
    """Return the state's shapes, dtypes and shardings, which a restored checkpoint must match."""
    abstract = jax.eval_shape(lambda: _initial_state(config, vocabulary_size, optimizer))
    return jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s),
        abstract,
        state_shardings(abstract, mesh),
    )


def initial_state(
    config: Config, vocabulary_size: int, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """Return a new run's state, with random parameters created on their devices."""
    abstract = abstract_state(config, vocabulary_size, optimizer, mesh)
    shardings = jax.tree.map(lambda a: a.sharding, abstract)
    return jax.jit(
        lambda: _initial_state(config, vocabulary_size, optimizer), out_shardings=shardings
    )()
