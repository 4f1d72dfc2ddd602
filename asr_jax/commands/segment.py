"""`asr-jax segment RUN AUDIO --text FILE --output OUT.jsonl`: cut a recording into utterances."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from asr_jax.commands.arguments import parse, require_writable
from asr_jax.commands.manifest_file import ManifestEntry, write_manifest_file
from asr_jax.commands.progress import ProgressLine
from asr_jax.config import MeshConfig
from asr_jax.decoding.utterance_cuts import PAUSE_SECONDS
from asr_jax.distributed.compile_notices import logged_compile_notices
from asr_jax.distributed.devices import prepare_devices
from asr_jax.errors import UsageError
from asr_jax.inference.inputs import is_pipe, readable_utterance
from asr_jax.inference.recognizer import open_run
from asr_jax.inference.segmentation import (
    Segmentation,
    SegmentedUtterance,
    read_words,
    segment_recording,
    with_alignable_search,
)
from asr_jax.text_files import numbered_lines, one_line, transcript


@dataclass(frozen=True, kw_only=True)
class Options:
    """Cut a long recording with a rough text into utterances: a manifest for --data.train.

    The recording is recognized, and the text is aligned with what was recognized. Text that nobody
    reads and speech that is not in the text are left out. Cuts are at pauses."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run directory, or a folder that export --format params wrote."""
    audio: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="AUDIO")]
    """Recording of any length: FLAC, WAV, Ogg, MP3; any sample rate, any number of channels."""
    text: Path
    """Text file (UTF-8) of what is said, more or less, in the same order.
    Capitals, punctuation and line breaks do not matter; the manifest keeps the written words."""
    output: Path
    """Manifest to write: audio_filepath, offset, duration, text, confidence of each utterance."""
    min_confidence: float = 0.0
    """Leave out utterances of a lower confidence: the probability of the text, relative to that of
    the recognized text, per character; 1 where they agree."""
    max_seconds: float | None = None
    """Longest utterance; if not given, data.max_seconds of the run."""
    pause_seconds: float = PAUSE_SECONDS
    """Pause that ends an utterance. Utterances that are too long are also cut at shorter ones."""
    checkpoint: str = "best"
    """best (by WER on dev), last, a step, or average:N (mean of the newest N)."""


@logged_compile_notices()
def run(arguments: list[str]) -> int:
    """Write the manifest, and print how much of the recording and of the text it holds.

    Return 1 if the recording could not be read to its end.
    """
    options = parse(Options, arguments, program="asr-jax segment")
    _check(options)
    text = transcript(" ".join(line for _, line in numbered_lines(options.text)))
    audio = readable_utterance("0", options.audio)
    prepare_devices(MeshConfig())
    recognizer = with_alignable_search(open_run(options.run, options.checkpoint))
    words = read_words(text, options.text, recognizer.tokenizer)
    longest = options.max_seconds or recognizer.config.data.max_seconds
    with ProgressLine() as progress:
        found = segment_recording(
            recognizer,
            audio,
            words,
            max_seconds=longest,
            pause_seconds=options.pause_seconds,
            report=progress.report,
        )
    kept = [u for u in found.utterances if u.confidence >= options.min_confidence]
    entries = (ManifestEntry(options.audio, *utterance) for utterance in kept)
    write_manifest_file(options.output, entries)
    print(_summary(options, found, kept))
    if problem := _unread(found):
        print(one_line(f"asr-jax segment: {options.audio}: {problem}"), file=sys.stderr)
    return int(_ends_early(found))


def _check(options: Options) -> None:
    """Raise UsageError for options that cannot be used, before any work."""
    if not 0 <= options.min_confidence <= 1:
        raise UsageError(f"--min-confidence {options.min_confidence:g}: must lie in 0..1")
    if options.max_seconds is not None and not options.max_seconds >= 1:
        raise UsageError(f"--max-seconds {options.max_seconds:g}: must be at least 1")
    if not 0.1 <= options.pause_seconds <= 60:
        raise UsageError(f"--pause-seconds {options.pause_seconds:g}: must lie in 0.1..60")
    if is_pipe(options.audio):
        raise UsageError(f"{options.audio}: a pipe, which cannot be read twice; pass a file")
    if options.output.is_dir():
        raise UsageError(f"--output {options.output}: must be a file, it is a folder")
    for name, path in (("AUDIO", options.audio), ("--text", options.text)):
        if options.output.exists() and path.exists() and options.output.samefile(path):
            raise UsageError(f"--output {options.output}: is {name}; choose another name")
    require_writable(options.output.parent)


def _summary(options: Options, found: Segmentation, kept: list[SegmentedUtterance]) -> str:
    seconds = sum(utterance.duration_seconds for utterance in kept)
    words = sum(len(utterance.text.split()) for utterance in kept)
    dropped = len(found.utterances) - len(kept)
    below = f", {dropped} left out by --min-confidence" if dropped else ""
    return (
        f"{options.output}: {len(kept)} utterances{below}; {_clock(seconds)} of "
        f"{_clock(found.recording_seconds)}, {words} of {found.words} words"
    )


def _ends_early(found: Segmentation) -> bool:
    """Return whether the last second could not be read."""
    return bool(found.unread) and found.unread[-1].end_seconds > found.recording_seconds - 1


def _unread(found: Segmentation) -> str:
    """Return what could not be read of the recording, and why."""
    if not found.unread:
        return ""
    first, last = found.unread[0], found.unread[-1]
    if len(found.unread) == 1 and _ends_early(found):
        return f"read up to {_clock(last.start_seconds)}: {last.reason}"
    others = f", and {len(found.unread) - 1} other parts" if last is not first else ""
    seconds = sum(part.end_seconds - part.start_seconds for part in found.unread)
    end = f"; read up to {_clock(last.start_seconds)}" if _ends_early(found) else ""
    return (
        f"{seconds:.0f} s not read, {_clock(first.start_seconds)} to {_clock(first.end_seconds)}"
        f"{others}: {first.reason}{end}"
    )


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
