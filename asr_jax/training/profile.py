"""A profile of a few steps, for TensorBoard's profiler (XProf)."""

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
    """Gives a context for each step's number; what the first to the last of `steps` do is recorded.

    The recording is written below `folder`, two steps later or at the end.
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
        # The loop reads a step's figures during the next one: only then it is over on the devices.
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
