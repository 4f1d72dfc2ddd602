"""Noise, rooms and gain on the samples of an utterance, in NumPy: what the plan drew, done."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from asr_jax.audio import AudioError
from asr_jax.data.manifest import HEADER_THREADS
from asr_jax.data.recordings import recording_seconds
from asr_jax.data.sources.librispeech_folder import AUDIO_SUFFIXES, files_below
from asr_jax.types import Skipped, Utterance

# Mean power, -160 dB of full scale: what is left of such noise is rounding, not to be made loud.
SILENT_POWER = 1e-16


def read_untranscribed(folder: str, name: str) -> tuple[list[Utterance], list[Skipped]]:
    """Every recording below `folder`, which the user calls `name`, and those that are unreadable.

    Raises ValueError where there is none.
    """
    if not Path(folder).is_dir():
        raise ValueError(f"{name} = {folder}: no such folder")
    paths = sorted(p for p in files_below(Path(folder)) if p.suffix.lower() in AUDIO_SUFFIXES)
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
    recordings = [one for one in listed if isinstance(one, Utterance)]
    skipped = [one for one in listed if isinstance(one, Skipped)]
    if not recordings:
        raise ValueError(
            f"{name} = {folder}: none of its {len(skipped)} recordings can be read, "
            f"the first is {skipped[0].id}: {skipped[0].reason}"
        )
    return recordings, skipped


def read_stretch(
    recording: Utterance,
    read: Callable[[Utterance], Float32[np.ndarray, " _"]],
    *,
    start_seconds: float,
    samples: int,
    sample_rate_hz: int,
) -> Float32[np.ndarray, " S"]:
    """S = `samples` of a recording from `start_seconds` on, from its beginning again at its end.

    No more of it than that is decoded. `read` gives an utterance's samples.
    """
    seconds = samples / sample_rate_hz
    if start_seconds + seconds <= recording.duration_seconds:
        stretch = read(recording._replace(offset_seconds=start_seconds, duration_seconds=seconds))
    else:
        whole = read(recording)
        stretch = np.roll(whole, -round(start_seconds * sample_rate_hz))
    return np.resize(stretch, samples)  # repeats it; rounding may lack a sample, too


def add_noise(
    samples: Float32[np.ndarray, " S"], noise: Float32[np.ndarray, " S"], *, snr_db: float
) -> Float32[np.ndarray, " S"]:
    """The sum, noise scaled so that 10 log10 of samples' mean power over noise's is `snr_db`.

    Where either is silent the samples are returned as they are.
    """
    noise_power = _power(noise)
    if noise_power < SILENT_POWER:
        return samples
    scale = np.sqrt(_power(samples) / noise_power * 10 ** (-snr_db / 10))
    return samples + np.float32(scale) * noise


def add_reverberation(
    samples: Float32[np.ndarray, " S"], response: Float32[np.ndarray, " R"]
) -> Float32[np.ndarray, " S"]:
    """`samples` as heard through an impulse response; as many, and of the same energy.

    The direct path, which is the response's largest sample, is put at time zero, so that words
    stay where they were; what rings on after the end is cut off. A silent response does nothing.
    """
    direct = int(np.argmax(np.abs(response)))
    size = _fast_size(len(samples) + len(response) - 1)
    spectrum = np.fft.rfft(samples, size) * np.fft.rfft(response, size)
    heard = np.fft.irfft(spectrum, size)[direct : direct + len(samples)].astype(np.float32)
    energy = _power(heard)
    return heard * np.float32(np.sqrt(_power(samples) / energy)) if energy > 0 else samples


def change_gain(samples: Float32[np.ndarray, " S"], gain_db: float) -> Float32[np.ndarray, " S"]:
    """`samples` times 10^(gain_db / 20). What goes beyond 1 is kept: no converter follows."""
    return samples if gain_db == 0 else samples * np.float32(10 ** (gain_db / 20))


def _power(samples: np.ndarray) -> float:
    return float(np.dot(samples, samples)) / max(len(samples), 1)


def _fast_size(size: int) -> int:
    """At least `size`, at most an eighth more, without large prime factors."""
    step = 1 << max(0, size.bit_length() - 4)
    return -(-size // step) * step
