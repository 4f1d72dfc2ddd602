"""`asr-jax train CONFIG`: trains, keeps checkpoints, and ends with the WER on data.test."""

import dataclasses
import functools
import importlib.util
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro
from jax.sharding import Mesh
from orbax.checkpoint import v1 as ocp

from asr_jax.commands.arguments import parse_after_config
from asr_jax.commands.evaluate import default_output, evaluate
from asr_jax.config import Config, flatten
from asr_jax.config_file import write_config
from asr_jax.data.manifest import read_transcribed
from asr_jax.data.pipeline import Batches, training_batches
from asr_jax.data.texts import training_text_batches
from asr_jax.distributed.compilation_cache import persistent_compilation
from asr_jax.distributed.devices import prepare_devices
from asr_jax.distributed.mesh import check_batch, local_rows, make_mesh
from asr_jax.distributed.preemption import listen_for_preemption, restore_signal_handlers
from asr_jax.distributed.processes import (
    Processes,
    code_fingerprint,
    connected_processes,
    is_first,
    on_first,
    require_same,
)
from asr_jax.errors import UsageError, name_full_disk
from asr_jax.experiment.batch_shapes import batch_shapes
from asr_jax.experiment.corpus import Corpus, keep_tokenizer, training_corpus
from asr_jax.experiment.dev_perplexity import dev_perplexity
from asr_jax.experiment.dev_wer import dev_evaluation
from asr_jax.experiment.fine_tuning import initialize_from, read_source
from asr_jax.experiment.run_directory import changes, claim_run, require_shared, run_metadata
from asr_jax.experiment.skipped import list_skipped, readable_batches, skipped_list
from asr_jax.models.composition import split_model
from asr_jax.text import Tokenizer
from asr_jax.training import checkpoint
from asr_jax.training.loop import TrainingDiverged, compile_steps, train
from asr_jax.training.optimizer import make_optimizer
from asr_jax.training.progress import ProgressDisplay
from asr_jax.training.state import TrainState, abstract_state, initial_state


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Trains CONFIG, or goes on with it where RUN already holds a checkpoint."""

    run: Path | None = None
    """Run directory; runs/NAME for configs/NAME.py where not given."""
    profile: tuple[int, int] | None = None
    """First and last step to record a profile of, for TensorBoard, in RUN/tensorboard."""
    init_from: Path | None = None
    """Begins with the parameters of this run directory or exported model (docs/finetuning.md)."""
    processes: Annotated[Processes, tyro.conf.arg(name="")] = Processes()
    config: Annotated[Config, tyro.conf.arg(name="")]


def run(arguments: list[str]) -> int:
    path, options = parse_after_config(Options, arguments, program="asr-jax train")
    config = options.config
    beside = path.parent if path.name == "config.json" else Path("runs") / path.stem
    directory = options.run or beside
    try:
        with (
            connected_processes(options.processes, verb="train") as processes,
            name_full_disk(directory),
        ):
            prepare_devices(config.mesh, processes=processes)
            reason = _train(config, directory, options)
            if reason is None and config.data.test:
                output = default_output(directory, config.data.test)
                evaluate(directory, config.data.test, checkpoint="best", output=output)
    finally:
        restore_signal_handlers()
    if reason is not None:
        print(f"stopped by {reason}; saved. The same command goes on from there.", file=sys.stderr)
        return 128 + getattr(signal, reason)
    return 0


def _train(config: Config, run: Path, options: Options) -> str | None:
    """Trains to the end (None), or until a signal, whose name is returned."""
    profile = options.profile
    if config.train.wandb_project and importlib.util.find_spec("wandb") is None:
        raise UsageError(
            f"train.wandb_project = {config.train.wandb_project!r}: needs the package wandb, "
            "pip install wandb"
        )
    if profile and not 0 < profile[0] <= profile[1]:
        raise UsageError(f"--profile {profile[0]} {profile[1]}: needs 0 < first step <= last step")
    stopped_by = listen_for_preemption()
    require_same({"a fingerprint of the code": code_fingerprint(), **flatten(config)})
    mesh = make_mesh(config.mesh, jax.devices())
    for utterances in config.data.bucket_utterances:
        check_batch(utterances, mesh, config.train.accumulate)
    on_first(lambda: claim_run(run, config))
    on_first(lambda: checkpoint.require_writable(run, config.checkpoint))
    require_shared(run)
    corpus, tokenizer = training_corpus(config, run)
    optimizer = make_optimizer(config.optimizer, steps=config.train.steps)
    sizes = (config, tokenizer.vocabulary_size, optimizer, mesh)
    abstract = abstract_state(*sizes)
    source = read_source(options.init_from, run, config, tokenizer, abstract.params)
    is_language_model = config.objective.kind == "language_model"
    evaluate_dev = (dev_perplexity if is_language_model else dev_evaluation)(
        config, tokenizer, mesh
    )
    if config.data.test:
        read_transcribed(config.data.test, "data.test")  # not after days of training
    metadata = run_metadata(config, corpus.fingerprint())
    require_same({f"a fingerprint of data.train = {config.data.train}": metadata["utterances"]})
    on_first(lambda: write_config(config, run / "config.json"))
    on_first(lambda: keep_tokenizer(run))
    graphdef, _ = split_model(config, tokenizer.vocabulary_size)

    with (
        persistent_compilation(run / "compiled") as mark_complete,
        checkpoint.open_checkpoints(run, config.checkpoint) as checkpointer,
    ):
        state, warnings = checkpoint.restore(checkpointer, abstract)
        start = 0 if state is None else int(state.step)
        if state is not None:
            warnings += changes(checkpoint.saved_metadata(checkpointer, start), metadata, run)
        with ProgressDisplay(steps=config.train.steps, start=start) as progress:
            for warning in warnings:
                progress.note(f"warning: {warning}")
            amount = (
                f"{sum(map(len, corpus.labels))} pieces" if is_language_model else _hours(corpus)
            )
            progress.note(_description(run, corpus, amount, abstract.params, mesh))
            list_skipped(corpus, run, note=progress.note)
            if state is not None:
                progress.note(f"going on from step {start} of {config.train.steps}")
            for line in source.notes if source else ():
                progress.note(line)
            if start >= config.train.steps:
                return stopped_by(start)
            on_first(lambda: checkpoint.require_room(run, config.checkpoint, abstract))
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
            if source:
                state = initialize_from(source, run, state, config, tokenizer)
                # What it began with need not be there when it goes on.
                checkpoint.save(checkpointer, state, dev_metric=None, metadata=metadata)
            mark_complete()

            def evaluated(averaged: Any) -> dict[str, float]:
                figures = evaluate_dev(graphdef, averaged, progress.note)
                mark_complete()
                return figures

            go_on = functools.partial(
                train,
                config=config,
                run=run,
                steps=steps,
                utterance_ids=[u.id for u in corpus.utterances],
                evaluate=evaluated if evaluate_dev else None,
                checkpointer=checkpointer,
                metadata=metadata,
                stopped_by=stopped_by,
                profile=profile,
                progress=progress,
            )
            while True:
                batches = _batches(config, corpus, tokenizer, mesh, run, int(state.data_position))
                readable = readable_batches(
                    batches, config, listed=skipped_list(run), note=progress.note_everywhere
                )
                rollbacks_left = config.train.rollbacks - int(state.rollbacks)
                try:
                    _, reason = go_on(state, batches=readable)
                    return reason or stopped_by(config.train.steps)
                except TrainingDiverged as diverged:
                    if rollbacks_left == 0:
                        raise
                    state = _rolled_back(diverged, checkpointer, abstract, note=progress.note)


def _batches(
    config: Config, corpus: Corpus, tokenizer: Tokenizer, mesh: Mesh, run: Path, position: int
) -> Batches:
    """What comes after `position` batches, without end."""
    options: Any = dict(
        data=config.data,
        seed=config.train.seed,
        position=position,
        corpus_sizes=corpus.sizes,
        local_rows=functools.partial(local_rows, mesh),
        cache_path=run / "epochs.json",
        write_cache=is_first(),
    )
    if config.objective.kind == "language_model":
        return training_text_batches(corpus.labels, **options)
    return training_batches(
        corpus.utterances,
        corpus.labels,
        augment=config.augment,
        sample_rate_hz=config.features.sample_rate_hz,
        separator=tokenizer.separator,
        noise=corpus.noise,
        impulse_responses=corpus.impulse_responses,
        **options,
    )


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


def _hours(corpus: Corpus) -> str:
    return f"{sum(u.duration_seconds for u in corpus.utterances) / 3600:.2f} hours"


def _description(run: Path, corpus: Corpus, amount: str, params: Any, mesh: Mesh) -> str:
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    return (
        f"{run}: {len(corpus.utterances)} utterances, {amount}; "
        f"{count / 1e6:.2f} million parameters; {mesh.size} {jax.default_backend()} device(s)"
    )
