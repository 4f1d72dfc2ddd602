"""`asr-jax evaluate RUN --data DATA ...`: recognises DATA and counts the errors."""

import functools
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from asr_jax.commands.arguments import parse, require_folder
from asr_jax.config import MeshConfig
from asr_jax.config_file import load_config
from asr_jax.data.manifest import read_transcribed, require_exists
from asr_jax.data.recordings import recording_bytes
from asr_jax.distributed.devices import prepare_devices
from asr_jax.distributed.processes import Processes, connected_processes, is_first
from asr_jax.errors import name_full_disk
from asr_jax.inference.fusion_options import NO_FUSING, Fusing, described, fused
from asr_jax.inference.label_posteriors import label_posteriors, require_lattice
from asr_jax.inference.recognizer import (
    beam_size,
    open_run,
    recognize_utterances,
    require_run,
    with_decoding,
)
from asr_jax.scoring.comparison import is_evaluation, read_baseline
from asr_jax.scoring.normalize import Convention, normalizer
from asr_jax.scoring.report import write_evaluation
from asr_jax.scoring.report_page import comparison_lines


@dataclass(frozen=True, kw_only=True)
class Options:
    """Recognises DATA and writes wer.json, hypotheses.jsonl and report.html."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run directory, or what export --format params wrote."""
    data: tuple[str, ...] = ()
    """Recordings with transcripts: folders, manifests, Kaldi directories or tar shards, one after
    the other; the run's data.test where not given."""
    compare: Path | None = None
    """Another run, which recognises DATA too, or the folder of an evaluation; of several DATA the
    folder of their evaluations."""
    normalize: Convention = "none"
    """Form in which texts are scored: as they stand, in LibriSpeech's, or in Whisper's English."""
    lattices: int = 0
    """The report shows when the labels come, for so many utterances, those with the most errors."""
    checkpoint: str = "best"
    """best (by WER on dev), last, a step, or average:N (mean of the newest N)."""
    decoder: Literal["run", "greedy", "beam"] = "run"
    """How labels are searched for; run: as its decoding.beam says."""
    beam: int | None = None
    """Label sequences that --decoder beam keeps; 4 where not given."""
    chunk_ms: float | None = None
    """decoding.chunk_ms in the config's place: recognises as in streaming; 0: whole utterances."""
    window_seconds: float | None = None
    """decoding.window_seconds in the config's place: of recordings longer than this; 0: whole."""
    output: Path | None = None
    """Where to write, of several DATA a folder for each; RUN/evaluation/NAME, named after DATA,
    where not given."""
    fusing: Annotated[Fusing, tyro.conf.arg(name="")] = NO_FUSING
    processes: Annotated[Processes, tyro.conf.arg(name="")] = Processes()


def run(arguments: list[str]) -> int:
    options = parse(Options, arguments, program="asr-jax evaluate")
    normalizer(options.normalize)  # says what is missing before the work, not after
    if options.lattices < 0 or (options.lattices and options.processes.processes > 1):
        raise ValueError(f"--lattices {options.lattices}: must be positive, and of one process")
    work = _work(options)
    with connected_processes(options.processes, command="evaluate"):
        prepare_devices(MeshConfig())
        for one in work:
            with name_full_disk(one["output"]):
                evaluate(**one)
    return 0


def _work(options: Options) -> list[dict]:
    """Arguments of `evaluate`, for the runs and DATA that are asked for, in order."""
    require_run(options.run)
    data = options.data
    if not data:
        data = tuple(filter(None, [load_config(options.run / "config.json").data.test]))
        if not data:
            raise ValueError("--data: name what to recognise, the run has no data.test")
    if "" in data:
        raise ValueError("--data: must not be empty")
    for one in data:
        require_exists(one)
    if options.output:
        require_folder(options.output, "--output")
    how = dict(
        checkpoint=options.checkpoint,
        chunk_ms=options.chunk_ms,
        window_seconds=options.window_seconds,
        beam=beam_size(options.decoder, options.beam),
        fusing=options.fusing,
        normalize=options.normalize,
        lattices=options.lattices,
    )
    baseline, work = options.compare, []
    for one in data:
        output = options.output or default_output(options.run, one)
        if options.output and len(data) > 1:
            output /= name_of(one)
        other = None
        if baseline and (baseline / "config.json").is_file():
            other = default_output(baseline, one)
            work.append(dict(run=baseline, data=one, output=other) | how)
        elif baseline:
            other = baseline / name_of(one) if len(data) > 1 else baseline
            if not is_evaluation(other):
                raise ValueError(
                    f"--compare {baseline}: must be a run or an evaluation, with a config.json or "
                    f"a hypotheses.jsonl in {other}"
                )
        if other and other.resolve() == output.resolve():
            raise ValueError(
                f"--compare {baseline}: this evaluation would replace {other}; say --output"
            )
        work.append(dict(run=options.run, data=one, output=output, compare=other) | how)
    outputs = [one["output"].resolve() for one in work]
    if doubled := [path for path in outputs if outputs.count(path) > 1]:
        raise ValueError(f"--data: two of them would be written to {doubled[0]}")
    return work


def default_output(run: Path, data: str) -> Path:
    return run / "evaluation" / name_of(data)


def name_of(data: str) -> str:
    """samples/an4/test is named an4-test: many corpora have a test."""
    path = Path(data).absolute()
    parts = [part for part in (path.parent.name, path.name.removesuffix(".jsonl")) if part]
    return "-".join(parts) or "all"


def evaluate(
    run: Path,
    data: str,
    *,
    checkpoint: str,
    output: Path,
    chunk_ms: float | None = None,
    window_seconds: float | None = None,
    beam: int | None = None,
    fusing: Fusing = NO_FUSING,
    normalize: Convention = "none",
    compare: Path | None = None,
    lattices: int = 0,
) -> None:
    """Writes the evaluation and prints its summary, and what could not be read."""
    utterances, unreadable = read_transcribed(data, "--data")
    baseline = None
    if compare and is_first():  # which wrote it, where `compare` was evaluated just now
        baseline = read_baseline(compare, utterances, normalizer(normalize))
    recognizer = with_decoding(
        open_run(run, checkpoint), chunk_ms=chunk_ms, window_seconds=window_seconds, beam=beam
    )
    recognizer = fused(recognizer, fusing)
    decoding = recognizer.config.decoding
    if lattices:
        require_lattice(recognizer.config)
    recognition = recognize_utterances(recognizer, utterances)
    if not is_first():
        return
    not_recognised = unreadable + recognition.failed
    for skipped in not_recognised:
        print(f"{skipped.id}: not recognised: {skipped.reason}", file=sys.stderr)
    scored = [(u, t) for u, t in zip(utterances, recognition.best) if t is not None]
    if not any(u.text for u, _ in scored):
        raise ValueError(f"--data {data}: none of its recordings that have a text can be read")
    figures = write_evaluation(
        output,
        utterances=[utterance for utterance, _ in scored],
        hypotheses=[transcript for _, transcript in scored],
        title=f"{run.resolve().name} on {data}",
        facts={
            "run": str(run),
            "data": data,
            "checkpoint": recognizer.checkpoint,
            "decoder": f"beam {decoding.beam}" if decoding.beam else "greedy",
            "chunk, ms (0: whole)": f"{decoding.chunk_ms:g}",
            "texts": "as they stand" if normalize == "none" else f"normalised, {normalize}",
            "left out": str(len(not_recognised)),
        }
        | described(fusing),
        audio_seconds=recognition.audio_seconds,
        wall_seconds=recognition.wall_seconds,
        recording_of=recording_bytes,
        not_recognised=not_recognised,
        normalize=normalizer(normalize),
        baseline=baseline,
        lattices=lattices,
        posteriors_of=functools.partial(label_posteriors, recognizer),
    )
    low, high = figures["wer_95_percent_interval"]
    wer = "no words"  # Normalised, none may be left.
    if figures["wer"] is not None:
        wer = f"{figures['wer']:.1f} % ({low:.1f} to {high:.1f} with 95 % confidence)"
    print(
        f"WER on {data}: {wer} of "
        f"{figures['reference_words']} words in {figures['utterances']} recordings; "
        f"{output / 'report.html'}"
    )
    if baseline:
        print(f"compared with {baseline.name}:")
        print("".join(f"  {line}\n" for line in comparison_lines(figures["comparison"])), end="")
