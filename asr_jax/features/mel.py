"""Triangular filters on a mel scale, as a matrix over the power spectrum (NumPy)."""

import numpy as np
from jaxtyping import Float32

from asr_jax.config import FeaturesConfig
from asr_jax.features.frames import window_samples

# Slaney's scale (Auditory Toolbox, 1998): 3 mel per 200 Hz up to 1 kHz, then 27 mel per factor 6.4.
_SLANEY_HZ_PER_MEL = 200 / 3
_SLANEY_KNEE_HZ = 1000.0
_SLANEY_KNEE_MEL = _SLANEY_KNEE_HZ / _SLANEY_HZ_PER_MEL
_SLANEY_MEL_PER_NEPER = 27 / np.log(6.4)


def fft_samples(config: FeaturesConfig) -> int:
    """Return the length of the Fourier transform: the window, rounded up to a power of two."""
    return 1 << (window_samples(config) - 1).bit_length()


def mel_filters(config: FeaturesConfig) -> Float32[np.ndarray, "spectrum F"]:
    """Return the weight of every frequency of the power spectrum in every mel bin.

    F + 2 edges are spaced evenly on the mel scale from `low_hz` to `high_hz`; filter f rises from
    edge f to edge f + 1 and falls to edge f + 2. On the scale "kaldi", filters are linear in mel
    with a maximum of 1; on "slaney", they are linear in Hz with an area of 1, as in librosa.

    Returns:
        Weights for the frequencies 0, rate / n, ..., rate / 2 of an FFT over n = `fft_samples`.

    Raises:
        ValueError: a filter is so narrow that it contains no frequency.
    """
    nyquist_hz = config.sample_rate_hz / 2
    high_hz = config.high_hz if config.high_hz > 0 else nyquist_hz + config.high_hz
    frequencies_hz = np.linspace(0, nyquist_hz, fft_samples(config) // 2 + 1)
    band_hz = np.array([config.low_hz, high_hz])
    if config.mel_scale == "kaldi":
        axis = _kaldi_mel(frequencies_hz)
        low, high = _kaldi_mel(band_hz)
        edges = np.linspace(low, high, config.mel_bins + 2)
    else:
        axis = frequencies_hz
        low, high = _slaney_mel(band_hz)
        edges = _slaney_hz(np.linspace(low, high, config.mel_bins + 2))
    left, top, right = edges[:-2], edges[1:-1], edges[2:]
    rise = (axis[:, None] - left) / (top - left)
    fall = (right - axis[:, None]) / (right - top)
    weights = np.maximum(0, np.minimum(rise, fall))
    if not weights.any(axis=0).all():
        raise ValueError(
            f"features.mel_bins = {config.mel_bins}: a filter contains no frequency of the"
            f" {fft_samples(config)}-sample FFT; use fewer bins or a longer features.window_ms"
        )
    if config.mel_scale == "slaney":
        weights *= 2 / (right - left)
    return weights.astype(np.float32)


def _kaldi_mel(hz: np.ndarray) -> np.ndarray:
    return 1127 * np.log1p(hz / 700)


def _slaney_mel(hz: np.ndarray) -> np.ndarray:
    above = np.log(np.maximum(hz, _SLANEY_KNEE_HZ) / _SLANEY_KNEE_HZ)
    return np.minimum(hz, _SLANEY_KNEE_HZ) / _SLANEY_HZ_PER_MEL + above * _SLANEY_MEL_PER_NEPER


def _slaney_hz(mel: np.ndarray) -> np.ndarray:
    above = np.maximum(mel - _SLANEY_KNEE_MEL, 0)
    return (
        np.minimum(mel, _SLANEY_KNEE_MEL)
        * _SLANEY_HZ_PER_MEL
        * np.exp(above / _SLANEY_MEL_PER_NEPER)
    )
