"""Mel filters against their definition."""

import math

import numpy as np
import pytest

from asr_jax.config import FeaturesConfig
from asr_jax.features.mel import fft_samples, mel_filters


def _slaney_mel(hz):
    return hz * 3 / 200 if hz < 1000 else 15 + 27 * math.log(hz / 1000) / math.log(6.4)


def _slaney_hz(mel):
    return mel * 200 / 3 if mel < 15 else 1000 * math.exp((mel - 15) * math.log(6.4) / 27)


def _triangle(x, left, top, right):
    if left < x <= top:
        return (x - left) / (top - left)
    return (right - x) / (right - top) if top < x < right else 0.0


def _written_out(config, low_hz, high_hz):
    """Return the weights, computed one by one by their definition."""
    kaldi = config.mel_scale == "kaldi"
    to_mel = (lambda hz: 1127 * math.log(1 + hz / 700)) if kaldi else _slaney_mel
    low, high = to_mel(low_hz), to_mel(high_hz)
    step = (high - low) / (config.mel_bins + 1)
    fft = fft_samples(config)
    weights = np.zeros((fft // 2 + 1, config.mel_bins))
    for k in range(fft // 2 + 1):
        hz = k * config.sample_rate_hz / fft
        for f in range(config.mel_bins):
            edges = [low + step * (f + i) for i in range(3)]
            if kaldi:
                weights[k, f] = _triangle(to_mel(hz), *edges)
            else:
                left, top, right = map(_slaney_hz, edges)
                weights[k, f] = _triangle(hz, left, top, right) * 2 / (right - left)
    return weights


@pytest.mark.parametrize(
    ("config", "low_hz", "high_hz"),
    [
        (FeaturesConfig(), 20, 7600),
        (FeaturesConfig(mel_scale="slaney", low_hz=0.0, high_hz=8000.0), 0, 8000),
        (FeaturesConfig(sample_rate_hz=8000, mel_bins=40, high_hz=0.0), 20, 4000),
        (FeaturesConfig(mel_scale="slaney", mel_bins=23, high_hz=700.0), 20, 700),
    ],
)
def test_filters_equal_their_definition(config, low_hz, high_hz):
    expected = _written_out(config, low_hz, high_hz)
    np.testing.assert_allclose(mel_filters(config), expected, rtol=1e-6, atol=1e-6 * expected.max())


def test_slaney_filters_have_area_one():
    config = FeaturesConfig(mel_scale="slaney", mel_bins=10, window_ms=1000.0)
    hz_per_bin = config.sample_rate_hz / fft_samples(config)
    np.testing.assert_allclose(mel_filters(config).sum(axis=0) * hz_per_bin, 1, rtol=1e-3)


def test_filter_without_a_frequency_is_an_error():
    with pytest.raises(ValueError, match="features.mel_bins = 200: a filter contains no frequency"):
        mel_filters(FeaturesConfig(mel_bins=200))


@pytest.mark.parametrize(("window_ms", "samples"), [(25.0, 512), (32.0, 512), (32.0625, 1024)])
def test_transform_length_is_the_next_power_of_two(window_ms, samples):
    assert fft_samples(FeaturesConfig(window_ms=window_ms)) == samples
