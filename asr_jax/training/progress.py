"""What a person watching a run sees: a bar on a terminal, now and then a line elsewhere."""

import time
from types import TracebackType

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 15.0


class ProgressDisplay:
    """Shows the step, the figures given with it, and the time left; notes stay above the bar.

    Of several processes only the first shows anything, but for what `note_everywhere` is told.
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
        """Starts the clock that the time left is reckoned by."""
        self._began = self._last_line = time.monotonic()
        self._bar.reset(self._task, total=self._steps, completed=self._start, figures="")

    def note(self, text: str) -> None:
        if self._is_first:
            self._console.print(text, markup=False)

    def note_everywhere(self, text: str) -> None:
        where = "" if jax.process_count() == 1 else f"process {jax.process_index()}: "
        self._console.print(where + text, markup=False)

    def step(self, step: int, figures: str) -> None:
        self._bar.update(self._task, completed=step, figures=figures)
        now = time.monotonic()
        if not self._console.is_terminal and now - self._last_line > SECONDS_BETWEEN_LINES:
            self._last_line = now
            left = (now - self._began) * (self._steps - step) / max(1, step - self._start)
            minutes, seconds = divmod(round(left), 60)
            self.note(f"step {step}/{self._steps}  {figures}  {minutes}:{seconds:02d} left")
