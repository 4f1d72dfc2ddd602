"""`asr-jax evaluate RUN --data DATA ...`: recognize datasets and count the errors."""

import dataclasses
import functools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from asr_jax.commands.arguments import parse, require_folder, require_writable
from asr_jax.config import MeshConfig
from asr_jax.config_file import load_config
from asr_jax.data.manifest import read_transcribed, require_exists
from asr_jax.data.recordings import recording_bytes
from asr_jax.distributed.compile_notices import logged_compile_notices
from asr_jax.distributed.devices import prepare_devices
from asr_jax.distributed.processes import Processes, connected_processes, is_first
from asr_jax.errors import name_full_disk
from asr_jax.inference.fusion_options import (
    NO_FUSION_OPTIONS,
    FusionOptions,
    fusion_facts,
    with_fusion,
)
from asr_jax.inference.label_posteriors import label_posteriors, require_lattice
from asr_jax.inference.recognizer import (
    Recognizer,
    beam_size,
    open_run,
    recognize_utterances,
    require_run,
    with_decoding,
)
from asr_jax.scoring.comparison import is_evaluation, read_baseline
from asr_jax.scoring.evaluation import Evaluation, Figures, main_rate, unwritable
from asr_jax.scoring.normalize import Convention, normalizer
from asr_jax.scoring.report import FILES, write_evaluation
from asr_jax.scoring.report_page import comparison_lines
from asr_jax.text import Tokenizer
from asr_jax.text_files import one_line
from asr_jax.types import Skipped, Utterance


@dataclass(frozen=True, kw_only=True)
class Options:
    """Recognize datasets and write wer.json, hypotheses.jsonl and report.html for each."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run directory, or a folder that export --format params wrote."""
    data: tuple[str, ...] = ()
    """Recordings with transcripts: folders, manifests, tables, Kaldi directories or tar shards.
    By default the run's data.test."""
    compare: Path | None = None
    """Baseline: another run, which is evaluated first, or the folder of an evaluation.
    For several datasets: the folder that contains their evaluations."""
    normalize: Convention = "none"
    """Normalization before scoring: none, LibriSpeech's form, or Whisper's for English."""
    lattices: int = 0
    """Plot label posteriors for the N utterances with the most errors."""
    checkpoint: str = "best"
    """best (on dev), last, a step, or average:N (mean of the newest N)."""
    decoder: Literal["run", "greedy", "beam"] = "run"
    """Search method; run: greedy or beam, as the run's decoding.beam says."""
    beam: int | None = None
    """Beam size of --decoder beam; 4 if not given."""
    chunk_ms: float | None = None
    """Override decoding.chunk_ms: recognize in chunks, as in streaming; 0: whole utterances."""
    window_seconds: float | None = None
    """Override decoding.window_seconds: recognize longer recordings in windows; 0: never."""
    output: Path | None = None
    """Folder to write to, with a subfolder for each of several datasets.
    By default RUN/evaluation/NAME, named after the dataset."""
    fusing: Annotated[FusionOptions, tyro.conf.arg(name="")] = NO_FUSION_OPTIONS
    processes: Annotated[Processes, tyro.conf.arg(name="")] = Processes()


@dataclass(frozen=True)
class Job:
    """The evaluation of one dataset."""

    options: Options
    data: str

    @property
    def output(self) -> Path:
        """Folder of the report."""
        output = self.options.output
        if output is None:
            return default_output(self.options.run, self.data)
        return output / name_of(self.data) if self._is_one_of_several else output

    @property
    def baseline(self) -> Path | None:
        """Folder of the evaluation to compare with."""
        compare = self.options.compare
        if compare is None:
            return None
        if _is_run(compare):
            return default_output(compare, self.data)
        return compare / name_of(self.data) if self._is_one_of_several else compare

    @property
    def _is_one_of_several(self) -> bool:
        return len(self.options.data) > 1


@logged_compile_notices()
def run(arguments: list[str]) -> int:
    options = parse(Options, arguments, program="asr-jax evaluate")
    normalizer(options.normalize)  # Raises ValueError before any work.
    if options.lattices < 0:
        raise ValueError(f"--lattices {options.lattices}: must not be negative")
    if options.lattices and options.processes.processes > 1:
        raise ValueError(f"--lattices {options.lattices}: needs a single process")
    all_jobs = jobs(options)
    with connected_processes(options.processes, command="evaluate"):
        prepare_devices(MeshConfig())
        for job in all_jobs if is_first() else ():
            require_writable(job.output, FILES)
        for job in all_jobs:
            with name_full_disk(job.output):
                evaluate(job)
    return 0


def jobs(options: Options) -> list[Job]:
    """Return the evaluations to make, in order; a run to compare with comes first.

    Raises ValueError for datasets and folders that do not exist, and for evaluations that would
    overwrite each other.
    """
    require_run(options.run)
    options = dataclasses.replace(options, data=options.data or _test_data(options.run))
    if "" in options.data:
        raise ValueError("--data: must not be empty")
    for data in options.data:
        require_exists(data)
    if options.output:
        require_folder(options.output, "--output")
    beam_size(options.decoder, options.beam)  # Raises ValueError before any work.
    ordered = []
    for data in options.data:
        job, compare = Job(options, data), options.compare
        baseline = job.baseline
        if compare and _is_run(compare):
            of_baseline = dataclasses.replace(options, run=compare, output=None, compare=None)
            ordered.append(Job(of_baseline, data))
        elif baseline and not is_evaluation(baseline):
            raise ValueError(
                f"--compare {compare}: must be a run or an evaluation, with a config.json or "
                f"a hypotheses.jsonl in {baseline}"
            )
        if baseline and baseline.resolve() == job.output.resolve():
            raise ValueError(f"--compare {compare}: would overwrite {baseline}; pass --output")
        ordered.append(job)
    outputs = [job.output.resolve() for job in ordered]
    if doubled := [path for path in outputs if outputs.count(path) > 1]:
        raise ValueError(f"--data: two datasets would be written to {doubled[0]}")
    return ordered


def _test_data(run: Path) -> tuple[str, ...]:
    data = load_config(run / "config.json").data.test
    if not data:
        raise ValueError("--data: must name a dataset, because the run has no data.test")
    return (data,)


def _is_run(folder: Path) -> bool:
    return (folder / "config.json").is_file()


def default_output(run: Path, data: str) -> Path:
    return run / "evaluation" / name_of(data)


def name_of(data: str) -> str:
    """Return a dataset's name with its parent folder: an4-test for samples/an4/test."""
    path = Path(data).absolute()
    parts = [part for part in (path.parent.name, path.name.removesuffix(".jsonl")) if part]
    return "-".join(parts) or "all"


def evaluate_run(run: Path, data: str) -> None:
    """Evaluate a run on one dataset with its own decoding options."""
    evaluate(Job(Options(run=run), data))


def evaluate_held_out(run: Path, train: str, utterances: Sequence[Utterance]) -> None:
    """Evaluate a run on the utterances that it held out of data.train, which is `train`."""
    options = Options(run=run, output=run / "evaluation" / "held-out")
    _evaluate(Job(options, f"the held-out part of {train}"), utterances, [])


def evaluate(job: Job) -> None:
    """Recognize a dataset, write its evaluation, and print a summary and unreadable recordings."""
    _evaluate(job, *read_transcribed(job.data, "--data"))


def _evaluate(job: Job, utterances: Sequence[Utterance], unreadable: Sequence[Skipped]) -> None:
    options = job.options
    recognizer = _open_recognizer(options)
    normalize = _normalizer(options.normalize, recognizer.tokenizer)
    baseline = None
    if job.baseline and is_first():  # The first process wrote it if it was evaluated just now.
        baseline = read_baseline(job.baseline, utterances, normalize)
    texts = _facts_of_texts(options.normalize, recognizer.tokenizer, utterances)
    if is_first():
        for name, fact in texts.items():
            if name != "texts":
                print(f"{job.data}: {name}: {fact}", file=sys.stderr)
    recognition = recognize_utterances(recognizer, utterances)
    if not is_first():
        return
    not_recognized = [*unreadable, *recognition.failed]
    for skipped in not_recognized:
        print(one_line(f"{skipped.id}: not recognized: {skipped.reason}"), file=sys.stderr)
    recognized = [(u, t) for u, t in zip(utterances, recognition.best) if t is not None]
    if not any(utterance.text for utterance, _ in recognized):
        raise ValueError(f"--data {job.data}: none of its recordings with a transcript can be read")
    evaluation = Evaluation(
        title=f"{options.run.resolve().name} on {job.data}",
        utterances=[utterance for utterance, _ in recognized],
        transcripts=[transcript for _, transcript in recognized],
        audio_seconds=recognition.audio_seconds,
        wall_seconds=recognition.wall_seconds,
        facts=_facts(job, recognizer, texts, not_recognized=len(not_recognized)),
        not_recognized=not_recognized,
        normalize=normalize,
        baseline=baseline,
    )
    figures = write_evaluation(
        job.output,
        evaluation,
        recording_of=recording_bytes,
        lattices=options.lattices,
        posteriors_of=functools.partial(label_posteriors, recognizer),
    )
    _print_summary(job, figures)


def _open_recognizer(options: Options) -> Recognizer:
    recognizer = with_decoding(
        open_run(options.run, options.checkpoint),
        chunk_ms=options.chunk_ms,
        window_seconds=options.window_seconds,
        beam=beam_size(options.decoder, options.beam),
    )
    recognizer = with_fusion(recognizer, options.fusing)
    if options.lattices:
        require_lattice(recognizer.config)
    return recognizer


def _normalizer(convention: Convention, tokenizer: Tokenizer) -> Callable[[str], str]:
    """Return the function that normalizes texts for scoring.

    A tokenizer that folds text folds references too: no transcript could match them otherwise.
    """
    normalize = normalizer(convention)
    if not tokenizer.folding:
        return normalize
    return lambda text: normalize(tokenizer.normalize(text))


def _facts_of_texts(
    convention: Convention, tokenizer: Tokenizer, utterances: Sequence[Utterance]
) -> dict[str, str]:
    """Return how texts are normalized, and which references cannot be written."""
    facts = {"texts": "not normalized" if convention == "none" else f"normalized, {convention}"}
    if tokenizer.folding:
        facts["references folded by the tokenizer"] = tokenizer.folding
    characters = tokenizer.characters
    if convention == "whisper":  # It turns number words into digits.
        characters |= set("0123456789")
    lacking = unwritable(
        [utterance.text for utterance in utterances],
        unknown_characters=tokenizer.unknown_characters,
        characters=characters,
        normalize=normalizer(convention),
    )
    if lacking:
        facts["references with characters that the model cannot write"] = lacking
    return facts


def _facts(
    job: Job, recognizer: Recognizer, texts: dict[str, str], *, not_recognized: int
) -> dict[str, str]:
    """Return the facts of the run that the report lists."""
    decoding = recognizer.config.decoding
    return {
        "run": str(job.options.run),
        "data": job.data,
        "checkpoint": recognizer.checkpoint,
        "decoder": f"beam {decoding.beam}" if decoding.beam else "greedy",
        "chunk, ms (0: whole utterances)": f"{decoding.chunk_ms:g}",
        **texts,
        "not recognized": str(not_recognized),
        **fusion_facts(job.options.fusing),
    }


def _print_summary(job: Job, figures: Figures) -> None:
    main = main_rate(figures)
    low, high = main.interval
    rate = "no words"  # Normalization may leave none.
    if main.percent is not None:
        rate = f"{main.percent:.1f} % ({low:.1f} to {high:.1f} with 95 % confidence)"
    plain = ""
    if main.differs and main.plain_percent is not None:
        plain = f", {main.plain_percent:.1f} % without punctuation and case"
    print(
        f"{main.name} on {job.data}: {rate} of {main.reference_units} {main.unit} in "
        f"{figures['utterances']} recordings{plain}; {job.output / 'report.html'}"
    )
    if "comparison" in figures:
        print(f"compared with {figures['comparison']['with']}:")
        print("".join(f"  {line}\n" for line in comparison_lines(figures["comparison"])), end="")
