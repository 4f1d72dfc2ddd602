"""`asr-jax transcribe RUN AUDIO ...`: prints the text of recordings."""

import json
import sys
from dataclasses import dataclass
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
from asr_jax.types import Utterance


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
    json: bool = False
    """A JSON object per line instead: audio_filepath, duration, text."""


def run(arguments: list[str]) -> int:
    """Exit status 1 where some recording could not be read; the others are printed all the same."""
    options = parse(Options, arguments, program="asr-jax transcribe")
    if not options.audio:
        raise ValueError("AUDIO: name at least one recording")
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
        for utterance, text in zip(utterances, recognition.texts):
            if text is not None:
                print(_line(utterance, text, options.json))
    for problem in problems:
        print(f"asr-jax transcribe: {problem}", file=sys.stderr)
    return 1 if problems else 0


def _line(utterance: Utterance, text: str, as_json: bool) -> str:
    if not as_json:
        return f"{utterance.audio}\t{text}"
    fields = {"audio_filepath": str(utterance.audio), "duration": utterance.duration_seconds}
    return json.dumps(fields | {"text": text}, ensure_ascii=False)
