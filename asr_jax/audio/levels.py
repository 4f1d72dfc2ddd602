"""Level, clipping, silence and a digest of one recording."""

import hashlib
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

FRAME_SECONDS = 0.02
# A frame is silent if it is this far below the loudest frame.
SILENCE_DB = 40.0
# Quieter peaks repeat by chance, because few integers are near them.
LEAST_CLIPPED_PEAK = 0.25
CLIPPED_RUN = 3


class Levels(NamedTuple):
    """Properties of the samples of one recording, at its own rate."""

    rate_hz: int
    channels: int
    rms: float
    """Root mean square of the mean of the channels."""
    peak: float
    clipped: float
    """Fraction of samples in runs of three or more at the peak, or at full scale and beyond."""
    leading_seconds: float
    """Silence before the first frame that is not silent."""
    trailing_seconds: float
    digest: bytes
    """Hash of rate and samples, rounded to 16 bits: the same for FLAC and WAV of one recording."""


def measure(channels: Float32[np.ndarray, "S C"], rate_hz: int, *, gain: float) -> Levels:
    """Return the levels of S >= 1 samples per channel, times `gain`."""
    channels = channels if gain == 1 else channels * np.float32(gain)
    mean = channels.mean(axis=1, dtype=np.float64)
    size = max(1, round(FRAME_SECONDS * rate_hz))
    whole = mean[: len(mean) // size * size] if len(mean) >= size else mean
    powers = np.square(whole).reshape(-1, min(size, len(whole))).mean(axis=1)
    loud = np.flatnonzero(powers >= powers.max() * 10 ** (-SILENCE_DB / 10))
    peak = float(np.abs(channels).max())
    samples = np.rint(np.clip(channels, -60_000, 60_000) * 32_768).astype("<i4")
    hashed = hashlib.blake2b(f"{rate_hz} {samples.shape}".encode(), digest_size=16)
    hashed.update(samples.tobytes())
    return Levels(
        rate_hz=rate_hz,
        channels=channels.shape[1],
        rms=float(np.sqrt(np.square(mean).mean())),
        peak=peak,
        clipped=_clipped(channels, peak),
        leading_seconds=float(loud[0]) * size / rate_hz,
        trailing_seconds=float(len(powers) - 1 - loud[-1]) * size / rate_hz,
        digest=hashed.digest(),
    )


def _clipped(channels: np.ndarray, peak: float) -> float:
    """Return the fraction of samples in runs of CLIPPED_RUN at the peak or at full scale."""
    if peak < LEAST_CLIPPED_PEAK:
        return 0.0
    at_peak = np.abs(channels) >= min(peak, 1.0) - 1.5 / 32_768
    if len(at_peak) < CLIPPED_RUN:
        return 0.0
    starts = at_peak[:-2] & at_peak[1:-1] & at_peak[2:]
    in_run = np.zeros_like(at_peak)
    for shift in range(CLIPPED_RUN):
        in_run[shift : len(starts) + shift] |= starts
    return float(in_run.mean())
