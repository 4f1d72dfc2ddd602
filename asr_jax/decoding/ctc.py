"""CTC's best path for a whole batch, on the device."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from asr_jax.decoding.hypotheses import Hypotheses, nothing_found
from asr_jax.layers.length import frame_mask
from asr_jax.models.predictor import BLANK_ID


def best_path(logits: Float[Array, "B T V"], lengths: Int[Array, " B"]) -> Hypotheses:
    """The most probable symbol of every frame, repeats merged and blanks left out (Graves et al.
    2006, section 3.2). Frames beyond the lengths may hold anything.

    A label is emitted at the first of the frames that say it, with the highest probability that it
    has at one of them. N = T. The score is the path's log-probability.
    """
    batch, frames, _ = logits.shape
    inside = frame_mask(lengths, frames)
    log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32))
    best = jnp.argmax(log_probabilities, axis=-1)
    of_best = jnp.max(log_probabilities, axis=-1)
    before = jnp.pad(best, ((0, 0), (1, 0)), constant_values=BLANK_ID)[:, :-1]
    says_label = (best != BLANK_ID) & inside
    begins = says_label & (best != before)
    number = jnp.cumsum(begins, axis=1) - 1
    rows = jnp.arange(batch)[:, None]
    at = lambda kept: (rows, 0, jnp.where(kept, number, frames))
    found = nothing_found(batch, frames)
    highest = jnp.full_like(found.log_probabilities, -jnp.inf)
    highest = highest.at[at(says_label)].max(of_best, mode="drop")
    return Hypotheses(
        labels=found.labels.at[at(begins)].set(best, mode="drop"),
        counts=jnp.sum(begins, axis=1, keepdims=True),
        frames=found.frames.at[at(begins)].set(jnp.arange(frames), mode="drop"),
        log_probabilities=jnp.where(jnp.isfinite(highest), highest, 0),
        scores=jnp.sum(of_best, axis=1, where=inside, keepdims=True),
    )
