"""Batched greedy search on the device for the transducer, TDT and HAT."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from asr_jax.decoding.hypotheses import Hypotheses, empty_hypotheses
from asr_jax.models.predictor import BLANK_ID
from asr_jax.models.transducer import Transducer


class GreedyState(NamedTuple):
    """The state of a stream's search between chunks."""

    skipped: Int[Array, " B"]
    """Frames of the next chunk that the last symbol still covers."""
    predictor: PyTree[Array]
    """Predictor state after the labels so far."""


class Cursor(NamedTuple):
    """The position of every row's search and the labels it has emitted."""

    frame: Int[Array, " B"]
    """The next encoded frame to score."""
    symbols: Int[Array, " B"]
    """Number of labels emitted at that frame so far."""
    hypotheses: Hypotheses
    state: PyTree[Array]
    """Predictor state after the labels emitted so far."""
    predicted: Float[Array, "B D"]
    """The predictor's output for that state, projected."""


class Window(NamedTuple):
    """The best symbol at each of the next W frames of every row."""

    frames: Int[Array, "B W"]
    symbols: Int[Array, "B W"]
    durations: Int[Array, "B W"]
    """Frames that each symbol covers."""
    log_probabilities: Float[Array, "B W"]
    """Log-probabilities of the symbols, in nats."""
    scores: Float[Array, "B W"]
    """Log-probabilities of the symbols and of their durations, in nats."""


class Emission(NamedTuple):
    """The first label of every row's window and the blanks before it."""

    emits: Bool[Array, " B"]
    """False for a window without a label; its label, duration and log_probability are 0."""
    passed: Int[Array, " B"]
    """Frames covered by the blanks before the label."""
    label: Int[Array, " B"]
    duration: Int[Array, " B"]
    """Frames that the label covers."""
    log_probability: Float[Array, " B"]
    score: Float[Array, " B"]
    """Log-probability of the blanks, the label and their durations."""


def greedy_start(model: Transducer, batch: int) -> GreedyState:
    """Return the state before the first chunk."""
    return GreedyState(jnp.zeros(batch, jnp.int32), model.predictor.start(batch))


def greedy_search(
    model: Transducer,
    encoded: Float[Array, "B T D"],
    lengths: Int[Array, " B"],
    *,
    max_symbols_per_frame: int,
    frames_per_turn: int | None = None,
) -> Hypotheses:
    """Return the labels found by taking the most probable symbol at every step (arXiv 1211.3711).

    The predictor's output changes only with a label. Each turn therefore scores the next
    `frames_per_turn` frames of every row at once, follows the blanks to the first label, and only
    then runs the predictor (label-looping, arXiv 2406.06220). The number of turns is about the
    number of labels, rather than of labels and frames. By default, `frames_per_turn` is 4, or 1 for
    a joint with durations, which skips frames itself (docs/benchmarks.md compares other values).

    With durations, the search advances by the most probable duration, and by one frame after a
    blank whose most probable duration is 0, as in NeMo (arXiv 2304.06795, algorithm 1). A frame
    emits at most `max_symbols_per_frame` labels, then a blank of one frame;
    N = T max_symbols_per_frame. The score is the log-probability of the labels and blanks taken and
    of their durations.
    """
    return greedy_step(
        model,
        # A shape may be symbolic (asr_jax/export/stablehlo.py), but len() may not.
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
    """Search the next chunk of every stream; over all chunks the labels equal `greedy_search`'s.

    Frames count from the start of the chunk, and scores cover the chunk.
    """
    batch, frames, _ = encoded.shape
    projected = model.joint.encoder_projection(encoded)
    ahead = jnp.arange(frames_per_turn or (1 if model.joint.durations else 4))

    def turn(cursor: Cursor) -> Cursor:
        window = _score_window(
            model, projected, cursor, ahead, max_symbols_per_frame=max_symbols_per_frame
        )
        return _advance(model, cursor, _first_label(window, lengths))

    start = Cursor(
        frame=state.skipped,
        symbols=jnp.zeros((batch,), jnp.int32),
        hypotheses=empty_hypotheses(batch, frames * max_symbols_per_frame),
        state=state.predictor,
        predicted=_predict(model, state.predictor),
    )
    end = jax.lax.while_loop(lambda cursor: jnp.any(cursor.frame < lengths), turn, start)
    return GreedyState(end.frame - lengths, end.state), end.hypotheses


def _predict(model: Transducer, state: PyTree[Array]) -> Float[Array, "B D"]:
    return model.joint.predictor_projection(model.predictor.output(state))


def _score_window(
    model: Transducer,
    projected: Float[Array, "B T D"],
    cursor: Cursor,
    ahead: Int[Array, " W"],
    *,
    max_symbols_per_frame: int,
) -> Window:
    """Find the most probable symbols at offsets `ahead` of the cursor's frame."""
    frames = cursor.frame[:, None] + ahead
    encoded = jnp.take_along_axis(projected, frames[..., None], axis=1, mode="clip")
    scores = model.joint.scores(encoded, jnp.broadcast_to(cursor.predicted[:, None], encoded.shape))
    is_full = (cursor.symbols == max_symbols_per_frame)[:, None] & (ahead == 0)
    symbols = jnp.where(is_full, BLANK_ID, jnp.argmax(scores.symbols, axis=-1))
    log_probabilities = jnp.take_along_axis(scores.symbols, symbols[..., None], axis=-1)[..., 0]
    durations, of_durations = _best_durations(model, scores.durations, symbols, is_full)
    return Window(frames, symbols, durations, log_probabilities, log_probabilities + of_durations)


def _best_durations(
    model: Transducer,
    log_probabilities: Float[Array, "B W X"],
    symbols: Int[Array, "B W"],
    is_full: Bool[Array, "B W"],
) -> tuple[Int[Array, "B W"], Float[Array, "B W"] | float]:
    """Return the duration of each symbol, and the log-probability of the duration chosen."""
    is_label = symbols != BLANK_ID
    if not model.joint.durations:
        return jnp.where(is_label, 0, 1), 0.0
    durations = jnp.array(model.joint.durations)
    # The durations begin with 0 and 1.
    chosen = jnp.where(is_full, 1, jnp.argmax(log_probabilities, axis=-1))
    scores = jnp.take_along_axis(log_probabilities, chosen[..., None], axis=-1)[..., 0]
    return jnp.where(is_label, durations[chosen], jnp.maximum(durations[chosen], 1)), scores


def _first_label(window: Window, lengths: Int[Array, " B"]) -> Emission:
    """Follow the window's blanks to its first label."""
    is_label = window.symbols != BLANK_ID
    is_real = window.frames < lengths[:, None]
    passed = jnp.zeros_like(window.frames[:, 0])
    visited = []
    for n in range(window.frames.shape[1]):
        visited.append(passed == n)
        is_blank = visited[-1] & (is_real & ~is_label)[:, n]
        passed = jnp.where(is_blank, n + window.durations[:, n], passed)
    visited = jnp.stack(visited, axis=1) & is_real
    taken = visited & is_label

    def of_label(values: Array) -> Array:
        return jnp.sum(values, axis=1, where=taken)

    return Emission(
        emits=taken.any(axis=1),
        passed=passed,
        label=of_label(window.symbols),
        duration=of_label(window.durations),
        log_probability=of_label(window.log_probabilities),
        score=jnp.sum(window.scores, axis=1, where=visited),
    )


def _advance(model: Transducer, cursor: Cursor, emission: Emission) -> Cursor:
    """Move the cursor past the blanks and the label, and run the predictor on the label."""
    hypotheses, emits = cursor.hypotheses, emission.emits
    batch, _, capacity = hypotheses.labels.shape
    frame = cursor.frame + emission.passed
    place = (jnp.arange(batch), 0, jnp.where(emits, hypotheses.counts[:, 0], capacity))
    symbols = jnp.where(emission.passed > 0, 1, cursor.symbols + 1)
    state = model.predictor.step(cursor.state, emission.label)
    state, predicted = jax.tree.map(
        lambda after, before: jnp.where(emits.reshape(-1, *[1] * (after.ndim - 1)), after, before),
        (state, _predict(model, state)),
        (cursor.state, cursor.predicted),
    )
    return Cursor(
        frame=frame + emission.duration,
        symbols=jnp.where(emits & (emission.duration == 0), symbols, 0),
        hypotheses=Hypotheses(
            labels=hypotheses.labels.at[place].set(emission.label, mode="drop"),
            counts=hypotheses.counts + emits[:, None],
            frames=hypotheses.frames.at[place].set(frame, mode="drop"),
            log_probabilities=hypotheses.log_probabilities.at[place].set(
                emission.log_probability, mode="drop"
            ),
            scores=hypotheses.scores + emission.score[:, None],
        ),
        state=state,
        predicted=predicted,
    )
