"""A recording that arrives through a pipe: raw samples, or a WAV file of any rate."""

import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soxr
from jaxtyping import Float, Float32

from asr_jax.audio.samples import AudioError, channel_powers, require_audible_mean

# What other formats begin with, by the place of these bytes.
OTHER_FORMATS = {
    (0, b"fLaC"): "FLAC",
    (0, b"OggS"): "Ogg",
    (0, b"ID3"): "MP3",
    (0, b"FORM"): "AIFF",
    (0, b"RIFX"): "big-endian WAV",
    (0, b"RF64"): "RF64",
    (0, b"riff"): "Wave64",
    (0, b".snd"): "AU",
    (0, b"caff"): "CAF",
    (0, b"\x1aE\xdf\xa3"): "WebM",
    (4, b"ftyp"): "MP4",
}
LONGEST_MAGIC = 12
# A writer that cannot know the length states none, the largest, or one near 2 GiB (sox, arecord).
UNKNOWN_BYTES = 0x7F00_0000
PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE
DECODE = "decode it (ffmpeg -i FILE -f wav -)"


class Format(NamedTuple):
    """The samples of a stream: little-endian, with interleaved channels."""

    rate_hz: int
    channels: int
    bits: int
    is_float: bool
    data_bytes: int | None
    """Bytes of all samples; None if the header does not tell."""


def piped_samples(
    read: Callable[[int], bytes], path: Path, *, sample_rate_hz: int, block_samples: int
) -> Iterator[Float32[np.ndarray, " S"]]:
    """Yield samples at `sample_rate_hz` as they arrive, mixed to one channel.

    The first bytes tell the format: WAV has its own rate and channels. Anything else is 16-bit
    little-endian samples of one channel at `sample_rate_hz`.

    Args:
        read: returns up to as many bytes as asked for; fewer only at the end.
        path: the name of the stream, for errors.
        sample_rate_hz: rate of the result.
        block_samples: samples of the result to read at once.

    Raises AudioError for another format, and for a damaged or incomplete WAV file.
    """
    raw_bytes = 2 * block_samples
    begin = read(raw_bytes)
    while 0 < len(begin) < LONGEST_MAGIC and (more := read(raw_bytes)):
        begin += more
    for (place, magic), name in OTHER_FORMATS.items():
        if begin[place:].startswith(magic):
            raise _cannot_stream(path, name)
    if begin[:4] == b"RIFF" and begin[8:12] == b"WAVE":
        source = _Source(read, begin[12:])
        stated = _read_header(source, path)
    elif _is_mp3(begin):
        raise _cannot_stream(path, "MP3")
    else:
        source, stated = _Source(read, begin), Format(sample_rate_hz, 1, 16, False, None)
    rate_hz = stated.rate_hz
    resampler = soxr.ResampleStream(rate_hz, sample_rate_hz, 1, dtype="float32")
    block_frames = max(1, block_samples * rate_hz // sample_rate_hz)
    for block in _frames(source, stated, block_frames, path):
        yield block if rate_hz == sample_rate_hz else resampler.resample_chunk(block)
    if rate_hz != sample_rate_hz:
        yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)


def _cannot_stream(path: Path, name: str) -> AudioError:
    return AudioError(
        path,
        f"{name}: only WAV and raw samples can be streamed from a pipe; pass the file by its name, "
        f"leave out --stream, or {DECODE}",
    )


def _is_mp3(begin: bytes) -> bool:
    """Return whether the bytes are an MPEG frame with a tag of its encoder.

    The first two bytes alone may also be a sample.
    """
    is_frame = len(begin) > 2 and begin[0] == 0xFF and begin[1] & 0xE6 == 0xE2
    return is_frame and any(tag in begin for tag in (b"Xing", b"Info", b"VBRI", b"LAME", b"Lavc"))


class _Source:
    """The bytes that have been read ahead, then those of the pipe."""

    def __init__(self, read: Callable[[int], bytes], ahead: bytes):
        self._read, self._ahead = read, ahead

    def take(self, size: int) -> bytes:
        """Return `size` bytes, fewer at the end."""
        while len(self._ahead) < size and (more := self._read(size - len(self._ahead))):
            self._ahead += more
        taken, self._ahead = self._ahead[:size], self._ahead[size:]
        return taken


def _read_header(source: _Source, path: Path) -> Format:
    """Read the chunks of a WAV file up to its samples."""
    fields = None
    while len(head := source.take(8)) == 8:
        name, size = struct.unpack("<4sI", head)
        if name == b"data":
            if fields is None:
                raise AudioError(path, "damaged WAV header, its samples come before their format")
            is_known = 0 < size < UNKNOWN_BYTES
            return fields._replace(data_bytes=size if is_known else None)
        # Chunks have even lengths.
        body = source.take(size + size % 2)
        if len(body) < size:
            break
        if name == b"fmt ":
            fields = _format(body, path)
    raise AudioError(path, "incomplete WAV header")


def _format(body: bytes, path: Path) -> Format:
    if len(body) < 16:
        raise AudioError(path, "damaged WAV header")
    kind, channels, rate_hz, _, block_bytes, bits = struct.unpack("<HHIIHH", body[:16])
    if kind == EXTENSIBLE and len(body) >= 26:
        (kind,) = struct.unpack("<H", body[24:26])  # the first bytes of the GUID
    allowed = {PCM: (8, 16, 24, 32), FLOAT: (32, 64)}
    if bits not in allowed.get(kind, ()):
        raise AudioError(
            path, f"WAV of format {kind} with {bits} bits: must be PCM or float; {DECODE}"
        )
    if not channels or not 0 < rate_hz <= 10**6 or block_bytes != channels * bits // 8:
        raise AudioError(path, f"damaged WAV header, {channels} channels at {rate_hz} Hz")
    return Format(rate_hz, channels, bits, kind == FLOAT, None)


def _frames(
    source: _Source, stated: Format, block_frames: int, path: Path
) -> Iterator[Float32[np.ndarray, " S"]]:
    """Yield the samples in blocks, each the mean of its channels."""
    frame_bytes = stated.channels * stated.bits // 8
    total, taken, powers = stated.data_bytes, 0, np.zeros(2)
    while total is None or taken < total:
        wanted = block_frames * frame_bytes
        contents = source.take(wanted if total is None else min(wanted, total - taken))
        taken += len(contents)
        whole = len(contents) // frame_bytes * frame_bytes
        if whole:
            channels = _decoded(contents[:whole], stated)
            samples = channels.mean(axis=1).astype(np.float32)
            if not np.isfinite(samples).all():
                raise AudioError(path, "samples that are not finite")
            powers += channel_powers(channels, samples)
            yield samples
        if len(contents) < wanted:
            break
    if total is not None and taken < total:
        raise AudioError(path, f"truncated, {taken} of {total} bytes of samples")
    require_audible_mean(path, powers)


def _decoded(contents: bytes, stated: Format) -> Float[np.ndarray, "S channels"]:
    if stated.is_float:
        samples = np.frombuffer(contents, f"<f{stated.bits // 8}")
    elif stated.bits == 8:
        samples = (np.frombuffer(contents, np.uint8) - 128.0) / 128
    elif stated.bits == 24:
        padded = np.zeros((len(contents) // 3, 4), np.uint8)
        padded[:, 1:] = np.frombuffer(contents, np.uint8).reshape(-1, 3)
        samples = padded.view("<i4")[:, 0] / 2.0**31
    else:
        samples = np.frombuffer(contents, f"<i{stated.bits // 8}") / 2.0 ** (stated.bits - 1)
    return samples.reshape(-1, stated.channels)
