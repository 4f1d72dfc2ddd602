"""Which search finds the labels, by objective and decoding.head."""

from jaxtyping import Array, Float, Int

from asr_jax.config import DecodingConfig
from asr_jax.decoding.ctc import best_path
from asr_jax.decoding.greedy import greedy_search
from asr_jax.models.composition import Model
from asr_jax.models.ctc import CTC


def search(
    model: Model,
    encoded: Float[Array, "B T D"],
    lengths: Int[Array, " B"],
    *,
    config: DecodingConfig,
) -> tuple[Int[Array, "B N"], Int[Array, " B"]]:
    """Labels of every row (zero beyond the end), and how many it has."""
    if isinstance(model, CTC) or config.head == "ctc":
        assert model.ctc_head is not None  # Config sees to that
        return best_path(model.ctc_head(encoded), lengths)
    return greedy_search(
        model, encoded, lengths, max_symbols_per_frame=config.max_symbols_per_frame
    )
