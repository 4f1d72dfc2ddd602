"""`asr-jax train CONFIG`: trains, keeps checkpoints, and ends with the WER on data.test."""

import collections
import contextlib
import dataclasses
import functools
import importlib.util
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro
from orbax.checkpoint import v1 as ocp

from asr_jax.commands.arguments import UsageError, load_config, parse, write_config
from asr_jax.commands.compiled import compiled_programs_kept
from asr_jax.commands.corpus import Corpus, keep_tokenizer, training_corpus
from asr_jax.commands.devices import prepare_devices
from asr_jax.commands.evaluate import default_output
from asr_jax.commands.evaluate import evaluate as evaluate_run
from asr_jax.config import Config, flatten
from asr_jax.data.manifest import read_transcribed
from asr_jax.data.pipeline import Batches, bucket_samples, evaluation_batches, training_batches
from asr_jax.decoding.recognizer import hypotheses, make_recognizer
from asr_jax.mesh import check_batch, make_mesh
from asr_jax.scoring.wer import word_error_rate
from asr_jax.text import Tokenizer
from asr_jax.training import checkpoint
from asr_jax.training.loop import TrainingDiverged, compile_steps, train
from asr_jax.training.optimizer import make_optimizer
from asr_jax.training.progress import ProgressDisplay
from asr_jax.training.state import TrainState, abstract_state, initial_state, split_model
from asr_jax.types import Batch, Skipped

# Fields that a run may go on with changed: none of them touches what has been learned so far.
CHANGEABLE = (
    "checkpoint.every",
    "checkpoint.keep",
    "decoding.",
    "mesh.",
    "data.train",
    "data.dev",
    "data.test",
    "data.read",
    "data.cache",
) + (
    "train.steps",
    "train.log_every_steps",
    "train.wandb_project",
    "train.evaluate_every_steps",
    "train.max_skipped",
)

# How schedulers announce that a machine will be taken away; SIGUSR1 is customary on SLURM.
NOTICES = (signal.SIGTERM, signal.SIGUSR1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Trains CONFIG, or goes on with it where RUN already holds a checkpoint."""

    run: Path | None = None
    """Run directory; runs/NAME for configs/NAME.py where not given."""
    profile: tuple[int, int] | None = None
    """First and last step to record a profile of, for TensorBoard, in RUN/tensorboard."""
    config: Annotated[Config, tyro.conf.arg(name="")]


def run(arguments: list[str]) -> int:
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in ("-h", "--help")):
        raise UsageError("CONFIG must come first: a file of configs/, or a run's config.json")
    path = Path(arguments[0])
    helped = arguments[0] in ("-h", "--help")
    config = Config() if helped else load_config(path)
    options = parse(
        Options,
        ["--help"] if helped else arguments[1:],
        program="asr-jax train CONFIG",
        default=Options(config=config),
    )
    config = options.config
    beside = path.parent if path.name == "config.json" else Path("runs") / path.stem
    directory = options.run or beside
    try:
        reason = _train(config, directory, options.profile)
    finally:
        for number in NOTICES:
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if reason is not None:
        print(f"stopped by {reason}; saved. The same command goes on from there.", file=sys.stderr)
        return 128 + getattr(signal, reason)
    if config.data.test:
        output = default_output(directory, config.data.test)
        evaluate_run(directory, config.data.test, checkpoint="best", output=output)
    return 0


def _train(config: Config, run: Path, profile: tuple[int, int] | None) -> str | None:
    """Trains to the end (None), or until a signal, whose name is returned."""
    if config.train.wandb_project and importlib.util.find_spec("wandb") is None:
        raise UsageError(
            f"train.wandb_project = {config.train.wandb_project!r}: needs the package wandb, "
            "pip install wandb"
        )
    if profile and not 0 < profile[0] <= profile[1]:
        raise UsageError(f"--profile {profile[0]} {profile[1]}: needs 0 < first step <= last step")
    stopped_by = _signals()
    prepare_devices(config.mesh)
    mesh = make_mesh(config.mesh, jax.devices())
    for utterances in config.data.bucket_utterances:
        check_batch(utterances, mesh, config.train.accumulate)
    _claim(run, config)
    corpus, tokenizer = training_corpus(config, run)
    evaluate_dev = _dev_evaluation(config, tokenizer, mesh)
    if config.data.test:
        read_transcribed(config.data.test, "data.test")  # not after days of training
    write_config(config, run / "config.json")
    keep_tokenizer(run)
    about = {"config": _as_json(flatten(config)), "utterances": corpus.fingerprint()}
    optimizer = make_optimizer(config.optimizer, steps=config.train.steps)
    sizes = (config, tokenizer.vocabulary_size, optimizer, mesh)
    abstract = abstract_state(*sizes)
    graphdef, _ = split_model(config, tokenizer.vocabulary_size)

    with (
        compiled_programs_kept(run / "compiled") as so_far_whole,
        checkpoint.open_checkpoints(run, config.checkpoint) as checkpointer,
    ):
        state, warnings = checkpoint.restore(checkpointer, abstract)
        start = 0 if state is None else int(state.step)
        if state is not None:
            warnings += _changes(checkpoint.saved_about(checkpointer, start), about, run)
        with ProgressDisplay(steps=config.train.steps, start=start) as progress:
            for warning in warnings:
                progress.note(f"warning: {warning}")
            _describe(progress.note, corpus, run, abstract.params, mesh)
            if state is not None:
                progress.note(f"going on from step {start} of {config.train.steps}")
            if start >= config.train.steps:
                return stopped_by()
            steps = compile_steps(
                config,
                graphdef,
                optimizer,
                abstract,
                mesh,
                batch_shapes(config),
                note=progress.note,
            )
            if state is None:
                state = initial_state(*sizes)
            so_far_whole()

            def evaluate(averaged: Any) -> float:
                wer_percent = evaluate_dev(graphdef, averaged, progress.note)
                so_far_whole()
                return wer_percent

            go_on = functools.partial(
                train,
                config=config,
                run=run,
                steps=steps,
                utterance_ids=[u.id for u in corpus.utterances],
                evaluate=evaluate if evaluate_dev else None,
                checkpointer=checkpointer,
                about=about,
                stopped_by=stopped_by,
                profile=profile,
                progress=progress,
            )
            while True:
                batches = training_batches(
                    corpus.utterances,
                    corpus.labels,
                    data=config.data,
                    augment=config.augment,
                    sample_rate_hz=config.features.sample_rate_hz,
                    seed=config.train.seed,
                    position=int(state.data_position),
                    separator=tokenizer.separator,
                )
                listed = run / "skipped.jsonl"
                readable = _readable(batches, config, listed=listed, note=progress.note)
                rollbacks_left = config.train.rollbacks - int(state.rollbacks)
                try:
                    _, reason = go_on(state, batches=readable)
                    return reason or stopped_by()
                except TrainingDiverged as diverged:
                    if rollbacks_left == 0:
                        raise
                    state = _rolled_back(diverged, checkpointer, abstract, note=progress.note)


def _rolled_back(
    diverged: TrainingDiverged,
    checkpointer: ocp.training.Checkpointer,
    abstract: TrainState,
    *,
    note: Callable[[str], None],
) -> TrainState:
    """The state of the last good checkpoint, to go on with the data that was next."""
    state, going_back = checkpoint.roll_back(checkpointer, abstract)
    if state is None:
        raise diverged
    state = state._replace(
        rollbacks=state.rollbacks + 1,
        data_position=jax.device_put(
            np.int32(diverged.data_position), abstract.data_position.sharding
        ),
    )
    note(
        f"warning: {diverged}; {going_back}, the learning rate is reduced "
        f"(rollback {int(state.rollbacks)})"
    )
    return state


def _readable(
    batches: Batches, config: Config, *, listed: Path, note: Callable[[str], None]
) -> Iterator[Batch]:
    """The batches; a recording that turns out not to be readable is noted and listed at once.

    Raises ValueError when one batch after the other has none that is: a disk is gone.
    """
    known = empty = 0
    for batch in batches:
        failed = batches.failed
        if failed[known:]:
            with listed.open("a") as file:
                file.write(_json_lines(failed[known:]))
        for skipped in failed[known:]:
            note(f"left out: {skipped.id}, {skipped.reason} (listed in {listed})")
        known = len(failed)
        empty = 0 if np.any(batch.utterances >= 0) else empty + 1
        if empty == config.train.max_skipped_in_a_row:
            raise ValueError(
                f"data.train = {config.data.train}: {empty} batches in a row had no recording that "
                f"can be read, of late {failed[-1].id}: {failed[-1].reason}"
            )
        yield batch


def _signals() -> Callable[[], str | None]:
    """From now on NOTICES and Ctrl-C are noted, not obeyed; returns a look at the note."""
    noted: list[str] = []

    def note(number: int, _: Any) -> None:
        if noted:
            os._exit(128 + number)  # asked twice: leave at once, what is saved is safe
        noted.append(signal.Signals(number).name)
        print(f"\n{noted[0]}: saving, then leaving; once more leaves at once", file=sys.stderr)

    for number in (*NOTICES, signal.SIGINT):
        signal.signal(number, note)
    return lambda: noted[0] if noted else None


def _claim(run: Path, config: Config) -> None:
    """Makes the run directory, or checks that the one there is of this config."""
    run.mkdir(parents=True, exist_ok=True)
    path = run / "config.json"
    if not path.exists():
        # These are of a start that failed before it became a run.
        if {other.name for other in run.iterdir()} - {"tokenizer.tmp", "config.tmp"}:
            raise UsageError(f"--run {run}: holds other files and no config.json; choose another")
        return
    _require_same(flatten(load_config(path)), flatten(config), run)


def _require_same(before: dict[str, Any], now: dict[str, Any], run: Path) -> None:
    """Raises UsageError where a field differs that a run cannot go on with changed."""
    fixed = [
        name
        for name in now
        if now[name] != before.get(name, now[name]) and not name.startswith(CHANGEABLE)
    ]
    if fixed:
        name = fixed[0]
        raise UsageError(
            f"--run {run}: holds another run, whose {name} is {before[name]!r}, not {now[name]!r}"
            f"{f' (and {len(fixed) - 1} more fields differ)' if len(fixed) > 1 else ''}; "
            "choose another directory"
        )


def _changes(before: dict[str, Any], now: dict[str, Any], run: Path) -> list[str]:
    """What is not as it was when the checkpoint was saved; config.json may have been edited since.

    Raises UsageError where the run cannot go on so.
    """
    _require_same(before.get("config", {}), now["config"], run)
    if before.get("utterances", now["utterances"]) == now["utterances"]:
        return []
    return [
        "the utterances of data.train are not those that this run was trained on so far; "
        "the current epoch goes on with other batches"
    ]


def _as_json(value: Any) -> Any:
    """Tuples as lists, as they come back from a file."""
    return json.loads(json.dumps(value))


def _describe(
    note: Callable[[str], None], corpus: Corpus, run: Path, params: Any, mesh: Any
) -> None:
    hours = sum(u.duration_seconds for u in corpus.utterances) / 3600
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    note(
        f"{run}: {len(corpus.utterances)} utterances, {hours:.2f} hours; "
        f"{count / 1e6:.2f} million parameters; {mesh.size} {jax.default_backend()} device(s)"
    )
    listed = run / "skipped.jsonl"
    # Before a restart, reading them to the end may have shown some to be bad that seem good now.
    seem_good = {u.id for u in corpus.utterances} - {s.id for s in corpus.skipped}
    earlier = [skipped for skipped in _listed(listed) if skipped.id in seem_good]
    listed.write_text(_json_lines([*corpus.skipped, *earlier]))
    kinds = collections.Counter(s.reason.partition(":")[0] for s in corpus.skipped)
    for kind, number in kinds.most_common():
        note(f"left out: {number} utterances, {kind} (listed in {listed})")


def _listed(path: Path) -> list[Skipped]:
    lines = path.read_text().splitlines() if path.exists() else []
    found = []
    for line in lines:
        with contextlib.suppress(ValueError):  # the half-written last line of a killed process
            found.append(Skipped(**json.loads(line)))
    return found


def _json_lines(skipped: Sequence[Skipped]) -> str:
    return "".join(json.dumps(dataclasses.asdict(one)) + "\n" for one in skipped)


def batch_shapes(config: Config) -> list[Batch]:
    """A batch of abstract arrays for every bucket."""
    data = config.data
    shapes = []
    for seconds, labels, rows in zip(
        data.bucket_seconds, data.bucket_labels, data.bucket_utterances
    ):
        samples = bucket_samples(
            seconds,
            max_tempo=max(1.0, config.augment.tempo_range[1]),
            sample_rate_hz=config.features.sample_rate_hz,
        )
        abstract: Any = jax.ShapeDtypeStruct
        shapes.append(
            Batch(
                samples=abstract((rows, samples), np.float32),
                sample_lengths=abstract((rows,), np.int32),
                labels=abstract((rows, labels), np.int32),
                label_lengths=abstract((rows,), np.int32),
                tempo=abstract((rows,), np.float32),
                utterances=abstract((rows,), np.int32),
                joined=abstract((rows,), np.int32),
            )
        )
    return shapes


def _dev_evaluation(config: Config, tokenizer: Tokenizer, mesh: Any) -> Any:
    """(graphdef, averaged parameters, note) -> WER on data.dev in percent; None without one."""
    if not config.data.dev:
        return None
    utterances, unreadable = read_transcribed(config.data.dev, "data.dev")
    for skipped in unreadable:
        print(f"data.dev: left out: {skipped.id}, {skipped.reason}", file=sys.stderr)
    no_labels = [np.zeros(0, np.int32)] * len(utterances)
    recognizer_of = functools.cache(lambda graphdef: make_recognizer(graphdef, config, mesh))
    noted: set[str] = set()

    def evaluate_dev(graphdef: Any, averaged: Any, note: Callable[[str], None]) -> float:
        recognize = recognizer_of(graphdef)
        batches = evaluation_batches(
            utterances, no_labels, data=config.data, sample_rate_hz=config.features.sample_rate_hz
        )
        texts = hypotheses(recognize, averaged, batches, tokenizer, utterances=len(utterances))
        for skipped in batches.failed:
            if skipped.id not in noted:
                note(f"data.dev: left out: {skipped.id}, {skipped.reason}")
        lost = {skipped.id for skipped in batches.failed}
        noted.update(lost)
        scored = [(u.text, text) for u, text in zip(utterances, texts) if u.id not in lost]
        if not scored:
            raise ValueError(f"data.dev = {config.data.dev}: none of its recordings can be read")
        return 100 * word_error_rate(*zip(*scored))

    return evaluate_dev
