"""Long recordings with a rough text, cut into utterances."""

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from asr_jax.audio.samples import AudioError, Unread, read_readable_blocks
from asr_jax.config import Config
from asr_jax.decoding.pauses import (
    FRAMES_PER_SECOND,
    Levels,
    Pause,
    label_delay,
    pause_between,
    pieces,
    sound_levels,
)
from asr_jax.decoding.utterance_cuts import MARGIN_SECONDS, Span, cut_spans, link_words
from asr_jax.decoding.written_text import WrittenWord, unspelled_letters, written_words
from asr_jax.inference.recognizer import Recognizer, recognize_utterances
from asr_jax.inference.text_likelihood import text_log_likelihoods
from asr_jax.text import Tokenizer
from asr_jax.types import Utterance, Word

# Pieces of this length are as long as the utterances that most models are trained on.
PIECE_SECONDS = 10.0
# Pieces that are recognized between two reports of the progress.
PIECES = 120
# Texts that are scored between two reports.
TEXTS = 500
# Letters and digits of a text that a model must be able to spell.
LEAST_SPELLED = 0.5
# Of the text or of the recognized characters, whichever are fewer: part that utterances must hold.
LEAST_FOUND = 0.3
# As many characters, if fewer are recognized: of a long text, any few are found somewhere.
FEW_CHARACTERS = 20
# Levels of samples that are rounded to 16 bits: what is softer is silence.
SILENCE_DB = -85.0

Scores = dict[tuple[int, str], float]
"""log P(text | audio) of the number of a span and a text."""
Report = Callable[[str, float], None]
"""Receives the name of a part of the work, and how much of it is done, in 0..1."""


class SegmentedUtterance(NamedTuple):
    """A part of a long recording and its text."""

    offset_seconds: float
    duration_seconds: float
    text: str
    """Words as they are written."""
    confidence: float
    """(P(text | audio) / P(recognized text | audio)) ** (1 / characters), at most 1."""


class Segmentation(NamedTuple):
    """The utterances of a recording, and how much of both sides they hold."""

    utterances: list[SegmentedUtterance]
    words: int
    """Words of the text."""
    words_used: int
    recording_seconds: float
    unread: list[Unread]
    """Parts of the recording that cannot be read, in order."""


def with_alignable_search(recognizer: Recognizer) -> Recognizer:
    """Return the recognizer with a greedy search whose labels have times.

    Raises ValueError for an attention model without a CTC head.
    """
    config = recognizer.config
    decoding = replace(config.decoding, beam=0)
    if config.objective.kind == "attention":
        if not config.objective.has_ctc_head:
            raise ValueError(
                "RUN: an attention model without a CTC head, whose labels have no times; pass a "
                "transducer, TDT, HAT or CTC model"
            )
        decoding = replace(decoding, head="ctc")
    return recognizer._replace(config=replace(config, decoding=decoding))


def read_words(text: str, name: Path, tokenizer: Tokenizer) -> list[WrittenWord]:
    """Return the words of the file `name`.

    Raises ValueError if it has none, or is in a script that the model does not know.
    """
    words = written_words(text, tokenizer)
    letters, unknown = unspelled_letters(text, tokenizer)
    if not letters:
        raise ValueError(f"--text {name}: has no words")
    if len(unknown) > (1 - LEAST_SPELLED) * letters:
        known = "".join(sorted(tokenizer.characters - {" "}))[:40]
        raise ValueError(
            f"--text {name}: of its {letters} letters and digits the model spells only "
            f"{letters - len(unknown)}; it lacks {unknown[:10]!r}, for example, and has {known!r}"
        )
    return words


def segment_recording(
    recognizer: Recognizer,
    audio: Utterance,
    words: Sequence[WrittenWord],
    *,
    max_seconds: float,
    pause_seconds: float,
    report: Report,
) -> Segmentation:
    """Cut a recording into utterances of at most `max_seconds` with words of its text.

    The recording is read twice as a stream: once for its levels, and once in pieces of at most
    PIECE_SECONDS, which are recognized. Memory grows with the number of hundredths of a second and
    of words, by a few bytes each. What cannot be read is in no utterance.

    Raises ValueError if the text is not of this recording, and AudioError if none of it is read.
    """
    levels, unread = _levels(recognizer.config, audio, report)
    spoken = _recognized(recognizer, audio, levels, unread, report)
    links = link_words(words, [word.text for word in spoken])
    pauses = _pauses(levels, spoken, unread)
    texts = [word.text for word in spoken]
    spans = cut_spans(
        words, texts, links, pauses, max_seconds=max_seconds, pause_seconds=pause_seconds
    )
    _require_same(audio, words, texts, spans)
    found = _scored(recognizer, audio, words, texts, spans, report)
    unread += [_unread(span) for span, utterance in zip(spans, found) if utterance is None]
    kept = [utterance for utterance in found if utterance]
    used = sum(len(utterance.text.split()) for utterance in kept)
    seconds = len(levels) / FRAMES_PER_SECOND
    return Segmentation(kept, len(words), used, seconds, sorted(unread))


def _levels(config: Config, audio: Utterance, report: Report) -> tuple[Levels, list[Unread]]:
    """Return the levels of a recording, and what cannot be read of it; this has those of quiet.

    Raises AudioError if all of it is silent, or cannot be read.
    """
    # A rate at which a frame is a whole number of samples, so that frames do not drift.
    rate_hz = config.features.sample_rate_hz // FRAMES_PER_SECOND * FRAMES_PER_SECOND
    unread: list[Unread] = []

    def blocks() -> Iterator[np.ndarray]:
        done = 0
        read = read_readable_blocks(audio.audio, sample_rate_hz=rate_hz, unread=unread)
        for block in read:
            done += len(block)
            report("listening", min(1.0, done / rate_hz / audio.duration_seconds))
            yield block

    levels = sound_levels(blocks(), sample_rate_hz=rate_hz)
    is_read = np.ones(len(levels), bool)
    for part in unread:
        first, end = (round(t * FRAMES_PER_SECOND) for t in (part.start_seconds, part.end_seconds))
        is_read[first:end] = False
    if unread and not is_read.any():
        raise AudioError(audio.audio, unread[0].reason)
    if len(levels) and levels.max() < SILENCE_DB:
        raise AudioError(audio.audio, "silent")
    if unread:
        levels[~is_read] = np.percentile(levels[is_read], 10)
    return levels, unread


def _recognized(
    recognizer: Recognizer,
    audio: Utterance,
    levels: Levels,
    unread: list[Unread],
    report: Report,
) -> list[Word]:
    """Return the words of the recording with times from its start.

    What cannot be read of it after all is appended to `unread`.
    """
    parts = [
        audio._replace(id=str(n), offset_seconds=start, duration_seconds=end - start)
        for n, (start, end) in enumerate(_readable_pieces(levels, unread))
    ]
    found = []
    for first in range(0, len(parts), PIECES):
        batch = parts[first : first + PIECES]
        done, share = first / len(parts), len(batch) / len(parts)
        recognition = recognize_utterances(
            recognizer, batch, report=lambda part: report("recognizing", done + share * part)
        )
        unread += [
            Unread(part.offset_seconds, part.offset_seconds + part.duration_seconds, skipped.reason)
            for skipped in recognition.failed
            for part in [parts[int(skipped.id)]]
        ]
        for part, transcript in zip(batch, recognition.best):
            for word in transcript.words if transcript else ():
                start = part.offset_seconds + word.start_seconds
                end = part.offset_seconds + word.end_seconds
                found.append(replace(word, start_seconds=start, end_seconds=end))
    return found


def _readable_pieces(levels: Levels, unread: Sequence[Unread]) -> Iterator[tuple[float, float]]:
    """Yield (start, end) in seconds of pieces that make up what can be read of a recording."""
    ends = [0.0, *(t for part in unread for t in part[:2]), len(levels) / FRAMES_PER_SECOND]
    for start, end in zip(ends[::2], ends[1::2]):
        part = levels[round(start * FRAMES_PER_SECOND) : round(end * FRAMES_PER_SECOND)]
        for first, last in pieces(part, longest_seconds=PIECE_SECONDS) if len(part) else ():
            yield start + first, start + last


def _unread(span: Span) -> Unread:
    return Unread(span.start_seconds, span.end_seconds, "cannot be read from there on")


def _pauses(levels: Levels, spoken: Sequence[Word], unread: Sequence[Unread]) -> list[Pause]:
    """Return the pauses before the words, between them, and after the last one.

    A pause with a part that cannot be read ends any utterance; none may extend into it.
    """
    starts = np.array([word.start_seconds for word in spoken])
    ends = np.array([word.end_seconds for word in spoken])
    delay = label_delay(levels, np.concatenate([starts, ends]))
    end_of_all = len(levels) / FRAMES_PER_SECOND
    edges = zip([0.0, *(ends - delay).tolist()], [*(starts - delay).tolist(), end_of_all])
    pauses = [pause_between(levels, end, start) for end, start in edges]
    apart = MARGIN_SECONDS + 1 / FRAMES_PER_SECOND
    for part in unread:
        middle = (part.start_seconds + part.end_seconds) / 2
        n = int(np.searchsorted((starts + ends) / 2 - delay, middle))
        start = min(pauses[n].start_seconds, part.start_seconds - apart)
        end = max(pauses[n].end_seconds, part.end_seconds + apart)
        pauses[n] = Pause(start, end, math.inf)
    return pauses


def _require_same(
    audio: Utterance, words: Sequence[WrittenWord], spoken: Sequence[str], spans: Sequence[Span]
) -> None:
    """Raise ValueError unless the utterances hold a part of the text or of what is spoken."""
    of_text = sum(len(word.spelled) for word in words)
    of_speech = sum(map(len, spoken))
    if not of_speech:
        raise ValueError(
            f"{audio.audio}: the model recognizes no words in it; check with asr-jax transcribe "
            "that it holds speech, and that the model recognizes this kind of speech"
        )
    held = sum(len(words[n].spelled) * span.agreement for span in spans for n in span.heard)
    needed = LEAST_FOUND * min(of_text, max(of_speech, FEW_CHARACTERS))
    if held < needed:
        raise ValueError(
            f"{audio.audio}: the text is not of this recording, as far as the model recognizes it: "
            f"they share {held:.0f} of {of_text} characters of the text and {of_speech} recognized "
            "ones; check both files, and the model with asr-jax transcribe"
        )


def _scored(
    recognizer: Recognizer,
    audio: Utterance,
    words: Sequence[WrittenWord],
    spoken: Sequence[str],
    spans: Sequence[Span],
    report: Report,
) -> list[SegmentedUtterance | None]:
    """Decide which doubtful words are spoken, and compare each text with the recognized one.

    None stands for a span that cannot be read.
    """
    scores: Scores = {}
    spelled = functools.partial(_spelled, words)
    tried = [
        (k, text)
        for k, span in enumerate(spans)
        for text in [
            spelled(span.heard),
            *(spelled([*span.heard, *run]) for run in span.doubtful),
        ]
    ]
    _add_scores(scores, tried, recognizer, (audio, spans), report)
    used = _with_likely(spans, scores, spelled)
    recognized = [" ".join(spoken[n] for n in span.spoken) for span in spans]
    tried = [*enumerate(map(spelled, used)), *enumerate(recognized)]
    _add_scores(scores, tried, recognizer, (audio, spans), report)
    return [
        SegmentedUtterance(
            round(span.start_seconds, 3),
            round(span.end_seconds - span.start_seconds, 3),
            " ".join(words[n].written for n in used[k]),
            _confidence(scores, k, spelled(used[k]), recognized[k]),
        )
        if math.isfinite(scores[k, recognized[k]])
        else None
        for k, span in enumerate(spans)
    ]


def _add_scores(
    scores: Scores,
    tried: Sequence[tuple[int, str]],
    recognizer: Recognizer,
    given: tuple[Utterance, Sequence[Span]],
    report: Report,
) -> None:
    """Add log P(text | audio) of each number of a span and text that has none yet."""
    audio, spans = given
    new = [key for key in dict.fromkeys(tried) if key not in scores]
    for first in range(0, len(new), TEXTS):
        part = new[first : first + TEXTS]
        utterances = [
            audio._replace(
                text=text,
                offset_seconds=spans[k].start_seconds,
                duration_seconds=spans[k].end_seconds - spans[k].start_seconds,
            )
            for k, text in part
        ]
        scores.update(zip(part, text_log_likelihoods(recognizer, utterances).tolist()))
        report("comparing", (first + len(part)) / len(new))


def _with_likely(
    spans: Sequence[Span], scores: Scores, spelled: Callable[[Iterable[int]], str]
) -> list[list[int]]:
    """Return the words of each span, with doubtful ones that make its text more likely.

    Words between two spans join the one that gains more. What the model cannot spell, such as a
    dash, joins the words before it.
    """
    gains = [
        (scores[k, spelled([*span.heard, *run])] - scores[k, spelled(span.heard)], k, run)
        for k, span in enumerate(spans)
        for run in span.doubtful
    ]
    home: dict[int, int] = {}
    for gain, k, run in sorted(gains, key=lambda entry: -entry[0]):
        if gain > 0 or not spelled(run):
            home = {word: k for word in run} | home
    return [
        sorted([*span.heard, *(word for word, of in home.items() if of == k)])
        for k, span in enumerate(spans)
    ]


def _spelled(words: Sequence[WrittenWord], numbers: Iterable[int]) -> str:
    return " ".join(words[n].spelled for n in sorted(numbers) if words[n].spelled)


def _confidence(scores: Scores, k: int, text: str, recognized: str) -> float:
    """Return the confidence of SegmentedUtterance."""
    difference = scores[k, text] - scores[k, recognized]
    characters = len(text.replace(" ", ""))
    return round(math.exp(min(0.0, difference) / max(1, characters)), 4)
