"""The neural language model: a network that predicts each label from the labels before it."""

from flax import nnx
from jaxtyping import Array, Float, Int, Key

from asr_jax.config import Config
from asr_jax.layers.linear import Linear
from asr_jax.models.predictor import make_predictor


class LanguageModel(nnx.Module):
    """A transducer's predictor with a softmax output layer (Mikolov et al. 2010).

    The blank, which no text contains, precedes the first label, and is predicted as the end after
    the last one (`encoder_decoder.END_ID`). P(text) is thus a product of U + 1 probabilities.
    """

    def __init__(self, config: Config, vocabulary_size: int, *, rngs: nnx.Rngs):
        self.predictor = make_predictor(config.predictor, vocabulary_size, rngs=rngs)
        self.out = Linear(config.predictor.width, vocabulary_size, rngs=rngs)

    def __call__(
        self, labels: Int[Array, "B U"], *, key: Key[Array, ""] | None = None
    ) -> Float[Array, "B U1 V"]:
        """Return the logits of the label after 0, 1, ..., U labels; they ignore later labels."""
        return self.out(self.predictor(labels, key=key))
