"""The joint network: activation(encoded + predicted) @ kernel + bias (arXiv 1211.3711)."""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from asr_jax.layers.linear import Linear


class Joint(nnx.Module):
    """Projects both sides to one width; the output layer's parameters go to the loss as they are.

    Training never calls the joint on all pairs of frames and labels: `losses.transducer_loss` takes
    the two projections, `out.kernel` and `out.bias`.
    """

    def __init__(
        self,
        encoder_width: int,
        predictor_width: int,
        vocabulary_size: int,
        *,
        width: int,
        activation: Literal["tanh", "relu"],
        rngs: nnx.Rngs,
    ):
        self.encoder_projection = Linear(encoder_width, width, rngs=rngs)
        self.predictor_projection = Linear(predictor_width, width, use_bias=False, rngs=rngs)
        self.out = Linear(width, vocabulary_size, rngs=rngs)
        self.activation = activation

    def __call__(
        self, encoded: Float[Array, "*B D"], predicted: Float[Array, "*B D"]
    ) -> Float[Array, "*B V"]:
        """Logits of pairs of projected frames and labels."""
        activation = {"tanh": jnp.tanh, "relu": jax.nn.relu}[self.activation]
        return self.out(activation(encoded + predicted))
