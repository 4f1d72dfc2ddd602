"""Which utterances can be trained on, and why the others cannot."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int32

from asr_jax.text import SPACE_PIECE, UNKNOWN_ID, Tokenizer
from asr_jax.types import Skipped, Utterance


def select_utterances(
    utterances: Sequence[Utterance],
    tokenizer: Tokenizer,
    *,
    min_seconds: float,
    max_seconds: float,
    max_labels: int,
    frames_of: Callable[[np.ndarray], np.ndarray],
    ctc: bool,
    labels: Sequence[Int32[np.ndarray, " _"]] | None = None,
) -> tuple[list[Utterance], list[Int32[np.ndarray, " U"]], list[Skipped]]:
    """The utterances one can train on, their labels, and the others.

    `max_seconds` and `max_labels` are those of the last bucket; `frames_of` gives the encoder's
    frames for durations in seconds; `labels` are those of all utterances, where they are known.
    More labels than frames are kept: a transducer's lattice holds any number. With `ctc`, those
    that no CTC path can hold, the blanks between repeats included, are kept too, and listed: that
    loss passes over them. A reason is a phrase that many utterances share, then ": " and the
    figures of this one.
    """
    if labels is None:
        labels = tokenizer.encode_all([utterance.text for utterance in utterances])
    all_seconds = np.array([utterance.duration_seconds for utterance in utterances])
    all_frames = frames_of(all_seconds)
    lengths = np.array([len(ids) for ids in labels], np.int64)
    ids = np.concatenate([np.zeros(0, np.int32), *labels])
    ends = np.cumsum(lengths)
    number = lambda places: np.searchsorted(ends, places, side="right")
    count = lambda places: np.bincount(number(places), minlength=len(labels))
    repeats = 1 + np.flatnonzero(ids[1:] == ids[:-1])
    ctc_frames = lengths + count(repeats[number(repeats) == number(repeats - 1)])
    # The space's own piece is a character that the tokenizer lacks, though it encodes it.
    has_unknown = count(np.flatnonzero(ids == UNKNOWN_ID)) > 0
    has_unknown |= [SPACE_PIECE in utterance.text for utterance in utterances]
    usable = (lengths > 0) & ~has_unknown & (all_seconds >= min_seconds) & (all_frames >= 1)
    usable &= (all_seconds <= max_seconds) & (lengths <= max_labels)

    skipped = []
    for n in np.flatnonzero(~usable | (ctc & (ctc_frames > all_frames))).tolist():
        utterance, seconds = utterances[n], utterances[n].duration_seconds
        if lengths[n] == 0:
            reason = "empty transcript"
        elif has_unknown[n]:
            unknown = tokenizer.unknown_characters(utterance.text)
            reason = f"characters that the tokenizer lacks: {unknown}"
        elif seconds < min_seconds:
            reason = f"shorter than {min_seconds:g} s: {seconds:.3g} s"
        elif all_frames[n] < 1:
            reason = f"too short for one frame: {seconds:.3g} s"
        elif seconds > max_seconds:
            reason = f"longer than the last bucket's {max_seconds:g} s: {seconds:.4g} s"
        elif lengths[n] > max_labels:
            reason = f"more labels than the last bucket's {max_labels}: {lengths[n]}"
        else:
            figures = f"needs {ctc_frames[n]} frames, has {all_frames[n]}"
            reason = f"too short for its text in the CTC loss: {figures}"
        skipped.append(Skipped(utterance.id, reason))
    kept = np.flatnonzero(usable).tolist()
    return [utterances[n] for n in kept], [labels[n] for n in kept], skipped
