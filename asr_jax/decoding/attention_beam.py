"""Beam search of an attention decoder, also together with CTC, for a whole batch, on the device."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from asr_jax.decoding.hypotheses import Hypotheses, nothing_found
from asr_jax.layers.length import frame_mask
from asr_jax.models.encoder_decoder import END_ID, AttentionModel


class Prefixes(NamedTuple):
    """CTC's forward variables of K label sequences of every row, in nats: log P of all paths of
    the first t frames that read as the sequence, and end with its last label or with a blank."""

    by_label: Float[Array, "B K T1"]
    by_blank: Float[Array, "B K T1"]
    last: Int[Array, "B K"]


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
    decoder, rows = model.decoder, jnp.arange(batch)[:, None]
    frames = None
    if model.ctc_head is not None:
        frames = _log_probabilities(model.ctc_head(encoded), lengths)

    def going_on(carry):
        number, alive, ended, *_ = carry
        return jnp.any(alive.scores[:, :1] > ended.scores[:, -1:]) & (number <= capacity)

    def turn(carry):
        number, alive, ended, last, state, prefixes = carry
        state, logits = decoder.step(state, last)
        of_label = jax.nn.log_softmax(logits.astype(jnp.float32))
        so_far = jnp.sum(alive.log_probabilities, axis=-1, keepdims=True)
        scores = (1 - ctc_weight) * (so_far + of_label)
        if ctc_weight:
            assert frames is not None  # Config sees to that
            scores += ctc_weight * _prefix_scores(prefixes, frames)
        # What is not there stays so.
        scores = jnp.where(jnp.isfinite(alive.scores)[..., None], scores, -jnp.inf)

        both = (ended, alive._replace(scores=scores[..., END_ID]))
        ended = _best(jax.tree.map(lambda *two: jnp.concatenate(two, axis=1), *both), size)
        # With as many labels as frames a sequence may end, but not go on.
        goes_on = (number < lengths)[:, None, None]
        scores = jnp.where(goes_on, scores.at[..., END_ID].set(-jnp.inf), -jnp.inf)
        best, choice = jax.lax.top_k(scores.reshape(batch, -1), size)
        parents, labels = jnp.divmod(choice, logits.shape[-1])
        chosen = lambda tree: jax.tree.map(lambda leaf: leaf[rows, parents], tree)
        alive, prefixes = chosen((alive, prefixes))
        now = jnp.zeros_like(labels)
        if frames is not None:
            prefixes, now = _extended(prefixes, labels, frames)
        at = (..., jnp.minimum(number, capacity - 1))
        alive = Hypotheses(
            labels=alive.labels.at[at].set(labels),
            counts=alive.counts + 1,
            frames=alive.frames.at[at].set(jnp.maximum(now, jnp.max(alive.frames, axis=-1))),
            log_probabilities=alive.log_probabilities.at[at].set(of_label[rows, parents, labels]),
            scores=best,
        )
        return number + 1, alive, ended, labels, decoder.chosen(state, parents), prefixes

    nobody = jax.tree.map(
        lambda leaf: jnp.repeat(leaf, size, axis=1), nothing_found(batch, capacity)
    )
    nobody = nobody._replace(scores=nobody.scores - jnp.inf)
    empty = nobody._replace(scores=nobody.scores.at[:, 0].set(0))
    start = jnp.full((batch, size), END_ID)
    state = decoder.start(encoded, lengths, size=size, most=capacity)
    prefixes = None if frames is None else _empty(frames, size)
    _, _, ended, *_ = jax.lax.while_loop(
        going_on, turn, (jnp.int32(0), empty, nobody, start, state, prefixes)
    )
    return ended


def _best(found: Hypotheses, size: int) -> Hypotheses:
    _, order = jax.lax.top_k(found.scores, size)
    rows = jnp.arange(len(order))[:, None]
    best = jax.tree.map(lambda leaf: leaf[rows, order], found)
    there = jnp.isfinite(best.scores)
    clear = lambda leaf: jnp.where(there.reshape(*there.shape, *[1] * (leaf.ndim - 2)), leaf, 0)
    return jax.tree.map(clear, best)._replace(scores=best.scores)


def _log_probabilities(
    logits: Float[Array, "B T V"], lengths: Int[Array, " B"]
) -> Float[Array, "B T V"]:
    """Of a frame's symbols; frames beyond the lengths are blank for sure, and so change nothing."""
    real = frame_mask(lengths, logits.shape[1])[..., None]
    blank = jnp.where(jnp.arange(logits.shape[-1]) == END_ID, 0.0, -jnp.inf)
    return jnp.where(real, jax.nn.log_softmax(logits.astype(jnp.float32)), blank)


def _empty(frames: Float[Array, "B T V"], size: int) -> Prefixes:
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
    whole = jnp.logaddexp(prefixes.by_label, prefixes.by_blank)
    before, highest = whole[..., :-1], jnp.max(whole, axis=-1, keepdims=True)
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
    return jnp.where(label == END_ID, whole[..., -1:], scores)


def _extended(
    prefixes: Prefixes, labels: Int[Array, "B K"], frames: Float[Array, "B T V"]
) -> tuple[Prefixes, Int[Array, "B K"]]:
    """Each sequence with one more label, and the frame that most of its probability enters at."""
    whole = jnp.logaddexp(prefixes.by_label, prefixes.by_blank)
    enter = jnp.where((labels == prefixes.last)[..., None], prefixes.by_blank, whole)[..., :-1]
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
