"""Frame counts, in plain integers and arrays."""

import subprocess
import sys

import numpy as np
import pytest

from asr_jax.config import FeaturesConfig
from asr_jax.features.frames import frame_count, hop_samples, window_samples


@pytest.mark.parametrize(
    ("rate_hz", "window_ms", "hop_ms", "window", "hop"),
    [(16_000, 25.0, 10.0, 400, 160), (11_025, 25.0, 10.0, 275, 110), (8_000, 20.0, 12.5, 160, 100)],
)
def test_partial_samples_are_dropped(rate_hz, window_ms, hop_ms, window, hop):
    config = FeaturesConfig(sample_rate_hz=rate_hz, window_ms=window_ms, hop_ms=hop_ms)
    assert (window_samples(config), hop_samples(config)) == (window, hop)


def test_every_frame_has_its_center_in_the_recording():
    config = FeaturesConfig()
    hop = hop_samples(config)
    for num_samples in range(1000):
        centers = [t for t in range(20) if hop * t + hop // 2 <= num_samples]
        assert frame_count(num_samples, config) == len(centers)


def test_array_counts_equal_those_of_its_elements():
    config = FeaturesConfig()
    lengths = np.arange(1000, dtype=np.int32)
    counts = frame_count(lengths, config)
    assert counts.dtype == np.int32
    assert counts.tolist() == [frame_count(n, config) for n in range(1000)]


def test_counting_frames_needs_no_jax():
    code = "import sys, asr_jax.features.frames; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
