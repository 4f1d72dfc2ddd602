"""Decoded recordings kept in memory, so that each is decoded once."""

import threading

import numpy as np
from jaxtyping import Float32

from asr_jax.data.recordings import read_recording
from asr_jax.types import Utterance

INT16_SCALE = 32768


class AudioCache:
    """Reads utterances and keeps them while they fit `capacity_bytes`; for any threads.

    What a cached utterance gives is what reading it gives, bit for bit. Nothing is thrown out: an
    epoch reads everything once in a new order, where replacing one by another gains nothing.
    """

    def __init__(self, *, sample_rate_hz: int, capacity_bytes: int):
        self._sample_rate_hz = sample_rate_hz
        self._free_bytes = capacity_bytes
        self._kept: dict[str, np.ndarray] = {}
        self._lock = threading.Lock()

    def read(self, utterance: Utterance) -> Float32[np.ndarray, " S"]:
        """Its samples in -1..1. Raises AudioError."""
        kept = self._kept.get(utterance.id)
        if kept is not None:
            return _unpacked(kept)
        samples = read_recording(utterance, sample_rate_hz=self._sample_rate_hz)
        packed = _packed(samples)
        with self._lock:
            if packed.nbytes <= self._free_bytes and utterance.id not in self._kept:
                self._kept[utterance.id] = packed
                self._free_bytes -= packed.nbytes
        return samples

    @property
    def free_bytes(self) -> int:
        """What is left of the capacity."""
        return self._free_bytes


def _packed(samples: np.ndarray) -> np.ndarray:
    """As int16 where that loses nothing: 16-bit recordings that were not resampled."""
    scaled = samples * INT16_SCALE
    integers = np.clip(scaled, -INT16_SCALE, INT16_SCALE - 1).astype(np.int16)
    return integers if np.array_equal(integers, scaled) else samples


def _unpacked(packed: np.ndarray) -> np.ndarray:
    return packed if packed.dtype == np.float32 else packed.astype(np.float32) / INT16_SCALE
