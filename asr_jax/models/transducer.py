"""The recogniser: encoder, predictor, joint, and an optional CTC head on the encoder."""

import functools

import jax
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from asr_jax.config import Config
from asr_jax.layers.linear import Linear
from asr_jax.models.encoder import Encoder
from asr_jax.models.joint import Joint
from asr_jax.models.predictor import LSTMPredictor, StatelessPredictor


class Transducer(nnx.Module):
    """A Conformer-transducer with a config's sizes and random parameters."""

    def __init__(self, config: Config, vocabulary_size: int, *, rngs: nnx.Rngs):
        encoder, predictor, joint = config.encoder, config.predictor, config.joint
        self.encoder = Encoder(
            config.features.mel_bins,
            kind=encoder.kind,
            layers=encoder.layers,
            width=encoder.width,
            attention=encoder.attention,
            heads=encoder.heads,
            feedforward_factor=encoder.feedforward_factor,
            kernel_frames=encoder.kernel_frames,
            shared_layers=encoder.shared_layers,
            residual_rank=encoder.residual_rank,
            subsampling=encoder.subsampling,
            subsampling_channels=encoder.subsampling_channels,
            dropout=encoder.dropout,
            remat=encoder.remat,
            rngs=rngs,
        )
        kind = {
            "lstm": LSTMPredictor,
            "stateless": functools.partial(StatelessPredictor, context=predictor.context),
        }[predictor.kind]
        self.predictor = kind(
            vocabulary_size,
            embedding_width=predictor.embedding_width,
            width=predictor.width,
            dropout=predictor.dropout,
            rngs=rngs,
        )
        self.joint = Joint(
            encoder.width,
            predictor.width,
            vocabulary_size,
            width=joint.width,
            activation=joint.activation,
            rngs=rngs,
        )
        self.ctc_head = (
            Linear(encoder.width, vocabulary_size, rngs=rngs) if joint.ctc_weight else None
        )

    def __call__(
        self,
        features: Float[Array, "B T F"],
        feature_lengths: Int[Array, " B"],
        labels: Int[Array, "B U"],
        *,
        key: Key[Array, ""] | None = None,
    ) -> tuple[Float[Array, "B T4 D"], Int[Array, " B"], Float[Array, "B U1 W"]]:
        """Encoded frames, their lengths, and the predictor's outputs, not yet projected."""
        keys = (None, None) if key is None else jax.random.split(key)
        encoded, lengths = self.encoder(features, feature_lengths, key=keys[0])
        return encoded, lengths, self.predictor(labels, key=keys[1])
