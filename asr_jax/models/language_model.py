"""A network that predicts the next label from those before it, without audio."""

from flax import nnx
from jaxtyping import Array, Float, Int, Key

from asr_jax.config import Config
from asr_jax.layers.linear import Linear
from asr_jax.models.predictor import make_predictor


class LanguageModel(nnx.Module):
    """A transducer's predictor and a softmax over it, with a config's sizes (Mikolov et al. 2010).

    The blank, which no text has, stands before the first label and, as a label of its own, for the
    end after the last (`attention.END_ID`). So P(text) is a product of U + 1 probabilities.
    """

    def __init__(self, config: Config, vocabulary_size: int, *, rngs: nnx.Rngs):
        self.predictor = make_predictor(config.predictor, vocabulary_size, rngs=rngs)
        self.out = Linear(config.predictor.width, vocabulary_size, rngs=rngs)

    def __call__(
        self, labels: Int[Array, "B U"], *, key: Key[Array, ""] | None = None
    ) -> Float[Array, "B U1 V"]:
        """Logits of what comes after 0, 1, ..., U labels. Padding changes none before it."""
        return self.out(self.predictor(labels, key=key))
