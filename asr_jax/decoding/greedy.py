"""Greedy search of the transducer, TDT and HAT for a whole batch, on the device."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from asr_jax.decoding.hypotheses import Hypotheses, nothing_found
from asr_jax.models.predictor import BLANK_ID
from asr_jax.models.transducer import Transducer


class GreedyState(NamedTuple):
    """What the search of a stream leaves behind for its next chunk."""

    skipped: Int[Array, " B"]
    """Frames ahead that the last symbol still lasts for."""
    predictor: Any


def greedy_start(model: Transducer, batch: int) -> GreedyState:
    """Before the first chunk."""
    return GreedyState(jnp.zeros(batch, jnp.int32), model.predictor.start(batch))


def greedy_search(
    model: Transducer,
    encoded: Float[Array, "B T D"],
    lengths: Int[Array, " B"],
    *,
    max_symbols_per_frame: int,
    frames_per_turn: int | None = None,
) -> Hypotheses:
    """The most probable symbol at every step (arXiv 1211.3711), label by label (arXiv 2406.06220).

    Until the next label the predictor's output stays the same. So a turn asks the joint about the
    next `frames_per_turn` frames at once, every row from its own frame on, goes along the blanks
    and takes the first label; only then the predictor makes a step. There are about as many turns
    as labels, in place of as many as labels and frames. None looks 4 frames ahead, and 1 of a joint
    with durations, which skips frames by itself (docs/decoding.md has what others take).

    Of a joint with durations the most probable one says how many frames the search goes on by,
    after a blank by at least one (arXiv 2304.06795, algorithm 1). At a frame at most
    `max_symbols_per_frame` labels are emitted, then blank; N = T max_symbols_per_frame. The score
    is the log-probability of the labels and blanks taken, and of their durations.
    """
    return greedy_step(
        model,
        # A shape may be symbolic (asr_jax/export/stablehlo.py), a len() not.
        greedy_start(model, encoded.shape[0]),
        encoded,
        lengths,
        max_symbols_per_frame=max_symbols_per_frame,
        frames_per_turn=frames_per_turn,
    )[1]


def greedy_step(
    model: Transducer,
    state: GreedyState,
    encoded: Float[Array, "B T D"],
    lengths: Int[Array, " B"],
    *,
    max_symbols_per_frame: int,
    frames_per_turn: int | None = None,
) -> tuple[GreedyState, Hypotheses]:
    """`greedy_search` of the next chunk of every stream: chunk by chunk it finds the same labels.

    Frames are counted from the chunk's beginning, and scores are the chunk's.
    """
    batch, frames, _ = encoded.shape
    projected = model.joint.encoder_projection(encoded)
    frames_per_turn = frames_per_turn or (1 if model.joint.durations else 4)
    capacity = frames * max_symbols_per_frame
    rows = jnp.arange(batch)
    ahead = jnp.arange(frames_per_turn)

    def predict(state):
        return model.joint.predictor_projection(model.predictor.output(state))

    def lasting(durations, is_label):
        """Frames that the symbols last for, and the log-probabilities of that."""
        if not model.joint.durations:
            return jnp.where(is_label, 0, 1), 0.0
        lengths = jnp.array(model.joint.durations)
        allowed = jnp.where(is_label[..., None] | (lengths > 0), durations, -jnp.inf)
        return lengths[jnp.argmax(allowed, axis=-1)], jnp.max(allowed, axis=-1)

    def turn(carry):
        frame, symbols, found, state, predicted = carry
        now = frame[:, None] + ahead
        window = jnp.take_along_axis(projected, now[..., None], axis=1, mode="clip")
        scores = model.joint.scores(window, jnp.broadcast_to(predicted[:, None], window.shape))
        full = (symbols == max_symbols_per_frame)[:, None] & (ahead == 0)
        symbol = jnp.where(full, BLANK_ID, jnp.argmax(scores.symbols, axis=-1))
        of_symbol = jnp.take_along_axis(scores.symbols, symbol[..., None], axis=-1)[..., 0]
        is_label = symbol != BLANK_ID
        lasts, of_duration = lasting(scores.durations, is_label)
        inside = now < lengths[:, None]

        # Along the blanks to the first label: the frame of it, or one behind the window.
        passed = jnp.zeros_like(frame)
        visited = []
        for n in range(frames_per_turn):
            visited.append(passed == n)
            goes_on = visited[-1] & (inside & ~is_label)[:, n]
            passed = jnp.where(goes_on, n + lasts[:, n], passed)
        visited = jnp.stack(visited, axis=1) & inside
        taken = visited & is_label
        emits = taken.any(axis=1)
        of_taken = lambda values: jnp.sum(values, axis=1, where=taken)
        frame = frame + passed
        label, log_probability, lasts = map(of_taken, (symbol, of_symbol, lasts))
        score = jnp.sum(of_symbol + of_duration, axis=1, where=visited)

        place = (rows, 0, jnp.where(emits, found.counts[:, 0], capacity))
        found = Hypotheses(
            labels=found.labels.at[place].set(label, mode="drop"),
            counts=found.counts + emits[:, None],
            frames=found.frames.at[place].set(frame, mode="drop"),
            log_probabilities=found.log_probabilities.at[place].set(log_probability, mode="drop"),
            scores=found.scores + score[:, None],
        )
        symbols = jnp.where(emits & (lasts == 0), jnp.where(passed > 0, 1, symbols + 1), 0)
        after = model.predictor.step(state, label)
        after = after, predict(after)
        state, predicted = jax.tree.map(
            lambda a, b: jnp.where(emits.reshape(-1, *[1] * (a.ndim - 1)), a, b),
            after,
            (state, predicted),
        )
        return frame + lasts, symbols, found, state, predicted

    zeros = jnp.zeros((batch,), jnp.int32)
    predictor = state.predictor
    start = (
        *(state.skipped, zeros, nothing_found(batch, capacity)),
        *(predictor, predict(predictor)),
    )
    unfinished = lambda carry: jnp.any(carry[0] < lengths)
    frame, _, found, predictor, _ = jax.lax.while_loop(unfinished, turn, start)
    return GreedyState(frame - lengths, predictor), found
