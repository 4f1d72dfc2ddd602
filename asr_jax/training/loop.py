"""The training loop: batches in, checkpoints and metrics out.

Order of a start: the caller restores the newest checkpoint or draws parameters; every bucket's
step is compiled; metrics beyond the restored step are cut off; then steps follow one another,
and step 0 is no other code than step n.
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
    """Losses or gradients that are not finite, step after step, or a mean loss that rises."""

    def __init__(self, reason: str, *, step: int, data_position: int):
        super().__init__(reason)
        self.step = step
        self.data_position = data_position
        """Batches taken until then."""


# What may be measured on dev, by its name in metrics.jsonl, and how it is said.
DEV_METRICS = {
    "dev_wer": "WER on dev {:.1f} %",
    "dev_perplexity": "perplexity on dev {:.2f} by piece",
    "dev_word_perplexity": "{:.1f} by word",
}
# Nats per label; several times as much of less than this is no divergence.
NEGLIGIBLE_LOSS = 0.1

Compiled = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


@runtime_checkable
class Evaluate(Protocol):
    """Measures averaged parameters on data.dev."""

    def __call__(self, averaged: PyTree, *, note: Callable[[str], None]) -> dict[str, float]:
        """Return figures by their names in DEV_METRICS."""
        ...


class Steps(NamedTuple):
    """The training step compiled for every bucket, found by the batch's shape."""

    compiled: dict[tuple[int, ...], Compiled]
    mesh: Mesh

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """Of a batch each process gives its own rows (mesh.local_rows)."""
        whole = on_devices(batch, self.mesh)
        return self.compiled[_shape(whole)](state, whole)


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
    """Compiles the step for batches of these shapes before the first step is taken."""
    step = jitted_step(config, graphdef, optimizer, abstract, mesh)

    def compile_bucket(batch: Batch) -> Compiled:
        began = time.monotonic()
        compiled = step.lower(abstract, batch).compile()
        rows, samples, labels = _shape(batch)
        seconds = samples / config.features.sample_rate_hz
        what = f"utterances x {seconds:.1f} s of audio" if samples else "texts"
        note(
            f"compiled the step for {rows} {what}, {labels} labels "
            f"({time.monotonic() - began:.0f} s)"
        )
        return compiled

    # XLA compiles on one core, and does not hold Python's lock.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        compiled = dict(zip(map(_shape, shapes), pool.map(compile_bucket, shapes)))
    return Steps(compiled, mesh)


@dataclass(frozen=True, kw_only=True)
class Session:
    """What stays the same while a run trains, also after a rollback."""

    config: Config
    run: Path
    steps: Steps
    utterance_ids: Sequence[str]
    """Of the utterances whose indices the batches hold."""
    evaluate: Evaluate | None
    selection_metric: str
    """The key of DEV_METRICS by which the best checkpoint is kept; lower is better."""
    checkpointer: ocp.training.Checkpointer
    metadata: checkpoint.Metadata
    """Saved with every checkpoint."""
    stopped_by: Callable[[int], str | None]
    """Names the signal that ends training after this step, or nothing."""
    progress: ProgressDisplay
    profile: tuple[int, int] | None = None
    """The first and the last step to record."""


@dataclass
class Throughput:
    """Audio trained on and time spent waiting for batches, since a step."""

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
    """A step whose metrics are not read from the devices yet."""

    step: int
    metrics: Metrics
    utterances: np.ndarray
    """Indices of the batch's utterances; -1 is padding."""


def train(
    state: TrainState, batches: Iterator[Batch], session: Session
) -> tuple[TrainState, str | None]:
    """Trains until `train.steps`, or until `stopped_by(step)` names a reason, which is returned.

    The state is saved before this returns. Raises TrainingDiverged, which leaves the checkpoints
    before it, and checkpoint.CheckpointError.
    """
    config, progress, total = session.config, session.progress, session.config.train.steps
    examine = functools.partial(
        check_health, config=config, utterance_ids=session.utterance_ids, progress=progress
    )
    save = functools.partial(checkpoint.save, session.checkpointer, metadata=session.metadata)
    step, reason, unread = int(state.step), None, None
    best = min(checkpoint.measured_on_dev(session.checkpointer).values(), default=None)
    throughput = Throughput(step)
    progress.begin()

    # Nothing goes to the devices or comes back but what is put and got by name, and when one of the
    # guests below looks at the state.
    guests = functools.partial(jax.transfer_guard, "allow")
    log = MetricsLog(session.run, start=step, project=config.train.wandb_project)
    profile = recorded_steps(session.profile, session.run / "tensorboard", note=progress.note)
    with contextlib.closing(log), profile as record, jax.transfer_guard("disallow"):
        while step < total and reason is None:
            batch = throughput.next_batch(batches)
            with record(step + 1):
                state, metrics = session.steps(state, batch)
            step += 1
            # Read one step late, so that the devices are never idle while the host looks.
            if unread is not None:
                throughput.audio_seconds += examine(unread)
            utterances = np.concatenate([batch.utterances, batch.second_utterance])
            unread = Unread(step, metrics, utterances)
            reason = session.stopped_by(step)

            if reason or _is_due(step, config.train.log_every_steps, total):
                throughput.audio_seconds += examine(unread)
                log_step(step, metrics, throughput, session, log, best=best)
                unread, throughput = None, Throughput(step)

            dev_metric = None
            # Told to stop, it leaves at once; but nobody comes back to evaluate the last step.
            may_evaluate = reason is None or step == total
            if may_evaluate and _is_due(step, config.train.evaluate_every_steps, total):
                with guests():
                    dev_metric = evaluate_step(step, state, session, log)

            improved = dev_metric is not None and (best is None or dev_metric < best)
            best = dev_metric if improved else best
            if improved or reason or _is_due(step, config.checkpoint.every_steps, total):
                with guests():
                    save(state, dev_metric=dev_metric)
            if dev_metric is not None or reason:
                throughput = Throughput(step)
        with guests():
            checkpoint.finish(session.checkpointer)
    return state, reason


def _is_due(step: int, every_steps: int, total: int) -> bool:
    return step == total or step % every_steps == 0


def log_step(
    step: int,
    metrics: Metrics,
    throughput: Throughput,
    session: Session,
    log: MetricsLog,
    *,
    best: float | None,
) -> None:
    """Writes a step's figures to the log and shows them, with the best figure on dev so far."""
    rates = throughput.figures(step)
    read = jax.device_get(metrics)._asdict()
    read |= read.pop("auxiliary_losses")
    figures = {name: float(value) for name, value in read.items()} | rates
    for name in ("audio_seconds", "data_position", "lowest_loss"):
        del figures[name]
    log.write(step, figures)
    on_dev = "" if best is None else DEV_METRICS[session.selection_metric].format(best)
    session.progress.step(step, status_line(figures, on_dev))


def status_line(figures: Mapping[str, float], on_dev: str) -> str:
    """What is shown of a logged step: texts have no audio, so their pace is in steps."""
    pace = f"{figures['audio_seconds_per_second']:.0f} audio s/s"
    if not figures["audio_seconds_per_second"]:
        pace = f"{figures['steps_per_second']:.1f} steps/s"
    waiting = f"waiting {figures['data_wait_fraction']:.1%}"
    return "  ".join(filter(None, (f"loss {figures['loss']:.3f}", on_dev, pace, waiting)))


def evaluate_step(step: int, state: TrainState, session: Session, log: MetricsLog) -> float | None:
    """Logs the figures on dev after this step and returns the one that selects checkpoints."""
    if session.evaluate is None:
        return None
    figures = session.evaluate(state.averaged, note=session.progress.note)
    log.write(step, figures)
    shown = ", ".join(DEV_METRICS[name].format(value) for name, value in figures.items())
    session.progress.note(f"step {step}: {shown}")
    return figures[session.selection_metric]


def check_health(
    unread: Unread, *, config: Config, utterance_ids: Sequence[str], progress: ProgressDisplay
) -> float:
    """Reports a skipped step, and raises TrainingDiverged. Returns the audio seconds."""
    step, metrics, utterances = unread
    metrics = jax.device_get(metrics)
    diverged = functools.partial(
        TrainingDiverged, step=step, data_position=int(metrics.data_position)
    )
    in_a_row = int(metrics.skipped_in_a_row)
    if in_a_row:
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
            f"the mean loss of some hundred steps is {mean:.3g} at step {step}, more than "
            f"train.divergence_factor = {config.train.divergence_factor:g} times its lowest, "
            f"{lowest:.3g}"
        )
    return float(metrics.audio_seconds)
