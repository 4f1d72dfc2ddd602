"""Selection of the utterances that can be trained on, with a reason for each of the others."""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Int32, Int64

from asr_jax.text import RESERVED, UNKNOWN_ID, Tokenizer, holds_reserved
from asr_jax.types import Skipped, Utterance

TOO_SHORT = "too short for its text in the CTC loss"
# The reason of utterances that are trained on all the same.
WITHOUT_CTC = f"{TOO_SHORT}, trained without it"


class Limits(NamedTuple):
    """The longest recordings and transcripts to train on."""

    seconds: float
    labels: float
    of: str = "the last bucket's"
    """The rule that sets the limits, as reasons name it."""


def select_utterances(
    utterances: Sequence[Utterance],
    tokenizer: Tokenizer,
    *,
    min_seconds: float,
    min_confidence: float = 0.0,
    limits: Limits,
    frames_of: Callable[[np.ndarray], np.ndarray],
    ctc: Literal["none", "auxiliary", "alone"],
    labels: Sequence[Int32[np.ndarray, " _"]] | None = None,
) -> tuple[list[Utterance], list[Int32[np.ndarray, " U"]], list[Skipped]]:
    """Return the utterances to train on, their labels, and the utterances with a problem.

    `frames_of` returns the encoder's frames for durations in seconds; `labels` are the labels of
    all utterances, if known. An utterance may have more labels than frames, since a transducer's
    lattice holds any number. An utterance with fewer frames than `needed_ctc_frames` is left out if
    the model has a CTC head alone. If the CTC head is auxiliary, the utterance is listed, because
    it is trained on without the CTC loss. A reason is a phrase that many utterances share, then
    ": " and numbers.
    """
    texts, unknown = [utterance.text for utterance in utterances], tokenizer.unknown_characters
    labels = tokenizer.encode_all(texts) if labels is None else labels
    durations = [utterance.duration_seconds for utterance in utterances]
    seconds = np.array(durations)
    confidences = np.array([utterance.confidence for utterance in utterances])
    frames, lengths = frames_of(seconds), np.array([len(ids) for ids in labels], np.int64)
    ids, ends = np.concatenate([np.zeros(0, np.int32), *labels]), np.cumsum(lengths)
    ctc_frames = needed_ctc_frames(ids, ends)
    has_unknown = _count(np.flatnonzero(ids == UNKNOWN_ID), ends) > 0
    has_reserved = np.array([holds_reserved(text) for text in texts], bool)

    doubtful = f"confidence below {min_confidence:g}"
    too_long_for_ctc = TOO_SHORT if ctc == "alone" else WITHOUT_CTC
    # The first rule that holds for an utterance gives the reason.
    rules: list[tuple[np.ndarray, Callable[[int], str]]] = [
        (lengths == 0, lambda n: "empty transcript"),
        (has_reserved, lambda n: f"characters that no tokenizer can hold: {_reserved(texts[n])}"),
        (has_unknown, lambda n: f"characters that the tokenizer lacks: {unknown(texts[n])}"),
        (seconds < min_seconds, lambda n: f"shorter than {min_seconds:g} s: {durations[n]:.3g} s"),
        # False for NaN, the confidence of texts that people wrote.
        (confidences < min_confidence, lambda n: f"{doubtful}: {confidences[n]:.4f}"),
        (frames < 1, lambda n: f"too short for one frame: {durations[n]:.3g} s"),
        (
            seconds > limits.seconds,
            lambda n: f"longer than {limits.of} {limits.seconds:g} s: {durations[n]:.4g} s",
        ),
        (
            lengths > limits.labels,
            lambda n: f"more labels than {limits.of} {limits.labels:g}: {lengths[n]}",
        ),
        (
            (ctc != "none") & (ctc_frames > frames),
            lambda n: f"{too_long_for_ctc}: needs {ctc_frames[n]} frames, has {frames[n]}",
        ),
    ]
    masks = np.stack([mask for mask, _ in rules])
    excluding = masks if ctc == "alone" else masks[:-1]
    selected = np.flatnonzero(~excluding.any(axis=0)).tolist()
    skipped = [Skipped(utterances[n].id, rules[rule][1](n)) for n, rule in _first_rules(masks)]
    return [utterances[n] for n in selected], [labels[n] for n in selected], skipped


def _first_rules(masks: Bool[np.ndarray, "R N"]) -> list[tuple[int, int]]:
    """Return each utterance for which a rule holds, and the first of its rules."""
    listed, first_rule = np.flatnonzero(masks.any(axis=0)), masks.argmax(axis=0)
    return list(zip(listed.tolist(), first_rule[listed].tolist()))


def _reserved(text: str) -> str:
    return ", ".join(f"U+{ord(character):04X}" for character in sorted(RESERVED & set(text)))


def needed_ctc_frames(
    ids: Int32[np.ndarray, " L"], ends: Int64[np.ndarray, " N"]
) -> Int64[np.ndarray, " N"]:
    """Return for each utterance the least number of frames on which CTC has a path.

    Every label needs a frame, and so does the blank between two equal labels in sequence. `ids` are
    the labels of all utterances, one utterance after another; those of utterance n end before
    `ends[n]`.
    """
    is_repeat = ids[1:] == ids[:-1]
    is_repeat[ends[(0 < ends) & (ends < len(ids))] - 1] = False  # the next utterance's first label
    return np.diff(ends, prepend=0) + _count(np.flatnonzero(is_repeat), ends)


def _count(indices: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Return how many of the labels at `indices` belong to each utterance."""
    return np.bincount(np.searchsorted(ends, indices, side="right"), minlength=len(ends))
