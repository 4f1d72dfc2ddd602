"""The training loop, which turns batches into checkpoints and metrics.

A run starts in this order: the caller restores the newest checkpoint or initializes parameters; the
step is compiled for every bucket; metrics of steps after the restored one are deleted; then the
loop takes steps, the first by the same code as the last.
"""

import contextlib
import functools
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import PyTree
from orbax.checkpoint import v1 as ocp

from asr_jax.config import Config
from asr_jax.distributed.mesh import on_devices
from asr_jax.training import checkpoint
from asr_jax.training.metrics_log import MetricsLog
from asr_jax.training.profile import recorded_steps
from asr_jax.training.progress import ProgressDisplay
from asr_jax.training.state import TrainState
from asr_jax.training.step import Metrics, jitted_step
from asr_jax.types import Batch


class TrainingDiverged(ValueError):
    """Several steps in a row were not finite, or the mean loss rose far above its lowest value."""

    def __init__(self, reason: str, *, step: int, data_position: int):
        super().__init__(reason)
        self.step = step
        self.data_position = data_position
        """Batches taken before the divergence was found."""


# Figures measured on data.dev: the name in metrics.jsonl, and the format for people.
DEV_METRICS = {
    "dev_wer": "WER on dev {:.1f} %",
    "dev_cer": "CER on dev {:.1f} %",
    "dev_perplexity": "perplexity on dev {:.2f} per piece",
    "dev_word_perplexity": "{:.1f} per word",
}
# Nats per label. A rise is measured from at least this loss, as memorized data has almost none.
NEGLIGIBLE_LOSS = 0.1

Compiled = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


@runtime_checkable
class Evaluate(Protocol):
    """A function that measures averaged parameters on data.dev."""

    def __call__(self, averaged: PyTree, *, note: Callable[[str], None]) -> dict[str, float]:
        """Return the figures by their names in DEV_METRICS."""
        ...


class DevEvaluation(NamedTuple):
    """How a run is measured on data.dev, and the figure that selects its best checkpoint."""

    measure: Evaluate
    selection_metric: str
    """A key of DEV_METRICS; lower is better."""


class Steps(NamedTuple):
    """The training step, compiled for every bucket and selected by the batch's shape."""

    compiled: dict[tuple[int, ...], Compiled]
    mesh: Mesh

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """Take a step; each process passes its own rows of the batch (mesh.local_rows)."""
        global_batch = on_devices(batch, self.mesh)
        return self.compiled[_shape(global_batch)](state, global_batch)


def _shape(batch: Batch) -> tuple[int, ...]:
    return (*batch.samples.shape, batch.labels.shape[1])


def compile_steps(
    config: Config,
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    abstract: TrainState,
    mesh: Mesh,
    shapes: Sequence[Batch],
    *,
    note: Callable[[str], None],
) -> Steps:
    """Compile the step for batches of these shapes."""
    step = jitted_step(config, graphdef, optimizer, abstract, mesh)

    def compile_bucket(batch: Batch) -> Compiled:
        began = time.monotonic()
        compiled = step.lower(abstract, batch).compile()
        rows, samples, labels = _shape(batch)
        seconds = samples / config.features.sample_rate_hz
        unit = f"utterances x {seconds:.1f} s of audio" if samples else "texts"
        note(
            f"compiled the step for {rows} {unit}, {labels} labels "
            f"({time.monotonic() - began:.0f} s)"
        )
        return compiled

    # XLA compiles each program on one core, without holding Python's global lock.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        compiled = dict(zip(map(_shape, shapes), pool.map(compile_bucket, shapes)))
    return Steps(compiled, mesh)


@dataclass(frozen=True, kw_only=True)
class Session:
    """The parts of a run that stay the same while it trains, also after a rollback."""

    config: Config
    run: Path
    steps: Steps
    utterance_ids: Sequence[str]
    """The ids of the utterances to which the indices in batches refer."""
    evaluation: DevEvaluation | None
    checkpointer: ocp.training.Checkpointer
    metadata: checkpoint.Metadata
    """Saved with every checkpoint."""
    stopped_by: Callable[[int], str | None]
    """Maps a step to the name of the signal that stops training after it, or None."""
    require_held: Callable[[], None]
    """Ends this process if another start has taken over the run directory."""
    progress: ProgressDisplay
    profile: tuple[int, int] | None = None
    """The first and the last step to profile."""
    resumed_with: Mapping[str, float] = field(default_factory=dict)
    """Figures of a changed schedule, which are logged at the step that the run resumes from."""


@dataclass
class Throughput:
    """The audio trained on and the time spent waiting for data since `step`."""

    step: int
    began_seconds: float = field(default_factory=time.monotonic)
    waited_seconds: float = 0.0
    audio_seconds: float = 0.0

    def next_batch(self, batches: Iterator[Batch]) -> Batch:
        asked = time.monotonic()
        batch = next(batches)
        self.waited_seconds += time.monotonic() - asked
        return batch

    def figures(self, step: int) -> dict[str, float]:
        elapsed = time.monotonic() - self.began_seconds
        return {
            "audio_seconds_per_second": self.audio_seconds / elapsed,
            "steps_per_second": (step - self.step) / elapsed,
            "data_wait_fraction": self.waited_seconds / elapsed,
        }


class Unread(NamedTuple):
    """A step whose metrics have not been read from the devices yet."""

    step: int
    metrics: Metrics
    utterances: np.ndarray
    """Indices of the batch's utterances; -1 for padding."""


def train(
    state: TrainState, batches: Iterator[Batch], session: Session
) -> tuple[TrainState, str | None]:
    """Train until `train.steps`, or until `stopped_by(step)` names a signal.

    Returns the state, which is saved by then, and the signal's name or None. Raises
    checkpoint.CheckpointError, and TrainingDiverged, after which the earlier checkpoints remain.
    """
    config, progress, total = session.config, session.progress, session.config.train.steps
    examine = examiner(session)
    step, stopping_signal, unread = int(state.step), None, None
    read_back = checkpoint.reads_back_once(session.checkpointer)
    best = min(checkpoint.measured_on_dev(session.checkpointer).values(), default=None)
    throughput = Throughput(step)
    progress.begin()

    # An implicit transfer between host and devices is an error in the loop itself. Evaluating and
    # saving may transfer what they need.
    allow_transfers = functools.partial(jax.transfer_guard, "allow")
    log = open_log(session, start=step)
    profile = recorded_steps(session.profile, session.run / "tensorboard", note=progress.note)
    with contextlib.closing(log), profile as record, jax.transfer_guard("disallow"):
        while step < total and stopping_signal is None:
            batch = throughput.next_batch(batches)
            with record(step + 1):
                state, metrics = session.steps(state, batch)
            step += 1
            # Metrics are read one step late, so that the devices never wait for the host.
            if unread is not None:
                throughput.audio_seconds += examine(unread)
            utterances = np.concatenate([batch.utterances, batch.second_utterance])
            unread = Unread(step, metrics, utterances)
            stopping_signal = session.stopped_by(step)

            if stopping_signal or _is_due(step, config.train.log_every_steps, total):
                throughput.audio_seconds += examine(unread)
                log_step(step, metrics, throughput, session, log, best=best)
                unread, throughput = None, Throughput(step)

            dev_metric = None
            # A stopped run evaluates after it resumes, but nothing resumes after the last step.
            may_evaluate = stopping_signal is None or step == total
            if may_evaluate and _is_due(step, config.train.evaluate_every_steps, total):
                with allow_transfers():
                    dev_metric = evaluate_step(step, state, session, log)

            improved = dev_metric is not None and (best is None or dev_metric < best)
            best = dev_metric if improved else best
            if improved or stopping_signal or _is_due(step, config.checkpoint.every_steps, total):
                with allow_transfers():
                    save(state, session, dev_metric=dev_metric)
            read_back()
            if dev_metric is not None or stopping_signal:
                throughput = Throughput(step)
        with allow_transfers():
            checkpoint.finish(session.checkpointer)
    return state, stopping_signal


def _is_due(step: int, every_steps: int, total: int) -> bool:
    return step == total or step % every_steps == 0


def open_log(session: Session, *, start: int) -> MetricsLog:
    """Return the run's log without later steps, with an entry if the run resumes with changes."""
    log = MetricsLog(session.run, start=start, project=session.config.train.wandb_project)
    if session.resumed_with:
        log.write(start, dict(session.resumed_with))
    return log


def log_step(
    step: int,
    metrics: Metrics,
    throughput: Throughput,
    session: Session,
    log: MetricsLog,
    *,
    best: float | None,
) -> None:
    """Log a step's figures, and display them with the best figure on dev so far."""
    session.require_held()
    figures = logged_figures(jax.device_get(metrics), session.config) | throughput.figures(step)
    log.write(step, figures)
    dev_figure = ""
    if best is not None and session.evaluation:
        dev_figure = DEV_METRICS[session.evaluation.selection_metric].format(best)
    session.progress.step(step, status_line(figures, dev_figure))


def logged_figures(metrics: Metrics, config: Config) -> dict[str, float]:
    """Return the figures of a step to log; a mean over no utterances is none of them."""
    means = {"loss": metrics.loss, **metrics.auxiliary_losses}
    figures = {name: mean for name, mean in means.items() if metrics.utterances[name]}
    if not metrics.idle:
        figures["grad_norm"] = metrics.grad_norm
    if np.isfinite(metrics.lowest_loss):  # a step has learned
        figures["smoothed_loss"] = metrics.smoothed_loss
    for name in ("learning_rate", "skipped", "skipped_in_a_row"):
        figures[name] = getattr(metrics, name)
    if config.objective.has_ctc_head:
        figures["ctc_left_out"] = metrics.ctc_left_out
    return {name: float(value) for name, value in figures.items()}


def status_line(figures: Mapping[str, float], dev_figure: str) -> str:
    """Return the figures to display. Without audio, the pace is in steps."""
    pace = f"{figures['audio_seconds_per_second']:.0f} audio s/s"
    if not figures["audio_seconds_per_second"]:
        pace = f"{figures['steps_per_second']:.1f} steps/s"
    waiting = f"waiting {figures['data_wait_fraction']:.1%}"
    loss = f"loss {figures['loss']:.3f}" if "loss" in figures else "no loss"
    return "  ".join(filter(None, (loss, dev_figure, pace, waiting)))


def save(state: TrainState, session: Session, *, dev_metric: float | None) -> None:
    """Start writing a checkpoint, as checkpoint.save does."""
    session.require_held()
    checkpoint.save(session.checkpointer, state, dev_metric=dev_metric, metadata=session.metadata)


def evaluate_step(step: int, state: TrainState, session: Session, log: MetricsLog) -> float | None:
    """Measure and log the figures on dev; return the one that selects checkpoints, if any."""
    if session.evaluation is None:
        return None
    figures = session.evaluation.measure(state.averaged, note=session.progress.note)
    session.require_held()
    log.write(step, figures)
    shown = ", ".join(DEV_METRICS[name].format(value) for name, value in figures.items())
    session.progress.note(f"step {step}: {shown}")
    selecting = figures[session.evaluation.selection_metric]
    # A figure that is not a number would never be surpassed.
    return selecting if np.isfinite(selecting) else None


def examiner(session: Session) -> Callable[[Unread], float]:
    """Return a function that examines every step in turn and returns its audio seconds.

    It raises what `check_health` raises, and ValueError after train.max_skipped_in_a_row steps
    without an utterance to train on: the run would end without having learned.
    """
    config, idle_steps = session.config, 0

    def examine(unread: Unread) -> float:
        nonlocal idle_steps
        audio_seconds = check_health(
            unread,
            config=config,
            utterance_ids=session.utterance_ids,
            progress=session.progress,
        )
        idle_steps = idle_steps + 1 if jax.device_get(unread.metrics.idle) else 0
        if idle_steps >= config.train.max_skipped_in_a_row:
            raise ValueError(
                f"{idle_steps} steps in a row, up to step {unread.step}, had no utterance to train "
                "on; with objective.kind = 'ctc', augment.speeds and augment.tempo_range may leave "
                "too few frames for the texts"
            )
        return audio_seconds

    return examine


def check_health(
    unread: Unread, *, config: Config, utterance_ids: Sequence[str], progress: ProgressDisplay
) -> float:
    """Report a step that learned nothing, raise TrainingDiverged; return the audio seconds."""
    step, metrics, utterances = unread
    metrics = jax.device_get(metrics)
    diverged = functools.partial(
        TrainingDiverged, step=step, data_position=int(metrics.data_position)
    )
    in_a_row = int(metrics.skipped_in_a_row)
    if metrics.idle:
        progress.note(f"step {step}: no utterance of the batch can be trained on")
    elif in_a_row:
        names = ", ".join(utterance_ids[int(u)] for u in utterances if u >= 0)
        progress.note_everywhere(
            f"step {step}: skipped, loss or gradient is not finite; utterances {names}"
        )
        if in_a_row >= config.train.max_skipped_in_a_row:
            raise diverged(
                f"{in_a_row} steps in a row, up to step {step}, had a loss or gradient that is not "
                f"finite; the last one's utterances are {names}"
            )
    mean, lowest = float(metrics.smoothed_loss), float(metrics.lowest_loss)
    if mean > config.train.divergence_factor * max(lowest, NEGLIGIBLE_LOSS):
        raise diverged(
            f"the mean loss of about 100 steps is {mean:.3g} at step {step}, more than "
            f"train.divergence_factor = {config.train.divergence_factor:g} times its lowest value, "
            f"{lowest:.3g}"
        )
    return float(metrics.audio_seconds)
