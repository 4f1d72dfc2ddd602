"""Notes on each recording, taken while a dataset is read once."""

from collections import Counter

import numpy as np

from asr_jax.audio.levels import Levels
from asr_jax.survey.rows import ROW, row_bytes
from asr_jax.types import Skipped, Utterance

MOST_LISTED = 30


class Survey:
    """The figures of recordings, in the order in which they were read, and those left out.

    A recording takes 50 bytes. Of those left out, the first of each kind of reason can be played.
    """

    def __init__(self) -> None:
        self.left_out: list[Skipped] = []
        self.left_out_recordings: dict[str, Utterance] = {}
        self._packed = bytearray()
        self._kinds: Counter[str] = Counter()

    def add(self, seconds: float, levels: Levels) -> None:
        """Note a usable recording."""
        self._packed += row_bytes(seconds, levels)

    def leave_out(self, skipped: Skipped, recording: Utterance | None) -> None:
        """Note what is left out; `recording` is None if it is not known."""
        kind = skipped.reason.partition(":")[0]
        self._kinds[kind] += 1
        self.left_out.append(skipped)
        if recording and self._kinds[kind] <= MOST_LISTED:
            self.left_out_recordings[skipped.id] = recording

    @property
    def rows(self) -> np.ndarray:
        """The figures as an array of ROW."""
        # A copy: bytes that an array shares cannot grow.
        return np.frombuffer(bytes(self._packed), ROW)
