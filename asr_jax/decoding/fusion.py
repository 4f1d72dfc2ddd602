"""What a beam search adds to the model's own scores: language models, and hotwords."""

from typing import NamedTuple, Protocol

from jaxtyping import Array, Float, Int, PyTree


class Scorer(Protocol):
    """Knows label sequences without the audio; a pytree of arrays. Gains are in nats.

    States are pytrees whose leaves begin with axis N, one for each sequence. The gain of a sequence
    is the sum of its labels' and of its end's.
    """

    def start(self, batch: int) -> PyTree[Array]:
        """Before the first label."""
        ...

    def gains(self, states: PyTree[Array]) -> Float[Array, "N V"]:
        """Of every next label; the blank's is not looked at."""
        ...

    def step(self, states: PyTree[Array], labels: Int[Array, " N"]) -> PyTree[Array]:
        """After one more label."""
        ...

    def ends(self, states: PyTree[Array]) -> Float[Array, " N"]:
        """Of ending here."""
        ...


class Fusion(NamedTuple):
    """Shallow fusion (arXiv 1503.03535): score = log P(labels | audio) + the scorers' gains."""

    scorers: tuple[Scorer, ...] = ()
    internal_lm_weight: Float[Array, ""] | None = None
    """Of the transducer's own language model, which is subtracted: its labels' probabilities where
    the encoder says nothing, zeros (arXiv 2011.01991, section 3.2)."""

    def __bool__(self) -> bool:
        return bool(self.scorers) or self.internal_lm_weight is not None


NO_FUSION = Fusion()
