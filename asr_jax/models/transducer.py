"""The transducer and its variants TDT and HAT: encoder, predictor and joint."""

import jax
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from asr_jax.config import Config
from asr_jax.layers.adapter import AdaptedLinear
from asr_jax.models.ctc import make_ctc_head
from asr_jax.models.encoder import Encoder
from asr_jax.models.joint import Joint
from asr_jax.models.predictor import make_predictor


class Transducer(nnx.Module):
    """A transducer with a config's sizes and random parameters.

    TDT's joint also has columns for the durations. HAT's joint has the same parameters as the
    transducer's, but another factorization.
    """

    def __init__(self, config: Config, vocabulary_size: int, *, rngs: nnx.Rngs):
        self.encoder = Encoder(config, rngs=rngs)
        self.predictor = make_predictor(config.predictor, vocabulary_size, rngs=rngs)
        self.joint = Joint(config, vocabulary_size, rngs=rngs)
        self.ctc_head = (
            make_ctc_head(config, vocabulary_size, rngs=rngs)
            if config.objective.has_ctc_head
            else None
        )

    def loss_arguments(
        self,
        encoded: Float[Array, "B T D"],
        labels: Int[Array, "B U"],
        *,
        key: Key[Array, ""] | None = None,
    ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array | None]:
        """Return both projections and the joint's kernel and bias: what every loss takes first."""
        joint = self.joint
        return (
            joint.encoder_projection(encoded),
            joint.predictor_projection(self.predictor(labels, key=key)),
            joint.out.matrix if isinstance(joint.out, AdaptedLinear) else joint.out.kernel[...],
            None if joint.out.bias is None else joint.out.bias[...],
        )
