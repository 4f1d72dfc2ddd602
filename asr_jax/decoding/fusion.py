"""Fusion: the scores of language models and hotwords that a beam search adds to the model's."""

from typing import NamedTuple, Protocol

from jaxtyping import Array, Float, Int, PyTree

from asr_jax.decoding.hotwords import Hotwords


class Scorer(Protocol):
    """A pytree that scores label sequences without audio. Gains are in nats.

    States are pytrees whose leaves begin with axis N, the sequences. The gain of a sequence is the
    sum of the gains of its labels and of its end.
    """

    def start(self, batch: int) -> PyTree[Array]:
        """Return the states before the first label."""
        ...

    def gains(self, states: PyTree[Array]) -> Float[Array, "N V"]:
        """Return the gain of every next label; the blank's is ignored."""
        ...

    def step(self, states: PyTree[Array], labels: Int[Array, " N"]) -> PyTree[Array]:
        """Return the states after one more label."""
        ...

    def ends(self, states: PyTree[Array]) -> Float[Array, " N"]:
        """Return the gain for ending in each state."""
        ...


class Fusion(NamedTuple):
    """Shallow fusion (arXiv 1503.03535): score = log P(labels | audio) + gains + boosts."""

    scorers: tuple[Scorer, ...] = ()
    internal_lm_weight: Float[Array, ""] | None = None
    """Weight of the transducer's internal language model, which is subtracted: its label
    probabilities with the encoder output set to zero (arXiv 2011.01991, section 3.2)."""
    hotwords: Hotwords | None = None

    @property
    def has_gains(self) -> bool:
        """True if labels have gains, which unlike boosts do not depend on the audio."""
        return bool(self.scorers) or self.internal_lm_weight is not None


NO_FUSION = Fusion()
