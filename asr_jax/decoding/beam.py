"""Batched beam search on the device for the transducer and HAT."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree, UInt32

from asr_jax.decoding.fusion import NO_FUSION, Fusion
from asr_jax.decoding.hotwords import BoostState
from asr_jax.decoding.hypotheses import Hypotheses
from asr_jax.models.predictor import BLANK_ID
from asr_jax.models.transducer import Transducer


class Beam(NamedTuple):
    """K label sequences per row, best first; sequences that do not exist score -inf."""

    scores: Float[Array, "B K"]
    hashes: UInt32[Array, "B K 2"]
    """Hashes of the labels; different sequences collide with a probability of about 2**-64."""
    counts: Int[Array, "B K"]
    """Number of labels."""
    nodes: Int[Array, "B K"]
    """Tree node of the last label."""
    predicted: Float[Array, "B K D"]
    """The predictor's output after the labels, projected."""
    predictor_states: PyTree[Array]
    """Predictor states; leaves begin with axes B, K."""
    scorer_states: tuple[PyTree[Array], ...]
    """States of the fusion scorers; leaves begin with axes B, K."""
    gains: Float[Array, "B K V"] | None
    """Fusion gain of every next label; None without fusion."""
    boosts: BoostState | None
    """Hotwords matched so far; None without hotwords."""


class Tree(NamedTuple):
    """All labels of all sequences, each with its predecessor; node 0 precedes the first label."""

    labels: Int[Array, "B Z"]
    parents: Int[Array, "B Z"]
    frames: Int[Array, "B Z"]
    log_probabilities: Float[Array, "B Z"]


class SearchState(NamedTuple):
    """The beams of every row at its current frame."""

    steps: Int[Array, ""]
    frame: Int[Array, " B"]
    symbols: Int[Array, " B"]
    """Number of extensions at the current frame so far."""
    current: Beam
    """Sequences at the current frame."""
    next_frame: Beam
    """Sequences that a blank has moved to the next frame."""
    tree: Tree


class Extensions(NamedTuple):
    """The K best one-label extensions of a beam, best first."""

    scores: Float[Array, "B K"]
    parents: Int[Array, "B K"]
    """Indices of the extended sequences in the beam."""
    labels: Int[Array, "B K"]
    log_probabilities: Float[Array, "B K"]
    """Log-probabilities of the labels under the model alone."""
    boosts: BoostState | None
    """Hotwords matched with the labels; None without hotwords."""


def beam_search(
    model: Transducer,
    encoded: Float[Array, "B T D"],
    lengths: Int[Array, " B"],
    *,
    size: int,
    max_symbols_per_frame: int,
    fusion: Fusion = NO_FUSION,
) -> Hypotheses:
    """Return the `size` best label sequences of every row, by a frame-synchronous beam search.

    Each row holds the sequences at its current frame and those that a blank has moved to the next
    frame. The former are extended by one label up to `max_symbols_per_frame` times, keeping the
    `size` best. Alignments of the same labels that reach the next frame are merged by adding their
    probabilities (Graves, arXiv 1211.3711, section 2.4). A score is therefore the logarithm of a
    sum over alignments. If the beam drops nothing, the sum covers all alignments with at most
    `max_symbols_per_frame` labels per frame; if that limit excludes none, the score is
    log P(labels | encoded).

    Rows advance independently: a row moves to its next frame when no extension can still be among
    the best there. N = T max_symbols_per_frame. Where alignments merge, the frames,
    log-probabilities and room for boosts of the more probable one are kept. Log-probabilities are
    the model's alone; the gains and boosts of `fusion`, for labels and for ending, count only in
    scores.
    """
    batch, frames, _ = encoded.shape
    start = _start(model, fusion, batch, size)
    zeros = jnp.zeros((batch,), jnp.int32)
    nodes = jnp.zeros((batch, 1 + frames * (max_symbols_per_frame + 1) * size), jnp.int32)
    tree = Tree(nodes, nodes, nodes, nodes.astype(jnp.float32))
    end = jax.lax.while_loop(
        lambda state: jnp.any(state.frame < lengths),
        functools.partial(
            _step,
            model,
            model.joint.encoder_projection(encoded),
            lengths,
            max_symbols_per_frame=max_symbols_per_frame,
            fusion=fusion,
        ),
        SearchState(jnp.int32(0), zeros, zeros, start, _empty(start), tree),
    )
    beam = _add_end_gains(fusion, end.current)
    return _read_tree(end.tree, beam, frames * max_symbols_per_frame)


def _step(
    model: Transducer,
    projected: Float[Array, "B T D"],
    lengths: Int[Array, " B"],
    state: SearchState,
    *,
    max_symbols_per_frame: int,
    fusion: Fusion,
) -> SearchState:
    """Extend the sequences of every row by a label, or move the row to its next frame."""
    frame, current = state.frame, state.current
    log_probabilities = _score_symbols(model, projected, state)
    of_blank = log_probabilities[..., BLANK_ID]
    after_blank = current._replace(scores=current.scores + of_blank)
    next_frame = merge_duplicates(state.next_frame, after_blank)

    extensions = _best_extensions(fusion, current, log_probabilities)
    # Probabilities only fall, so an extension below all of a full next-frame beam cannot enter it.
    # A later fusion gain might still lift it; like any beam search, this one does not wait.
    in_time = extensions.scores > next_frame.scores[:, -1:]
    in_time &= (state.symbols < max_symbols_per_frame)[:, None]
    parents = _choose(current, extensions.parents)
    first_node = 1 + state.steps * extensions.labels.shape[1]
    extended = _extend(model, fusion, parents, extensions.labels, first_node)
    extended = extended._replace(
        scores=jnp.where(in_time, extensions.scores, -jnp.inf), boosts=extensions.boosts
    )

    ended = frame >= lengths
    moves_on = ~in_time.any(axis=1)
    return SearchState(
        steps=state.steps + 1,
        frame=frame + moves_on,
        symbols=jnp.where(moves_on, 0, state.symbols + 1),
        current=_where(ended, current, _where(moves_on, next_frame, extended)),
        next_frame=_where(moves_on, _empty(next_frame), next_frame),
        tree=append_to_tree(state.tree, extensions, current.nodes, frame, first_node),
    )


def _start(model: Transducer, fusion: Fusion, batch: int, size: int) -> Beam:
    """Return a beam that holds only the empty sequence."""

    def repeat(states: PyTree[Array]) -> PyTree[Array]:
        return jax.tree.map(lambda leaf: jnp.repeat(leaf[:, None], size, axis=1), states)

    predictor_states = repeat(model.predictor.start(batch))
    scorer_states = tuple(repeat(scorer.start(batch)) for scorer in fusion.scorers)
    zeros = jnp.zeros((batch, size), jnp.int32)
    predicted, gains = _next_label_scores(model, fusion, predictor_states, scorer_states)
    return Beam(
        scores=jnp.where(jnp.arange(size) == 0, 0.0, -jnp.inf) + zeros,
        hashes=jnp.zeros((batch, size, 2), jnp.uint32),
        counts=zeros,
        nodes=zeros,
        predicted=predicted,
        predictor_states=predictor_states,
        scorer_states=scorer_states,
        gains=gains,
        boosts=repeat(fusion.hotwords.start(batch)) if fusion.hotwords else None,
    )


def _empty(beam: Beam) -> Beam:
    """Return a beam of the same shapes that holds no sequence."""
    return beam._replace(scores=jnp.full_like(beam.scores, -jnp.inf))


def _score_symbols(
    model: Transducer, projected: Float[Array, "B T D"], state: SearchState
) -> Float[Array, "B K V"]:
    """Return the log-probabilities of each sequence's next symbol at the current frame."""
    frame, predicted = state.frame[:, None, None], state.current.predicted
    encoded = jnp.take_along_axis(projected, frame, axis=1, mode="clip")
    return model.joint.scores(jnp.broadcast_to(encoded, predicted.shape), predicted).symbols


def _best_extensions(
    fusion: Fusion, beam: Beam, log_probabilities: Float[Array, "B K V"]
) -> Extensions:
    batch, size, vocabulary_size = log_probabilities.shape
    scores = beam.scores[..., None] + log_probabilities
    if beam.gains is not None:
        scores = scores + beam.gains
    after = None
    if fusion.hotwords:
        # log(1 - P(blank)), the probability of all labels together.
        room = jax.nn.logsumexp(log_probabilities[..., 1:], axis=-1, keepdims=True)
        room = room - log_probabilities - (0 if beam.gains is None else beam.gains)
        boosts, after = _for_sequences(fusion.hotwords.boosts)(beam.boosts, room)
        scores = scores + boosts
    scores = scores.at[..., BLANK_ID].set(-jnp.inf)
    best, choice = jax.lax.top_k(scores.reshape(batch, -1), size)
    parents, labels = jnp.divmod(choice, vocabulary_size)

    def take(leaf: Array) -> Array:
        return jnp.take_along_axis(leaf.reshape(batch, -1), choice, axis=1)

    return Extensions(best, parents, labels, take(log_probabilities), jax.tree.map(take, after))


def _extend(
    model: Transducer,
    fusion: Fusion,
    before: Beam,
    labels: Int[Array, "B K"],
    first_node: Int[Array, ""],
) -> Beam:
    """Append a label to each sequence; the labels' nodes start at `first_node`."""
    predictor_states = _for_sequences(model.predictor.step)(before.predictor_states, labels)
    scorer_states = tuple(
        _for_sequences(scorer.step)(states, labels)
        for scorer, states in zip(fusion.scorers, before.scorer_states)
    )
    predicted, gains = _next_label_scores(model, fusion, predictor_states, scorer_states)
    nodes = first_node + jnp.arange(labels.shape[1], dtype=jnp.int32)
    return Beam(
        scores=before.scores,
        hashes=_hashed(before.hashes, labels),
        counts=before.counts + 1,
        nodes=jnp.broadcast_to(nodes, labels.shape),
        predicted=predicted,
        predictor_states=predictor_states,
        scorer_states=scorer_states,
        gains=gains,
        boosts=before.boosts,
    )


def _next_label_scores(
    model: Transducer,
    fusion: Fusion,
    predictor_states: PyTree[Array],
    scorer_states: tuple[PyTree[Array], ...],
) -> tuple[Float[Array, "B K D"], Float[Array, "B K V"] | None]:
    """Return the projected predictor output and the fusion gains of each next label."""

    def predict(states: PyTree[Array]) -> Float[Array, "N D"]:
        return model.joint.predictor_projection(model.predictor.output(states))

    predicted = _for_sequences(predict)(predictor_states)
    if not fusion.has_gains:
        return predicted, None
    gains = jnp.float32(0)
    for scorer, states in zip(fusion.scorers, scorer_states):
        gains = gains + _for_sequences(scorer.gains)(states)
    if fusion.internal_lm_weight is not None:
        gains = gains - fusion.internal_lm_weight * model.joint.internal_scores(predicted)
    return predicted, gains


def _add_end_gains(fusion: Fusion, beam: Beam) -> Beam:
    """Add the gains for ending, and sort the sequences, best first."""
    if not fusion.scorers and not fusion.hotwords:
        return beam
    scores = beam.scores
    if fusion.hotwords:
        scores = scores + _for_sequences(fusion.hotwords.ends)(beam.boosts)
    for scorer, states in zip(fusion.scorers, beam.scorer_states):
        scores = scores + _for_sequences(scorer.ends)(states)
    best, order = jax.lax.top_k(scores, scores.shape[1])
    return _choose(beam, order)._replace(scores=best)


def _for_sequences(function: Callable[..., PyTree[Array]]) -> Callable[..., PyTree[Array]]:
    """Turn a function of arrays with a leading axis N into one of trees with leading axes B, K."""

    def of_beam(*trees: PyTree[Array]) -> PyTree[Array]:
        rows = jax.tree.leaves(trees)[0].shape[:2]
        flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), trees)
        return jax.tree.map(lambda leaf: leaf.reshape(*rows, *leaf.shape[1:]), function(*flat))

    return of_beam


def append_to_tree(
    tree: Tree,
    extensions: Extensions,
    nodes: Int[Array, "B K"],
    frame: Int[Array, " B"],
    first_node: Int[Array, ""],
) -> Tree:
    """Write the extensions of sequences that end at `nodes` to the tree, from `first_node` on."""
    labels = extensions.labels
    columns = Tree(
        labels=labels,
        parents=jnp.take_along_axis(nodes, extensions.parents, axis=1),
        frames=jnp.broadcast_to(frame[:, None], labels.shape),
        log_probabilities=extensions.log_probabilities,
    )
    return jax.tree.map(
        lambda all_nodes, new: jax.lax.dynamic_update_slice(
            all_nodes, new.astype(all_nodes.dtype), (0, first_node)
        ),
        tree,
        columns,
    )


def _hashed(hashes: UInt32[Array, "B K 2"], labels: Int[Array, "B K"]) -> UInt32[Array, "B K 2"]:
    """Return each sequence's hash after one more label: multiply by odd numbers, then mix."""
    mixed = (hashes ^ (labels[..., None].astype(jnp.uint32) + 1)) * jnp.array(
        [0x9E3779B1, 0x85EBCA6B], jnp.uint32
    )
    return mixed ^ (mixed >> jnp.array([15, 13], jnp.uint32))


def merge_duplicates(first: Beam, second: Beam) -> Beam:
    """Return the best K of both beams, adding the probabilities of sequences in both."""
    exist = jnp.isfinite(first.scores)[:, :, None] & jnp.isfinite(second.scores)[:, None]
    same = (first.hashes[:, :, None] == second.hashes[:, None]).all(axis=-1) & exist
    second_score = jnp.max(second.scores[:, None], axis=2, where=same, initial=-jnp.inf)
    second_node = jnp.sum(second.nodes[:, None], axis=2, where=same)
    is_second = second_score > first.scores
    merged = first._replace(
        scores=jnp.logaddexp(first.scores, second_score),
        nodes=jnp.where(is_second, second_node, first.nodes),
    )
    if first.boosts is not None and second.boosts is not None:
        second_room = jnp.sum(second.boosts.room[:, None], axis=2, where=same)
        room = jnp.where(is_second, second_room, first.boosts.room)
        merged = merged._replace(boosts=first.boosts._replace(room=room))
    rest = second._replace(scores=jnp.where(same.any(axis=1), -jnp.inf, second.scores))
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), merged, rest)
    best, order = jax.lax.top_k(both.scores, first.scores.shape[1])
    return _choose(both, order)._replace(scores=best)


def _choose(beam: Beam, order: Int[Array, "B K"]) -> Beam:
    rows = jnp.arange(order.shape[0])[:, None]
    return jax.tree.map(lambda leaf: leaf[rows, order], beam)


def _where(condition: Bool[Array, " B"], first: Beam, second: Beam) -> Beam:
    """Return the rows of `first` where the condition holds, else the rows of `second`."""
    return jax.tree.map(
        lambda a, b: jnp.where(condition.reshape(-1, *[1] * (a.ndim - 1)), a, b), first, second
    )


class Traceback(NamedTuple):
    """Progress of reading sequences from their last label to their first."""

    unread: Int[Array, "B K"]
    """Number of labels not read yet."""
    nodes: Int[Array, "B K"]
    """Tree node of the next label to read."""
    labels: Int[Array, "B K N"]
    frames: Int[Array, "B K N"]
    log_probabilities: Float[Array, "B K N"]


def _read_tree(tree: Tree, beam: Beam, capacity: int) -> Hypotheses:
    """Follow the sequences through the tree, from the last label to the first."""
    batch, size = beam.scores.shape
    counts = jnp.where(jnp.isfinite(beam.scores), beam.counts, 0)
    rows, columns = jnp.arange(batch)[:, None], jnp.arange(size)

    def read_label(before: Traceback) -> Traceback:
        at = (rows, columns, jnp.where(before.unread > 0, before.unread - 1, capacity))
        node = (rows, before.nodes)
        return Traceback(
            unread=jnp.maximum(before.unread - 1, 0),
            nodes=tree.parents[node],
            labels=before.labels.at[at].set(tree.labels[node], mode="drop"),
            frames=before.frames.at[at].set(tree.frames[node], mode="drop"),
            log_probabilities=before.log_probabilities.at[at].set(
                tree.log_probabilities[node], mode="drop"
            ),
        )

    zeros = jnp.zeros((batch, size, capacity), jnp.int32)
    found = jax.lax.while_loop(
        lambda before: jnp.any(before.unread > 0),
        read_label,
        Traceback(counts, beam.nodes, zeros, zeros, zeros.astype(jnp.float32)),
    )
    return Hypotheses(found.labels, counts, found.frames, found.log_probabilities, beam.scores)
