"""Noise, reverberation and gain for the samples of an utterance, in NumPy."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from asr_jax.audio.samples import AudioError
from asr_jax.data.manifest import HEADER_THREADS
from asr_jax.data.recordings import recording_seconds
from asr_jax.data.sources.file_names import AUDIO_SUFFIXES, is_recording
from asr_jax.data.sources.librispeech_folder import files_below
from asr_jax.types import Skipped, Utterance

# Mean power, -160 dB of full scale. Quieter noise is mostly rounding, and is not made louder.
SILENT_POWER = 1e-16


def read_untranscribed(folder: str, name: str) -> tuple[list[Utterance], list[Skipped]]:
    """Read every recording below `folder`; return those that can be read, and those that cannot.

    `name` is the config field that names the folder. Raises ValueError if no recording can be read.
    """
    if not Path(folder).is_dir():
        raise ValueError(f"{name} = {folder}: no such folder")
    paths = sorted(filter(is_recording, files_below(Path(folder))))
    if not paths:
        raise ValueError(f"{name} = {folder}: no recordings ({', '.join(AUDIO_SUFFIXES)}) in it")

    def measured(path: Path) -> Utterance | Skipped:
        recording = Utterance(f"{name}:{path.relative_to(folder)}", path, "", 0.0)
        try:
            return recording._replace(duration_seconds=recording_seconds(recording))
        except AudioError as error:
            return Skipped(recording.id, f"{error.reason}: {path}")

    with ThreadPoolExecutor(HEADER_THREADS) as pool:
        listed = list(pool.map(measured, paths))
    recordings = [item for item in listed if isinstance(item, Utterance)]
    skipped = [item for item in listed if isinstance(item, Skipped)]
    if not recordings:
        raise ValueError(
            f"{name} = {folder}: none of its {len(skipped)} recordings can be read, "
            f"the first is {skipped[0].id}: {skipped[0].reason}"
        )
    return recordings, skipped


def read_segment(
    recording: Utterance,
    read: Callable[[Utterance], Float32[np.ndarray, " _"]],
    *,
    start_seconds: float,
    samples: int,
    sample_rate_hz: int,
) -> Float32[np.ndarray, " S"]:
    """Return S = `samples` of a recording from `start_seconds` on, repeating it when it ends.

    If it need not be repeated, only this segment is decoded. `read` returns an utterance's samples.
    """
    seconds = samples / sample_rate_hz
    if start_seconds + seconds <= recording.duration_seconds:
        segment = read(recording._replace(offset_seconds=start_seconds, duration_seconds=seconds))
    else:
        segment = np.roll(read(recording), -round(start_seconds * sample_rate_hz))
    return np.resize(segment, samples)  # repeats it, also if rounding left it a sample short


def add_noise(
    samples: Float32[np.ndarray, " S"], noise: Float32[np.ndarray, " S"], *, snr_db: float
) -> Float32[np.ndarray, " S"]:
    """Return the sum with noise scaled to a signal-to-noise ratio of `snr_db`.

    The ratio is 10 log10 of the mean power of the samples over that of the scaled noise. If the
    samples or the noise are silent, the samples are returned unchanged.
    """
    noise_power = _power(noise)
    if noise_power < SILENT_POWER:
        return samples
    scale = np.sqrt(_power(samples) / noise_power * 10 ** (-snr_db / 10))
    return samples + np.float32(scale) * noise


def add_reverberation(
    samples: Float32[np.ndarray, " S"], response: Float32[np.ndarray, " R"]
) -> Float32[np.ndarray, " S"]:
    """Return `samples` convolved with an impulse response, with the same length and energy.

    The direct path, which is the response's largest sample, is shifted to time zero, so that words
    keep their times; reverberation after the end is cut off. A silent response changes nothing.
    """
    direct = int(np.argmax(np.abs(response)))
    size = _fast_size(len(samples) + len(response) - 1)
    spectrum = np.fft.rfft(samples, size) * np.fft.rfft(response, size)
    reverberant = np.fft.irfft(spectrum, size)[direct : direct + len(samples)].astype(np.float32)
    power = _power(reverberant)
    return reverberant * np.float32(np.sqrt(_power(samples) / power)) if power > 0 else samples


def change_gain(samples: Float32[np.ndarray, " S"], gain_db: float) -> Float32[np.ndarray, " S"]:
    """Return `samples` times 10^(gain_db / 20). Nothing is clipped at full scale."""
    return samples if gain_db == 0 else samples * np.float32(10 ** (gain_db / 20))


def _power(samples: np.ndarray) -> float:
    """Return the mean power; 0 for no samples."""
    return float(np.dot(samples, samples)) / max(len(samples), 1)


def _fast_size(size: int) -> int:
    """Return a size for fast transforms: at least `size`, at most an eighth more."""
    step = 1 << max(0, size.bit_length() - 4)
    return -(-size // step) * step
