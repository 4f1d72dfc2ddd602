"""A profile of a few steps, for TensorBoard's profiler (XProf)."""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import jax

Recorder = Callable[[int], AbstractContextManager[object]]


@contextlib.contextmanager
def recorded_steps(
    steps: tuple[int, int] | None, folder: Path, *, note: Callable[[str], None]
) -> Iterator[Recorder]:
    """Gives a context for each step's number; what the first to the last of `steps` do is recorded.

    The recording is written below `folder`, two steps later or at the end.
    """
    first, last = steps or (0, -1)
    recording = False

    def stop() -> None:
        nonlocal recording
        if recording:
            recording = False
            jax.profiler.stop_trace()
            note(f"profile of steps {first} to {last}: tensorboard --logdir {folder}")

    def record(step: int) -> AbstractContextManager[object]:
        nonlocal recording
        if not recording and first <= step <= last:
            jax.profiler.start_trace(folder)
            recording = True
        # The loop reads a step's figures during the next one: only then it is over on the devices.
        if step > last + 1:
            stop()
        return jax.profiler.StepTraceAnnotation("train", step_num=step)

    try:
        yield record
    finally:
        stop()
