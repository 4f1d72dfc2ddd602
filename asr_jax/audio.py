"""Reading of recordings as mono float32 samples, and changes of rate, speed and format."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import soxr
from jaxtyping import Float32, Int16

# Six days at 16 kHz: a header that states more is damaged.
MOST_FRAMES = 2**33
# libsndfile reports 2^63 - 1 frames for a FLAC file written to a pipe, whose header has no length.
UNKNOWN_FRAMES = 2**40


class AudioError(ValueError):
    """An error of a recording that cannot be used: its path and the `reason`, in one line."""

    def __init__(self, path: str | Path, reason: str):
        super().__init__(f"{path}: {reason}")
        self.reason = reason


@contextmanager
def _opened(path: str | Path, contents: bytes | BinaryIO | None) -> Iterator[soundfile.SoundFile]:
    """Open a recording, and raise AudioError for whatever is wrong with it in this context."""
    path = Path(path)
    part = io.BytesIO(contents) if isinstance(contents, bytes) else contents
    try:
        # libsndfile would report these two as "System error" and "Format not recognised".
        if part is None and not path.is_file():
            raise AudioError(path, "no such file")
        if (path.stat().st_size if part is None else part.seek(0, io.SEEK_END)) == 0:
            raise AudioError(path, "the file is empty")
        if part is not None:
            part.seek(0)
        try:
            opened = soundfile.SoundFile(path if part is None else part)
        except TypeError:
            raise AudioError(path, "raw samples, without a header") from None
        except UnicodeEncodeError:
            raise AudioError(path, "its name is not UTF-8") from None
        with opened as sound:
            if sound.frames == 0:
                raise AudioError(path, "no samples")
            if sound.frames > UNKNOWN_FRAMES:
                raise AudioError(path, "the header does not state the length")
            if sound.frames > MOST_FRAMES:
                raise AudioError(path, f"damaged, its header states {sound.frames} samples")
            yield sound
    except soundfile.LibsndfileError as error:
        raise AudioError(path, error.error_string.removeprefix("Error : ") or "corrupt") from error
    except OSError as error:
        raise AudioError(path, error.strerror or "cannot be read") from error


def audio_duration_seconds(path: str | Path, *, contents: bytes | BinaryIO | None = None) -> float:
    """Read the duration of a recording, in seconds, from its header. Raises AudioError.

    `contents` are the recording's bytes, or a file of them, if it is not the whole file `path`.
    """
    with _opened(path, contents) as sound:
        return sound.frames / sound.samplerate


def read_audio(
    path: str | Path,
    *,
    sample_rate_hz: int,
    offset_seconds: float = 0.0,
    duration_seconds: float | None = None,
    channel: int | None = None,
    contents: bytes | BinaryIO | None = None,
) -> Float32[np.ndarray, " S"]:
    """Read a recording, or its segment from `offset_seconds` for `duration_seconds`.

    Every format of libsndfile can be read (FLAC, WAV, Ogg Vorbis and Opus, MP3). Only `channel`,
    counted from 0, is read, or all channels are averaged. Other rates are resampled to
    `sample_rate_hz`. A segment that extends beyond the end stops there; the audio before it is not
    decoded. `contents` are the recording's bytes, or a file of them, if it is not the whole file
    `path`; errors name `path` in any case.

    Returns samples in -1..1 (resampling may overshoot slightly).
    Raises AudioError for a file that is missing, empty, corrupt or truncated, for a segment
    without samples, for a missing channel and for samples that are not finite.
    """
    with _opened(path, contents) as sound:
        start, end = _segment_bounds(path, sound, offset_seconds, duration_seconds, channel)
        rate_hz = sound.samplerate
        sound.seek(start)
        channels = sound.read(end - start, dtype="float32", always_2d=True)
    if len(channels) < end - start:
        raise AudioError(path, f"truncated, {len(channels)} of {end - start} samples")
    samples = _mixed(path, channels, channel)
    if rate_hz != sample_rate_hz:
        samples = _resample(samples, rate_hz / sample_rate_hz)
        if len(samples) == 0:
            own = f"{end - start} at its own rate"
            raise AudioError(path, f"no samples at {sample_rate_hz} Hz, {own}")
    return samples


def read_audio_blocks(
    path: str | Path, *, sample_rate_hz: int
) -> Iterator[Float32[np.ndarray, " S"]]:
    """Read a recording in blocks of about a second, which together are the samples of read_audio.

    Raises the errors of read_audio, but only when reading reaches the problem.
    """
    with _opened(path, None) as sound:
        rate_hz, frames, read = sound.samplerate, sound.frames, 0
        resampler = soxr.ResampleStream(rate_hz / sample_rate_hz, 1.0, 1, dtype="float32")
        while read < frames:
            channels = sound.read(min(rate_hz, frames - read), dtype="float32", always_2d=True)
            if len(channels) == 0:
                raise AudioError(path, f"truncated, {read} of {frames} samples")
            read += len(channels)
            samples = _mixed(path, channels, None)
            if rate_hz != sample_rate_hz:
                samples = resampler.resample_chunk(samples, last=read == frames)
            yield samples


def _mixed(path: str | Path, channels: np.ndarray, channel: int | None) -> np.ndarray:
    """Return one of the channels, or their mean. Raises AudioError if it is not finite."""
    samples = channels.mean(axis=1) if channel is None else channels[:, channel]
    if not np.isfinite(samples).all():
        raise AudioError(path, "samples that are not finite")
    return samples


def _segment_bounds(
    path: str | Path,
    sound: soundfile.SoundFile,
    offset_seconds: float,
    duration_seconds: float | None,
    channel: int | None,
) -> tuple[int, int]:
    """Return the first sample of a segment and the end after its last one.

    Raises AudioError if the segment or the channel does not exist.
    """
    rate_hz, end = sound.samplerate, sound.frames
    start = round(offset_seconds * rate_hz)
    if duration_seconds is not None:
        end = min(end, start + round(duration_seconds * rate_hz))
    if not 0 <= start < end:
        raise AudioError(
            path,
            f"no samples from {offset_seconds:g} s on, "
            f"the recording has {sound.frames / rate_hz:g} s",
        )
    if channel is not None and not 0 <= channel < sound.channels:
        raise AudioError(path, f"no channel {channel}, the recording has {sound.channels}")
    return start, end


def as_flac(
    path: str | Path,
    *,
    offset_seconds: float = 0.0,
    duration_seconds: float | None = None,
    channel: int | None = None,
    contents: bytes | None = None,
) -> bytes:
    """Return a segment of a recording as FLAC, at its own rate, with all its channels or one.

    This is exact for recordings of 16 or 24 bits; others are rounded to 24 bits. Arguments and
    errors are as in read_audio.
    """
    with _opened(path, contents) as sound:
        start, end = _segment_bounds(path, sound, offset_seconds, duration_seconds, channel)
        sound.seek(start)
        # libsndfile does not scale floats that it converts to integers.
        dtype = "float64" if sound.subtype in ("FLOAT", "DOUBLE") else "int32"
        samples = sound.read(end - start, dtype=dtype, always_2d=True)
        rate_hz, bits = sound.samplerate, 16 if sound.subtype == "PCM_16" else 24
    if len(samples) < end - start:
        raise AudioError(path, f"truncated, {len(samples)} of {end - start} samples")
    if channel is not None:
        samples = samples[:, channel]
    if samples.dtype == np.float64:
        if not np.isfinite(samples).all():
            raise AudioError(path, "samples that are not finite")
        largest = 2**23 - 1
        samples = np.clip(np.round(samples * 2**23), -largest, largest).astype(np.int32) << 8
    flac = io.BytesIO()
    try:
        soundfile.write(flac, samples, rate_hz, format="FLAC", subtype=f"PCM_{bits}")
    except soundfile.LibsndfileError as error:
        number = samples.shape[1] if samples.ndim > 1 else 1
        raise AudioError(path, f"FLAC cannot hold it: {number} channels at {rate_hz} Hz") from error
    return flac.getvalue()


def as_wav(samples: Int16[np.ndarray, " S"] | Float32[np.ndarray, " S"], rate_hz: int) -> bytes:
    """Return the samples, unchanged, as a WAV file of one channel."""
    wav = io.BytesIO()
    subtype = "PCM_16" if samples.dtype == np.int16 else "FLOAT"
    soundfile.write(wav, samples, rate_hz, format="WAV", subtype=subtype)
    return wav.getvalue()


def change_speed(samples: Float32[np.ndarray, " S"], speed: float) -> Float32[np.ndarray, " S2"]:
    """Return `samples` played at `speed` times the speed: above 1 is shorter and higher.

    Tempo and pitch change together (Ko et al., "Audio augmentation for speech recognition",
    Interspeech 2015). The result has about S / speed samples; speed 1 changes nothing.
    """
    return samples if speed == 1 else _resample(samples, speed)


def _resample(samples: np.ndarray, input_per_output: float) -> np.ndarray:
    return soxr.resample(samples, input_per_output, 1.0)
