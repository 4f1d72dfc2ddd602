"""The figures of a run's logged steps, as JSON lines and for TensorBoard and wandb."""

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path
from typing import Protocol, runtime_checkable

import jax
import numpy as np
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2, summary_pb2

# Protocol buffers create their classes at run time, so type checkers do not know them.
Event = vars(event_pb2)["Event"]
SessionLog = vars(event_pb2)["SessionLog"]
Summary = vars(summary_pb2)["Summary"]


@runtime_checkable
class WandbRun(Protocol):
    """The methods of wandb.Run that MetricsLog calls."""

    def log(self, data: dict[str, float], *, step: int) -> None: ...
    def finish(self) -> None: ...


class MetricsLog:
    """RUN/metrics.jsonl, one line per logged step, and the same figures for TensorBoard and wandb.

    Only the first process writes.
    """

    def __init__(self, run: Path, *, start: int, project: str):
        """Open the log and delete lines of steps after `start`, which a killed process wrote."""
        self._writes = jax.process_index() == 0
        if not self._writes:
            return
        path = run / "metrics.jsonl"
        lines = _lines_until(path, start) if path.exists() else []
        partial = path.with_suffix(".tmp")
        partial.write_text("".join(lines), encoding="utf-8")
        os.replace(partial, path)
        self._path = path
        # tensorboardX's SummaryWriter has a thread that waits by the wall clock, and can hang when
        # that clock is changed.
        (run / "tensorboard").mkdir(exist_ok=True)
        self._tensorboard = EventsWriter(str(run / "tensorboard" / "events"))
        # TensorBoard hides what an earlier start wrote for this step and later ones.
        self._write_event(step=start + 1, session_log=SessionLog(status=SessionLog.START))
        self._wandb = _start_wandb(run, project) if project else None

    def write(self, step: int, figures: dict[str, float]) -> None:
        if not self._writes:
            return
        # JSON has no NaN.
        finite = {k: (v if np.isfinite(v) else None) for k, v in figures.items()}
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step} | finite) + "\n")
        except OSError as error:  # a full disk: the error does not name the file
            raise OSError(error.errno, error.strerror, str(self._path)) from error
        values = [Summary.Value(tag=name, simple_value=value) for name, value in figures.items()]
        self._write_event(step=step, summary=Summary(value=values))
        if self._wandb is not None:
            self._wandb.log(figures, step=step)

    def close(self) -> None:
        if not self._writes:
            return
        with contextlib.suppress(OSError):  # `write` has flushed, or raised the same error
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()

    def _write_event(self, **fields: object) -> None:
        try:
            self._tensorboard.write_event(Event(wall_time=time.time(), **fields))
            self._tensorboard.flush()
        except OSError as error:
            raise OSError(error.errno, error.strerror, self._path.parent / "tensorboard") from error


def _start_wandb(run: Path, project: str) -> WandbRun:
    import wandb  # not a dependency # pyright: ignore[reportMissingImports]

    # A resumed run keeps its id.
    id = hashlib.sha256(str(run.absolute()).encode()).hexdigest()[:16]
    return wandb.init(project=project, name=run.name, id=id, resume="allow", dir=str(run))


def _lines_until(path: Path, step: int) -> list[str]:
    """Return the lines of steps up to `step`."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            if json.loads(line)["step"] <= step:
                lines.append(line)
        except (ValueError, KeyError):
            continue  # the incomplete last line of a killed process
    return lines
