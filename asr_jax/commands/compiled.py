"""Compiled programs kept on disk, so that a second start of a run compiles nothing."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache

MARK = "complete"


@contextlib.contextmanager
def compiled_programs_kept(folder: Path) -> Iterator[Callable[[], None]]:
    """Keeps what JAX compiles in `folder`, unless JAX was told of a cache of its own already.

    JAX does not write its files in one piece, and never again one that exists. So what a killed
    process may have left half-written goes at the start: all that is newer than the last call of
    the function that this gives, which says that everything so far is whole.
    """
    if jax.config.jax_compilation_cache_dir is not None:  # pyright: ignore[reportAttributeAccessIssue]
        yield lambda: None
        return
    mark = folder / MARK
    whole_until = mark.stat().st_mtime_ns if mark.exists() else -1
    for program in folder.glob("*"):
        if program.stat().st_mtime_ns > whole_until:
            program.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        _keep_in(str(folder))
        yield mark.touch
    finally:
        _keep_in(None)


def _keep_in(folder: str | None) -> None:
    jax.config.update("jax_compilation_cache_dir", folder)
    # JAX looks at the setting when it first compiles, and never again.
    compilation_cache.reset_cache()
