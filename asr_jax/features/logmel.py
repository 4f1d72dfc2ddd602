"""Log-mel filterbank features of padded recordings."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import Precision
from jaxtyping import Array, Bool, Float32, Int32

from asr_jax.config import FeaturesConfig
from asr_jax.features.frames import frame_count, hop_samples, window_samples
from asr_jax.features.mel import fft_samples, mel_filters

# Kaldi's floor under the mel energies: the machine epsilon of float32.
_ENERGY_FLOOR = float(np.finfo(np.float32).eps)
# Smaller than the variance of any bin but those of digital silence, which it keeps at 0.
VARIANCE_FLOOR = 1e-5
# NeMo's terms (FilterbankFeatures), added to the energies and to the deviation.
_ENERGY_TERM = 2.0**-24
_DEVIATION_TERM = 1e-5


def log_mel(
    samples: Float32[Array, "B S"], sample_lengths: Int32[Array, " B"], config: FeaturesConfig
) -> tuple[Float32[Array, "B T F"], Int32[Array, " B"]]:
    """Return log-mel features; with the defaults and no normalization, Kaldi's fbank.

    Frame t is centered at sample hop * t + hop / 2. Beyond either true end, the recording is
    reflected. Each frame then passes through: subtraction of the mean, pre-emphasis
    x[n] - c x[n-1], window, power spectrum, mel filters, floor, natural logarithm.

    With layout nemo (NeMo's FilterbankFeatures), frame t is centered at sample hop * t, and zeros
    stand beyond both ends. Pre-emphasis comes first, over the recording, whose first sample it
    keeps. 2^-24 is added to the energies in place of the floor.

    No row depends on another, so the batch axis may be split by `jax.shard_map`. Under `jax.jit`
    alone, XLA of JAX 0.10 computes the Fourier transform of all rows on every device.

    Args:
        samples: audio, B rows of S samples, in -1..1; padding is not read.
        sample_lengths: real samples of each row, 0..S.
        config: static under `jax.jit`.

    Returns:
        Features, B rows of T = `frame_count(S, config)` frames of F mel bins, with zeros as
        padding; and the real frames of each row, `frame_count(sample_lengths, config)`.
    """
    frame_lengths = frame_count(sample_lengths, config)
    frames = _frames(samples, sample_lengths, config)
    if config.remove_dc:
        frames -= jnp.mean(frames, axis=-1, keepdims=True)
    if config.layout == "kaldi":
        before = jnp.concatenate([frames[..., :1], frames[..., :-1]], axis=-1)
        frames = frames - config.preemphasis * before
    spectrum = jnp.fft.rfft(frames * _window(config), fft_samples(config))
    power = spectrum.real**2 + spectrum.imag**2
    # GPUs and TPUs compute float32 products with less precision by default.
    energies = jnp.dot(power, mel_filters(config), precision=Precision.HIGHEST)
    is_nemo = config.layout == "nemo"
    features = jnp.log(energies + _ENERGY_TERM if is_nemo else jnp.maximum(energies, _ENERGY_FLOOR))
    real = jnp.arange(features.shape[1])[:, None] < frame_lengths[:, None, None]
    if config.normalization == "utterance":
        features = (_normalize_nemo if is_nemo else _normalize)(features, real)
    return jnp.where(real, features, 0), frame_lengths


def _frames(
    samples: Float32[Array, "B S"], lengths: Int32[Array, " B"], config: FeaturesConfig
) -> Float32[Array, "B T window"]:
    window, hop = window_samples(config), hop_samples(config)
    num_frames = frame_count(samples.shape[1], config)
    if config.layout == "kaldi":
        before, after = window // 2 - hop // 2, window - window // 2
        signal = _reflect(samples, lengths, before=before, after=after)
    else:
        signal = _emphasized(samples, lengths, config.preemphasis)
        signal = jnp.pad(signal, ((0, 0), (window - window // 2, window // 2)))
    # Slices of whole hops, side by side: XLA copies slices faster than it gathers frames.
    blocks = -(-window // hop)
    signal_samples = (num_frames + blocks - 1) * hop
    signal = jnp.pad(signal, ((0, 0), (0, max(0, signal_samples - signal.shape[1]))))
    hops = signal[:, :signal_samples].reshape(samples.shape[0], -1, hop)
    return jnp.concatenate([hops[:, i : i + num_frames] for i in range(blocks)], axis=-1)[
        ..., :window
    ]


def _emphasized(
    samples: Float32[Array, "B S"], lengths: Int32[Array, " B"], coefficient: float
) -> Float32[Array, "B S"]:
    """Return x[n] - c x[n-1] with x[-1] = 0, and zeros beyond the lengths."""
    before = jnp.pad(samples, ((0, 0), (1, 0)))[:, :-1]
    real = jnp.arange(samples.shape[1]) < lengths[:, None]
    return jnp.where(real, samples - coefficient * before, 0)


def _reflect(
    samples: Float32[Array, "B S"], lengths: Int32[Array, " B"], *, before: int, after: int
) -> Float32[Array, "B extended"]:
    """Add reflections before the start and after the true end, repeated for short rows.

    Sample -1 is sample 0, sample `length` is sample `length - 1`: the period is 2 * length.
    """
    rows = samples.shape[0]
    ahead = jnp.broadcast_to(jnp.arange(-before, 0), (rows, before))
    behind = lengths[:, None] + jnp.arange(after)
    period = 2 * jnp.maximum(lengths, 1)[:, None]
    phase = jnp.concatenate([ahead, behind], axis=1) % period
    source = jnp.minimum(phase, period - 1 - phase)
    # Gathering all samples, not only the edges, would take ten times as long.
    edges = jnp.take_along_axis(samples, source, axis=1, mode="promise_in_bounds")
    start, end = edges[:, :before], edges[:, before:]
    signal = jnp.concatenate([start, samples, jnp.zeros_like(end)], axis=1)

    def put(row, end, length):
        return jax.lax.dynamic_update_slice(row, end, (before + length,))

    return jax.vmap(put)(signal, end, lengths)


def _window(config: FeaturesConfig) -> Float32[np.ndarray, " window"]:
    """Return a symmetric window, as in Kaldi; povey (Kaldi's own) is hann to the power 0.85."""
    hann = 0.5 - 0.5 * np.cos(np.linspace(0, 2 * np.pi, window_samples(config)))
    shapes = {"povey": hann**0.85, "hann": hann, "hamming": 0.08 + 0.92 * hann}
    return shapes[config.window].astype(np.float32)


def _normalize(
    features: Float32[Array, "B T F"], real: Bool[Array, "B T 1"]
) -> Float32[Array, "B T F"]:
    count = jnp.maximum(jnp.sum(real, axis=1, keepdims=True), 1)
    mean = lambda x: jnp.sum(x, axis=1, keepdims=True, where=real) / count
    centered = features - mean(features)
    return centered / jnp.sqrt(mean(centered**2) + VARIANCE_FLOOR)


def _normalize_nemo(
    features: Float32[Array, "B T F"], real: Bool[Array, "B T 1"]
) -> Float32[Array, "B T F"]:
    """Return (x - mean) / (deviation of n - 1 frames + 1e-5); a single frame becomes zeros."""
    count = jnp.sum(real, axis=1, keepdims=True)
    total = lambda x: jnp.sum(x, axis=1, keepdims=True, where=real)
    centered = features - total(features) / jnp.maximum(count, 1)
    deviation = jnp.sqrt(total(centered**2) / jnp.maximum(count - 1, 1))
    return centered / (deviation + _DEVIATION_TERM)
