"""Folders and JSONL files of transcribed recordings, as lists of utterances."""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Int32

from asr_jax.audio import AudioError
from asr_jax.data.recordings import recording_seconds
from asr_jax.text import SPACE_PIECE, UNKNOWN_ID, Tokenizer, collapse_white_space
from asr_jax.types import Skipped, Utterance

AUDIO_SUFFIXES = (".flac", ".wav", ".ogg", ".opus")
HEADER_THREADS = 8


def read_manifest(data: str | Path) -> tuple[list[Utterance], list[Skipped]]:
    """Utterances of a folder in LibriSpeech layout or of a JSONL manifest, sorted by id.

    Folder: every `*.trans.txt` below it, of lines `ID TEXT`, with the recording ID.flac (.wav,
    .ogg, .opus) beside it; the speaker is the S of S/C/S-C.trans.txt. Manifest (NeMo): a JSON
    object per line with `audio_filepath` (absolute or relative to the manifest) and `text`,
    optionally `duration` (else the header's) and `offset` in seconds, `speaker` and `id` (else the
    path with the offset). White space in transcripts is collapsed.

    Returns the utterances, and those left out because their recording is missing or unreadable.
    Raises ValueError, naming file and line, for what is wrong with the transcripts themselves, for
    duplicate ids, and when nothing is left.
    """
    data = Path(data)
    if data.is_dir():
        listed = list(_folder_utterances(data))
    elif data.is_file():
        listed = list(_jsonl_utterances(data))
    else:
        raise ValueError(f"{data}: no such folder or manifest")
    if not listed:
        raise ValueError(f"{data}: no transcripts in it (*.trans.txt of a folder, or JSON lines)")
    id, count = Counter(utterance.id for utterance in listed).most_common(1)[0]
    if count > 1:
        raise ValueError(f"{data}: the id {id} occurs {count} times, ids must be unique")

    # Opening 280,000 headers is waiting for the disk.
    with ThreadPoolExecutor(HEADER_THREADS) as pool:
        measured = list(pool.map(_measured, sorted(listed, key=lambda utterance: utterance.id)))
    utterances = [item for item in measured if isinstance(item, Utterance)]
    skipped = [item for item in measured if isinstance(item, Skipped)]
    if not utterances:
        raise ValueError(
            f"{data}: none of its {len(skipped)} recordings can be read, "
            f"the first is {skipped[0].id}: {skipped[0].reason}"
        )
    return utterances, skipped


def read_transcribed(data: str | Path, name: str) -> tuple[list[Utterance], list[Skipped]]:
    """read_manifest of what is to be scored: raises ValueError too where no transcript has a word.

    `name` is what the user calls it.
    """
    utterances, skipped = read_manifest(data)
    if not any(utterance.text for utterance in utterances):
        raise ValueError(f"{name} = {data}: all transcripts are empty")
    return utterances, skipped


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
    that no CTC path can hold, the blanks between repeats included, are kept too, and listed as left
    out of that loss. A reason is a phrase that many utterances share, then ": " and the figures of
    this one.
    """
    if labels is None:
        labels = tokenizer.encode_all([utterance.text for utterance in utterances])
    all_seconds = np.array([utterance.duration_seconds for utterance in utterances])
    all_frames = frames_of(all_seconds)
    lengths = np.array([len(ids) for ids in labels], np.int64)
    ids = np.concatenate([np.zeros(0, np.int32), *labels])
    number = np.repeat(np.arange(len(labels)), lengths)
    count = lambda where: np.bincount(number[where], minlength=len(labels))
    repeats = count(1 + np.flatnonzero((ids[1:] == ids[:-1]) & (number[1:] == number[:-1])))
    ctc_frames = lengths + repeats
    # The space's own piece is a character that the tokenizer lacks, though it encodes it.
    has_unknown = (count(ids == UNKNOWN_ID) > 0) | [SPACE_PIECE in u.text for u in utterances]
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
            figures = f"{ctc_frames[n]} for {all_frames[n]}"
            reason = f"of the CTC loss alone, more labels than frames: {figures}"
        skipped.append(Skipped(utterance.id, reason))
    kept = np.flatnonzero(usable).tolist()
    return [utterances[n] for n in kept], [labels[n] for n in kept], skipped


def _measured(utterance: Utterance) -> Utterance | Skipped:
    """The utterance with its duration, which the header gives where the manifest does not."""
    if math.isnan(utterance.duration_seconds):
        try:
            seconds = recording_seconds(utterance) - utterance.offset_seconds
        except AudioError as error:
            return Skipped(utterance.id, f"{error.reason}: {utterance.audio}")
        if seconds <= 0:
            return Skipped(utterance.id, f"offset beyond the end: {utterance.offset_seconds:g} s")
        return replace(utterance, duration_seconds=seconds)
    if not utterance.audio.is_file():
        return Skipped(utterance.id, f"no such file: {utterance.audio}")
    return utterance


def _folder_utterances(folder: Path) -> Iterator[Utterance]:
    for transcripts in sorted(folder.rglob("*.trans.txt")):
        beside = transcripts.parent
        recordings = {
            path.stem: path
            for path in sorted(beside.iterdir())
            if path.suffix.lower() in AUDIO_SUFFIXES
        }
        speaker, chapter = beside.absolute().parts[-2:]
        is_librispeech = transcripts.name == f"{speaker}-{chapter}.trans.txt"
        for _, line in _lines(transcripts):
            id, _, text = line.strip().partition(" ")
            yield Utterance(
                id=id,
                audio=recordings.get(id, beside / f"{id}{AUDIO_SUFFIXES[0]}"),
                text=collapse_white_space(text),
                duration_seconds=math.nan,
                speaker=speaker if is_librispeech else "",
            )


def _jsonl_utterances(manifest: Path) -> Iterator[Utterance]:
    for number, line in _lines(manifest):
        where = f"{manifest}:{number}"
        try:
            fields = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where}: not JSON, {error.msg} at column {error.colno}") from error
        if not isinstance(fields, dict):
            raise ValueError(f"{where}: needs a JSON object, not {line.strip()[:40]}")
        for name in ("audio_filepath", "text"):
            if not isinstance(fields.get(name), str):
                raise ValueError(f"{where}: needs the field {name}, a string")
        audio = fields["audio_filepath"]
        for name in ("duration", "offset"):
            value = fields.get(name)
            is_seconds = isinstance(value, int | float) and 0 <= value < math.inf
            # null, as some writers put it, is as good as absent.
            if value is not None and not is_seconds:
                raise ValueError(f"{where}: {name} = {value!r} must be a number of seconds")
        duration, offset = fields.get("duration"), fields.get("offset") or 0
        id, speaker = fields.get("id"), fields.get("speaker")
        segment = f"{audio}@{offset}" + (f"+{duration}" if duration is not None else "")
        yield Utterance(
            id=str(id) if id not in (None, "") else segment if offset else audio,
            audio=manifest.parent / audio,
            text=collapse_white_space(fields["text"]),
            duration_seconds=math.nan if duration is None else float(duration),
            speaker="" if speaker is None else str(speaker),
            offset_seconds=float(offset),
        )


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, numbered from 1."""
    try:
        with path.open(encoding="utf-8") as file:
            yield from ((n, line) for n, line in enumerate(file, start=1) if line.strip())
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text") from error
