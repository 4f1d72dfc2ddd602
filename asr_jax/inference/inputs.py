"""Recordings as people name or hold them: files, folders, pipes, bytes, arrays."""

import os
import stat
import sys
from collections.abc import Iterable, Mapping, Sequence
from io import BufferedIOBase
from numbers import Real
from pathlib import Path
from typing import BinaryIO

import jax
import numpy as np

from asr_jax.audio.samples import (
    AudioError,
    as_wav,
    audio_duration_seconds,
    readable_seconds,
)
from asr_jax.data.sources.file_names import AUDIO_SUFFIXES, is_recording
from asr_jax.data.sources.librispeech_folder import files_below
from asr_jax.types import InMemory, Utterance

STDIN = "-"
STDIN_PATHS = (Path(STDIN), Path("/dev/stdin"))
HIGHEST_RATE_HZ = 1_000_000

Samples = np.ndarray | jax.Array | Sequence[float | np.floating]
"""Samples of one channel: floats in -1..1, or int16 or int32 at full scale."""
Recording = (
    str
    | os.PathLike[str]
    | bytes
    | bytearray
    | memoryview
    | BinaryIO
    | BufferedIOBase
    | Samples
    | Mapping[str, object]
)
"""A path, the bytes of an audio file, an open file, samples, or a dict of Hugging Face's."""


def named_recordings(paths: Iterable[Path]) -> tuple[Path, ...]:
    """Return the recordings that `paths` name, each once: a folder stands for those below it.

    Recordings below a folder are sorted; hidden files and folders are left out. Raises ValueError
    for a folder without recordings.
    """
    found: dict[str, Path] = {}
    for path in paths:
        for recording in _below(path) if path.is_dir() else [path]:
            key = STDIN if path in STDIN_PATHS else os.path.realpath(recording)
            found.setdefault(key, recording)
    return tuple(found.values())


def _below(folder: Path) -> list[Path]:
    recordings = sorted(filter(is_recording, files_below(folder)))
    if not recordings:
        raise ValueError(f"{folder}: a folder without recordings ({', '.join(AUDIO_SUFFIXES)})")
    return recordings


def is_pipe(path: Path) -> bool:
    """Return whether the recording arrives through standard input or a named pipe."""
    return path in STDIN_PATHS or path.is_fifo()


def file_utterance(id: str, path: Path) -> Utterance:
    """Return an utterance that is a whole recording; a pipe is read into memory.

    Raises AudioError for what is no recording.
    """
    if not is_pipe(path):
        _require_regular(path)
        return Utterance(id, path, "", audio_duration_seconds(path))
    try:
        contents = sys.stdin.buffer.read() if path in STDIN_PATHS else path.read_bytes()
        return _bytes_utterance(id, path, contents)
    except OSError as error:
        raise AudioError(path, error.strerror or "cannot be read") from error


def readable_utterance(id: str, path: Path) -> Utterance:
    """Return an utterance that is a whole recording, or what is there of a truncated one.

    Raises AudioError for what is no recording.
    """
    _require_regular(path)
    return Utterance(id, path, "", readable_seconds(path))


def _require_regular(path: Path) -> None:
    """Raise AudioError for a path that exists and is no file."""
    if path.exists() and not stat.S_ISREG(path.stat().st_mode):
        kind = "folder" if path.is_dir() else "device or socket"
        raise AudioError(path, f"a {kind}, not a recording")


def utterances_of(
    audio: Recording | Iterable[Recording], *, sample_rate_hz: int
) -> list[Utterance]:
    """Return an utterance for each recording; `sample_rate_hz` is that of samples alone.

    Raises ValueError, naming the recording, for one that cannot be read.
    """
    one = isinstance(audio, str | os.PathLike | bytes | bytearray | memoryview | Mapping)
    if isinstance(audio, np.ndarray) and audio.dtype.kind in "OU":
        audio = audio.tolist()  # paths
    if one or hasattr(audio, "__array__") or hasattr(audio, "read") or _are_numbers(audio):
        return [_utterance("0", "audio", audio, sample_rate_hz)]
    if not isinstance(audio, Iterable):
        raise _not_a_recording("audio", audio)
    return [
        _utterance(str(number), f"audio[{number}]", recording, sample_rate_hz)
        for number, recording in enumerate(audio)
    ]


def _are_numbers(audio: object) -> bool:
    return isinstance(audio, Sequence) and len(audio) > 0 and isinstance(audio[0], Real)


def _utterance(id: str, name: str, audio: object, rate_hz: int) -> Utterance:
    """Return the utterance of one recording, which errors call `name` if it has no path."""
    if isinstance(audio, str | os.PathLike):
        return file_utterance(id, Path(audio))
    if isinstance(audio, bytes | bytearray | memoryview):
        return _bytes_utterance(id, Path(name), bytes(audio))
    if isinstance(audio, Mapping):
        return _dict_utterance(id, name, audio)
    if callable(read := getattr(audio, "read", None)):
        contents = read()
        if not isinstance(contents, bytes):
            raise ValueError(f"{name}: a file open for text; open it with mode 'rb'")
        return _bytes_utterance(id, Path(name), contents)
    if hasattr(audio, "__array__") or isinstance(audio, Sequence):
        return _samples_utterance(id, name, audio, rate_hz)
    raise _not_a_recording(name, audio)


def _not_a_recording(name: str, audio: object) -> ValueError:
    return ValueError(
        f"{name}: {type(audio).__name__}: must be a path, bytes, an open file, samples, or a dict "
        "with array and sampling_rate"
    )


def _bytes_utterance(id: str, path: Path, contents: bytes) -> Utterance:
    seconds = audio_duration_seconds(path, contents=contents)
    return Utterance(id, path, "", seconds, within=InMemory(contents))


def _dict_utterance(id: str, name: str, audio: Mapping[str, object]) -> Utterance:
    """Return the utterance of {"array", "sampling_rate"}, {"bytes"} or {"path"}."""
    if audio.get("array") is not None:
        rate_hz = audio.get("sampling_rate")
        return _samples_utterance(
            id, f"{name}['array']", audio["array"], valid_rate(rate_hz, f"{name}['sampling_rate']")
        )
    for key in ("bytes", "path"):
        if audio.get(key) is not None:
            return _utterance(id, f"{name}[{key!r}]", audio[key], 0)
    raise _not_a_recording(name, audio)


def valid_rate(rate_hz: object, name: str) -> int:
    """Return a sample rate as an int. Raises ValueError, naming the argument, for any other."""
    if isinstance(rate_hz, int | float | np.integer | np.floating) and rate_hz is not True:
        number = float(rate_hz)
        if 0 < number <= HIGHEST_RATE_HZ and number.is_integer():
            return int(number)
    raise ValueError(f"{name} = {rate_hz!r}: must be a whole number of Hz, 1 to {HIGHEST_RATE_HZ}")


def _samples_utterance(id: str, name: str, audio: object, rate_hz: int) -> Utterance:
    samples = _as_floats(name, audio)
    wav = InMemory(as_wav(samples, rate_hz))
    return Utterance(id, Path(name), "", len(samples) / rate_hz, within=wav)


def _as_floats(name: str, audio: object) -> np.ndarray:
    """Return samples of one channel as float32. Raises ValueError for other arrays."""
    try:
        samples = np.asarray(audio)
    except (ValueError, TypeError) as error:
        raise _not_a_recording(name, audio) from error
    if samples.ndim == 2 and 1 in samples.shape:
        samples = samples.reshape(-1)
    described = f"{name}: {samples.dtype} samples of shape {samples.shape}"
    if samples.ndim != 1 or not len(samples):
        raise ValueError(
            f"{described}: must be one channel of at least one sample; average channels, and pass "
            "several recordings as a list"
        )
    samples = samples.astype(samples.dtype.newbyteorder("="), copy=False)
    if samples.dtype in (np.int16, np.int32):
        return (samples / -float(np.iinfo(samples.dtype).min)).astype(np.float32)
    # bfloat16, which JAX has, is of no kind of NumPy's.
    if samples.dtype.kind != "f" and samples.dtype.name != "bfloat16":
        raise ValueError(f"{described}: must be floats in -1..1, or int16 or int32 at full scale")
    samples = samples.astype(np.float32)
    if not np.isfinite(samples).all():
        raise ValueError(f"{described}: samples that are not finite")
    return samples
