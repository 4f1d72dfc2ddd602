"""The three files that an evaluation leaves: hypotheses.jsonl, wer.json and report.html."""

import base64
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from asr_jax.scoring import wer
from asr_jax.scoring.report_page import render_page
from asr_jax.scoring.significance import compare
from asr_jax.scoring.wer import Edit, ErrorCounts
from asr_jax.types import LabelPosterior, Skipped, Transcript, Utterance

EMBEDDED_AUDIO_BYTES = 20_000_000
"""Audio that one report may hold, before base64 makes four bytes of three."""

# A member of a tar has no file name: what a browser can play is told by its first bytes.
_MIME_TYPES = {
    b"fLaC": "audio/flac",
    b"OggS": "audio/ogg",
    b"RIFF": "audio/wav",
    b"ID3": "audio/mpeg",
    b"\xff\xfb": "audio/mpeg",
    b"\xff\xf3": "audio/mpeg",
}


# Percent, where bands of confidence begin: most words are recognised with near certainty.
_CONFIDENCES = (0, 50, 70, 80, 90, 95, 98)


class Baseline(NamedTuple):
    """Another recogniser's texts of the same recordings."""

    name: str
    hypotheses: Mapping[str, str]
    """By the utterance's id."""


def write_evaluation(
    output: Path,
    *,
    utterances: Sequence[Utterance],
    hypotheses: Sequence[Transcript],
    title: str,
    facts: dict[str, str],
    audio_seconds: float,
    wall_seconds: float,
    recording_of: Callable[[Utterance, int], bytes | None] | None,
    not_recognised: Sequence[Skipped] = (),
    normalize: Callable[[str], str] = str,
    baseline: Baseline | None = None,
    lattices: int = 0,
    posteriors_of: Callable[[Sequence[Utterance]], Mapping[str, list[LabelPosterior]]] = (
        lambda utterances: {}
    ),
) -> dict:
    """Scores hypotheses against the utterances' texts and writes three files into `output`.

    hypotheses.jsonl  {"id", "reference", "hypothesis", "words"}, a line per utterance, in their
                      order, texts not normalised; words as in types.Word
    report.html       one page that needs no network: figures, charts, confusions, every utterance
    wer.json          the figures; written last, so that where it is, the others are complete

    In wer.json "wer", "wer_95_percent_interval", "cer", "sentence_error_rate", "wer_by_speaker"
    (of utterances that name one), "wer_by_duration" and "wer_by_confidence" (the mean of an
    utterance's words) are percent: 12.3 is 12.3 %. "rtfx" is seconds of audio recognised per
    second of wall clock. "comparison" with the baseline covers the utterances that both have;
    the ids of the others are "only_here" and "only_there". A rate over no reference words is null.

    Args:
        output: folder, made if missing; files of the same names are replaced, each at once.
        utterances: what was recognised; `text` is the reference.
        hypotheses: one for each utterance.
        title: heading of the page, such as the name of the data.
        facts: what the page lists about the run (checkpoint, decoder, device); kept in wer.json.
        audio_seconds: audio recognised.
        wall_seconds: how long that took.
        recording_of: gives the whole recording of an utterance as it is stored, or None where it
            has more bytes than the number given or cannot be read. With it the recordings are put
            into the page, up to EMBEDDED_AUDIO_BYTES, those with the most errors first; the page
            knows the way from `output` to the others that are files of their own.
        not_recognised: utterances without a hypothesis, which do not count; kept in wer.json.
        normalize: brings a text into the form in which it is scored.
        baseline: what to compare with.
        lattices: of so many utterances, those with the most errors, the page shows
        posteriors_of: when the labels of their references come, by id, as this says.

    Returns:
        What wer.json holds.

    Raises:
        ValueError: no utterances, another number of hypotheses, wall_seconds not positive, or
            nothing that the baseline has too.
    """
    if not utterances:
        raise ValueError("utterances = []: nothing to score, needs at least one")
    if len(hypotheses) != len(utterances):
        raise ValueError(
            f"len(hypotheses) = {len(hypotheses)}: must equal len(utterances) = {len(utterances)}"
        )
    if wall_seconds <= 0:
        raise ValueError(f"wall_seconds = {wall_seconds!r}: must be positive")

    pairs = [(normalize(u.text), normalize(h.text)) for u, h in zip(utterances, hypotheses)]
    alignments = [wer.align(said.split(), heard.split()) for said, heard in pairs]
    counts = [wer.count_word_errors(*pair) for pair in pairs]
    speakers = wer.counts_by([u.speaker for u in utterances], counts)
    speakers.pop("", None)
    figures = _figures(pairs, counts, audio_seconds, wall_seconds)
    durations = _by_duration(utterances, counts)
    confidences = _by_confidence(hypotheses, counts)
    for name, groups in (
        ("speaker", dict(sorted(speakers.items()))),
        ("duration", durations),
        ("confidence", confidences),
    ):
        figures[f"wer_by_{name}"] = {key: _percent(c.rate) for key, c in groups.items()}
    if baseline:
        figures["comparison"] = _comparison(utterances, pairs, counts, baseline, normalize)
    figures["not_recognised"] = [asdict(skipped) for skipped in not_recognised]
    figures["facts"] = facts

    worst = sorted(range(len(utterances)), key=lambda n: -counts[n].errors)
    audio_uris, audio_of = (
        _embedded_audio([utterances[n] for n in worst], recording_of) if recording_of else ([], {})
    )
    posteriors = posteriors_of([utterances[n] for n in worst[:lattices]]) if lattices else {}
    rows = []
    for n, (utterance, heard) in enumerate(zip(utterances, hypotheses)):
        row = _row(utterance, alignments[n], counts[n]) | _timed(heard, pairs[n][1])
        row["audio"] = audio_of.get(_recording(utterance))
        if recording_of and row["audio"] is None and utterance.within is None:
            row["file"] = quote(os.path.relpath(utterance.audio, output))
        if baseline and utterance.id in baseline.hypotheses:
            row["other"] = normalize(baseline.hypotheses[utterance.id])
            others = wer.count_word_errors(pairs[n][0], str(row["other"]))
            row["gain"] = others.errors - counts[n].errors
        if utterance.id in posteriors:
            row["lattice"] = [_lattice_row(label) for label in posteriors[utterance.id]]
        rows.append(row)
    page = render_page(
        title=title,
        figures=figures,
        speakers=speakers,
        durations=durations,
        confidences=confidences,
        confusions=Counter(
            (edit.reference, edit.hypothesis)
            for columns in alignments
            for edit in columns
            if edit.op != "equal"
        ),
        rows=rows,
        audio_uris=audio_uris,
        audio_wanted=recording_of is not None,
    )

    output.mkdir(parents=True, exist_ok=True)
    _write(output / "hypotheses.jsonl", _lines(utterances, hypotheses))
    _write(output / "report.html", page)
    _write(output / "wer.json", json.dumps(figures, indent=2, allow_nan=False) + "\n")
    return figures


def _figures(
    pairs: Sequence[tuple[str, str]],
    counts: list[ErrorCounts],
    audio_seconds: float,
    wall_seconds: float,
) -> dict:
    corpus = wer.total(counts)
    characters = wer.total(wer.count_character_errors(*pair) for pair in pairs)
    low, high = wer.bootstrap_interval(counts, seed=0)
    return {
        "wer": _percent(corpus.rate),
        "wer_95_percent_interval": [_percent(low), _percent(high)],
        "substitutions": corpus.substitutions,
        "deletions": corpus.deletions,
        "insertions": corpus.insertions,
        "reference_words": corpus.reference_words,
        "utterances": len(pairs),
        "cer": _percent(characters.rate),
        "sentence_error_rate": _percent(wer.sentence_error_rate(counts)),
        "audio_seconds": audio_seconds,
        "wall_seconds": wall_seconds,
        "rtfx": audio_seconds / wall_seconds,
    }


def _percent(rate: float) -> float | None:
    """JSON has no nan."""
    return None if math.isnan(rate) else 100 * rate


def _by_duration(
    utterances: Sequence[Utterance], counts: list[ErrorCounts]
) -> dict[str, ErrorCounts]:
    """Counts per octave of duration, the shortest first."""
    octaves = [math.ceil(math.log2(max(u.duration_seconds, 1.0))) for u in utterances]
    groups = wer.counts_by([str(octave) for octave in octaves], counts)
    return {
        f"{2 ** (octave - 1)} to {2**octave} s" if octave else "up to 1 s": groups[str(octave)]
        for octave in sorted(set(octaves))
    }


def _by_confidence(
    hypotheses: Sequence[Transcript], counts: list[ErrorCounts]
) -> dict[str, ErrorCounts]:
    """Counts per band of the words' mean confidence, the surest first."""

    def band(heard: Transcript) -> str:
        if not heard.words:
            return "nothing heard"
        mean = 100 * sum(word.confidence for word in heard.words) / len(heard.words)
        return next(name for low, name in bands.items() if mean >= low)

    ends = [*_CONFIDENCES, 100]
    bands = {low: f"{low} to {high} %" for low, high in zip(ends[-2::-1], ends[:0:-1])}
    groups = wer.counts_by([band(heard) for heard in hypotheses], counts)
    return {name: groups[name] for name in (*bands.values(), "nothing heard") if name in groups}


def _comparison(
    utterances: Sequence[Utterance],
    pairs: Sequence[tuple[str, str]],
    counts: list[ErrorCounts],
    baseline: Baseline,
    normalize: Callable[[str], str],
) -> dict:
    both = [n for n, utterance in enumerate(utterances) if utterance.id in baseline.hypotheses]
    if not both:
        raise ValueError(f"{baseline.name}: recognised none of the {len(utterances)} utterances")
    others = [
        wer.count_word_errors(pairs[n][0], normalize(baseline.hypotheses[utterances[n].id]))
        for n in both
    ]
    found = compare([counts[n] for n in both], others, seed=0)
    here = {utterance.id for utterance in utterances}
    return {
        "with": baseline.name,
        "utterances": len(both),
        "wer": _percent(found.rate),
        "other_wer": _percent(found.other_rate),
        "difference": _percent(found.difference),
        "difference_95_percent_interval": [_percent(found.low), _percent(found.high)],
        "p_value": None if math.isnan(found.p_value) else found.p_value,
        "better": found.better,
        "worse": found.worse,
        "only_here": sorted(here - baseline.hypotheses.keys()),
        "only_there": sorted(baseline.hypotheses.keys() - here),
    }


def _row(utterance: Utterance, columns: list[Edit], counts: ErrorCounts) -> dict[str, object]:
    """An utterance as the page's script reads it: `text` has runs of right words as strings, and
    errors as [reference, hypothesis], one of them null for a deletion or an insertion."""
    text: list[str | list[str | None]] = []
    for op, reference, hypothesis in columns:
        if op != "equal":
            text.append([reference, hypothesis])
        elif text and isinstance(text[-1], str):
            text[-1] += f" {reference}"
        else:
            text.append(str(reference))
    return {
        "id": utterance.id,
        "speaker": utterance.speaker,
        "seconds": round(utterance.duration_seconds, 3),
        "offset": round(utterance.offset_seconds, 3),
        "words": counts.reference_words,
        "errors": counts.errors,
        "text": text,
    }


def _timed(heard: Transcript, normalized: str) -> dict[str, object]:
    """The words' mean confidence in percent, and of every word start and end in ms, confidence in
    percent; their texts too where they are not those of the normalised transcript."""
    words = heard.words
    sure = round(100 * sum(w.confidence for w in words) / len(words), 1) if words else None
    numbers = [
        round(number)
        for w in words
        for number in (1000 * w.start_seconds, 1000 * w.end_seconds, 100 * w.confidence)
    ]
    texts = [word.text for word in words]
    timed: dict[str, object] = {"sure": sure, "times": numbers}
    return timed if texts == normalized.split() else timed | {"heard": texts}


def _lattice_row(label: LabelPosterior) -> list[object]:
    """Piece, first frame's start and a frame's length in ms, and probabilities in percent."""
    times = (round(1000 * seconds) for seconds in (label.start_seconds, label.frame_seconds))
    return [label.piece, *times, [round(100 * p) for p in label.probabilities]]


def _recording(utterance: Utterance) -> Hashable:
    """Equal for the stretches of one recording."""
    return utterance.audio, utterance.within


def _embedded_audio(
    utterances: Sequence[Utterance],
    recording_of: Callable[[Utterance, int], bytes | None],
) -> tuple[list[str], dict[Hashable, int | None]]:
    """data: URIs, and which of them each recording is. The first utterances are worth hearing
    most; what cannot be played or no longer fits is left out."""
    uris: list[str] = []
    index: dict[Hashable, int | None] = {}
    budget_bytes = EMBEDDED_AUDIO_BYTES
    for utterance in utterances:
        recording = _recording(utterance)
        if recording in index:
            continue
        stored = recording_of(utterance, budget_bytes) or b""
        mime_type = next((_MIME_TYPES[m] for m in _MIME_TYPES if stored.startswith(m)), None)
        index[recording] = len(uris) if mime_type else None
        if mime_type:
            budget_bytes -= len(stored)
            uris.append(f"data:{mime_type};base64,{base64.b64encode(stored).decode()}")
    return uris, index


def _lines(utterances: Sequence[Utterance], hypotheses: Sequence[Transcript]) -> str:
    lines = (
        {
            "id": utterance.id,
            "reference": utterance.text,
            "hypothesis": hypothesis.text,
            "words": [asdict(word) for word in hypothesis.words],
        }
        for utterance, hypothesis in zip(utterances, hypotheses)
    )
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def _write(path: Path, text: str) -> None:
    """A reader sees the old file or the new one, never half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
