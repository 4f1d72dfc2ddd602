"""A context in which Python's garbage collector does not run."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def gc_paused() -> Iterator[None]:
    """Pause the garbage collector while a list only grows.

    The collector would scan the list again and again and free nothing. For 281,241 utterances that
    is a sixth of the time of reading them, and a third of encoding their transcripts
    (docs/benchmarks.md).
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
