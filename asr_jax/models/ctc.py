"""Connectionist temporal classification (CTC): a symbol per frame (Graves et al. 2006)."""

from flax import nnx

from asr_jax.config import Config
from asr_jax.layers.linear import Linear
from asr_jax.models.encoder import Encoder


def make_ctc_head(config: Config, vocabulary_size: int, *, rngs: nnx.Rngs) -> nnx.Linear:
    """Make the layer from encoded frames to logits of the symbols, including blank."""
    return Linear(config.encoder.width, vocabulary_size, rngs=rngs)


class CTC(nnx.Module):
    """An encoder with a CTC head, with a config's sizes and random parameters."""

    def __init__(self, config: Config, vocabulary_size: int, *, rngs: nnx.Rngs):
        self.encoder = Encoder(config, rngs=rngs)
        self.ctc_head = make_ctc_head(config, vocabulary_size, rngs=rngs)
