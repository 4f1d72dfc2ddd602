"""The learning-rate schedule of a run that resumes with another number of steps."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from asr_jax.config import Config
from asr_jax.errors import UsageError
from asr_jax.training.checkpoint import newest_metadata
from asr_jax.training.optimizer import learning_rate_schedule


class Schedule(NamedTuple):
    """The config with the schedule that a run trains with, and what changed."""

    config: Config
    note: str
    """A line for the user; empty if nothing changed."""
    figures: dict[str, float]
    """Figures of the change, for metrics.jsonl."""


def resumed_schedule(config: Config, run: Path) -> Schedule:
    """Return the schedule of a run, which keeps its length when only train.steps changes.

    The length is then stored in optimizer.decay_steps. Raises UsageError if the run has taken more
    than train.steps steps. Before its first step, a run may have any schedule.
    """
    saved = newest_metadata(run, config.checkpoint)
    step, fields = (saved[0], saved[1].get("config", {})) if saved else (0, {})
    steps = config.train.steps
    if step > steps:
        raise UsageError(
            f"train.steps = {steps}: must be at least {step}, the number of steps that the run "
            f"{run} has taken"
        )
    steps_before = _integer(fields, "train.steps", steps)
    decay_before = _integer(fields, "optimizer.decay_steps", 0)
    length_before = decay_before or steps_before
    if step == 0 or (steps == steps_before and config.optimizer.decay_steps == decay_before):
        return Schedule(config, "", {})
    length = config.optimizer.decay_steps or length_before
    config = _with_decay_steps(config, length)
    if steps == steps_before and length == length_before:
        return Schedule(config, "", {})
    return Schedule(
        config,
        _note(config, step=step, steps_before=steps_before, length_before=length_before),
        {"train_steps": float(steps), "decay_steps": float(length)},
    )


def _integer(fields: Mapping[str, object], name: str, default: int) -> int:
    value = fields.get(name, default)
    assert isinstance(value, int)  # Config checked it when the checkpoint was saved
    return value


def _with_decay_steps(config: Config, steps: int) -> Config:
    return dataclasses.replace(
        config, optimizer=dataclasses.replace(config.optimizer, decay_steps=steps)
    )


def _note(config: Config, *, step: int, steps_before: int, length_before: int) -> str:
    steps, length = config.train.steps, config.optimizer.decay_steps

    def rate(of: Config) -> float:
        return np.asarray(learning_rate_schedule(of.optimizer, steps=steps)(step)).item()

    changed = f"train.steps is {steps} instead of {steps_before}: " * (steps != steps_before)
    if length != length_before:
        before = rate(_with_decay_steps(config, length_before))
        return (
            f"{changed}the learning rate decays until step {length} instead of {length_before}, "
            f"and is now {rate(config):.3g} instead of {before:.3g}"
        )
    return (
        f"{changed}the learning rate keeps its decay until step {length} and is now "
        f"{rate(config):.3g}; --optimizer.decay-steps N makes it decay until step N"
    )
