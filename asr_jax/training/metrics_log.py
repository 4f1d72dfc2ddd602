"""The figures of a run, a line per logged step, for people, TensorBoard and wandb."""

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

# Protocol buffers make their classes at run time, where no type checker sees them.
Event = vars(event_pb2)["Event"]
SessionLog = vars(event_pb2)["SessionLog"]
Summary = vars(summary_pb2)["Summary"]


@runtime_checkable
class WandbRun(Protocol):
    """The methods of wandb.Run that a log calls."""

    def log(self, data: dict[str, float], *, step: int) -> None: ...
    def finish(self) -> None: ...


class MetricsLog:
    """RUN/metrics.jsonl, a line per logged step, and the same figures for TensorBoard.

    Of several processes the first writes.
    """

    def __init__(self, run: Path, *, start: int, project: str):
        """Lines of steps after `start`, which a killed process had written, are cut off."""
        self._writes = jax.process_index() == 0
        if not self._writes:
            return
        path = run / "metrics.jsonl"
        kept = _lines_until(path, start) if path.exists() else []
        partial = path.with_suffix(".tmp")
        partial.write_text("".join(kept))
        os.replace(partial, path)
        self._path = path
        # Its SummaryWriter has a thread that waits by the clock of the day, and may do so for ever.
        (run / "tensorboard").mkdir(exist_ok=True)
        self._tensorboard = EventsWriter(str(run / "tensorboard" / "events"))
        # TensorBoard hides what an earlier start wrote from this step on.
        self._write_event(step=start + 1, session_log=SessionLog(status=SessionLog.START))
        self._wandb = _start_wandb(run, project) if project else None

    def write(self, step: int, figures: dict[str, float]) -> None:
        if not self._writes:
            return
        # JSON has no NaN, and a reader of the file is not to stumble over one.
        finite = {k: (v if np.isfinite(v) else None) for k, v in figures.items()}
        try:
            with self._path.open("a") as file:
                file.write(json.dumps({"step": step} | finite) + "\n")
        except OSError as error:  # of a full disk, which does not say where
            raise OSError(error.errno, error.strerror, str(self._path)) from error
        values = [Summary.Value(tag=name, simple_value=value) for name, value in figures.items()]
        self._write_event(step=step, summary=Summary(value=values))
        if self._wandb is not None:
            self._wandb.log(figures, step=step)

    def close(self) -> None:
        if not self._writes:
            return
        with contextlib.suppress(OSError):  # written it was, or its failure was raised
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
    import wandb  # of those alone who ask for it # pyright: ignore[reportMissingImports]

    # The same run at every start.
    id = hashlib.sha256(str(run.absolute()).encode()).hexdigest()[:16]
    return wandb.init(project=project, name=run.name, id=id, resume="allow", dir=str(run))


def _lines_until(path: Path, step: int) -> list[str]:
    kept = []
    for line in path.read_text().splitlines(keepends=True):
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError):
            continue  # the half-written last line of a killed process
    return kept
