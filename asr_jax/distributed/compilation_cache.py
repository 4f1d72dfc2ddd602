"""Compiled programs kept on disk, so that a second start of a run compiles nothing."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache

from asr_jax.distributed.processes import first_process

COMPLETE_ENTRIES = "whole.txt"


@contextlib.contextmanager
def persistent_compilation(folder: Path) -> Iterator[Callable[[], None]]:
    """Keep what JAX compiles in `folder`, unless JAX was given a cache of its own already.

    JAX does not write an entry atomically, and never rewrites one that exists. So at startup,
    delete entries that a killed process may have left truncated: everything not listed by the last
    `mark_complete()`, the function that this context manager yields.
    """
    if jax.config.jax_compilation_cache_dir is not None:  # pyright: ignore[reportAttributeAccessIssue]
        yield lambda: None
        return
    _delete_unlisted(folder)
    try:
        _set_cache(str(folder))
        yield functools.partial(_list_entries, folder)
    finally:
        _set_cache(None)


@first_process
def _delete_unlisted(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / COMPLETE_ENTRIES
    complete = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    for entry in folder.iterdir():
        if entry.name not in (COMPLETE_ENTRIES, *complete):
            entry.unlink()


@first_process
def _list_entries(folder: Path) -> None:
    names = sorted(path.name for path in folder.iterdir())
    (folder / COMPLETE_ENTRIES).write_text("\n".join(names), encoding="utf-8")


def _set_cache(folder: str | None) -> None:
    jax.config.update("jax_compilation_cache_dir", folder)
    # JAX reads the setting only when it first compiles.
    compilation_cache.reset_cache()
