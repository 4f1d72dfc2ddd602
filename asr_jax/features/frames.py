"""Frames of samples: integer arithmetic that host code can use without JAX."""

from typing import TYPE_CHECKING, TypeVar

import numpy as np

from asr_jax.config import FeaturesConfig

if TYPE_CHECKING:
    import jax

Count = TypeVar("Count", int, np.ndarray, "jax.Array")


def window_samples(config: FeaturesConfig) -> int:
    """Return the samples in a frame, rounded down as in Kaldi."""
    return int(config.sample_rate_hz * config.window_ms / 1000)


def hop_samples(config: FeaturesConfig) -> int:
    """Return the samples from one frame to the next, rounded down as in Kaldi."""
    return int(config.sample_rate_hz * config.hop_ms / 1000)


def frame_count(num_samples: Count, config: FeaturesConfig) -> Count:
    """Return the number of frames: samples / hop, rounded to nearest (Kaldi's snip_edges=false).

    Frame t is centered at sample hop * t + hop / 2. With layout nemo, it is centered at hop * t,
    and the number is rounded down.

    Args:
        num_samples: an int, or an integer array (NumPy or JAX) of any shape.
        config: settings with the hop and the layout.

    Returns:
        Counts of the type and shape of `num_samples`.
    """
    hop = hop_samples(config)
    return (num_samples + (hop // 2 if config.layout == "kaldi" else 0)) // hop


def reach_hops(config: FeaturesConfig) -> tuple[int, int]:
    """Return the hops before and after some frames whose samples these frames depend on too.

    Frame t is counted as the samples hop * t to hop * (t + 1). The numbers are at least 1.
    """
    window, hop = window_samples(config), hop_samples(config)
    if config.layout == "kaldi":
        before = window // 2 - hop // 2
        after = window - before - hop
    else:
        # Pre-emphasis looks one sample further back.
        before, after = window - window // 2 + 1, window // 2 - hop
    return max(1, -(-before // hop)), max(1, -(-after // hop))
