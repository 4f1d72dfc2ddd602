"""The epochs of a plan in sequence; their numbers of batches are counted once and cached."""

import contextlib
import functools
import hashlib
import json
import os
import threading
from bisect import bisect_right
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from asr_jax.data.plan import PlannedBatch, TrainingPlan

# Most epochs whose batches are counted at a time, and the threads that count them.
COUNTED_EPOCHS, COUNTING_THREADS = 8, 4


class Epochs:
    """The batches of all epochs of `plan`, by position; safe to use from several threads.

    Counts are read from the file `cache_path` if it was written for exactly this plan, and written
    there if `write_cache`: of several processes, only one should write. If the file is missing or
    damaged, epochs are counted from the first one; a failed write is not an error.
    """

    def __init__(
        self, plan: TrainingPlan, *, cache_path: Path | None = None, write_cache: bool = True
    ):
        self.plan = plan
        self._cache_path, self._write_cache = cache_path, write_cache
        self._digest = _digest(plan)
        self._lock = threading.Lock()
        self._ends = self._read()
        """Number of batches up to the end of each epoch that has been counted."""
        # Threads that read ahead of the step may be in the next epoch already.
        self._epoch_batches = functools.lru_cache(maxsize=2)(plan.batches)

    def batch(self, position: int) -> PlannedBatch:
        """Return the batch at `position`, counted from 0 over all epochs."""
        epoch, index = self.locate(position)
        return self._epoch_batches(epoch)[index]

    def locate(self, position: int) -> tuple[int, int]:
        """Return the epoch that contains the batch at `position`, and its index in the epoch."""
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
                # The first batch only waits for its own epoch.
                epochs = range(len(ends), len(ends) + min(COUNTED_EPOCHS, len(ends) + 1))
                for number in pool.map(self.plan.number_of_batches, epochs):
                    ends.append(number + (ends[-1] if ends else 0))
        if self._cache_path and self._write_cache:
            with contextlib.suppress(OSError):
                partial = self._cache_path.with_suffix(".tmp")
                text = json.dumps({"plan": self._digest, "ends": ends})
                partial.write_text(text, encoding="utf-8")
                os.replace(partial, self._cache_path)

    def _read(self) -> list[int]:
        """Return the cached counts; empty if there are none for this plan."""
        try:
            cached = json.loads(self._cache_path.read_bytes()) if self._cache_path else {}
            return cached["ends"] if cached["plan"] == self._digest else []
        except (OSError, ValueError, KeyError, TypeError):
            return []


def _digest(plan: TrainingPlan) -> str:
    """Return a digest of everything that the lengths of epochs depend on, the code included."""
    augment = plan.augment
    settings = (augment.speeds, augment.tempo_range, augment.join_probability, plan.seed)
    settings += (plan.buckets, plan.separator_labels, plan.dataset_sizes, plan.weights)
    digest = hashlib.sha256(repr((settings, np.__version__)).encode())
    for code in ("plan.py", "buckets.py"):
        digest.update(Path(__file__).with_name(code).read_bytes())
    for column in (plan.durations_seconds, plan.label_lengths, plan.speakers):
        digest.update(np.ascontiguousarray(column).data)
    return digest.hexdigest()
