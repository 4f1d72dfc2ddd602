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

    What was counted is read from the file `kept`, where that is of just this plan, and with `write`
    written there: of several processes one should. Where it is missing or damaged, epochs are
    counted from the first one on; that it cannot be written is no error.
    """

    def __init__(self, plan: TrainingPlan, *, kept: Path | None = None, write: bool = True):
        self._plan, self._kept, self._write = plan, kept, write
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
        if self._kept and self._write:
            with contextlib.suppress(OSError):
                partial = self._kept.with_suffix(".tmp")
                partial.write_text(json.dumps({"plan": self._digest, "ends": ends}))
                os.replace(partial, self._kept)

    def _read(self) -> list[int]:
        try:
            found = json.loads(self._kept.read_text()) if self._kept else {}
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
