"""Python's garbage collector, out of the way of long lists."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def gc_paused() -> Iterator[None]:
    """While a list only grows: the collector looks through all of it again and again, and frees
    nothing. With 281,241 utterances that is a sixth of the time of reading them, and a third of
    that of encoding their transcripts (docs/benchmarks.md).
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
