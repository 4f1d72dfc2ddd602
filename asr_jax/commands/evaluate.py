"""`asr-jax evaluate RUN --data DATA`: recognises DATA and counts the errors."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from asr_jax.commands.arguments import parse
from asr_jax.commands.devices import prepare_devices
from asr_jax.commands.processes import Processes, is_first, joined
from asr_jax.commands.recognition import (
    beam_size,
    open_run,
    recognize_utterances,
    with_decoding,
)
from asr_jax.config import MeshConfig
from asr_jax.data.manifest import read_transcribed
from asr_jax.data.recordings import recording_bytes
from asr_jax.scoring.report import write_evaluation


@dataclass(frozen=True, kw_only=True)
class Options:
    """Recognises DATA and writes wer.json, hypotheses.jsonl and report.html."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run directory, or what export --format params wrote."""
    data: str
    """Recordings with transcripts: a folder, a manifest, a Kaldi directory or tar shards."""
    checkpoint: str = "best"
    """best (by WER on dev), last, a step, or average:N (mean of the newest N)."""
    decoder: Literal["run", "greedy", "beam"] = "run"
    """How labels are searched for; run: as its decoding.beam says."""
    beam: int = 4
    """Label sequences that --decoder beam keeps."""
    chunk_ms: float | None = None
    """decoding.chunk_ms in the config's place: recognises as in streaming; 0: whole utterances."""
    output: Path | None = None
    """Where to write; RUN/evaluation/NAME, named after DATA, where not given."""
    meeting: Annotated[Processes, tyro.conf.arg(name="")] = Processes()


def run(arguments: list[str]) -> int:
    options = parse(Options, arguments, program="asr-jax evaluate")
    output = options.output or default_output(options.run, options.data)
    with joined(options.meeting, verb="evaluate"):
        prepare_devices(MeshConfig())
        evaluate(
            options.run,
            options.data,
            checkpoint=options.checkpoint,
            output=output,
            chunk_ms=options.chunk_ms,
            beam=beam_size(options.decoder, options.beam),
        )
    return 0


def default_output(run: Path, data: str) -> Path:
    """samples/an4/test is named an4-test: many corpora have a test."""
    path = Path(data).absolute()
    parts = [part for part in (path.parent.name, path.name.removesuffix(".jsonl")) if part]
    return run / "evaluation" / ("-".join(parts) or "all")


def evaluate(
    run: Path,
    data: str,
    *,
    checkpoint: str,
    output: Path,
    chunk_ms: float | None = None,
    beam: int | None = None,
) -> None:
    """Writes the evaluation and prints its one-line summary, and what could not be read."""
    utterances, unreadable = read_transcribed(data, "--data")
    recognizer = with_decoding(open_run(run, checkpoint), chunk_ms=chunk_ms, beam=beam)
    decoding = recognizer.config.decoding
    recognition = recognize_utterances(recognizer, utterances)
    if not is_first():
        return
    for skipped in unreadable + recognition.failed:
        print(f"{skipped.id}: not recognised: {skipped.reason}", file=sys.stderr)
    scored = [(u, t) for u, t in zip(utterances, recognition.best) if t is not None]
    if not any(u.text for u, _ in scored):
        raise ValueError(f"--data {data}: none of its recordings that have a text can be read")
    figures = write_evaluation(
        output,
        utterances=[utterance for utterance, _ in scored],
        hypotheses=[transcript for _, transcript in scored],
        title=f"{run.name} on {data}",
        facts={
            "run": str(run),
            "data": data,
            "checkpoint": recognizer.checkpoint,
            "decoder": f"beam {decoding.beam}" if decoding.beam else "greedy",
            "chunk, ms (0: whole)": f"{decoding.chunk_ms:g}",
            "left out": str(len(unreadable) + len(recognition.failed)),
        },
        audio_seconds=recognition.audio_seconds,
        wall_seconds=recognition.wall_seconds,
        recording_of=recording_bytes,
    )
    low, high = figures["wer_95_percent_interval"]
    print(
        f"WER on {data}: {figures['wer']:.1f} % ({low:.1f} to {high:.1f} with 95 % confidence) of "
        f"{figures['reference_words']} words in {figures['utterances']} recordings; "
        f"{output / 'report.html'}"
    )
