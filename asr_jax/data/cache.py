"""A cache of decoded recordings in memory."""

import threading

import numpy as np
from jaxtyping import Float32

from asr_jax.data.recordings import read_recording
from asr_jax.types import Utterance

INT16_SCALE = 32768


class AudioCache:
    """Reads utterances and keeps as many as fit `capacity_bytes`; safe to use from several threads.

    A cached utterance gives the same samples as reading it, bit for bit. Nothing is evicted: an
    epoch reads everything once in a new order, so replacing one utterance by another gains nothing.
    """

    def __init__(self, *, sample_rate_hz: int, capacity_bytes: int):
        self._sample_rate_hz = sample_rate_hz
        self._free_bytes = capacity_bytes
        self._cached: dict[str, np.ndarray] = {}
        self._lock = threading.Lock()

    def read(self, utterance: Utterance) -> Float32[np.ndarray, " S"]:
        """Return the utterance's samples in -1..1. Raises AudioError."""
        cached = self._cached.get(utterance.id)
        if cached is not None:
            return _unpacked(cached)
        samples = read_recording(utterance, sample_rate_hz=self._sample_rate_hz)
        packed = _packed(samples)
        with self._lock:
            if packed.nbytes <= self._free_bytes and utterance.id not in self._cached:
                self._cached[utterance.id] = packed
                self._free_bytes -= packed.nbytes
        return samples

    @property
    def free_bytes(self) -> int:
        """The part of the capacity that is not used yet."""
        return self._free_bytes


def _packed(samples: np.ndarray) -> np.ndarray:
    """Return the samples as int16 if that is exact: for 16-bit recordings without resampling."""
    scaled = samples * INT16_SCALE
    integers = np.clip(scaled, -INT16_SCALE, INT16_SCALE - 1).astype(np.int16)
    return integers if np.array_equal(integers, scaled) else samples


def _unpacked(packed: np.ndarray) -> np.ndarray:
    return packed if packed.dtype == np.float32 else packed.astype(np.float32) / INT16_SCALE
