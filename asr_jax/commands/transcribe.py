"""`asr-jax transcribe RUN AUDIO ...`: prints the text of recordings."""

import json
import sys
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from asr_jax.audio import AudioError, audio_duration_seconds
from asr_jax.commands.arguments import parse
from asr_jax.commands.devices import prepare_devices
from asr_jax.commands.recognition import (
    beam_size,
    open_run,
    recognize_utterances,
    with_decoding,
)
from asr_jax.config import MeshConfig
from asr_jax.decoding.captions import ctm, srt, vtt
from asr_jax.types import Transcript, Utterance


@dataclass(frozen=True, kw_only=True)
class Options:
    """Prints a line for every recording: its path, a tab, its text."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run directory, or what export --format params wrote."""
    audio: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="AUDIO ...")]
    """Recordings: FLAC, WAV, Ogg, MP3; any rate, any number of channels."""
    checkpoint: str = "best"
    """best (by WER on dev), last, a step, or average:N (mean of the newest N)."""
    decoder: Literal["run", "greedy", "beam"] = "run"
    """How labels are searched for; run: as its decoding.beam says."""
    beam: int = 4
    """Label sequences that --decoder beam keeps."""
    timestamps: bool = False
    """A line for every word instead: path, start and end in seconds, word, confidence."""
    json: bool = False
    """A JSON object per line instead: audio_filepath, duration, text; of --timestamps words."""
    format: Literal["text", "ctm", "srt", "vtt"] = "text"
    """What to print: text; NIST's CTM, a line for every word; SubRip or WebVTT subtitles."""
    output: Path | None = None
    """Writes a file for every recording into this folder, named after it, and prints nothing."""


def run(arguments: list[str]) -> int:
    """Exit status 1 where some recording could not be read; the others are printed all the same."""
    options = parse(Options, arguments, program="asr-jax transcribe")
    _check(options)
    problems = []
    utterances = []
    for number, path in enumerate(options.audio):
        try:
            seconds = audio_duration_seconds(path)
            utterances.append(Utterance(str(number), path, "", seconds))
        except AudioError as error:
            problems.append(str(error))
    if utterances:
        prepare_devices(MeshConfig())
        recognizer = with_decoding(
            open_run(options.run, options.checkpoint),
            beam=beam_size(options.decoder, options.beam),
        )
        recognition = recognize_utterances(recognizer, utterances)
        problems += [skipped.reason for skipped in recognition.failed]
        for utterance, transcript in zip(utterances, recognition.best):
            if transcript is not None:
                _write(utterance, transcript, options)
    for problem in problems:
        print(f"asr-jax transcribe: {problem}", file=sys.stderr)
    return 1 if problems else 0


def _check(options: Options) -> None:
    if not options.audio:
        raise ValueError("AUDIO: name at least one recording")
    if options.format != "text" and (options.json or options.timestamps):
        other = "--json" if options.json else "--timestamps"
        raise ValueError(f"{other}: is of --format text, not of {options.format}")
    if options.output:
        stem, number = Counter(path.stem for path in options.audio).most_common(1)[0]
        if number > 1:
            raise ValueError(f"--output {options.output}: {number} recordings are named {stem}")
    elif options.format in ("srt", "vtt") and len(options.audio) > 1:
        raise ValueError(
            f"--format {options.format}: is of one recording; of several say --output FOLDER"
        )


def _write(utterance: Utterance, transcript: Transcript, options: Options) -> None:
    text = _as_text(utterance, transcript, options)
    if options.output is None:
        print(text, end="")
        return
    kind = "json" if options.json else "txt" if options.format == "text" else options.format
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / f"{utterance.audio.stem}.{kind}").write_text(text, encoding="utf-8")


def _as_text(utterance: Utterance, transcript: Transcript, options: Options) -> str:
    path = str(utterance.audio)
    match options.format:
        case "ctm":
            return ctm(transcript.words, utterance.audio.stem)
        case "srt":
            return srt(transcript.words)
        case "vtt":
            return vtt(transcript.words)
    if options.json:
        fields = {
            "audio_filepath": path,
            "duration": utterance.duration_seconds,
            "text": transcript.text,
        }
        if options.timestamps:
            fields["words"] = [asdict(word) for word in transcript.words]
        return json.dumps(fields, ensure_ascii=False) + "\n"
    if options.timestamps:
        return "".join(
            f"{path}\t{w.start_seconds:.3f}\t{w.end_seconds:.3f}\t{w.text}\t{w.confidence:.4f}\n"
            for w in transcript.words
        )
    return f"{path}\t{transcript.text}\n"
