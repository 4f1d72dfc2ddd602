"""Batched CTC best-path search on the device."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from asr_jax.decoding.hypotheses import Hypotheses, empty_hypotheses
from asr_jax.layers.length import frame_mask
from asr_jax.models.predictor import BLANK_ID


def best_path(logits: Float[Array, "B T V"], lengths: Int[Array, " B"]) -> Hypotheses:
    """Return the most probable symbol of every frame, with repeats merged and blanks removed
    (Graves et al. 2006, section 3.2). Padding frames may hold anything.

    A label's frame is the first in its run of frames, and its log-probability is the highest in
    that run. N = T. The score is the path's log-probability.
    """
    batch, frames, _ = logits.shape
    inside = frame_mask(lengths, frames)
    log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32))
    best = jnp.argmax(log_probabilities, axis=-1)
    of_best = jnp.max(log_probabilities, axis=-1)
    before = jnp.pad(best, ((0, 0), (1, 0)), constant_values=BLANK_ID)[:, :-1]
    says_label = (best != BLANK_ID) & inside
    begins = says_label & (best != before)
    rows, number = jnp.arange(batch)[:, None], jnp.cumsum(begins, axis=1) - 1
    # Each label's index in its row; frames without a label get index N, which drops the write.
    begun = (rows, 0, jnp.where(begins, number, frames))
    lasting = (rows, 0, jnp.where(says_label, number, frames))
    found = empty_hypotheses(batch, frames)
    highest = jnp.full_like(found.log_probabilities, -jnp.inf)
    highest = highest.at[lasting].max(of_best, mode="drop")
    return Hypotheses(
        labels=found.labels.at[begun].set(best, mode="drop"),
        counts=jnp.sum(begins, axis=1, keepdims=True),
        frames=found.frames.at[begun].set(jnp.arange(frames), mode="drop"),
        log_probabilities=jnp.where(jnp.isfinite(highest), highest, 0),
        scores=jnp.sum(of_best, axis=1, where=inside, keepdims=True),
    )
