"""Profiles of a few steps for TensorBoard's profiler (XProf)."""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import jax

Record = Callable[[int], AbstractContextManager[object]]


@contextlib.contextmanager
def recorded_steps(
    steps: tuple[int, int] | None, folder: Path, *, note: Callable[[str], None]
) -> Iterator[Record]:
    """Yield a function that maps a step's number to the context in which to take the step.

    Profiles the first to the last of `steps` and writes the profile below `folder`, two steps later
    or at the end. With None, nothing is profiled.
    """
    first, last = steps or (0, -1)
    recorder = _Recorder(first, last, folder, note)
    try:
        yield recorder.record
    finally:
        recorder.stop()


@dataclass
class _Recorder:
    first: int
    last: int
    folder: Path
    note: Callable[[str], None]
    recording: bool = False

    def record(self, step: int) -> AbstractContextManager[object]:
        if not self.recording and self.first <= step <= self.last:
            jax.profiler.start_trace(self.folder)
            self.recording = True
        # The loop reads a step's metrics during the next step: only then are the devices done.
        if step > self.last + 1:
            self.stop()
        return jax.profiler.StepTraceAnnotation("train", step_num=step)

    def stop(self) -> None:
        if self.recording:
            self.recording = False
            jax.profiler.stop_trace()
            self.note(
                f"profile of steps {self.first} to {self.last}: tensorboard --logdir {self.folder}"
            )
