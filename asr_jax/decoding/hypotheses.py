"""What a search with a beam returns."""

from typing import NamedTuple

from jaxtyping import Array, Float, Int


class Hypotheses(NamedTuple):
    """The K best label sequences of every row, the best first.

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
