"""What every search returns."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class Hypotheses(NamedTuple):
    """The K best label sequences of every row, the best first; K = 1 of a search without a beam.

    Where there are fewer, the others have score -inf and no labels. Beyond a sequence's labels all
    is zero.
    """

    labels: Int[Array, "B K N"]
    counts: Int[Array, "B K"]
    """Labels in each."""
    frames: Int[Array, "B K N"]
    """The encoded frame at which each label was emitted."""
    log_probabilities: Float[Array, "B K N"]
    """Of each label, given its frame and the labels before it, in nats."""
    scores: Float[Array, "B K"]
    """What the search ranks by, in nats."""


def empty_hypotheses(batch: int, capacity: int) -> Hypotheses:
    """One hypothesis a row, without labels, with room for so many."""
    integers = jnp.zeros((batch, 1, capacity), jnp.int32)
    return Hypotheses(
        labels=integers,
        counts=integers[..., 0],
        frames=integers,
        log_probabilities=integers.astype(jnp.float32),
        scores=jnp.zeros((batch, 1)),
    )
