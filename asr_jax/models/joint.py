"""The joint network: activation(encoded + predicted) @ kernel + bias (arXiv 1211.3711)."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from asr_jax.config import Config
from asr_jax.layers.linear import Linear
from asr_jax.models.predictor import BLANK_ID


class Scores(NamedTuple):
    """Log-probabilities of the next symbol and of the number of frames that it covers."""

    symbols: Float[Array, "*B V"]
    durations: Float[Array, "*B X"]
    """Log-probabilities of Joint.durations; X = 0 for a joint without durations."""


class Joint(nnx.Module):
    """The joint network, which projects encoder and predictor to one width.

    Training never calls the joint on all pairs of frames and labels: the losses take the two
    projections, `out.kernel` and `out.bias`. The last columns of `out` are the durations'.
    """

    activation: Literal["tanh", "relu"]
    factorization: Literal["softmax", "hat"]
    durations: tuple[int, ...]

    def __init__(self, config: Config, vocabulary_size: int, *, rngs: nnx.Rngs):
        kind, width = config.objective.kind, config.joint.width
        self.activation = config.joint.activation
        self.factorization = "hat" if kind == "hat" else "softmax"
        self.durations = config.objective.durations if kind == "tdt" else ()
        self.vocabulary_size = vocabulary_size
        self.encoder_projection = Linear(config.encoder.width, width, rngs=rngs)
        self.predictor_projection = Linear(config.predictor.width, width, use_bias=False, rngs=rngs)
        self.out = Linear(width, vocabulary_size + len(self.durations), rngs=rngs)

    def __call__(
        self, encoded: Float[Array, "*B D"], predicted: Float[Array, "*B D"]
    ) -> Float[Array, "*B W"]:
        """Return the logits of pairs of projected frames and labels; W = V + X."""
        activation = {"tanh": jnp.tanh, "relu": jax.nn.relu}[self.activation]
        return self.out(activation(encoded + predicted))

    def scores(self, encoded: Float[Array, "*B D"], predicted: Float[Array, "*B D"]) -> Scores:
        """Return the logits normalized in float32, by the factorization.

        softmax: a softmax over all symbols. hat: a sigmoid of the blank's logit for blank or label,
        and a softmax over the labels (arXiv 2003.07705, equations 6 and 7).
        """
        logits = self(encoded, predicted).astype(jnp.float32)
        symbols, durations = jnp.split(logits, [self.vocabulary_size], axis=-1)
        if self.factorization == "softmax":
            symbols = jax.nn.log_softmax(symbols)
        else:
            blank = symbols[..., BLANK_ID : BLANK_ID + 1]
            labels = jax.nn.log_softmax(jnp.delete(symbols, BLANK_ID, axis=-1))
            parts = (jax.nn.log_sigmoid(blank), jax.nn.log_sigmoid(-blank) + labels)
            symbols = jnp.concatenate(parts, axis=-1)
        return Scores(symbols, jax.nn.log_softmax(durations))

    def internal_scores(self, predicted: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """Return the internal language model's scores: the encoder's output is set to zero.

        The score of a label is log P(label | labels before, not blank); the score of the blank is 0
        (arXiv 2011.01991, section 3.2).
        """
        silent = self.encoder_projection(jnp.zeros_like(self.encoder_projection.kernel[...][:, 0]))
        symbols = self.scores(jnp.broadcast_to(silent, predicted.shape), predicted).symbols
        symbols = symbols.at[..., BLANK_ID].set(-jnp.inf)
        return jax.nn.log_softmax(symbols).at[..., BLANK_ID].set(0.0)
