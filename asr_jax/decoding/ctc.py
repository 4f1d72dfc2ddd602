"""CTC's best path for a whole batch, on the device."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from asr_jax.layers.length import frame_mask
from asr_jax.models.predictor import BLANK_ID


def best_path(
    logits: Float[Array, "B T V"], lengths: Int[Array, " B"]
) -> tuple[Int[Array, "B T"], Int[Array, " B"]]:
    """The most probable symbol of every frame, repeats merged and blanks left out (Graves et al.
    2006, section 3.2). Frames beyond the lengths may hold anything.

    Returns labels (zero beyond the end) and how many each row has.
    """
    best = jnp.argmax(logits, axis=-1)
    before = jnp.pad(best, ((0, 0), (1, 0)), constant_values=BLANK_ID)[:, :-1]
    batch, frames = best.shape
    kept = (best != BLANK_ID) & (best != before) & frame_mask(lengths, frames)
    places = jnp.where(kept, jnp.cumsum(kept, axis=1) - 1, frames)
    rows = jnp.arange(batch)[:, None]
    labels = jnp.zeros_like(best).at[rows, places].set(best, mode="drop")
    return labels, jnp.sum(kept, axis=1)
