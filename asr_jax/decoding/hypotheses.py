"""Hypotheses: the result of every search."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class Hypotheses(NamedTuple):
    """The K best label sequences of every row, best first; K = 1 without a beam.

    Sequences that do not exist have score -inf and no labels. Padding after the labels is zero.
    """

    labels: Int[Array, "B K N"]
    counts: Int[Array, "B K"]
    """Number of labels."""
    frames: Int[Array, "B K N"]
    """The encoded frame at which each label was emitted."""
    log_probabilities: Float[Array, "B K N"]
    """Log-probability of each label, given its frame and the labels before it, in nats."""
    scores: Float[Array, "B K"]
    """Score by which the search ranks the sequences, in nats."""


def empty_hypotheses(batch: int, capacity: int) -> Hypotheses:
    """Return one hypothesis per row without labels, with N = `capacity`."""
    integers = jnp.zeros((batch, 1, capacity), jnp.int32)
    return Hypotheses(
        labels=integers,
        counts=integers[..., 0],
        frames=integers,
        log_probabilities=integers.astype(jnp.float32),
        scores=jnp.zeros((batch, 1)),
    )
