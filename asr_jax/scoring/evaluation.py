"""An evaluation: references, transcripts, and the figures of wer.json that follow from them."""

import collections
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, NotRequired, TypedDict

from asr_jax.scoring import wer
from asr_jax.scoring.normalize import without_punctuation_and_case
from asr_jax.scoring.scripts import is_without_spaces
from asr_jax.scoring.significance import compare
from asr_jax.scoring.wer import Edit, ErrorCounts
from asr_jax.types import Skipped, Transcript, Utterance

# Lower edges in percent; most words are recognized with near certainty.
_CONFIDENCE_EDGES = (0, 50, 70, 80, 90, 95, 98)
_NO_WORDS = "no words"
_MOST_NAMED = 20


class Baseline(NamedTuple):
    """Another recognizer's transcripts of the same recordings."""

    name: str
    hypotheses: Mapping[str, str]
    """Texts by utterance id."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Utterances of a dataset and the transcripts that a recognizer made of them.

    Raises ValueError without utterances, for another number of transcripts than utterances, and
    unless `wall_seconds` is positive.
    """

    title: str
    """Heading of the report, such as the name of the dataset."""
    utterances: Sequence[Utterance]
    """Utterances that were recognized; `text` is the reference."""
    transcripts: Sequence[Transcript]
    """One transcript for each utterance."""
    audio_seconds: float
    """Seconds of audio recognized."""
    wall_seconds: float
    """Seconds of wall clock that recognition took."""
    facts: Mapping[str, str]
    """Checkpoint, decoder and other facts of the run that the report lists."""
    not_recognized: Sequence[Skipped] = ()
    """Utterances without a transcript, which do not count."""
    normalize: Callable[[str], str] = str
    """Function that brings a text into the form in which it is scored."""
    baseline: Baseline | None = None
    """Transcripts to compare with."""

    def __post_init__(self) -> None:
        utterances, transcripts = len(self.utterances), len(self.transcripts)
        if not utterances:
            raise ValueError("utterances = []: nothing to score, needs at least one")
        if transcripts != utterances:
            raise ValueError(
                f"len(transcripts) = {transcripts}: must equal len(utterances) = {utterances}"
            )
        if self.wall_seconds <= 0:
            raise ValueError(f"wall_seconds = {self.wall_seconds!r}: must be positive")


class Groups(NamedTuple):
    """Errors per group of utterances."""

    by_speaker: dict[str, ErrorCounts]
    """Errors of each speaker, in order of appearance; utterances without a speaker do not count."""
    by_duration: dict[str, ErrorCounts]
    """Errors per octave of duration, the shortest first."""
    by_confidence: dict[str, ErrorCounts]
    """Errors per band of the words' mean confidence, the highest first."""


class Scores(NamedTuple):
    """Errors of an evaluation, per utterance and per group of utterances."""

    metric: Literal["wer", "cer"]
    """The metric that counts: wer, or cer for scripts without spaces between words."""
    texts: list[tuple[str, str]]
    """Normalized reference and hypothesis of each utterance."""
    alignments: list[list[Edit]]
    """Alignment of each utterance's words or characters."""
    words: list[ErrorCounts]
    """Errors of each utterance in words."""
    characters: list[ErrorCounts]
    """Errors of each utterance in characters, with spaces if the metric is the WER."""
    groups: Groups

    @property
    def counts(self) -> list[ErrorCounts]:
        """Errors of each utterance in the metric."""
        return self.words if self.metric == "wer" else self.characters

    @property
    def worst_first(self) -> list[int]:
        """Indices of the utterances, those with the most errors first."""
        return sorted(range(len(self.counts)), key=lambda n: -self.counts[n].errors)


ComparisonFigures = TypedDict(
    "ComparisonFigures",
    {
        "with": str,
        "utterances": int,
        "wer": float | None,
        "other_wer": float | None,
        "cer": NotRequired[float | None],
        "other_cer": NotRequired[float | None],
        "difference": float | None,
        "difference_95_percent_interval": list[float | None],
        "p_value": float | None,
        "better": int,
        "worse": int,
        "only_here": list[str],
        "only_there": list[str],
    },
)
"""Figures of the utterances that an evaluation and its baseline share.

The CER is there where it is the metric. The difference and its test are of the metric.

"only_here" and "only_there" are the ids of the other utterances."""


class Figures(TypedDict):
    """Contents of wer.json. Rates are percent: 12.3 is 12.3 %; None without reference words."""

    metric: Literal["wer", "cer"]
    """The rate that counts: the CER for scripts without spaces between words."""
    wer: float | None
    wer_95_percent_interval: list[float | None]
    substitutions: int
    deletions: int
    insertions: int
    reference_words: int
    utterances: int
    cer: float | None
    cer_95_percent_interval: list[float | None]
    reference_characters: int
    wer_without_punctuation_and_case: float | None
    wer_without_punctuation_and_case_95_percent_interval: list[float | None]
    cer_without_punctuation_and_case: float | None
    cer_without_punctuation_and_case_95_percent_interval: list[float | None]
    sentence_error_rate: float | None
    audio_seconds: float
    wall_seconds: float
    rtfx: float
    """Seconds of audio recognized per second of wall clock."""
    wer_by_speaker: dict[str, float | None]
    wer_by_duration: dict[str, float | None]
    wer_by_confidence: dict[str, float | None]
    cer_by_speaker: NotRequired[dict[str, float | None]]
    cer_by_duration: NotRequired[dict[str, float | None]]
    cer_by_confidence: NotRequired[dict[str, float | None]]
    comparison: NotRequired[ComparisonFigures]
    not_recognised: list[dict[str, str]]
    facts: dict[str, str]


class _Optional(TypedDict, total=False):
    """The entries of wer.json that only a baseline or the CER as the metric give."""

    comparison: ComparisonFigures
    cer_by_speaker: dict[str, float | None]
    cer_by_duration: dict[str, float | None]
    cer_by_confidence: dict[str, float | None]


def unwritable(
    references: Sequence[str],
    *,
    unknown_characters: Callable[[str], str],
    characters: Iterable[str],
    normalize: Callable[[str], str] = str,
) -> str:
    """Return how many references hold characters that a recognizer cannot write, and which.

    The result is empty if there are none. A character does not count if `normalize` deletes it, or
    turns it into others that the recognizer can write.

    Args:
        unknown_characters: returns the characters of a text that the recognizer's labels lack.
        characters: the characters that the labels stand for.
    """
    writable = set("".join(map(normalize, characters)))
    counts_as_error = functools.cache(lambda c: not set(normalize(c).strip()) <= writable)
    found: collections.Counter[str] = collections.Counter()
    number = 0
    for reference in references:
        lacking = [*filter(counts_as_error, unknown_characters(reference))]
        found.update(lacking)
        number += bool(lacking)
    if not number:
        return ""
    named = ", ".join(f"{name!r} ({count})" for name, count in found.most_common(_MOST_NAMED))
    more = f" and {len(found) - _MOST_NAMED} more" if len(found) > _MOST_NAMED else ""
    return f"{number} of {len(references)}: {named}{more}"


def score(evaluation: Evaluation) -> Scores:
    """Align every transcript with its reference and count the errors."""
    utterances, transcripts = evaluation.utterances, evaluation.transcripts
    normalize = evaluation.normalize
    texts = [(normalize(u.text), normalize(t.text)) for u, t in zip(utterances, transcripts)]
    in_words = not is_without_spaces(reference for reference, _ in texts)
    split = str.split if in_words else functools.partial(wer.characters, spaces=False)
    words = [wer.count_word_errors(*pair) for pair in texts]
    characters = [wer.count_character_errors(*pair, spaces=in_words) for pair in texts]
    return Scores(
        metric="wer" if in_words else "cer",
        texts=texts,
        alignments=[wer.align(*map(split, pair)) for pair in texts],
        words=words,
        characters=characters,
        groups=_groups(evaluation, words if in_words else characters),
    )


def _groups(evaluation: Evaluation, counts: list[ErrorCounts]) -> Groups:
    by_speaker = wer.counts_by([utterance.speaker for utterance in evaluation.utterances], counts)
    by_speaker.pop("", None)
    by_duration = _by_duration(evaluation.utterances, counts)
    return Groups(by_speaker, by_duration, _by_confidence(evaluation.transcripts, counts))


def _interval(counts: Sequence[ErrorCounts]) -> list[float | None]:
    return [*map(_percent, wer.bootstrap_interval(counts, seed=0))]


def wer_figures(evaluation: Evaluation, scores: Scores) -> Figures:
    """Return the contents of wer.json.

    Raises ValueError for a baseline without any of the utterances.
    """
    corpus, characters = wer.total(scores.words), wer.total(scores.characters)
    plain = [tuple(map(without_punctuation_and_case, pair)) for pair in scores.texts]
    plain_words = [wer.count_word_errors(*pair) for pair in plain]
    plain_characters = [
        wer.count_character_errors(*pair, spaces=scores.metric == "wer") for pair in plain
    ]
    words = _groups(evaluation, scores.words)
    optional: _Optional = {}
    if scores.metric == "cer":
        optional |= {
            "cer_by_speaker": _rates(dict(sorted(scores.groups.by_speaker.items()))),
            "cer_by_duration": _rates(scores.groups.by_duration),
            "cer_by_confidence": _rates(scores.groups.by_confidence),
        }
    if evaluation.baseline:
        optional["comparison"] = _comparison(evaluation, evaluation.baseline, scores)
    return {
        "metric": scores.metric,
        "wer": _percent(corpus.rate),
        "wer_95_percent_interval": _interval(scores.words),
        "substitutions": corpus.substitutions,
        "deletions": corpus.deletions,
        "insertions": corpus.insertions,
        "reference_words": corpus.reference_words,
        "utterances": len(scores.texts),
        "cer": _percent(characters.rate),
        "cer_95_percent_interval": _interval(scores.characters),
        "reference_characters": characters.reference_words,
        "wer_without_punctuation_and_case": _percent(wer.total(plain_words).rate),
        "wer_without_punctuation_and_case_95_percent_interval": _interval(plain_words),
        "cer_without_punctuation_and_case": _percent(wer.total(plain_characters).rate),
        "cer_without_punctuation_and_case_95_percent_interval": _interval(plain_characters),
        "sentence_error_rate": _percent(wer.sentence_error_rate(scores.counts)),
        "audio_seconds": evaluation.audio_seconds,
        "wall_seconds": evaluation.wall_seconds,
        "rtfx": evaluation.audio_seconds / evaluation.wall_seconds,
        "wer_by_speaker": _rates(dict(sorted(words.by_speaker.items()))),
        "wer_by_duration": _rates(words.by_duration),
        "wer_by_confidence": _rates(words.by_confidence),
        **optional,
        "not_recognised": [skipped.listed() for skipped in evaluation.not_recognized],
        "facts": dict(evaluation.facts),
    }


class MainRate(NamedTuple):
    """The rate of an evaluation's metric, in percent, with and without punctuation and case."""

    name: str
    unit: str
    """The unit of errors: words or characters."""
    reference_units: int
    percent: float | None
    interval: list[float | None]
    plain_percent: float | None
    """Without punctuation and case."""
    plain_interval: list[float | None]

    @property
    def differs(self) -> bool:
        """True if punctuation or case change the rate or its interval."""
        plain = self.plain_percent, self.plain_interval
        return plain != (self.percent, self.interval)


def main_rate(figures: Figures) -> MainRate:
    """Return the rate of wer.json that counts."""
    if figures["metric"] == "wer":
        return MainRate(
            *("WER", "words", figures["reference_words"]),
            figures["wer"],
            figures["wer_95_percent_interval"],
            figures["wer_without_punctuation_and_case"],
            figures["wer_without_punctuation_and_case_95_percent_interval"],
        )
    return MainRate(
        *("CER", "characters", figures["reference_characters"]),
        figures["cer"],
        figures["cer_95_percent_interval"],
        figures["cer_without_punctuation_and_case"],
        figures["cer_without_punctuation_and_case_95_percent_interval"],
    )


def _percent(rate: float) -> float | None:
    """Return a fraction in percent; None for nan, which JSON lacks."""
    return None if math.isnan(rate) else 100 * rate


def _rates(groups: Mapping[str, ErrorCounts]) -> dict[str, float | None]:
    return {name: _percent(counts.rate) for name, counts in groups.items()}


def _by_duration(
    utterances: Sequence[Utterance], counts: list[ErrorCounts]
) -> dict[str, ErrorCounts]:
    octaves = [math.ceil(math.log2(max(u.duration_seconds, 1.0))) for u in utterances]
    groups = wer.counts_by([str(octave) for octave in octaves], counts)
    return {
        f"{2 ** (octave - 1)} to {2**octave} s" if octave else "up to 1 s": groups[str(octave)]
        for octave in sorted(set(octaves))
    }


def _by_confidence(
    transcripts: Sequence[Transcript], counts: list[ErrorCounts]
) -> dict[str, ErrorCounts]:
    edges = [*_CONFIDENCE_EDGES, 100]
    bands = {low: f"{low} to {high} %" for low, high in zip(edges[-2::-1], edges[:0:-1])}

    def band(transcript: Transcript) -> str:
        confidence = mean_confidence(transcript)
        if confidence is None:
            return _NO_WORDS
        return next(name for low, name in bands.items() if confidence >= low)

    groups = wer.counts_by([band(transcript) for transcript in transcripts], counts)
    return {name: groups[name] for name in (*bands.values(), _NO_WORDS) if name in groups}


def mean_confidence(transcript: Transcript) -> float | None:
    """Return the mean confidence of the words, in percent; None without words."""
    if not transcript.words:
        return None
    return 100 * sum(word.confidence for word in transcript.words) / len(transcript.words)


def _comparison(evaluation: Evaluation, baseline: Baseline, scores: Scores) -> ComparisonFigures:
    ids = [utterance.id for utterance in evaluation.utterances]
    shared = [n for n, id in enumerate(ids) if id in baseline.hypotheses]
    if not shared:
        raise ValueError(f"{baseline.name}: recognized none of the {len(ids)} utterances")
    others = [
        (scores.texts[n][0], evaluation.normalize(baseline.hypotheses[ids[n]])) for n in shared
    ]
    in_words = scores.metric == "wer"
    other_words = [wer.count_word_errors(*pair) for pair in others]
    other_characters = [wer.count_character_errors(*pair, spaces=in_words) for pair in others]
    comparison = compare(
        [scores.counts[n] for n in shared], other_words if in_words else other_characters, seed=0
    )
    figures: ComparisonFigures = {
        "with": baseline.name,
        "utterances": len(shared),
        "wer": _percent(wer.total(scores.words[n] for n in shared).rate),
        "other_wer": _percent(wer.total(other_words).rate),
        "difference": _percent(comparison.difference),
        "difference_95_percent_interval": [_percent(comparison.low), _percent(comparison.high)],
        "p_value": None if math.isnan(comparison.p_value) else comparison.p_value,
        "better": comparison.better,
        "worse": comparison.worse,
        "only_here": sorted(set(ids) - baseline.hypotheses.keys()),
        "only_there": sorted(baseline.hypotheses.keys() - set(ids)),
    }
    if not in_words:
        figures["cer"] = _percent(comparison.rate)
        figures["other_cer"] = _percent(comparison.other_rate)
    return figures
