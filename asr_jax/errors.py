"""The line that a command prints for an error that its user can fix."""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path


class UsageError(ValueError):
    """An invalid command line, config file or combination of options; its text is one line."""


def user_message(error: BaseException) -> str | None:
    """Return the line to print, or None for a bug, whose traceback is shown."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename else str(error)
    if isinstance(error, ValueError) and _raised_in_package(error):
        return str(error)
    return None


def _raised_in_package(error: BaseException) -> bool:
    """Return whether this package raised the error; a ValueError from a library is a bug."""
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_globals["__name__"].startswith("asr_jax")


@contextlib.contextmanager
def name_full_disk(folder: Path) -> Iterator[None]:
    """Add `folder` to errors of a full disk, which do not name the file."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(error.errno, error.strerror, str(folder)) from error
        raise
