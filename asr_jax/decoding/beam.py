"""Beam search for a whole batch, on the device."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt32

from asr_jax.decoding.fusion import NO_FUSION, Fusion
from asr_jax.decoding.hypotheses import Hypotheses
from asr_jax.models.predictor import BLANK_ID
from asr_jax.models.transducer import Transducer


class Sequences(NamedTuple):
    """K label sequences of every row, the best first; those that are not there score -inf."""

    scores: Float[Array, "B K"]
    hashes: UInt32[Array, "B K 2"]
    """Equal for equal sequences, and for others about once in 2**64."""
    counts: Int[Array, "B K"]
    """Labels in each."""
    nodes: Int[Array, "B K"]
    """The last label's place in the tree of all labels."""
    predicted: Float[Array, "B K D"]
    """The predictor's output after the labels, projected."""
    states: Any
    """The predictor's; leaves begin with axes B, K."""
    known: tuple
    """The states of the fusion's scorers; leaves begin with axes B, K."""
    gains: Float[Array, "B K V"] | None
    """What the fusion adds for the next label; None without one."""


class Tree(NamedTuple):
    """The labels of all sequences, each with the one before it; node 0 stands before the first."""

    labels: Int[Array, "B Z"]
    parents: Int[Array, "B Z"]
    frames: Int[Array, "B Z"]
    log_probabilities: Float[Array, "B Z"]


def beam_search(
    model: Transducer,
    encoded: Float[Array, "B T D"],
    lengths: Int[Array, " B"],
    *,
    size: int,
    max_symbols_per_frame: int,
    fusion: Fusion = NO_FUSION,
) -> Hypotheses:
    """The `size` best label sequences of a transducer or HAT, by a search in step with the frames.

    Of every row there are the sequences at its frame, and those that a blank has taken to the
    next. Up to `max_symbols_per_frame` times the former are extended by a label, and the best
    `size` kept. A sequence that came to the next frame on several ways, with more or fewer of its
    labels at this one, is one there, and their probabilities add up (Graves, arXiv 1211.3711,
    section 2.4). So a score is the logarithm of a sum over alignments: of all those with at most so
    many labels a frame, where the beam drops nothing, and log P(labels | encoded) where that bound
    drops nothing either.

    A row goes on to its next frame, whatever the others do, when no extension can be among the best
    there. N = T max_symbols_per_frame. Frames and log-probabilities of labels are those of the
    alignment that was the best where alignments met, and the model's own: what `fusion` adds for
    labels, and in the end for ending, counts in scores alone.
    """
    batch, frames, _ = encoded.shape
    projected = model.joint.encoder_projection(encoded)
    vocabulary_size = model.joint.vocabulary_size

    def turn(carry):
        number, frame, symbols, here, beyond, tree = carry
        now = jnp.take_along_axis(projected, frame[:, None, None], axis=1, mode="clip")
        now = jnp.broadcast_to(now, here.predicted.shape)
        scores = model.joint.scores(now, here.predicted).symbols
        by_blank = here._replace(scores=here.scores + scores[..., BLANK_ID])
        beyond = _united(beyond, by_blank, size)

        extended = here.scores[..., None] + scores
        if here.gains is not None:
            extended = extended + here.gains
        extended = extended.at[..., BLANK_ID].set(-jnp.inf)
        best, choice = jax.lax.top_k(extended.reshape(batch, -1), size)
        # What is below all that went on already is out of the running: probabilities only fall.
        # With a fusion a later label's gain might lift it again; for that, as any beam, this one
        # does not wait. Where fewer than `size` went on nothing is dropped.
        in_time = (best > beyond.scores[:, -1:]) & (symbols < max_symbols_per_frame)[:, None]
        parents, labels = jnp.divmod(choice, vocabulary_size)
        extended = _extended(
            model, fusion, _chosen(here, parents), labels, nodes=1 + number * size
        )._replace(scores=jnp.where(in_time, best, -jnp.inf))
        taken = jnp.take_along_axis(scores.reshape(batch, -1), choice, axis=1)
        tree = Tree(
            *(
                jax.lax.dynamic_update_slice(
                    whole, part.astype(whole.dtype), (0, 1 + number * size)
                )
                for whole, part in zip(
                    tree,
                    (
                        labels,
                        jnp.take_along_axis(here.nodes, parents, axis=1),
                        jnp.broadcast_to(frame[:, None], labels.shape),
                        taken,
                    ),
                )
            )
        )

        ended = frame >= lengths
        goes_on = ~in_time.any(axis=1)
        nobody = beyond._replace(scores=jnp.full_like(beyond.scores, -jnp.inf))
        here = _where(ended, here, _where(goes_on, beyond, extended))
        beyond = _where(goes_on, nobody, beyond)
        symbols = jnp.where(goes_on, 0, symbols + 1)
        return number + 1, frame + goes_on, symbols, here, beyond, tree

    here = _start(model, fusion, batch, size)
    nobody = here._replace(scores=jnp.full_like(here.scores, -jnp.inf))
    nodes = 1 + frames * (max_symbols_per_frame + 1) * size
    empty = jnp.zeros((batch, nodes), jnp.int32)
    tree = Tree(empty, empty, empty, empty.astype(jnp.float32))
    zeros = jnp.zeros((batch,), jnp.int32)
    carry = jnp.int32(0), zeros, zeros, here, nobody, tree
    carry = jax.lax.while_loop(lambda carry: jnp.any(carry[1] < lengths), turn, carry)
    *_, here, _, tree = carry
    for scorer, states in zip(fusion.scorers, here.known):
        here = here._replace(scores=here.scores + _by_row(scorer.ends)(states))
    if fusion.scorers:
        best, order = jax.lax.top_k(here.scores, size)
        here = _chosen(here, order)._replace(scores=best)
    return _read(tree, here, frames * max_symbols_per_frame)


def _start(model: Transducer, fusion: Fusion, batch: int, size: int) -> Sequences:
    """The empty sequence, and none else."""
    repeated = lambda leaf: jnp.repeat(leaf[:, None], size, axis=1)
    states = jax.tree.map(repeated, model.predictor.start(batch))
    known = tuple(jax.tree.map(repeated, scorer.start(batch)) for scorer in fusion.scorers)
    zeros = jnp.zeros((batch, size), jnp.int32)
    predicted, gains = _outlook(model, fusion, states, known)
    return Sequences(
        scores=jnp.where(jnp.arange(size) == 0, 0.0, -jnp.inf) + zeros,
        hashes=jnp.zeros((batch, size, 2), jnp.uint32),
        counts=zeros,
        nodes=zeros,
        predicted=predicted,
        states=states,
        known=known,
        gains=gains,
    )


def _extended(
    model: Transducer,
    fusion: Fusion,
    before: Sequences,
    labels: Int[Array, "B K"],
    *,
    nodes: Array,
) -> Sequences:
    """Each sequence with one more label, whose nodes are those from `nodes` on."""
    states = _by_row(model.predictor.step)(before.states, labels)
    known = tuple(
        _by_row(scorer.step)(of_scorer, labels)
        for scorer, of_scorer in zip(fusion.scorers, before.known)
    )
    predicted, gains = _outlook(model, fusion, states, known)
    return Sequences(
        scores=before.scores,
        hashes=_hashed(before.hashes, labels),
        counts=before.counts + 1,
        nodes=jnp.broadcast_to(nodes + jnp.arange(labels.shape[1], dtype=jnp.int32), labels.shape),
        predicted=predicted,
        states=states,
        known=known,
        gains=gains,
    )


def _outlook(
    model: Transducer, fusion: Fusion, states: Any, known: tuple
) -> tuple[Float[Array, "B K D"], Float[Array, "B K V"] | None]:
    """What is known of every sequence's next label: the predictor's side, and what fusion adds."""
    predicted = _by_row(lambda s: model.joint.predictor_projection(model.predictor.output(s)))(
        states
    )
    if not fusion:
        return predicted, None
    gains = jnp.float32(0)
    for scorer, of_scorer in zip(fusion.scorers, known):
        gains = gains + _by_row(scorer.gains)(of_scorer)
    if fusion.internal_lm_weight is not None:
        gains = gains - fusion.internal_lm_weight * model.joint.internal_scores(predicted)
    return predicted, gains


def _by_row(function):
    """A function of arrays that begin with axis N, for trees that begin with B, K."""

    def of_rows(*trees):
        rows = jax.tree.leaves(trees)[0].shape[:2]
        flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), trees)
        return jax.tree.map(lambda leaf: leaf.reshape(*rows, *leaf.shape[1:]), function(*flat))

    return of_rows


def _hashed(hashes: UInt32[Array, "B K 2"], labels: Int[Array, "B K"]) -> UInt32[Array, "B K 2"]:
    """Of each sequence with one more label: multiply and mix, with two odd multipliers."""
    mixed = (hashes ^ (labels[..., None].astype(jnp.uint32) + 1)) * jnp.array(
        [0x9E3779B1, 0x85EBCA6B], jnp.uint32
    )
    return mixed ^ (mixed >> jnp.array([15, 13], jnp.uint32))


def _united(some: Sequences, others: Sequences, size: int) -> Sequences:
    """The best `size` of both; a sequence that both have is one, and its probabilities add up."""
    there = jnp.isfinite(some.scores)[:, :, None] & jnp.isfinite(others.scores)[:, None]
    same = (some.hashes[:, :, None] == others.hashes[:, None]).all(axis=-1) & there
    score_there = jnp.max(others.scores[:, None], axis=2, where=same, initial=-jnp.inf)
    node_there = jnp.sum(others.nodes[:, None], axis=2, where=same)
    united = some._replace(
        scores=jnp.logaddexp(some.scores, score_there),
        nodes=jnp.where(score_there > some.scores, node_there, some.nodes),
    )
    rest = others._replace(scores=jnp.where(same.any(axis=1), -jnp.inf, others.scores))
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), united, rest)
    best, order = jax.lax.top_k(both.scores, size)
    return _chosen(both, order)._replace(scores=best)


def _chosen(sequences: Sequences, order: Int[Array, "B K"]) -> Sequences:
    rows = jnp.arange(order.shape[0])[:, None]
    return jax.tree.map(lambda leaf: leaf[rows, order], sequences)


def _where(condition, some: Sequences, others: Sequences) -> Sequences:
    return jax.tree.map(
        lambda a, b: jnp.where(condition.reshape(-1, *[1] * (a.ndim - 1)), a, b), some, others
    )


def _read(tree: Tree, sequences: Sequences, capacity: int) -> Hypotheses:
    """The labels of the sequences, from the last to the first."""
    batch, size = sequences.scores.shape
    there = jnp.isfinite(sequences.scores)
    counts = jnp.where(there, sequences.counts, 0)
    rows, columns = jnp.arange(batch)[:, None], jnp.arange(size)

    def read_one(carry):
        left, nodes, found = carry
        places = jnp.where(left > 0, left - 1, capacity)
        values = (tree.labels, tree.frames, tree.log_probabilities)
        found = tuple(
            whole.at[rows, columns, places].set(value[rows, nodes], mode="drop")
            for whole, value in zip(found, values)
        )
        return jnp.maximum(left - 1, 0), tree.parents[rows, nodes], found

    empty = jnp.zeros((batch, size, capacity), jnp.int32)
    start = counts, sequences.nodes, (empty, empty, empty.astype(jnp.float32))
    _, _, found = jax.lax.while_loop(lambda carry: jnp.any(carry[0] > 0), read_one, start)
    labels, label_frames, log_probabilities = found
    return Hypotheses(labels, counts, label_frames, log_probabilities, sequences.scores)
