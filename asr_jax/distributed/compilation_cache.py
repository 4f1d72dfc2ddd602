"""Compiled programs kept on disk, so that a second start of a run compiles nothing."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache

from asr_jax.distributed.processes import first_process

LIST = "whole.txt"


@contextlib.contextmanager
def persistent_compilation(folder: Path) -> Iterator[Callable[[], None]]:
    """Keeps what JAX compiles in `folder`, unless JAX was told of a cache of its own already.

    JAX does not write its files in one piece, and never again one that exists. So what a killed
    process may have left half-written goes at the start: all that was not there at the last call of
    the function that this gives, which says that everything so far is whole.
    """
    if jax.config.jax_compilation_cache_dir is not None:  # pyright: ignore[reportAttributeAccessIssue]
        yield lambda: None
        return
    _forget_what_is_not_whole(folder)
    try:
        _keep_in(str(folder))
        yield functools.partial(_write_list, folder)
    finally:
        _keep_in(None)


@first_process
def _forget_what_is_not_whole(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    listed = folder / LIST
    whole = listed.read_text().splitlines() if listed.exists() else []
    for program in folder.iterdir():
        if program.name not in (LIST, *whole):
            program.unlink()


@first_process
def _write_list(folder: Path) -> None:
    (folder / LIST).write_text("\n".join(sorted(path.name for path in folder.iterdir())))


def _keep_in(folder: str | None) -> None:
    jax.config.update("jax_compilation_cache_dir", folder)
    # JAX looks at the setting when it first compiles, and never again.
    compilation_cache.reset_cache()
