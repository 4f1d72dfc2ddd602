"""Batched beam search on the device for an attention decoder, optionally joint with CTC."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from asr_jax.decoding.hypotheses import Hypotheses, empty_hypotheses
from asr_jax.layers.length import frame_mask
from asr_jax.models.encoder_decoder import END_ID, AttentionModel, DecoderState


class Prefixes(NamedTuple):
    """CTC forward variables for K label sequences per row, in nats.

    Entry t is the log-probability of all paths over the first t frames that spell the sequence.
    """

    by_label: Float[Array, "B K T1"]
    """Paths that end with the sequence's last label."""
    by_blank: Float[Array, "B K T1"]
    """Paths that end with a blank."""
    last: Int[Array, "B K"]
    """The last label of each sequence."""


class SearchState(NamedTuple):
    """K active and K ended sequences per row."""

    number: Int[Array, ""]
    """Labels in each active sequence."""
    active: Hypotheses
    ended: Hypotheses
    last: Int[Array, "B K"]
    """The last label of each active sequence, END_ID before the first."""
    decoder: DecoderState
    prefixes: Prefixes | None
    """CTC forward variables of the active sequences; None without a CTC head."""


def attention_search(
    model: AttentionModel,
    encoded: Float[Array, "B T D"],
    lengths: Int[Array, " B"],
    *,
    size: int,
    ctc_weight: float,
) -> Hypotheses:
    """Return the `size` best label sequences of every row.

    With w = `ctc_weight`, an ended sequence scores (1 - w) log P(labels, end | frames) under the
    decoder plus w log P(labels | frames) under the CTC head. An active sequence scores the same for
    its labels so far, except that the CTC term is the probability of all sequences with that prefix
    (arXiv 1609.06773; Watanabe et al. 2017, "Hybrid CTC/attention architecture for end-to-end
    speech recognition", algorithm 2). Scores only fall as labels are added, so the search stops
    when no active sequence can still enter the `size` best.

    N = T: a sequence has at most as many labels as frames. With `size` 1 the search follows the
    best label at every step and stops when ending scores best. Log-probabilities are the decoder's.
    A label's frame is the frame at which the CTC head most probably emits it first; without a CTC
    head all frames are zero.
    """
    batch, capacity, _ = encoded.shape
    frames = None
    if model.ctc_head is not None:
        frames = _log_probabilities(model.ctc_head(encoded), lengths)

    def may_improve(state: SearchState) -> Bool[Array, ""]:
        better = jnp.any(state.active.scores[:, :1] > state.ended.scores[:, -1:])
        return better & (state.number <= capacity)

    none = jax.tree.map(
        lambda leaf: jnp.repeat(leaf, size, axis=1), empty_hypotheses(batch, capacity)
    )
    none = none._replace(scores=none.scores - jnp.inf)
    end = jax.lax.while_loop(
        may_improve,
        functools.partial(_step, model, frames, lengths, ctc_weight=ctc_weight),
        SearchState(
            number=jnp.int32(0),
            active=none._replace(scores=none.scores.at[:, 0].set(0)),
            ended=none,
            last=jnp.full((batch, size), END_ID),
            decoder=model.decoder.start(encoded, lengths, size=size, max_labels=capacity),
            prefixes=None if frames is None else _no_labels(frames, size),
        ),
    )
    return end.ended


def _step(
    model: AttentionModel,
    frames: Float[Array, "B T V"] | None,
    lengths: Int[Array, " B"],
    state: SearchState,
    *,
    ctc_weight: float,
) -> SearchState:
    """Score the next label of the active sequences, collect those that end, extend the best."""
    active, prefixes = state.active, state.prefixes
    decoder, logits = model.decoder.step(state.decoder, state.last)
    log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32))
    so_far = jnp.sum(active.log_probabilities, axis=-1, keepdims=True)
    scores = (1 - ctc_weight) * (so_far + log_probabilities)
    if ctc_weight:
        assert prefixes is not None and frames is not None  # Config requires a CTC head.
        scores += ctc_weight * _prefix_scores(prefixes, frames)
    # Sequences that do not exist keep a score of -inf.
    scores = jnp.where(jnp.isfinite(active.scores)[..., None], scores, -jnp.inf)

    ended = _best_of_both(state.ended, active._replace(scores=scores[..., END_ID]))
    # A sequence with as many labels as frames may end but not be extended.
    may_extend = (state.number < lengths)[:, None, None]
    scores = jnp.where(may_extend, scores.at[..., END_ID].set(-jnp.inf), -jnp.inf)
    batch, size, vocabulary_size = scores.shape
    best, choice = jax.lax.top_k(scores.reshape(batch, -1), size)
    parents, labels = jnp.divmod(choice, vocabulary_size)
    rows = jnp.arange(batch)[:, None]
    active, prefixes = jax.tree.map(lambda leaf: leaf[rows, parents], (active, prefixes))
    label_frames = jnp.zeros_like(labels)
    if prefixes is not None and frames is not None:
        prefixes, label_frames = _extend_prefixes(prefixes, labels, frames)
    active = _append(
        active._replace(scores=best),
        state.number,
        labels,
        label_frames,
        log_probabilities[rows, parents, labels],
    )
    decoder = model.decoder.reorder(decoder, parents)
    return SearchState(state.number + 1, active, ended, labels, decoder, prefixes)


def _append(
    hypotheses: Hypotheses,
    number: Int[Array, ""],
    labels: Int[Array, "B K"],
    frames: Int[Array, "B K"],
    log_probabilities: Float[Array, "B K"],
) -> Hypotheses:
    """Append a label to every hypothesis, at a frame no earlier than its previous label's."""
    at = (..., jnp.minimum(number, hypotheses.labels.shape[-1] - 1))
    frames = jnp.maximum(frames, jnp.max(hypotheses.frames, axis=-1))
    return Hypotheses(
        labels=hypotheses.labels.at[at].set(labels),
        counts=hypotheses.counts + 1,
        frames=hypotheses.frames.at[at].set(frames),
        log_probabilities=hypotheses.log_probabilities.at[at].set(log_probabilities),
        scores=hypotheses.scores,
    )


def _best_of_both(first: Hypotheses, second: Hypotheses) -> Hypotheses:
    """Return the K best of both; hypotheses that do not exist hold zeros."""
    both = jax.tree.map(lambda *two: jnp.concatenate(two, axis=1), first, second)
    _, order = jax.lax.top_k(both.scores, first.scores.shape[1])
    rows = jnp.arange(order.shape[0])[:, None]
    best = jax.tree.map(lambda leaf: leaf[rows, order], both)
    exists = jnp.isfinite(best.scores)

    def clear(leaf: Array) -> Array:
        return jnp.where(exists.reshape(*exists.shape, *[1] * (leaf.ndim - 2)), leaf, 0)

    return jax.tree.map(clear, best)._replace(scores=best.scores)


def _log_probabilities(
    logits: Float[Array, "B T V"], lengths: Int[Array, " B"]
) -> Float[Array, "B T V"]:
    """Return the symbols' log-probabilities; padding is blank with probability 1."""
    real = frame_mask(lengths, logits.shape[1])[..., None]
    blank = jnp.where(jnp.arange(logits.shape[-1]) == END_ID, 0.0, -jnp.inf)
    return jnp.where(real, jax.nn.log_softmax(logits.astype(jnp.float32)), blank)


def _no_labels(frames: Float[Array, "B T V"], size: int) -> Prefixes:
    """Return the forward variables of the empty sequence, whose only path is all blanks."""
    batch, count, _ = frames.shape
    blanks = jnp.pad(jnp.cumsum(frames[..., END_ID], axis=1), ((0, 0), (1, 0)))
    return Prefixes(
        jnp.full((batch, size, count + 1), -jnp.inf),
        jnp.broadcast_to(blanks[:, None], (batch, size, count + 1)),
        jnp.full((batch, size), END_ID),
    )


def _prefix_scores(prefixes: Prefixes, frames: Float[Array, "B T V"]) -> Float[Array, "B K V"]:
    """Return log P of all sequences that begin with a prefix and a label; at END_ID, of the prefix.

    The probability is summed over the frames at which the label may be emitted first. The path up
    to that frame spells the prefix; it must end with a blank if the label repeats the last one.
    """
    either = jnp.logaddexp(prefixes.by_label, prefixes.by_blank)
    before, highest = either[..., :-1], jnp.max(either, axis=-1, keepdims=True)
    # A matrix product of probabilities avoids a [B, K, T, V] array of logarithms.
    highest = jnp.where(jnp.isfinite(highest), highest, 0)
    summed = jnp.einsum("bkt,btv->bkv", jnp.exp(before - highest), jnp.exp(frames))
    scores = jnp.log(summed) + highest
    repeated = jnp.take_along_axis(
        frames.transpose(0, 2, 1), prefixes.last[..., None], axis=1
    )  # [B, K, T]
    again = jax.nn.logsumexp(prefixes.by_blank[..., :-1] + repeated, axis=-1)
    label = jnp.arange(frames.shape[-1])
    scores = jnp.where(label == prefixes.last[..., None], again[..., None], scores)
    return jnp.where(label == END_ID, either[..., -1:], scores)


def _extend_prefixes(
    prefixes: Prefixes, labels: Int[Array, "B K"], frames: Float[Array, "B T V"]
) -> tuple[Prefixes, Int[Array, "B K"]]:
    """Append a label to every prefix; also return the frame that most probably emits it first."""
    either = jnp.logaddexp(prefixes.by_label, prefixes.by_blank)
    enter = jnp.where((labels == prefixes.last)[..., None], prefixes.by_blank, either)[..., :-1]
    of_label = jnp.take_along_axis(frames.transpose(0, 2, 1), labels[..., None], axis=1)
    of_blank = jnp.broadcast_to(frames[:, None, :, END_ID], of_label.shape)

    def run(before, frame):
        by_label, by_blank = before
        enter, of_label, of_blank = frame
        after = (
            jnp.logaddexp(by_label, enter) + of_label,
            jnp.logaddexp(by_label, by_blank) + of_blank,
        )
        return after, after

    nothing = jnp.full(labels.shape, -jnp.inf)
    _, steps = jax.lax.scan(
        run,
        (nothing, nothing),
        jax.tree.map(lambda x: jnp.moveaxis(x, -1, 0), (enter, of_label, of_blank)),
    )
    by_label, by_blank = (
        jnp.concatenate([nothing[..., None], jnp.moveaxis(x, 0, -1)], axis=-1) for x in steps
    )
    return Prefixes(by_label, by_blank, labels), jnp.argmax(enter + of_label, axis=-1)
