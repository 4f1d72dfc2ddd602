"""The three files of an evaluation: hypotheses.jsonl, wer.json and report.html."""

import json
import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from asr_jax.pages.elements import audio_uri
from asr_jax.scoring import wer
from asr_jax.scoring.evaluation import (
    Evaluation,
    Figures,
    Scores,
    mean_confidence,
    score,
    wer_figures,
)
from asr_jax.scoring.report_page import render_page
from asr_jax.scoring.wer import Edit, ErrorCounts
from asr_jax.text_files import escaped, json_line
from asr_jax.types import LabelPosterior, Transcript, Utterance

FILES = ("hypotheses.jsonl", "report.html", "wer.json")
EMBEDDED_AUDIO_BYTES = 20_000_000
"""Audio that one report may hold, before base64 makes four bytes of three."""

RecordingOf = Callable[[Utterance, int], bytes | None]
"""Returns the stored bytes of an utterance's complete recording; None if it has more bytes than the
second argument or cannot be read."""

Posteriors = Mapping[str, Sequence[LabelPosterior]]
"""Posteriors of the labels of a reference, by utterance id."""


class Recordings(NamedTuple):
    """Recordings that the page holds."""

    uris: list[str]
    """data: URIs."""
    indices: dict[Hashable, int | None]
    """Index of the URI by recording; None for a recording that the page does not hold."""


def write_evaluation(
    output: Path,
    evaluation: Evaluation,
    *,
    recording_of: RecordingOf | None = None,
    lattices: int = 0,
    posteriors_of: Callable[[Sequence[Utterance]], Posteriors] | None = None,
) -> Figures:
    """Score an evaluation, write its three files into `output`, and return the figures.

    hypotheses.jsonl  {"id", "reference", "hypothesis", "words"}, a line per utterance, in order;
                      texts are not normalized, words are as in types.Word
    report.html       one page that needs no network: figures, charts, confusions, every utterance
    wer.json          the figures; written last, so that the other files are complete if it exists

    Args:
        output: folder, made if missing; files of the same names are replaced atomically.
        recording_of: recordings to embed, up to EMBEDDED_AUDIO_BYTES, those with the most errors
            first; other recordings that are files of their own are linked relative to `output`.
        lattices: number of worst utterances to plot.
        posteriors_of: their label posteriors, by utterance id.

    Raises ValueError for a baseline without any of the utterances.
    """
    scores = score(evaluation)
    figures = wer_figures(evaluation, scores)
    worst = [evaluation.utterances[n] for n in scores.worst_first]
    recordings = embed_recordings(worst, recording_of) if recording_of else None
    posteriors = posteriors_of(worst[:lattices]) if posteriors_of and lattices else {}
    page = render_page(
        evaluation.title,
        figures,
        scores,
        rows=_rows(evaluation, scores, recordings, posteriors, output),
        recordings=recordings.uris if recordings else None,
    )
    output.mkdir(parents=True, exist_ok=True)
    _write(output / "hypotheses.jsonl", _hypotheses(evaluation))
    _write(output / "report.html", page)
    _write(output / "wer.json", json.dumps(figures, indent=2, allow_nan=False) + "\n")
    return figures


def _rows(
    evaluation: Evaluation,
    scores: Scores,
    recordings: Recordings | None,
    posteriors: Posteriors,
    output: Path,
) -> list[dict[str, object]]:
    """Return the utterances as the page's script reads them."""
    rows = []
    for n, utterance in enumerate(evaluation.utterances):
        reference, hypothesis = scores.texts[n]
        separator = " " if scores.metric == "wer" else ""
        row = _aligned(utterance, scores.alignments[n], scores.counts[n], separator)
        row |= _timed(evaluation.transcripts[n], hypothesis if separator else None)
        row["audio"] = recordings.indices.get(_recording(utterance)) if recordings else None
        if recordings and row["audio"] is None and utterance.within is None:
            row["file"] = quote(os.fsencode(os.path.relpath(utterance.audio, output)))
        if evaluation.baseline and utterance.id in evaluation.baseline.hypotheses:
            baseline = evaluation.normalize(evaluation.baseline.hypotheses[utterance.id])
            pair = reference, baseline
            baseline_errors = (
                wer.count_word_errors(*pair)
                if separator
                else wer.count_character_errors(*pair, spaces=False)
            ).errors
            row |= {"other": baseline, "gain": baseline_errors - scores.counts[n].errors}
        if utterance.id in posteriors:
            row["lattice"] = [_lattice_row(label) for label in posteriors[utterance.id]]
        rows.append(row)
    return rows


def _aligned(
    utterance: Utterance, alignment: Sequence[Edit], counts: ErrorCounts, separator: str
) -> dict[str, object]:
    """Return an utterance with its alignment.

    In `text`, a string is a run of correct words or characters with `separator` between two, and a
    pair [reference, hypothesis] is an error; null is the missing side of a deletion or insertion.
    """
    text: list[str | list[str | None]] = []
    for op, reference, hypothesis in alignment:
        if op != "equal":
            text.append([reference, hypothesis])
        elif text and isinstance(text[-1], str):
            text[-1] += f"{separator}{reference}"
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


def _timed(transcript: Transcript, normalized: str | None) -> dict[str, object]:
    """Return the words' mean confidence, and the start, end and confidence of every word.

    Times are in ms, confidences in percent. The words themselves are included if they differ from
    the normalized transcript, and where that is None because characters are aligned.
    """
    confidence = mean_confidence(transcript)
    numbers = [
        round(number)
        for word in transcript.words
        for number in (1000 * word.start_seconds, 1000 * word.end_seconds, 100 * word.confidence)
    ]
    words = [word.text for word in transcript.words]
    return {
        "sure": None if confidence is None else round(confidence, 1),
        "times": numbers,
        **({} if normalized is not None and words == normalized.split() else {"heard": words}),
    }


def _lattice_row(label: LabelPosterior) -> list[object]:
    """Return the piece, the first frame's start and a frame's length (ms), and percentages."""
    times = (round(1000 * seconds) for seconds in (label.start_seconds, label.frame_seconds))
    return [label.piece, *times, [round(100 * p) for p in label.probabilities]]


def _recording(utterance: Utterance) -> Hashable:
    """Return a key that is equal for all segments of one recording."""
    return utterance.audio, utterance.within


def embed_recordings(utterances: Sequence[Utterance], recording_of: RecordingOf) -> Recordings:
    """Embed the recordings of the first utterances that a browser can play and that fit."""
    uris: list[str] = []
    indices: dict[Hashable, int | None] = {}
    budget_bytes = EMBEDDED_AUDIO_BYTES
    for utterance in utterances:
        recording = _recording(utterance)
        if recording in indices:
            continue
        stored = recording_of(utterance, budget_bytes) or b""
        uri = audio_uri(stored)
        indices[recording] = len(uris) if uri else None
        if uri:
            budget_bytes -= len(stored)
            uris.append(uri)
    return Recordings(uris, indices)


def _hypotheses(evaluation: Evaluation) -> str:
    """Return the contents of hypotheses.jsonl."""
    lines = (
        {
            "id": utterance.id,
            "reference": utterance.text,
            "hypothesis": transcript.text,
            "words": [asdict(word) for word in transcript.words],
        }
        for utterance, transcript in zip(evaluation.utterances, evaluation.transcripts)
    )
    return "".join(map(json_line, lines))


def _write(path: Path, text: str) -> None:
    """Replace a file atomically."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(escaped(text), encoding="utf-8")
    os.replace(temporary, path)
