"""The training loop: batches in, checkpoints and metrics out.

Order of a start: the caller restores the newest checkpoint or draws parameters; every bucket's
step is compiled; metrics beyond the restored step are cut off; then steps follow one another,
and step 0 is no other code than step n.
"""

import contextlib
import functools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
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


def train(
    state: TrainState,
    *,
    config: Config,
    run: Path,
    steps: Steps,
    batches: Iterator[Batch],
    utterance_ids: Sequence[str],
    evaluate: Callable[[Any], dict[str, float]] | None,
    checkpointer: ocp.training.Checkpointer,
    metadata: dict[str, Any],
    stopped_by: Callable[[int], str | None],
    progress: ProgressDisplay,
    profile: tuple[int, int] | None = None,
) -> tuple[TrainState, str | None]:
    """Trains until `train.steps`, or until `stopped_by(step)` names a reason, which is returned.

    `evaluate` gives figures of DEV_METRICS for averaged parameters; `metadata` is kept beside every
    checkpoint; `profile` is the first and the last step to record. The state is saved before this
    returns. Raises TrainingDiverged, which leaves the checkpoints before it, and
    checkpoint.CheckpointError.
    """
    step, total = int(state.step), config.train.steps
    reason = None
    best = min(checkpoint.measured_on_dev(checkpointer).values(), default=None)
    selection_metric = "dev_perplexity" if config.objective.kind == "language_model" else "dev_wer"
    waited = audio_seconds = 0.0
    since, began = step, time.monotonic()
    unread: tuple[Metrics, np.ndarray] | None = None
    progress.begin()

    # Nothing goes to the devices or comes back but what is put and got by name, and when one of the
    # guests below looks at the state.
    guests = functools.partial(jax.transfer_guard, "allow")
    with (
        contextlib.closing(MetricsLog(run, start=step, project=config.train.wandb_project)) as log,
        recorded_steps(profile, run / "tensorboard", note=progress.note) as record,
        jax.transfer_guard("disallow"),
    ):
        while step < total and reason is None:
            asked = time.monotonic()
            batch = next(batches)
            waited += time.monotonic() - asked
            with record(step + 1):
                state, metrics = steps(state, batch)
            step += 1
            # Read one step late, so that the devices are never idle while the host looks.
            if unread is not None:
                audio_seconds += _examine(step - 1, *unread, config, utterance_ids, progress)
            unread = metrics, np.concatenate([batch.utterances, batch.second_utterance])

            reason = stopped_by(step)
            due = lambda every_steps, step=step: step == total or step % every_steps == 0
            if reason or due(config.train.log_every_steps):
                audio_seconds += _examine(step, *unread, config, utterance_ids, progress)
                unread, elapsed = None, time.monotonic() - began
                read = jax.device_get(metrics)._asdict()
                read |= read.pop("auxiliary_losses")
                figures = {name: float(value) for name, value in read.items()}
                figures |= {
                    "audio_seconds_per_second": audio_seconds / elapsed,
                    "steps_per_second": (step - since) / elapsed,
                    "data_wait_fraction": waited / elapsed,
                }
                for name in ("audio_seconds", "data_position", "lowest_loss"):
                    del figures[name]
                log.write(step, figures)
                pace = f"{figures['steps_per_second']:.1f} steps/s"
                if audio_seconds:
                    pace = f"{figures['audio_seconds_per_second']:.0f} audio s/s"
                shown = [f"loss {figures['loss']:.3f}"]
                if best is not None:
                    shown.append(DEV_METRICS[selection_metric].format(best))
                shown += [pace, f"waiting {figures['data_wait_fraction']:.1%}"]
                progress.step(step, "  ".join(shown))
                waited = audio_seconds = 0.0
                since, began = step, time.monotonic()

            dev_metric = None
            # Told to stop, it leaves at once; but nobody comes back to evaluate the last step.
            if (
                evaluate is not None
                and (reason is None or step == total)
                and due(config.train.evaluate_every_steps)
            ):
                with guests():
                    measured = evaluate(state.averaged)
                log.write(step, measured)
                said = ", ".join(
                    DEV_METRICS[name].format(value) for name, value in measured.items()
                )
                progress.note(f"step {step}: {said}")
                dev_metric = measured[selection_metric]
            improved = dev_metric is not None and (best is None or dev_metric < best)
            if improved:
                best = dev_metric
            if improved or reason or due(config.checkpoint.every_steps):
                with guests():
                    checkpoint.save(checkpointer, state, dev_metric=dev_metric, metadata=metadata)
            if dev_metric is not None or reason:
                since, began, waited, audio_seconds = step, time.monotonic(), 0.0, 0.0
        with guests():
            checkpoint.finish(checkpointer)
    return state, reason


def _examine(
    step: int,
    metrics: Metrics,
    utterances: np.ndarray,
    config: Config,
    utterance_ids: Sequence[str],
    progress: ProgressDisplay,
) -> float:
    """Reports a skipped step, and raises TrainingDiverged. Returns the audio seconds."""
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
