"""Samples and bytes of recordings, which are files, parts of files, records or in memory."""

import io
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

import numpy as np
from jaxtyping import Float32

from asr_jax.audio.samples import (
    AudioError,
    as_flac,
    as_wav,
    audio_duration_seconds,
    read_audio,
    read_channels,
    readable_seconds,
)
from asr_jax.data.sources.file_names import bucket_url
from asr_jax.data.sources.lines import first_line
from asr_jax.data.sources.prepared import read_record
from asr_jax.types import InMemory, Member, Record, TableRow, Utterance

# Sample rate of tensorflow-datasets' LibriSpeech, which stores samples.
STOCK_RATE_HZ = 16_000
# Manifests count the padding of MP3 frames, which decoders remove; Kaldi allows segments to extend
# half a second beyond their recording.
LEAST_TOLERANCE_SECONDS, MOST_TOLERANCE_SECONDS, TOLERANCE = 0.15, 0.5, 0.1
# No format but floating point holds samples of this size, which 16-bit integers have.
FAR_BEYOND_FULL_SCALE = 64.0


def read_recording(utterance: Utterance, *, sample_rate_hz: int) -> Float32[np.ndarray, " S"]:
    """Read the utterance's segment: samples in -1..1 at `sample_rate_hz`.

    Raises AudioError, also for audio that is notably shorter than the utterance's duration: its
    transcript may be longer.
    """
    with _contents(utterance) as contents:
        samples = read_audio(
            utterance.audio,
            sample_rate_hz=sample_rate_hz,
            offset_seconds=utterance.offset_seconds,
            duration_seconds=utterance.duration_seconds,
            channel=utterance.channel,
            contents=contents,
        )
    if reason := too_short(len(samples), sample_rate_hz, utterance):
        raise AudioError(utterance.audio, reason)
    gain = stored_gain(utterance)
    return samples if gain == 1 else samples * np.float32(gain)


def too_short(samples: int, sample_rate_hz: int, utterance: Utterance) -> str:
    """Return the reason why a number of samples is not all of the utterance; else nothing."""
    stated = utterance.duration_seconds
    tolerance = min(max(LEAST_TOLERANCE_SECONDS, TOLERANCE * stated), MOST_TOLERANCE_SECONDS)
    if not samples / sample_rate_hz < stated - tolerance:  # the duration may be NaN
        return ""
    return f"shorter than its manifest says: {samples} samples"


def stored_gain(utterance: Utterance) -> float:
    """Return the factor that restores the recording's samples from those that are stored."""
    return utterance.within.gain if isinstance(utterance.within, Record) else 1.0


def read_recording_channels(utterance: Utterance) -> tuple[Float32[np.ndarray, "S C"], int]:
    """Read all channels of the utterance's segment as stored, without gain, and their rate in Hz.

    A duration of NaN is all after the offset. Raises AudioError.
    """
    with _contents(utterance) as contents:
        return read_channels(
            utterance.audio,
            offset_seconds=utterance.offset_seconds,
            duration_seconds=_seconds_to_read(utterance),
            channel=utterance.channel,
            contents=contents,
        )


def _seconds_to_read(utterance: Utterance) -> float | None:
    seconds = utterance.duration_seconds
    return None if math.isnan(seconds) else seconds


def recording_as_flac(utterance: Utterance) -> tuple[bytes, float]:
    """Read the utterance's segment, alone, as FLAC; NaN is all after its offset.

    Returns also the gain that restores its samples. Raises AudioError.
    """
    with _contents(utterance) as contents:
        flac, gain = as_flac(
            utterance.audio,
            offset_seconds=utterance.offset_seconds,
            duration_seconds=_seconds_to_read(utterance),
            channel=utterance.channel,
            contents=contents,
        )
    return flac, gain * stored_gain(utterance)


def recording_seconds(utterance: Utterance) -> float:
    """Read the duration of the recording that the utterance is a segment of. Raises AudioError."""
    with _contents(utterance) as contents:
        return audio_duration_seconds(utterance.audio, contents=contents)


def readable_recording_seconds(utterance: Utterance) -> float:
    """Return `recording_seconds`, or of a truncated recording the duration of what is there."""
    with _contents(utterance) as contents:
        return readable_seconds(utterance.audio, contents=contents)


def recording_bytes(utterance: Utterance, at_most_bytes: int) -> bytes | None:
    """Read the recording as it is stored; None if it has more bytes or cannot be read."""
    try:
        with _contents(utterance) as contents:
            if isinstance(contents, bytes):
                stored = contents
            else:
                with utterance.audio.open("rb") if contents is None else contents as file:
                    stored = file.read(at_most_bytes + 1)
    except (AudioError, OSError):
        return None
    return stored if len(stored) <= at_most_bytes else None


def recording_contents(utterance: Utterance, at_most_bytes: int = -1) -> bytes:
    """Read the recording as it is stored, or its first bytes. Raises AudioError."""
    with _contents(utterance) as contents:
        if isinstance(contents, bytes):
            return contents if at_most_bytes < 0 else contents[:at_most_bytes]
        try:
            with utterance.audio.open("rb") if contents is None else contents as file:
                return file.read(at_most_bytes)
        except OSError as error:
            raise AudioError(utterance.audio, error.strerror or "cannot be read") from error


@contextmanager
def _contents(utterance: Utterance) -> Iterator[bytes | BinaryIO | None]:
    """Open the recording: its bytes, or a part of a file; None if it is the whole file."""
    within = utterance.within
    if within is None:
        yield None
        return
    if isinstance(within, InMemory):
        yield within.contents
        return
    if isinstance(within, Record):
        yield _record_audio(utterance, within)
        return
    if isinstance(within, TableRow):
        yield _row_audio(utterance, within)
        return
    if bucket_url(utterance.audio):
        yield _bucket_audio(utterance, within)
        return
    try:
        file = utterance.audio.open("rb")
    except OSError as error:
        raise AudioError(utterance.audio, error.strerror or "cannot be read") from error
    with file:
        available_bytes = max(0, os.fstat(file.fileno()).st_size - within.offset_bytes)
        if available_bytes < within.size_bytes:
            reason = f"truncated: {available_bytes} of {within.size_bytes} bytes"
            raise AudioError(utterance.audio, reason)
        yield _FilePart(file, within)


def _record_audio(utterance: Utterance, record: Record) -> bytes:
    """Read the encoded recording of an ArrayRecord shard."""
    try:
        stored = read_record(utterance.audio, record.number)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = f"its record {record.number}: {first_line(error)}"
        raise AudioError(utterance.audio, reason) from error
    id, audio = stored.id, stored.audio
    # If a run trains on several datasets, ids have a prefix.
    if utterance.id != id and not utterance.id.endswith(f":{id}"):
        raise AudioError(
            utterance.audio, f"its record {record.number} is {id}, not {utterance.id} as indexed"
        )
    return audio if isinstance(audio, bytes) else as_wav(audio.astype("int16"), STOCK_RATE_HZ)


def _bucket_audio(utterance: Utterance, member: Member) -> bytes:
    """Read the encoded recording of a file in a bucket."""
    from asr_jax.data.sources.bucket import read_bucket_range  # needs pyarrow, as below

    try:
        return read_bucket_range(utterance.audio, member.offset_bytes, member.size_bytes)
    except (OSError, ValueError) as error:
        raise AudioError(utterance.audio, f"cannot be read: {first_line(error)}") from error


def _row_audio(utterance: Utterance, row: TableRow) -> bytes:
    """Read the encoded recording of a row of a Parquet file."""
    from asr_jax.data.sources.parquet import read_row  # needs pyarrow, an optional dependency

    try:
        return read_row(utterance.audio, row)
    except (OSError, ValueError, IndexError) as error:
        reason = f"row group {row.row_group} cannot be read: {first_line(error)}"
        raise AudioError(utterance.audio, reason) from error


class _FilePart(io.RawIOBase, BinaryIO):
    """A range of an open file's bytes as a file, so that a header is read without the rest."""

    def __init__(self, file: io.BufferedReader, member: Member):
        self._file, self._member, self._position = file, member, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = (0, self._position, self._member.size_bytes)[whence] + offset
        return self._position

    def readinto(self, buffer) -> int:
        remaining = max(0, self._member.size_bytes - self._position)
        self._file.seek(self._member.offset_bytes + self._position)
        count = self._file.readinto(memoryview(buffer)[:remaining])
        self._position += count
        return count
