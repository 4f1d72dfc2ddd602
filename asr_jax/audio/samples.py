"""Reading of recordings as mono float32 samples, and changes of rate, speed and format."""

import contextlib
import functools
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import soundfile
import soxr
from jaxtyping import Float32, Int16

from asr_jax.audio.containers import (
    SECOND,
    ByteFile,
    ContainerError,
    Mended,
    TruncatedError,
    follows_flac,
    is_chained,
    is_flac,
    is_ogg,
    mended,
)

# Six days at 16 kHz: a header that states more is damaged.
MOST_FRAMES = 2**33
# libsndfile reports 2^63 - 1 frames for a FLAC file written to a pipe, whose header has no length.
UNKNOWN_FRAMES = 2**40
# Decoding an MP3 frame needs bits of the frames before it, at low bit rates of up to 22.
MP3_PREROLL = 32 * 1152
SKIPPED_AT_ONCE = 2**16
# Of files of this size, many segments are read one after another.
LARGE_BYTES = 2**22
# Channels cancel if the power of their mean is this small, relative to the mean of their powers:
# when Vorbis has coded them, a two-hundredth remains, which is noise.
CANCELLED_POWER = 1e-2


class AudioError(ValueError):
    """An error of a recording that cannot be used: its path and the `reason`, in one line."""

    def __init__(self, path: str | Path, reason: str):
        super().__init__(f"{path}: {reason}")
        self.reason = reason


class _Recording(NamedTuple):
    """A recording that is open for reading."""

    path: Path
    file: ByteFile
    sound: soundfile.SoundFile
    first: int
    """The number of samples per channel before the recording's first one."""
    frames: int
    """The number of its samples per channel."""
    truncated: str
    """The reason why it ends early, if it does."""


class Unread(NamedTuple):
    """A part of a recording that cannot be read."""

    start_seconds: float
    end_seconds: float
    """The end of the recording is the one that its header states."""
    reason: str


@contextlib.contextmanager
def _opened(path: str | Path, contents: bytes | BinaryIO | None) -> Iterator[_Recording]:
    """Open a recording, and raise AudioError for whatever is wrong with it in this context."""
    path, truncated = Path(path), ""
    try:
        with _file(path, contents) as file:
            size = file.seek(0, io.SEEK_END)
            if size == 0:
                raise AudioError(path, "the file is empty")
            whole = path if contents is None else None
            is_large = whole is not None and size >= LARGE_BYTES
            mend, truncated = _readable_large(path, size) if is_large else _readable(file, size)
            if is_ogg(file) and (_is_chained_file(path, size) if whole else is_chained(file)):
                raise ContainerError(SECOND)
            source = io.BytesIO(mend.contents) if mend else _source(file, whole)
            with _sound(path, source) as sound:
                frames = sound.frames if mend is None or mend.frames is None else mend.frames
                first = mend.skipped_frames if mend else 0
                if frames == 0:
                    raise AudioError(path, truncated or "no samples")
                _check_frames(path, frames, sound.frames - first)
                yield _Recording(path, file, sound, first, frames, truncated)
    except ContainerError as error:
        raise AudioError(path, str(error)) from error
    except soundfile.LibsndfileError as error:
        reason = _of_library(error)
        convert = "if another program plays it, convert it to FLAC or WAV"
        raise AudioError(path, truncated or f"{reason}; {convert}") from error
    except OSError as error:
        raise AudioError(path, error.strerror or "cannot be read") from error


def _readable_large(path: Path, size: int) -> tuple[Mended | None, str]:
    """Return `_readable` of a file. An unchanged one is copied once for its segments in a row."""
    return _last_readable(path, size, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=1)
def _last_readable(path: Path, size: int, time_ns: int) -> tuple[Mended | None, str]:
    with path.open("rb", buffering=0) as file:
        return _readable(file, size)


def _readable(file: ByteFile, size: int) -> tuple[Mended | None, str]:
    """Return what libsndfile reads instead of the file, and the reason if it ends early."""
    try:
        return mended(file, size), ""
    except TruncatedError as error:
        return error.start, str(error)


def _require_whole(recording: _Recording) -> None:
    if recording.truncated:
        raise AudioError(recording.path, recording.truncated)


@contextlib.contextmanager
def _file(path: Path, contents: bytes | BinaryIO | None) -> Iterator[ByteFile]:
    """Open the bytes of a recording; without a buffer, so that libsndfile shares the position."""
    if isinstance(contents, bytes):
        yield io.BytesIO(contents)
    elif contents is not None:
        yield contents
    elif path.is_file():
        with path.open("rb", buffering=0) as file:
            yield file
    else:  # libsndfile would report a "System error"
        raise AudioError(path, "no such file")


def _source(file: ByteFile, path: Path | None) -> ByteFile | Path | int:
    """Return what libsndfile opens: a name, by which it identifies some formats, if there is one.

    FLAC is opened by its descriptor, whose position tells afterward how far libsndfile has read.
    """
    is_by_descriptor = is_flac(file)
    file.seek(0)
    if path is None:
        return file
    return file.fileno() if is_by_descriptor else path


def _sound(path: Path, source: ByteFile | Path | int) -> soundfile.SoundFile:
    # The bytes of a name, since soundfile cannot encode one that is not UTF-8.
    opened = os.fsencode(source) if isinstance(source, Path) else source
    try:
        # Its annotation lacks bytes.
        return soundfile.SoundFile(opened, closefd=False)  # pyright: ignore[reportArgumentType]
    except TypeError:
        raise AudioError(path, "raw samples, without a header") from None


def _is_chained_file(path: Path, size: int) -> bool:
    """Return whether an Ogg file holds several recordings. An unchanged file is searched once."""
    return _search_for_chain(path, size, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=4096)
def _search_for_chain(path: Path, size: int, time_ns: int) -> bool:
    with path.open("rb", buffering=0) as file:
        return is_chained(file)


def _check_frames(path: Path, frames: int, available: int) -> None:
    """Raise AudioError for a recording whose length is not known."""
    if frames > UNKNOWN_FRAMES:
        decode = "decode it and encode it again"
        raise AudioError(path, f"the header does not state the length; {decode}")
    if frames > MOST_FRAMES:
        raise AudioError(path, f"damaged, its header states {frames} samples")
    if frames > available:
        raise AudioError(path, "its length is not known; decode it and encode it again")


def _seek(recording: _Recording, start: int) -> int:
    """Continue reading a recording before its sample `start`; return the samples in between."""
    sound, skipped = recording.sound, recording.first + start
    if sound.seekable():
        preroll = min(skipped, MP3_PREROLL) if sound.format == "MP3" and start > 0 else 0
        sound.seek(skipped - preroll)
        return preroll
    while skipped > 0:
        skipped -= len(sound.read(min(skipped, SKIPPED_AT_ONCE), dtype="float32")) or skipped
    return 0


def _read(recording: _Recording, start: int, end: int, *, preroll: int, of: int) -> np.ndarray:
    """Return samples [S, channels] from `start` to `end`; libsndfile is `preroll` samples before.

    soundfile seeks after it has read, so that in MP3 the samples before are read together with
    those that are wanted. `of` is the number of samples that are wanted in all, for the message.
    Raises AudioError if some are missing, and if a second recording follows the last one.
    """
    channels = _decoded(recording, start, end, preroll=preroll, of=of)
    if end == recording.frames:
        _require_last(recording)
    return channels


def _decoded(recording: _Recording, start: int, end: int, *, preroll: int, of: int) -> np.ndarray:
    """Return the samples of `_read`, without a look at what follows them."""
    path, sound = recording.path, recording.sound
    try:
        channels = sound.read(preroll + end - start, dtype="float32", always_2d=True)[preroll:]
    except soundfile.LibsndfileError as error:
        raise AudioError(path, f"truncated or damaged: {_of_library(error)}") from error
    if len(channels) < end - start:
        raise AudioError(path, f"truncated: {of - (end - start) + len(channels)} of {of} samples")
    return channels


def _require_last(recording: _Recording) -> None:
    """Raise AudioError if a second recording follows the one that was read to its end."""
    if recording.sound.format == "FLAC" and follows_flac(recording.file):
        raise AudioError(recording.path, SECOND)


def _of_library(error: soundfile.LibsndfileError) -> str:
    reason = error.error_string.removeprefix("Error : ").rstrip(".") or "corrupt"
    # It says so of files that begin like MP3 too.
    return "no audio" if reason.startswith("File does not exist") else reason


def audio_duration_seconds(path: str | Path, *, contents: bytes | BinaryIO | None = None) -> float:
    """Read the duration of a recording, in seconds, from its header. Raises AudioError.

    `contents` are the recording's bytes, or a file of them, if it is not the whole file `path`.
    """
    with _opened(path, contents) as recording:
        _require_whole(recording)
        return recording.frames / recording.sound.samplerate


def readable_seconds(path: str | Path, *, contents: bytes | BinaryIO | None = None) -> float:
    """Return the duration of a recording, or of the start that is there of a truncated one.

    Arguments and errors are otherwise as in audio_duration_seconds.
    """
    with _opened(path, contents) as recording:
        return recording.frames / recording.sound.samplerate


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

    Returns samples in -1..1 (loud recordings of lossy or float formats exceed this, and resampling
    may overshoot slightly).
    Raises AudioError for a file that is missing, empty, corrupt or truncated (unless the segment
    ends before), that contains several recordings or does not state its length, for a segment
    without samples, for a missing channel, for channels that cancel in their mean and for samples
    that are not finite.
    """
    channels, rate_hz = read_channels(
        path,
        offset_seconds=offset_seconds,
        duration_seconds=duration_seconds,
        channel=channel,
        contents=contents,
    )
    return mean_at_rate(path, channels, rate_hz, sample_rate_hz=sample_rate_hz)


def read_channels(
    path: str | Path,
    *,
    offset_seconds: float = 0.0,
    duration_seconds: float | None = None,
    channel: int | None = None,
    contents: bytes | BinaryIO | None = None,
) -> tuple[Float32[np.ndarray, "S C"], int]:
    """Return the samples of all channels, or of one, and their rate in Hz.

    Arguments and errors are as in read_audio, apart from errors of the mean of the channels.
    """
    with _opened(path, contents) as recording:
        start, end = _segment_bounds(recording, offset_seconds, duration_seconds, channel)
        preroll = _seek(recording, start)
        channels = _read(recording, start, end, preroll=preroll, of=end - start)
        rate_hz = recording.sound.samplerate
    return (channels if channel is None else channels[:, [channel]]), rate_hz


def mean_at_rate(
    path: str | Path, channels: Float32[np.ndarray, "S C"], rate_hz: int, *, sample_rate_hz: int
) -> Float32[np.ndarray, " S2"]:
    """Return the mean of the channels at `sample_rate_hz`. Raises the errors of read_audio."""
    samples = _mixed(path, channels, None)
    require_audible_mean(path, channel_powers(channels, samples))
    if rate_hz != sample_rate_hz:
        own = f"{len(samples)} at its own rate"
        samples = _resample(samples, rate_hz / sample_rate_hz)
        if len(samples) == 0:
            raise AudioError(path, f"no samples at {sample_rate_hz} Hz, {own}")
    return samples


def read_audio_blocks(
    path: str | Path, *, sample_rate_hz: int
) -> Iterator[Float32[np.ndarray, " S"]]:
    """Read a recording in blocks of about a second, which together are the samples of read_audio.

    Raises the errors of read_audio, but only when reading reaches the problem.
    """
    with _opened(path, None) as recording:
        _require_whole(recording)
        rate_hz, frames = recording.sound.samplerate, recording.frames
        resampler = soxr.ResampleStream(rate_hz / sample_rate_hz, 1.0, 1, dtype="float32")
        powers = np.zeros(2)
        for start in range(0, frames, rate_hz):
            is_sought = start == 0 or recording.sound.format == "MP3"
            preroll = _seek(recording, start) if is_sought else 0
            end = min(start + rate_hz, frames)
            channels = _read(recording, start, end, preroll=preroll, of=frames)
            samples = _mixed(path, channels, None)
            powers += channel_powers(channels, samples)
            if end == frames:
                require_audible_mean(path, powers)
            if rate_hz != sample_rate_hz:
                samples = resampler.resample_chunk(samples, last=end == frames)
            yield samples


def read_readable_blocks(
    path: str | Path, *, sample_rate_hz: int, unread: list[Unread]
) -> Iterator[Float32[np.ndarray, " S"]]:
    """Read a recording like read_audio_blocks, but read on after a second that cannot be decoded.

    Its samples are zeros, so that all others keep their times, and it is appended to `unread`. The
    last of these ends with the recording if the decoder finds nothing more, or if the file is
    truncated. Raises AudioError for what is no recording, or holds several.
    """
    powers = np.zeros(2)
    with contextlib.ExitStack() as opened:
        recording = opened.enter_context(_opened(path, None))
        rate_hz, frames, kind = recording.sound.samplerate, recording.frames, recording.sound.format
        resampler = soxr.ResampleStream(rate_hz / sample_rate_hz, 1.0, 1, dtype="float32")
        was_read = False
        for start in range(0, frames, rate_hz):
            end = min(start + rate_hz, frames)
            try:
                # Decoders of Ogg pass over what is missing without a word.
                is_sought = not was_read or kind in ("MP3", "OGG")
                preroll = _seek(recording, start) if is_sought else 0
                channels = _decoded(recording, start, end, preroll=preroll, of=end - start)
                samples = _mixed(path, channels, None)
                powers += channel_powers(channels, samples)
                was_read = True
            except (AudioError, soundfile.LibsndfileError) as error:
                reason = error.reason if isinstance(error, AudioError) else _of_library(error)
                _add_unread(unread, Unread(start / rate_hz, end / rate_hz, reason))
                samples = np.zeros(end - start, np.float32)
                opened.close()  # A decoder that failed may read nothing more.
                recording, was_read = opened.enter_context(_opened(path, None)), False
            if end == frames:
                _require_last(recording)
                require_audible_mean(path, powers)
            if rate_hz != sample_rate_hz:
                samples = resampler.resample_chunk(samples, last=end == frames)
            yield samples
        if recording.truncated:
            unread.append(Unread(frames / rate_hz, frames / rate_hz, recording.truncated))


def _add_unread(unread: list[Unread], part: Unread) -> None:
    """Append a part to the ones before it, or to the last one if this ends where it starts."""
    if unread and unread[-1].end_seconds == part.start_seconds:
        part = part._replace(start_seconds=unread[-1].start_seconds, reason=unread[-1].reason)
        unread.pop()
    unread.append(part)


def _mixed(path: str | Path, channels: np.ndarray, channel: int | None) -> np.ndarray:
    """Return one of the channels, or their mean. Raises AudioError if it is not finite."""
    samples = channels.mean(axis=1) if channel is None else channels[:, channel]
    if not np.isfinite(samples).all():
        raise AudioError(path, "samples that are not finite")
    return samples


def channel_powers(channels: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Return the power of the mean of several channels, and the mean of their powers."""
    if channels.shape[1] == 1:
        return np.ones(2)
    return np.array([np.vdot(mean, mean), np.vdot(channels, channels) / channels.shape[1]])


def require_audible_mean(path: str | Path, powers: np.ndarray) -> None:
    """Raise AudioError if `channel_powers`, summed over a recording, show that channels cancel."""
    if powers[0] < CANCELLED_POWER * powers[1]:
        raise AudioError(
            path,
            "its channels cancel when they are averaged; name one of them in the manifest (channel "
            "of Lhotse, Kaldi or a table), or keep only one",
        )


def _segment_bounds(
    recording: _Recording,
    offset_seconds: float,
    duration_seconds: float | None,
    channel: int | None,
) -> tuple[int, int]:
    """Return the first sample of a segment and the end after its last one.

    Raises AudioError if the segment or the channel does not exist.
    """
    path, rate_hz, end = recording.path, recording.sound.samplerate, recording.frames
    start = round(offset_seconds * rate_hz)
    if duration_seconds is not None:
        end = start + round(duration_seconds * rate_hz)
    if duration_seconds is None or end > recording.frames:
        _require_whole(recording)
        end = recording.frames
    if not 0 <= start < end:
        raise AudioError(
            path,
            f"no samples in its segment: from {offset_seconds:g} s on, "
            f"the recording has {recording.frames / rate_hz:g} s",
        )
    number = recording.sound.channels
    if channel is not None and not 0 <= channel < number:
        raise AudioError(path, f"no channel {channel}, the recording has {number}")
    return start, end


def as_flac(
    path: str | Path,
    *,
    offset_seconds: float = 0.0,
    duration_seconds: float | None = None,
    channel: int | None = None,
    contents: bytes | BinaryIO | None = None,
) -> tuple[bytes, float]:
    """Return a segment of a recording as FLAC, and the gain that restores its samples.

    The FLAC file has the recording's rate, and all its channels or one. Times the gain, its samples
    are those of the recording: exactly for 16 or 24 bits, otherwise rounded to 24 bits. The gain is
    1 unless samples exceed full scale; then it is a power of two. Arguments and errors are as in
    read_audio.
    """
    with _opened(path, contents) as recording:
        start, end = _segment_bounds(recording, offset_seconds, duration_seconds, channel)
        preroll = _seek(recording, start)
        samples = _read(recording, start, end, preroll=preroll, of=end - start)
        rate_hz = recording.sound.samplerate
        bits = 16 if recording.sound.subtype == "PCM_16" else 24
    if channel is not None:
        samples = samples[:, [channel]]
    if not np.isfinite(samples).all():
        raise AudioError(path, "samples that are not finite")
    full_scale, gain = 2.0 ** (bits - 1), 1.0
    least, most = float(samples.min()) * full_scale, float(samples.max()) * full_scale
    while round(least / gain) < -full_scale or round(most / gain) > full_scale - 1:
        gain *= 2
    # float32 holds 24 bits and powers of two: only rint rounds.
    integers = np.rint(samples * np.float32(full_scale / gain)).astype(np.int32)
    flac = io.BytesIO()
    try:
        left_aligned = integers << (32 - bits)
        soundfile.write(flac, left_aligned, rate_hz, format="FLAC", subtype=f"PCM_{bits}")
    except soundfile.LibsndfileError as error:
        number = samples.shape[1]
        raise AudioError(path, f"FLAC cannot hold it: {number} channels at {rate_hz} Hz") from error
    return flac.getvalue(), gain


def as_wav(samples: Int16[np.ndarray, " S"] | Float32[np.ndarray, " S"], rate_hz: int) -> bytes:
    """Return the samples, unchanged, as a WAV file of one channel."""
    wav = io.BytesIO()
    subtype = "PCM_16" if samples.dtype == np.int16 else "FLOAT"
    soundfile.write(wav, samples, rate_hz, format="WAV", subtype=subtype)
    return wav.getvalue()


def as_mp3(samples: Float32[np.ndarray, " S"], rate_hz: int) -> bytes:
    """Return the samples, clipped to full scale, as an MP3 file of one channel, to listen to."""
    mp3 = io.BytesIO()
    soundfile.write(mp3, np.clip(samples, -1, 1), rate_hz, format="MP3")
    return mp3.getvalue()


def change_speed(samples: Float32[np.ndarray, " S"], speed: float) -> Float32[np.ndarray, " S2"]:
    """Return `samples` played at `speed` times the speed: above 1 is shorter and higher.

    Tempo and pitch change together (Ko et al., "Audio augmentation for speech recognition",
    Interspeech 2015). The result has about S / speed samples; speed 1 changes nothing.
    """
    return samples if speed == 1 else _resample(samples, speed)


def _resample(samples: np.ndarray, input_per_output: float) -> np.ndarray:
    return soxr.resample(samples, input_per_output, 1.0)
