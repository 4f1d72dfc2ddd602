"""What a command says of an error that its user can mend."""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path


class UsageError(ValueError):
    """An invalid command line, config file or combination of options; its text is one line."""


def user_message(error: BaseException) -> str | None:
    """The line to print; None for a bug, whose traceback is to be seen."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename else str(error)
    if isinstance(error, ValueError) and _raised_here(error):
        return str(error)
    return None


def _raised_here(error: BaseException) -> bool:
    """Whether our own code raised it: a rule that the user can keep. A library's is our bug."""
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_globals["__name__"].startswith("asr_jax")


@contextlib.contextmanager
def name_full_disk(folder: Path) -> Iterator[None]:
    """An error of a full disk, which does not say where, names `folder`."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(error.errno, error.strerror, str(folder)) from error
        raise
