"""In which epoch of a plan a batch lies; how long epochs are is counted once, and kept."""

import contextlib
import hashlib
import json
import os
import threading
from bisect import bisect_right
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from asr_jax.data.plan import TrainingPlan

# Epochs whose batches are counted at a time, at most, and the threads that do it.
COUNTED_EPOCHS, COUNTING_THREADS = 8, 4


class Epochs:
    """The epochs of `plan`, one after the other; any thread may ask.

    Counts are read from the file `cache_path` if it was written for exactly this plan, and written
    there with `write_cache`: of several processes, one should write. If the file is missing or
    damaged, epochs are counted from the first one; a failed write is not an error.
    """

    def __init__(
        self, plan: TrainingPlan, *, cache_path: Path | None = None, write_cache: bool = True
    ):
        self._plan, self._cache_path, self._write_cache = plan, cache_path, write_cache
        self._digest = _digest(plan)
        self._lock = threading.Lock()
        self._ends = self._read()
        """Batches until the end of each epoch, of as many as were asked for."""

    def locate(self, position: int) -> tuple[int, int]:
        """(epoch, place in it) of the batch that `position` others come before, in all epochs."""
        with self._lock:
            ends = self._ends
            if not ends or position >= ends[-1]:
                self._count_to(position)
            epoch = bisect_right(ends, position)
            return epoch, position - (ends[epoch - 1] if epoch else 0)

    def _count_to(self, position: int) -> None:
        ends = self._ends
        with ThreadPoolExecutor(COUNTING_THREADS) as pool:
            while not ends or position >= ends[-1]:
                # The first batch waits for its own epoch alone.
                epochs = range(len(ends), len(ends) + min(COUNTED_EPOCHS, len(ends) + 1))
                for number in pool.map(self._plan.number_of_batches, epochs):
                    ends.append(number + (ends[-1] if ends else 0))
        if self._cache_path and self._write_cache:
            with contextlib.suppress(OSError):
                partial = self._cache_path.with_suffix(".tmp")
                partial.write_text(json.dumps({"plan": self._digest, "ends": ends}))
                os.replace(partial, self._cache_path)

    def _read(self) -> list[int]:
        try:
            found = json.loads(self._cache_path.read_text()) if self._cache_path else {}
            return found["ends"] if found["plan"] == self._digest else []
        except (OSError, ValueError, KeyError, TypeError):
            return []


def _digest(plan: TrainingPlan) -> str:
    """Of all that the lengths of epochs depend on, how they are planned and drawn included."""
    augment = plan.augment
    settings = (augment.speeds, augment.tempo_range, augment.join_probability, plan.seed)
    settings += (plan.buckets, plan.separator_labels, plan.corpus_sizes, plan.weights)
    digest = hashlib.sha256(repr((settings, np.__version__)).encode())
    digest.update(Path(__file__).with_name("plan.py").read_bytes())
    for column in (plan.durations_seconds, plan.label_lengths, plan.speakers):
        digest.update(np.ascontiguousarray(column).data)
    return digest.hexdigest()
