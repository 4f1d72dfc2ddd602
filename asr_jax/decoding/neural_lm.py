"""A neural language model (models/language_model.py) as a scorer of the beam search."""

from dataclasses import dataclass, field

import jax
from flax import nnx
from jaxtyping import Array, Float, Int, PyTree

from asr_jax.models.encoder_decoder import END_ID
from asr_jax.models.language_model import LanguageModel


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class NeuralScorer:
    """Gains of log P(next label | labels before) times `weight`; states are the predictor's.

    Parameters and weight are arrays of the tree, so changing the weight does not recompile.
    """

    params: PyTree[Array]
    weight: Float[Array, ""]
    graphdef: nnx.GraphDef = field(metadata=dict(static=True))

    @property
    def _model(self) -> LanguageModel:
        return nnx.merge(self.graphdef, self.params)

    def start(self, batch: int) -> PyTree[Array]:
        return self._model.predictor.start(batch)

    def gains(self, states: PyTree[Array]) -> Float[Array, "N V"]:
        """Return the gain of every next label; the blank's column is the gain of ending."""
        model = self._model
        return self.weight * jax.nn.log_softmax(model.out(model.predictor.output(states)))

    def step(self, states: PyTree[Array], labels: Int[Array, " N"]) -> PyTree[Array]:
        return self._model.predictor.step(states, labels)

    def ends(self, states: PyTree[Array]) -> Float[Array, " N"]:
        return self.gains(states)[:, END_ID]
