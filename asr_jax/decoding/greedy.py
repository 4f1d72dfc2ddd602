"""Greedy search of the transducer, TDT and HAT for a whole batch, on the device."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from asr_jax.models.predictor import BLANK_ID
from asr_jax.models.transducer import Transducer


def greedy_search(
    model: Transducer,
    encoded: Float[Array, "B T D"],
    lengths: Int[Array, " B"],
    *,
    max_symbols_per_frame: int,
) -> tuple[Int[Array, "B N"], Int[Array, " B"]]:
    """The most probable symbol at every step (arXiv 1211.3711), rows in step with one another.

    At each turn a row either emits a label and stays at its frame, or goes on to the next frame: on
    blank, or when it has emitted `max_symbols_per_frame` labels there. Of a joint with durations
    the most probable one says how many frames it goes on by, a blank by at least one (arXiv
    2304.06795, algorithm 1). N = T max_symbols_per_frame.

    Returns labels (zero beyond the end) and how many each row has.
    """
    batch, frames, _ = encoded.shape
    projected = model.joint.encoder_projection(encoded)
    capacity = frames * max_symbols_per_frame
    state = model.predictor.start(batch)
    rows = jnp.arange(batch)

    def predict(state):
        return model.joint.predictor_projection(model.predictor.output(state))

    def advance(durations, is_label):
        """Frames that the symbol lasts for."""
        if not model.joint.durations:
            return jnp.where(is_label, 0, 1)
        allowed = is_label[:, None] | (jnp.array(model.joint.durations) > 0)
        chosen = jnp.argmax(jnp.where(allowed, durations, -jnp.inf), axis=-1)
        return jnp.array(model.joint.durations)[chosen]

    def turn(carry):
        frame, symbols, count, labels, state = carry
        now = jnp.take_along_axis(projected, jnp.minimum(frame, frames - 1)[:, None, None], axis=1)
        scores = model.joint.scores(now[:, 0], predict(state))
        best = jnp.argmax(scores.symbols, axis=-1)
        lasts = advance(scores.durations, best != BLANK_ID)
        emits = (best != BLANK_ID) & (frame < lengths)
        labels = labels.at[rows, jnp.where(emits, count, capacity)].set(best, mode="drop")
        after = model.predictor.step(state, best)
        state = jax.tree.map(
            lambda a, b: jnp.where(emits.reshape(-1, *[1] * (a.ndim - 1)), a, b), after, state
        )
        symbols = jnp.where(lasts > 0, 0, symbols + 1)
        full = symbols == max_symbols_per_frame
        return frame + lasts + full, jnp.where(full, 0, symbols), count + emits, labels, state

    zeros = jnp.zeros((batch,), jnp.int32)
    start = (zeros, zeros, zeros, jnp.zeros((batch, capacity), jnp.int32), state)
    unfinished = lambda carry: jnp.any(carry[0] < lengths)
    _, _, count, labels, _ = jax.lax.while_loop(unfinished, turn, start)
    return labels, count
