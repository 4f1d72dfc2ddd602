"""`asr-jax transcribe RUN AUDIO ...`: print the text of recordings."""

import os
import sys
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from asr_jax.audio.samples import AudioError
from asr_jax.commands.arguments import parse, require_folder, require_writable
from asr_jax.commands.progress import ProgressLine
from asr_jax.commands.transcribe_manifest import write_manifest
from asr_jax.commands.transcribe_stream import (
    MICROPHONE,
    printable_json,
    stream_source,
    streaming,
)
from asr_jax.config import Config, MeshConfig
from asr_jax.decoding.captions import ctm, recording_name, srt, vtt
from asr_jax.distributed.compile_notices import logged_compile_notices
from asr_jax.distributed.devices import prepare_devices
from asr_jax.errors import name_full_disk
from asr_jax.inference.fusion_options import NO_FUSION_OPTIONS, FusionOptions, with_fusion
from asr_jax.inference.inputs import file_utterance, is_pipe, named_recordings
from asr_jax.inference.recognizer import (
    Recognizer,
    beam_size,
    open_run,
    recognize_utterances,
    windows_of,
    with_decoding,
)
from asr_jax.text_files import escaped, field, json_line, one_line
from asr_jax.types import Transcript, Utterance

# File systems allow 255 bytes, and a suffix such as .json is appended.
LONGEST_STEM_BYTES = 250


@dataclass(frozen=True, kw_only=True)
class Options:
    """Print a line for every recording: its path, a tab, its text."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run directory, or a folder that export --format params wrote."""
    audio: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="AUDIO ...")]
    """Recordings: FLAC, WAV, Ogg, MP3; any sample rate, any number of channels;
    folders of them; pipes, also "-" for standard input. With --stream also "microphone",
    and pipes carry WAV or raw samples: 16-bit, one channel at the model's rate (16 kHz)."""
    stream: bool = False
    """Print words while they are spoken, and at the end the text.
    For each chunk: seconds so far, latency, complete words, and the word that may still change."""
    chunk_ms: float | None = None
    """Override decoding.chunk_ms: recognize in chunks, as in streaming.
    0: whole utterances, or with --stream the smallest chunks of training."""
    checkpoint: str = "best"
    """best (on dev), last, a step, or average:N (mean of the newest N)."""
    decoder: Literal["run", "greedy", "beam"] = "run"
    """Search method; run: greedy or beam, as the run's decoding.beam says."""
    beam: int | None = None
    """Beam size of --decoder beam; 4 if not given."""
    window_seconds: float | None = None
    """Override decoding.window_seconds: recognize longer recordings in windows; 0: never."""
    nbest: int = 0
    """Print the N best hypotheses of a beam search with their log-probability scores."""
    timestamps: bool = False
    """Print a line for every word: path, start and end in seconds, word, confidence."""
    json: bool = False
    """Print JSON objects: audio_filepath, duration, text; with --timestamps also words."""
    format: Literal["text", "ctm", "srt", "vtt"] = "text"
    """ctm: NIST's CTM, a line for every word; srt, vtt: SubRip or WebVTT subtitles."""
    fusing: Annotated[FusionOptions, tyro.conf.arg(name="")] = NO_FUSION_OPTIONS
    output: Path | None = None
    """Write a file for every recording into this folder, named after it, and print nothing."""
    manifest: Path | None = None
    """Write this JSONL manifest, to train on what is recognized: audio_filepath, offset, duration,
    text, confidence. Recordings longer than the run's data.max_seconds are cut at pauses."""
    min_confidence: float = 0.0
    """Leave utterances of a lower confidence, the mean of their words', out of --manifest."""


@logged_compile_notices()
def run(arguments: list[str]) -> int:
    """Return 1 if a recording could not be read; the other recordings are transcribed."""
    options = parse(Options, arguments, program="asr-jax transcribe")
    options = replace(options, audio=named_recordings(options.audio))
    _check(options)
    return _transcribe_stream(options) if options.stream else _transcribe_files(options)


def _transcribe_stream(options: Options) -> int:
    prepare_devices(MeshConfig())
    recognizer = streaming(_open_recognizer(options))
    status = 0
    for source in options.audio:
        try:
            stream_source(source, recognizer, as_json=options.json)
        except AudioError as error:
            _print_problem(str(error))
            status = 1
    return status


def _transcribe_files(options: Options) -> int:
    utterances, problems = [], []
    with ProgressLine() as progress:
        for number, path in enumerate(options.audio):
            try:
                utterances.append(file_utterance(str(number), path))
            except AudioError as error:
                problems.append(str(error))
            progress.report("opening", (number + 1) / len(options.audio))
    if utterances:
        prepare_devices(MeshConfig())
        recognizer = with_fusion(_open_recognizer(options), options.fusing)
        _check_nbest(options.nbest, utterances, recognizer.config)
        with ProgressLine() as progress:
            recognition = recognize_utterances(
                recognizer, utterances, report=lambda done: progress.report("recognizing", done)
            )
        recognized = [
            (utterance, hypotheses)
            for utterance, hypotheses in zip(utterances, recognition.hypotheses)
            if hypotheses is not None
        ]
        if options.manifest:
            summary = write_manifest(
                options.manifest,
                [(utterance, hypotheses[0]) for utterance, hypotheses in recognized],
                max_seconds=recognizer.config.data.max_seconds,
                min_confidence=options.min_confidence,
            )
            print(summary)
        else:
            for utterance, hypotheses in recognized:
                _write(utterance, hypotheses, options)
        problems += [skipped.reason for skipped in recognition.failed]
    for problem in problems:
        _print_problem(problem)
    return 1 if problems else 0


def _print_problem(problem: str) -> None:
    print(f"asr-jax transcribe: {one_line(problem)}", file=sys.stderr)


def _open_recognizer(options: Options) -> Recognizer:
    return with_decoding(
        open_run(options.run, options.checkpoint),
        beam=beam_size(options.decoder, options.beam),
        chunk_ms=options.chunk_ms,
        window_seconds=options.window_seconds,
    )


def _check(options: Options) -> None:
    """Raise ValueError for options that do not go together."""
    if not options.audio:
        raise ValueError("AUDIO: name at least one recording")
    if Path(MICROPHONE) in options.audio and not options.stream and not Path(MICROPHONE).exists():
        raise ValueError(f"AUDIO {MICROPHONE}: needs --stream")
    if options.stream:
        _check_stream(options)
    _check_form(options)
    _check_output(options)
    _check_manifest(options)


def _check_stream(options: Options) -> None:
    if options.nbest or options.timestamps or options.output or options.format != "text":
        raise ValueError("--stream: has no --nbest, --timestamps, --format and --output")
    if options.window_seconds is not None:
        raise ValueError(f"--window-seconds {options.window_seconds}: --stream has no windows")
    if options.fusing.asked_for:
        raise ValueError(f"{options.fusing.asked_for}: needs a beam search, but --stream is greedy")


def _check_form(options: Options) -> None:
    if options.nbest < 0:
        raise ValueError(f"--nbest {options.nbest}: must not be negative")
    if options.nbest and not options.json and (options.timestamps or options.format != "text"):
        raise ValueError("--nbest: needs plain text or --json")
    if options.format != "text" and (options.json or options.timestamps):
        option = "--json" if options.json else "--timestamps"
        raise ValueError(f"{option}: needs --format text, not {options.format}")


def _check_manifest(options: Options) -> None:
    if options.manifest is None:
        if options.min_confidence:
            raise ValueError(f"--min-confidence {options.min_confidence:g}: needs --manifest")
        return
    if not 0 <= options.min_confidence <= 1:
        raise ValueError(f"--min-confidence {options.min_confidence:g}: must be in 0..1")
    others = {
        "--stream": options.stream,
        "--nbest": options.nbest,
        "--timestamps": options.timestamps,
        "--json": options.json,
        "--output": options.output,
        "--format": options.format != "text",
    }
    if given := [option for option, value in others.items() if value]:
        raise ValueError(f"--manifest {options.manifest}: has its own form, without {given[0]}")
    if options.manifest.is_dir():
        raise ValueError(f"--manifest {options.manifest}: a folder; name a file, such as out.jsonl")
    if pipes := [path for path in options.audio if is_pipe(path)]:
        raise ValueError(f"--manifest {options.manifest}: needs files to name, not {pipes[0]}")
    require_folder(options.manifest.parent, "--manifest")
    require_writable(options.manifest.parent)


def _check_output(options: Options) -> None:
    is_ctm = options.format == "ctm"
    stems = [recording_name(path.stem) if is_ctm else path.stem for path in options.audio]
    stem, number = Counter(stems).most_common(1)[0]
    if number > 1 and (options.output or is_ctm):
        option = f"--output {options.output}" if options.output else "--format ctm"
        raise ValueError(f"{option}: {number} recordings are named {stem}")
    if options.output:
        longest = max(options.audio, key=lambda path: len(os.fsencode(path.stem)))
        if len(os.fsencode(longest.stem)) > LONGEST_STEM_BYTES:
            raise ValueError(f"--output {options.output}: the name of {longest} is too long")
        require_folder(options.output, "--output")
        require_writable(options.output)
    elif options.format in ("srt", "vtt") and len(options.audio) > 1:
        raise ValueError(
            f"--format {options.format}: prints one recording; for several, pass --output FOLDER"
        )


def _check_nbest(nbest: int, utterances: list[Utterance], config: Config) -> None:
    """Raise ValueError if the search keeps fewer hypotheses, or merges windows to one text."""
    if nbest > (beam := config.decoding.beam):
        raise ValueError(
            f"--nbest {nbest}: must not exceed the beam size, {beam or 1}; pass --decoder beam "
            f"--beam {nbest}"
        )
    for utterance in utterances if nbest > 1 else ():
        if len(windows_of(utterance, config)) > 1:
            raise ValueError(
                f"--nbest {nbest}: {utterance.audio} is recognized in windows, which "
                "are merged to one text; pass --window-seconds 0, or --nbest 1"
            )


def _write(utterance: Utterance, hypotheses: list[Transcript], options: Options) -> None:
    text = as_text(utterance, hypotheses, options)
    if options.output is None:
        print(printable_json(text) if options.json else text, end="")
        return
    kind = "json" if options.json else "txt" if options.format == "text" else options.format
    with name_full_disk(options.output):
        options.output.mkdir(parents=True, exist_ok=True)
        path = options.output / f"{utterance.audio.stem}.{kind}"
        path.write_text(escaped(text), encoding="utf-8")


def as_text(utterance: Utterance, hypotheses: list[Transcript], options: Options) -> str:
    """Return the text to print for one recording, from its hypotheses, the best first."""
    best = hypotheses[0]
    match options.format:
        case "ctm":
            return ctm(best.words, utterance.audio.stem)
        case "srt":
            return srt(best.words)
        case "vtt":
            return vtt(best.words)
    name = field(str(utterance.audio))
    nbest = _different_texts(hypotheses)[: options.nbest]
    if options.json:
        return _as_json(utterance, best, nbest, timestamps=options.timestamps)
    if options.timestamps:
        return "".join(
            f"{name}\t{w.start_seconds:.3f}\t{w.end_seconds:.3f}\t{w.text}\t{w.confidence:.4f}\n"
            for w in best.words
        )
    if nbest:
        return "".join(f"{name}\t{t.score:.4f}\t{t.text}\n" for t in nbest)
    return f"{name}\t{best.text}\n"


def _different_texts(hypotheses: list[Transcript]) -> list[Transcript]:
    """Return the best hypothesis of each text, which several label sequences may spell."""
    best_of: dict[str, Transcript] = {}
    for transcript in hypotheses:
        best_of.setdefault(transcript.text, transcript)
    return list(best_of.values())


def _as_json(
    utterance: Utterance, best: Transcript, nbest: list[Transcript], *, timestamps: bool
) -> str:
    fields = {
        "audio_filepath": str(utterance.audio),
        "duration": utterance.duration_seconds,
        **_fields(best, timestamps),
    }
    if nbest:
        fields["nbest"] = [{"score": t.score, **_fields(t, timestamps)} for t in nbest]
    return json_line(fields)


def _fields(transcript: Transcript, timestamps: bool) -> dict[str, object]:
    words = {"words": [asdict(word) for word in transcript.words]} if timestamps else {}
    return {"text": transcript.text, **words}
