"""XLA's notices of slow compilation, which go to a log instead of the terminal.

XLA writes them from C++ to file descriptor 2, at the level of errors, and has no option for them.
So descriptor 2 leads to a small program, this file, which copies all other lines to the terminal.
It is a process of its own, because it must outlive a crash whose message it is to copy. Python
writes to the terminal directly.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from io import BufferedIOBase
from pathlib import Path

# No notice comes earlier: XLA waits two minutes.
SECONDS_UNTIL_FILTERED = 30.0
_BEGIN = b"slow_operation_alarm.cc"
# absl writes this line once before any other.
_PREAMBLE = b"WARNING: All log messages before absl::InitializeLog() is called"
_MODULE = re.compile(rb"\[Compiling module ([^\]]*)\]")
_DURATION = re.compile(rb"The operation took ([^\s]*)")


@contextlib.contextmanager
def logged_compile_notices(
    log: Path | None = None, *, after_seconds: float = SECONDS_UNTIL_FILTERED
) -> Iterator[None]:
    """Append XLA's notices of slow compilation to `log`, and print a line about each instead.

    The default is a file in the folder for temporary files. Nothing changes for a command that
    takes less than `after_seconds`, or whose standard error is not file descriptor 2.
    """
    python_stderr = sys.stderr
    if not _is_descriptor_2(python_stderr):
        yield
        return
    log = log or Path(tempfile.gettempdir()) / f"asr-jax-xla-{os.getuid()}.log"
    terminal = os.dup(2)
    # A logging handler may keep this stream, so its descriptor stays open after the command.
    direct = sys.stderr = open(
        os.dup(terminal),
        "w",
        buffering=1,
        encoding=python_stderr.encoding,
        errors="backslashreplace",
        closefd=False,
    )
    filters: list[subprocess.Popen[bytes]] = []

    def start_filter() -> None:
        # Where no more processes may run, the notices reach the terminal.
        with contextlib.suppress(OSError):
            filters.append(_filtered(terminal, log))

    timer = threading.Timer(after_seconds, start_filter)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        with contextlib.suppress(OSError):  # the reader of a pipe may have ended
            direct.flush()
        sys.stderr = python_stderr
        os.dup2(terminal, 2)
        os.close(terminal)
        for process in filters:
            # A process that inherited descriptor 2 may keep the filter alive.
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=5)


def _is_descriptor_2(stderr: object) -> bool:
    try:
        return stderr.fileno() == 2  # pyright: ignore[reportAttributeAccessIssue]
    except (AttributeError, OSError, ValueError):  # none, or an object in memory
        return False


def _filtered(terminal: int, log: Path) -> subprocess.Popen[bytes]:
    """Let descriptor 2 lead to the filter, which writes to `terminal`."""
    process = subprocess.Popen(
        [sys.executable, "-SEs", __file__, str(log)],
        stdin=subprocess.PIPE,
        stdout=terminal,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C in a terminal must not end it
    )
    assert process.stdin is not None
    os.dup2(process.stdin.fileno(), 2)
    process.stdin.close()
    return process


def copy_without_notices(source: BufferedIOBase, terminal: BufferedIOBase, log: Path) -> None:
    """Copy the lines of `source` to `terminal`, except notices, which are appended to `log`."""
    notice: list[bytes] = []
    for line in iter(source.readline, b""):
        if notice and not _belongs(line):
            _report(notice, terminal, log)
            notice = []
        if notice or _BEGIN in line:
            notice.append(line)
        elif not line.startswith(_PREAMBLE):
            terminal.write(line)
        # The second row of asterisks ends a notice.
        if sum(_is_row(part) for part in notice) == 2:
            _report(notice, terminal, log)
            notice = []
        terminal.flush()
    if notice:
        _report(notice, terminal, log)


def _is_row(line: bytes) -> bool:
    return bool(line.strip()) and not line.strip(b"*\n")


def _belongs(line: bytes) -> bool:
    """Return whether a line after the first is part of a notice."""
    return not line.strip() or _is_row(line) or b"Very slow compile?" in line


def _report(notice: list[bytes], terminal: BufferedIOBase, log: Path) -> None:
    text = b"".join(notice)
    module, took = _MODULE.search(text), _DURATION.search(text)
    name = module[1].decode(errors="replace") if module else "a program"
    place = ""
    with contextlib.suppress(OSError), log.open("ab") as file:
        file.write(text)
        place = f" (XLA's notice is in {log})"
    state = f"compiled {name} in {took[1].decode()}" if took else f"still compiling {name}"
    terminal.write(f"{state}{place}\n".encode(errors="backslashreplace"))
    terminal.flush()


if __name__ == "__main__":
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # it ends when the command does
    copy_without_notices(open(0, "rb"), open(1, "wb"), Path(sys.argv[1]))
