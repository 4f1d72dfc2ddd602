"""`asr-jax train CONFIG`: train with checkpoints, and measure the WER at the end."""

import dataclasses
import importlib.util
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import jax
import numpy as np
import tyro
from jax.sharding import Mesh
from jaxtyping import PyTree
from orbax.checkpoint import v1 as ocp

from asr_jax.commands.arguments import parse_after_config, require_unicode
from asr_jax.commands.evaluate import evaluate_held_out, evaluate_run
from asr_jax.config import Config
from asr_jax.distributed.compilation_cache import persistent_compilation
from asr_jax.distributed.compile_notices import logged_compile_notices
from asr_jax.distributed.devices import prepare_devices
from asr_jax.distributed.preemption import listen_for_preemption, restore_signal_handlers
from asr_jax.distributed.processes import Processes, connected_processes
from asr_jax.errors import UsageError, name_full_disk
from asr_jax.experiment.batch_shapes import batch_shapes
from asr_jax.experiment.run_directory import held_run
from asr_jax.experiment.setup import Setup, describe, first_state, restore, set_up, suitable_mesh
from asr_jax.experiment.skipped import readable_batches, skipped_list
from asr_jax.training import checkpoint
from asr_jax.training.loop import DevEvaluation, Session, TrainingDiverged, compile_steps, train
from asr_jax.training.progress import ProgressDisplay
from asr_jax.training.state import TrainState
from asr_jax.types import Utterance


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Train CONFIG, resuming from RUN's latest checkpoint if there is one."""

    run: Path | None = None
    """Run directory; the default is runs/NAME for configs/NAME.py."""
    profile: tuple[int, int] | None = None
    """First and last step of a profile for TensorBoard, written to RUN/tensorboard."""
    init_from: Path | None = None
    """Start with the parameters of this run directory or exported model (docs/finetuning.md)."""
    processes: Annotated[Processes, tyro.conf.arg(name="")] = Processes()
    config: Annotated[Config, tyro.conf.arg(name="")]


def run(arguments: list[str]) -> int:
    path, options = parse_after_config(Options, arguments, program="asr-jax train")
    config = options.config
    default = path.parent if path.name == "config.json" else Path("runs") / path.stem
    directory = options.run or default
    require_unicode(directory, "--run")
    try:
        with (
            connected_processes(options.processes, command="train") as processes,
            name_full_disk(directory),
            logged_compile_notices(directory / "xla.log"),
        ):
            prepare_devices(config.mesh, processes=processes)
            _check_options(options)
            mesh = suitable_mesh(config)
            with held_run(directory, config) as require_held:
                stopping_signal, held_out = _train(config, directory, mesh, options, require_held)
                if stopping_signal is None and config.data.test:
                    evaluate_run(directory, config.data.test)
                elif stopping_signal is None and held_out:
                    evaluate_held_out(directory, config.data.train, held_out)
    finally:
        restore_signal_handlers()
    if stopping_signal is not None:
        print(
            f"stopped by {stopping_signal} after saving; run the same command to resume",
            file=sys.stderr,
        )
        return 128 + getattr(signal, stopping_signal)
    return 0


def _train(
    config: Config, run: Path, mesh: Mesh, options: Options, require_held: Callable[[], None]
) -> tuple[str | None, Sequence[Utterance]]:
    """Train; return the signal that stopped training, if any, and recordings that are held out.

    Texts that are held out from the training of a language model are not among them.
    """
    stopped_by = listen_for_preemption()
    setup = set_up(config, run, mesh, init_from=options.init_from)
    config = setup.config
    held_out = () if config.objective.is_language_model else setup.corpus.held_out
    with (
        persistent_compilation(run / "compiled") as mark_complete,
        checkpoint.open_checkpoints(run, config.checkpoint) as checkpointer,
    ):
        state, warnings = restore(setup, checkpointer)
        start = 0 if state is None else int(state.step)
        with ProgressDisplay(steps=config.train.steps, start=start) as progress:
            describe(setup, state, warnings, note=progress.note)
            if start >= config.train.steps:
                return stopped_by(start), held_out
            steps = compile_steps(
                config,
                setup.graphdef,
                setup.optimizer,
                setup.abstract,
                setup.mesh,
                batch_shapes(config, setup.plan.buckets),
                note=progress.note,
            )
            require_held()
            if state is None:
                state = first_state(setup, checkpointer)
            mark_complete()
            session = Session(
                config=config,
                run=run,
                steps=steps,
                utterance_ids=[utterance.id for utterance in setup.corpus.utterances],
                evaluation=setup.evaluation and _marking(setup.evaluation, mark_complete),
                checkpointer=checkpointer,
                metadata=setup.metadata,
                stopped_by=stopped_by,
                require_held=require_held,
                progress=progress,
                profile=options.profile,
                resumed_with=setup.schedule.figures,
            )
            return _train_with_rollbacks(setup, session, state), held_out


def _check_options(options: Options) -> None:
    project, profile = options.config.train.wandb_project, options.profile
    if project and importlib.util.find_spec("wandb") is None:
        raise UsageError(
            f"train.wandb_project = {project!r}: needs the package wandb, pip install wandb"
        )
    if profile and not 0 < profile[0] <= profile[1]:
        raise UsageError(f"--profile {profile[0]} {profile[1]}: needs 0 < first step <= last step")


def _marking(evaluation: DevEvaluation, mark_complete: Callable[[], None]) -> DevEvaluation:
    """Return the evaluation, after which the programs it compiled are marked as complete."""

    def evaluate_and_mark(averaged: PyTree, *, note: Callable[[str], None]) -> dict[str, float]:
        figures = evaluation.measure(averaged, note=note)
        mark_complete()
        return figures

    return evaluation._replace(measure=evaluate_and_mark)


def _train_with_rollbacks(setup: Setup, session: Session, state: TrainState) -> str | None:
    """Train, returning to the last good checkpoint at most train.rollbacks times.

    Returns the name of the signal that stopped training, or None.
    """
    config, progress = session.config, session.progress
    while True:
        batches = readable_batches(
            setup.batches(int(state.data_position)),
            config,
            listed=skipped_list(session.run),
            note=progress.note_everywhere,
        )
        rollbacks_left = config.train.rollbacks - int(state.rollbacks)
        try:
            _, stopping_signal = train(state, batches, session)
            return stopping_signal or session.stopped_by(config.train.steps)
        except TrainingDiverged as diverged:
            if rollbacks_left == 0:
                raise
            state = _rolled_back(diverged, session.checkpointer, setup.abstract, note=progress.note)


def _rolled_back(
    diverged: TrainingDiverged,
    checkpointer: ocp.training.Checkpointer,
    abstract: TrainState,
    *,
    note: Callable[[str], None],
) -> TrainState:
    """Return the last good checkpoint's state, to continue with the data after the divergence."""
    state, rollback = checkpoint.roll_back(checkpointer, abstract)
    if state is None:
        raise diverged
    state = state._replace(
        rollbacks=state.rollbacks + 1,
        data_position=jax.device_put(
            np.int32(diverged.data_position), abstract.data_position.sharding
        ),
    )
    note(
        f"warning: {diverged}; {rollback}, the learning rate is reduced "
        f"(rollback {int(state.rollbacks)})"
    )
    return state
