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
    """Logarithms of the probabilities of the next symbol, and of how many frames it lasts for."""

    symbols: Float[Array, "*B V"]
    durations: Float[Array, "*B X"]
    """Of Joint.durations, by themselves; X = 0 where symbols have none."""


class Joint(nnx.Module):
    """Projects both sides to one width; the output layer's parameters go to the loss as they are.

    Training never calls the joint on all pairs of frames and labels: the losses take the two
    projections, `out.kernel` and `out.bias`. The last columns are those of the durations.
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
        """Logits of pairs of projected frames and labels, W = V + X."""
        activation = {"tanh": jnp.tanh, "relu": jax.nn.relu}[self.activation]
        return self.out(activation(encoded + predicted))

    def scores(self, encoded: Float[Array, "*B D"], predicted: Float[Array, "*B D"]) -> Scores:
        """The logits, normalised in float32 as the objective has it.

        softmax: all symbols together. hat: a sigmoid of the blank's logit decides on blank, and a
        softmax of the others on the label (arXiv 2003.07705, equations 6 and 7).
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
        """What it knows of the next label without audio: the encoder's output taken as zeros.

        log P(label | labels before, not blank), the blank's 0 (arXiv 2011.01991, section 3.2).
        """
        silent = self.encoder_projection(jnp.zeros_like(self.encoder_projection.kernel[...][:, 0]))
        symbols = self.scores(jnp.broadcast_to(silent, predicted.shape), predicted).symbols
        symbols = symbols.at[..., BLANK_ID].set(-jnp.inf)
        return jax.nn.log_softmax(symbols).at[..., BLANK_ID].set(0.0)
