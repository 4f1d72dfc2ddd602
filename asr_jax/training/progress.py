"""The progress of a run, displayed as a bar on a terminal and as occasional lines elsewhere."""

import time
from types import TracebackType

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 15.0


class ProgressDisplay:
    """A display of the step, its figures and the time left, with notes above the bar.

    Only the first process displays anything, except for `note_everywhere`.
    """

    def __init__(self, *, steps: int, start: int):
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._is_first = jax.process_index() == 0
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not (self._console.is_terminal and self._is_first),
        )
        self._task = self._bar.add_task("training", total=steps, completed=start, figures="")
        self._start, self._steps = start, steps
        self._began = self._last_line = time.monotonic()

    def __enter__(self) -> "ProgressDisplay":
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def begin(self) -> None:
        """Start the clock from which the time left is estimated."""
        self._began = self._last_line = time.monotonic()
        self._bar.reset(self._task, total=self._steps, completed=self._start, figures="")

    def note(self, text: str) -> None:
        """Print a line on the first process."""
        if self._is_first:
            self._console.print(text, markup=False)

    def note_everywhere(self, text: str) -> None:
        """Print a line on every process that calls this."""
        prefix = "" if jax.process_count() == 1 else f"process {jax.process_index()}: "
        self._console.print(prefix + text, markup=False)

    def step(self, step: int, figures: str) -> None:
        """Display a step that was taken."""
        self._bar.update(self._task, completed=step, figures=figures)
        now = time.monotonic()
        if not self._console.is_terminal and now - self._last_line > SECONDS_BETWEEN_LINES:
            self._last_line = now
            left = (now - self._began) * (self._steps - step) / max(1, step - self._start)
            minutes, seconds = divmod(round(left), 60)
            self.note(f"step {step}/{self._steps}  {figures}  {minutes}:{seconds:02d} left")
