"""The progress of a command as one line."""

import sys
import time

SECONDS_BETWEEN_LINES = 15.0


class ProgressLine:
    """A line on standard error: replaced on a terminal, repeated every 15 s elsewhere."""

    def __init__(self):
        self._is_terminal = sys.stderr.isatty()
        self._last = time.monotonic()

    def __enter__(self) -> "ProgressLine":
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def report(self, part: str, done: float) -> None:
        """Display that a part of the work is done to this fraction."""
        now = time.monotonic()
        if now - self._last < (0.1 if self._is_terminal else SECONDS_BETWEEN_LINES):
            return
        self._last = now
        line = f"{part}: {100 * done:.0f} %"
        text = f"\r\x1b[K{line}" if self._is_terminal else f"{line}\n"
        print(text, end="", file=sys.stderr, flush=True)
