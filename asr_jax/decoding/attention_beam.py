"""Beam search of an attention decoder, also together with CTC, for a whole batch, on the device."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from asr_jax.decoding.hypotheses import Hypotheses, empty_hypotheses
from asr_jax.layers.length import frame_mask
from asr_jax.models.encoder_decoder import END_ID, AttentionModel, DecoderState


class Prefixes(NamedTuple):
    """CTC's forward variables of K label sequences of every row, in nats: log P of all paths of
    the first t frames that read as the sequence, and end with its last label or with a blank."""

    by_label: Float[Array, "B K T1"]
    by_blank: Float[Array, "B K T1"]
    last: Int[Array, "B K"]


class SearchState(NamedTuple):
    """Where the search stands: K sequences of every row that may go on, and K that have ended."""

    number: Int[Array, ""]
    """Labels in each active sequence."""
    active: Hypotheses
    ended: Hypotheses
    last: Int[Array, "B K"]
    """The last label of each active sequence, END_ID before the first."""
    decoder: DecoderState
    prefixes: Prefixes | None
    """CTC's view of the active sequences; None without a CTC head."""


def attention_search(
    model: AttentionModel,
    encoded: Float[Array, "B T D"],
    lengths: Int[Array, " B"],
    *,
    size: int,
    ctc_weight: float,
) -> Hypotheses:
    """The `size` best label sequences of every row, label by label.

    A sequence that has ended scores (1 - w) log P(labels, end | frames) of the decoder, plus w log
    P(labels | frames) of the CTC head; one that goes on, the same of its labels so far, where CTC's
    is the probability of all sequences that begin so (arXiv 1609.06773; Watanabe et al. 2017,
    "Hybrid CTC/attention architecture for end-to-end speech recognition", algorithm 2). Both only
    fall with more labels: a row has ended when no sequence can become one of the best.

    N = T: there are no more labels than frames. With size 1 it follows the best label at every
    step, and ends where that scores best. Log-probabilities are the decoder's. A label's frame is
    where it comes first with the highest probability by the CTC head; without one all are zero.
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
    """Score every active sequence's next label, collect those that end, and extend the best."""
    active, prefixes = state.active, state.prefixes
    decoder, logits = model.decoder.step(state.decoder, state.last)
    log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32))
    so_far = jnp.sum(active.log_probabilities, axis=-1, keepdims=True)
    scores = (1 - ctc_weight) * (so_far + log_probabilities)
    if ctc_weight:
        assert prefixes is not None and frames is not None  # Config sees to that
        scores += ctc_weight * _prefix_scores(prefixes, frames)
    # What is not there stays so.
    scores = jnp.where(jnp.isfinite(active.scores)[..., None], scores, -jnp.inf)

    ended = _best_of_both(state.ended, active._replace(scores=scores[..., END_ID]))
    # With as many labels as frames a sequence may end, but not go on.
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
    """Return the hypotheses with one more label, whose frame is no earlier than the last one's."""
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
    """Return the K best of both, zeros where there are fewer."""
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
    """Of a frame's symbols; frames beyond the lengths are blank for sure, and so change nothing."""
    real = frame_mask(lengths, logits.shape[1])[..., None]
    blank = jnp.where(jnp.arange(logits.shape[-1]) == END_ID, 0.0, -jnp.inf)
    return jnp.where(real, jax.nn.log_softmax(logits.astype(jnp.float32)), blank)


def _no_labels(frames: Float[Array, "B T V"], size: int) -> Prefixes:
    """Of the sequence without labels: blanks alone."""
    batch, count, _ = frames.shape
    blanks = jnp.pad(jnp.cumsum(frames[..., END_ID], axis=1), ((0, 0), (1, 0)))
    return Prefixes(
        jnp.full((batch, size, count + 1), -jnp.inf),
        jnp.broadcast_to(blanks[:, None], (batch, size, count + 1)),
        jnp.full((batch, size), END_ID),
    )


def _prefix_scores(prefixes: Prefixes, frames: Float[Array, "B T V"]) -> Float[Array, "B K V"]:
    """log P of all sequences that begin with each one and the label; at END_ID, of it alone.

    Of a label, the sum over the frames at which it may come first: before it there is a path of
    the sequence, which must end with a blank where the label is its last one again.
    """
    either = jnp.logaddexp(prefixes.by_label, prefixes.by_blank)
    before, highest = either[..., :-1], jnp.max(either, axis=-1, keepdims=True)
    # A product of probabilities rather than a sum of all [B, K, T, V] logarithms.
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
    """Each sequence with one more label, and the frame that most of its probability enters at."""
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
