"""The samples of an utterance, wherever its recording lies: a file, or a part of one."""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

import numpy as np
from jaxtyping import Float32

from asr_jax.audio import AudioError, as_wav, audio_duration_seconds, read_audio
from asr_jax.data.sources.prepared import read_record
from asr_jax.types import InMemory, Member, Record, Utterance

# Of the samples that tensorflow-datasets' own LibriSpeech holds.
STOCK_RATE_HZ = 16_000


def read_recording(utterance: Utterance, *, sample_rate_hz: int) -> Float32[np.ndarray, " S"]:
    """Samples of the utterance's stretch, in -1..1, at `sample_rate_hz`. Raises AudioError."""
    with _contents(utterance) as contents:
        return read_audio(
            utterance.audio,
            sample_rate_hz=sample_rate_hz,
            offset_seconds=utterance.offset_seconds,
            duration_seconds=utterance.duration_seconds,
            channel=utterance.channel,
            contents=contents,
        )


def recording_seconds(utterance: Utterance) -> float:
    """Length of the whole recording that the utterance is a stretch of. Raises AudioError."""
    with _contents(utterance) as contents:
        return audio_duration_seconds(utterance.audio, contents=contents)


def recording_bytes(utterance: Utterance, at_most_bytes: int) -> bytes | None:
    """The whole recording as it is stored, or None where it is longer or cannot be read."""
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


def whole_recording(utterance: Utterance) -> bytes:
    """The recording as it is stored, all of it. Raises AudioError."""
    with _contents(utterance) as contents:
        if isinstance(contents, bytes):
            return contents
        try:
            return utterance.audio.read_bytes() if contents is None else contents.read()
        except OSError as error:
            raise AudioError(utterance.audio, error.strerror or "cannot be read") from error


@contextmanager
def _contents(utterance: Utterance) -> Iterator[bytes | BinaryIO | None]:
    """The recording where it is a part of a file, None where it is the file."""
    within = utterance.within
    if within is None:
        yield None
        return
    if isinstance(within, InMemory):
        yield within.contents
        return
    if isinstance(within, Record):
        yield _of_record(utterance, within)
        return
    try:
        file = utterance.audio.open("rb")
    except OSError as error:
        raise AudioError(utterance.audio, error.strerror or "cannot be read") from error
    with file:
        there = max(0, os.fstat(file.fileno()).st_size - within.offset_bytes)
        if there < within.size_bytes:
            raise AudioError(utterance.audio, f"truncated, {there} of {within.size_bytes} bytes")
        yield _Part(file, within)


def _of_record(utterance: Utterance, record: Record) -> bytes:
    try:
        fields = read_record(utterance.audio, record.number)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise AudioError(utterance.audio, f"its record {record.number}: {first[:200]}") from error
    id, audio = fields["id"].decode(), fields["audio"]
    # Of several corpora ids have a prefix.
    if utterance.id != id and not utterance.id.endswith(f":{id}"):
        raise AudioError(
            utterance.audio, f"its record {record.number} is {id}, not {utterance.id} as indexed"
        )
    return audio if isinstance(audio, bytes) else as_wav(audio.astype("int16"), STOCK_RATE_HZ)


class _Part(io.RawIOBase, BinaryIO):
    """A stretch of an open file's bytes as a file of its own: headers are read without the rest."""

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
        left = max(0, self._member.size_bytes - self._position)
        self._file.seek(self._member.offset_bytes + self._position)
        count = self._file.readinto(memoryview(buffer)[:left])
        self._position += count
        return count
