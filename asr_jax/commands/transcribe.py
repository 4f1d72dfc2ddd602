"""`asr-jax transcribe RUN AUDIO ...`: prints the text of recordings."""

import json
import sys
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from asr_jax.audio import AudioError, audio_duration_seconds
from asr_jax.commands.arguments import parse, require_folder
from asr_jax.commands.transcribe_stream import MICROPHONE, STDIN, stream_source, streaming
from asr_jax.config import MeshConfig
from asr_jax.decoding.captions import ctm, srt, vtt
from asr_jax.distributed.devices import prepare_devices
from asr_jax.errors import name_full_disk
from asr_jax.inference.fusion_options import NO_FUSING, Fusing, fused
from asr_jax.inference.recognizer import (
    beam_size,
    open_run,
    recognize_utterances,
    windows_of,
    with_decoding,
)
from asr_jax.types import Transcript, Utterance


@dataclass(frozen=True, kw_only=True)
class Options:
    """Prints a line for every recording: its path, a tab, its text."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run directory, or what export --format params wrote."""
    audio: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="AUDIO ...")]
    """Recordings: FLAC, WAV, Ogg, MP3; any rate, any number of channels. With --stream also - for
    16-bit little-endian samples at standard input, one channel at the model's rate (16 kHz), or
    microphone."""
    stream: bool = False
    """Prints words while they are said: for each chunk the seconds so far, how long after, words
    that are complete, and the one that may go on; in the end the text."""
    chunk_ms: float | None = None
    """decoding.chunk_ms in the config's place: recognises as in streaming; 0: whole utterances,
    with --stream the smallest chunks it was trained with."""
    checkpoint: str = "best"
    """best (by WER on dev), last, a step, or average:N (mean of the newest N)."""
    decoder: Literal["run", "greedy", "beam"] = "run"
    """How labels are searched for; run: as its decoding.beam says."""
    beam: int | None = None
    """Label sequences that --decoder beam keeps; 4 where not given."""
    window_seconds: float | None = None
    """decoding.window_seconds in the config's place: of recordings longer than this; 0: whole."""
    nbest: int = 0
    """The so many best texts of a beam search instead, each with its score, a log-probability."""
    timestamps: bool = False
    """A line for every word instead: path, start and end in seconds, word, confidence."""
    json: bool = False
    """A JSON object per line instead: audio_filepath, duration, text; of --timestamps words."""
    format: Literal["text", "ctm", "srt", "vtt"] = "text"
    """What to print: text; NIST's CTM, a line for every word; SubRip or WebVTT subtitles."""
    fusing: Annotated[Fusing, tyro.conf.arg(name="")] = NO_FUSING
    output: Path | None = None
    """Writes a file for every recording into this folder, named after it, and prints nothing."""


def run(arguments: list[str]) -> int:
    """Exit status 1 where some recording could not be read; the others are printed all the same."""
    options = parse(Options, arguments, program="asr-jax transcribe")
    _check(options)
    if options.stream:
        prepare_devices(MeshConfig())
        recognizer = with_decoding(
            open_run(options.run, options.checkpoint),
            beam=beam_size(options.decoder, options.beam),
            chunk_ms=options.chunk_ms,
        )
        recognizer = streaming(recognizer)
        status = 0
        for source in options.audio:
            try:
                stream_source(source, recognizer, as_json=options.json)
            except AudioError as error:
                print(f"asr-jax transcribe: {error}", file=sys.stderr)
                status = 1
        return status
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
            chunk_ms=options.chunk_ms,
            window_seconds=options.window_seconds,
        )
        recognizer = fused(recognizer, options.fusing)
        if options.nbest > (kept := recognizer.config.decoding.beam):
            raise ValueError(
                f"--nbest {options.nbest}: the search keeps {kept or 1}; say --decoder beam, and "
                "with --beam how many"
            )
        for utterance in utterances if options.nbest > 1 else ():
            if len(windows_of(utterance, recognizer.config)) > 1:
                raise ValueError(
                    f"--nbest {options.nbest}: {utterance.audio} is recognised in windows, which "
                    "are joined to one text; say --window-seconds 0, or --nbest 1"
                )
        recognition = recognize_utterances(recognizer, utterances)
        problems += [skipped.reason for skipped in recognition.failed]
        for utterance, found in zip(utterances, recognition.hypotheses):
            if found is not None:
                _write(utterance, found, options)
    for problem in problems:
        print(f"asr-jax transcribe: {problem}", file=sys.stderr)
    return 1 if problems else 0


def _check(options: Options) -> None:
    if not options.audio:
        raise ValueError("AUDIO: name at least one recording")
    live = [path for path in options.audio if str(path) in (STDIN, MICROPHONE)]
    if live and not options.stream:
        raise ValueError(f"AUDIO {live[0]}: needs --stream")
    if options.stream and (
        options.nbest or options.timestamps or options.output or options.format != "text"
    ):
        raise ValueError("--stream: prints text, or with --json words with times; no other form")
    if options.stream and options.window_seconds is not None:
        raise ValueError(f"--window-seconds {options.window_seconds}: --stream has no windows")
    if options.stream and options.fusing.asked_for:
        raise ValueError(f"{options.fusing.asked_for}: is of a beam search, --stream is greedy")
    if options.nbest < 0:
        raise ValueError(f"--nbest {options.nbest}: must be positive")
    if options.nbest and not options.json and (options.timestamps or options.format != "text"):
        raise ValueError("--nbest: is of plain text and of --json")
    if options.format != "text" and (options.json or options.timestamps):
        other = "--json" if options.json else "--timestamps"
        raise ValueError(f"{other}: is of --format text, not of {options.format}")
    stem, number = Counter(path.stem for path in options.audio).most_common(1)[0]
    if number > 1 and (options.output or options.format == "ctm"):
        which = f"--output {options.output}" if options.output else "--format ctm"
        raise ValueError(f"{which}: {number} recordings are named {stem}")
    if options.output:
        require_folder(options.output, "--output")
    elif options.format in ("srt", "vtt") and len(options.audio) > 1:
        raise ValueError(
            f"--format {options.format}: is of one recording; of several say --output FOLDER"
        )


def _write(utterance: Utterance, found: list[Transcript], options: Options) -> None:
    text = as_text(utterance, found, options)
    if options.output is None:
        print(text, end="")
        return
    kind = "json" if options.json else "txt" if options.format == "text" else options.format
    with name_full_disk(options.output):
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / f"{utterance.audio.stem}.{kind}").write_text(text, encoding="utf-8")


def as_text(utterance: Utterance, found: list[Transcript], options: Options) -> str:
    """What is printed of one recording, of which so many hypotheses were found, the best first."""
    path, words = str(utterance.audio), found[0].words
    match options.format:
        case "ctm":
            return ctm(words, utterance.audio.stem)
        case "srt":
            return srt(words)
        case "vtt":
            return vtt(words)
    # Of label sequences that spell the same text the best one.
    best_of: dict[str, Transcript] = {}
    for one in found:
        best_of.setdefault(one.text, one)
    nbest = list(best_of.values())[: options.nbest]
    if options.json:
        fields = {"audio_filepath": path, "duration": utterance.duration_seconds}
        fields |= _fields(found[0], options.timestamps)
        if nbest:
            fields["nbest"] = [
                {"score": one.score} | _fields(one, options.timestamps) for one in nbest
            ]
        return json.dumps(fields, ensure_ascii=False) + "\n"
    if options.timestamps:
        return "".join(
            f"{path}\t{w.start_seconds:.3f}\t{w.end_seconds:.3f}\t{w.text}\t{w.confidence:.4f}\n"
            for w in words
        )
    if nbest:
        return "".join(f"{path}\t{one.score:.4f}\t{one.text}\n" for one in nbest)
    return f"{path}\t{found[0].text}\n"


def _fields(transcript: Transcript, timestamps: bool) -> dict:
    words = {"words": [asdict(word) for word in transcript.words]} if timestamps else {}
    return {"text": transcript.text} | words
