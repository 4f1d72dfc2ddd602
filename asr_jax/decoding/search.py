"""The choice of a search by objective, decoding.head and decoding.beam."""

from jaxtyping import Array, Float, Int

from asr_jax.config import DecodingConfig
from asr_jax.decoding.attention_beam import attention_search
from asr_jax.decoding.beam import beam_search
from asr_jax.decoding.ctc import best_path
from asr_jax.decoding.fusion import NO_FUSION, Fusion
from asr_jax.decoding.greedy import greedy_search
from asr_jax.decoding.hypotheses import Hypotheses
from asr_jax.models.composition import Model
from asr_jax.models.ctc import CTC
from asr_jax.models.encoder_decoder import AttentionModel


def search(
    model: Model,
    encoded: Float[Array, "B T D"],
    lengths: Int[Array, " B"],
    *,
    config: DecodingConfig,
    fusion: Fusion = NO_FUSION,
) -> Hypotheses:
    """Return the config.beam best label sequences of every row; one without a beam.

    `fusion` applies only to a beam search with a transducer or HAT.
    """
    if isinstance(model, CTC) or config.head == "ctc":
        assert model.ctc_head is not None  # Config requires it.
        return best_path(model.ctc_head(encoded), lengths)
    if isinstance(model, AttentionModel):
        return attention_search(
            model, encoded, lengths, size=max(1, config.beam), ctc_weight=config.ctc_weight
        )
    bound = config.max_symbols_per_frame
    if not config.beam:
        return greedy_search(model, encoded, lengths, max_symbols_per_frame=bound)
    return beam_search(
        model,
        encoded,
        lengths,
        size=config.beam,
        max_symbols_per_frame=bound,
        fusion=fusion,
    )
