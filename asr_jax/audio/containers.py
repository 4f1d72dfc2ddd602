"""Checks of audio files that libsndfile mends silently: truncated, appended, of unknown length.

libsndfile shortens the length that the header of a truncated WAV, AIFF or Ogg file states, reads
only the first of several recordings in one file, and estimates the length of an MP3 file without an
Info frame. The functions here read as little of a file as shows what is really in it.
"""

import io
import itertools
import re
import struct
from typing import BinaryIO, NamedTuple

ByteFile = BinaryIO | io.FileIO | io.BytesIO

# A page of Ogg has at most 27 + 255 + 255 * 255 bytes.
OGG_PAGE_BYTES = 65_307
FIRST_OGG_PAGE = b"OggS\x00\x02"
# The two forms of the first metadata block, STREAMINFO, which has 34 bytes: others follow, or none.
FLAC_STARTS = (b"fLaC\x00\x00\x00\x22", b"fLaC\x80\x00\x00\x22")
# libFLAC reads ahead by at most 8 KiB.
FLAC_READ_AHEAD = 2**14
# Bytes after the samples that are ordinary, whatever they are: some writers pad their files.
ORDINARY_REST = 4096
MOST_CHUNKS = 1000
# The format of WAV whose samples are MP3, of which libsndfile only estimates the length.
MP3_IN_WAV = b"\x55\x00"
BLOCK_BYTES = 2**20
FIRST_BYTES = (b"RIFF", b"RIFX", b"RF64", b"BW64", b"FORM", b"caff", b"riff", b".snd", b"NIST")
SECOND = (
    "a second recording follows the first in the file; split them into files of their own, or "
    "decode them and encode them as one"
)


class ContainerError(ValueError):
    """The reason, in one line, why a file's recording is not whole or not the only one."""


class Mended(NamedTuple):
    """A copy of a file, or of its readable start, that libsndfile reads completely."""

    contents: bytes
    skipped_frames: int = 0
    """Samples per channel before the recording."""
    frames: int | None = None
    """Samples per channel of the recording, if libsndfile does not count them."""


class TruncatedError(ContainerError):
    """The reason why a file's recording ends early, and what reads the part that is there."""

    def __init__(self, reason: str, start: Mended | None = None):
        super().__init__(reason)
        self.start = start
        """A copy that libsndfile reads up to there; None if it reads the file itself."""


def mended(file: ByteFile, size: int) -> Mended | None:
    """Check the structure of a file of `size` bytes, and return a copy if only that can be read.

    Raises TruncatedError for a truncated file, and ContainerError for one with data that libsndfile
    would ignore.
    FLAC and the chains of Ogg are left to `follows_flac` and `is_chained`.
    """
    head = _at(file, 0, 64)
    match head[:4]:
        case b"RIFF" | b"RIFX" | b"RF64" | b"BW64" | b"FORM" | b"caff" | b"riff":
            return _check_chunks(file, size, head)
        case b".snd" | b"dns.":
            _check_au(file, size, head)
        case b"NIST":
            _check_sphere(file, size)
        case b"OggS":
            _check_ogg(file, size, head)
        case _ if head[:3] == b"ID3" or _frame_bytes(head, 0):
            return _mended_mp3(file, size)
    return None


def _at(file: ByteFile, position: int, count: int) -> bytes:
    file.seek(position)
    return file.read(count) or b""


# WAV, RF64, W64, AIFF and CAF: chunks of an id, a size and a body.


class _Chunks(NamedTuple):
    """The layout of the chunks of a format."""

    first: int
    header: struct.Struct
    counted: int
    """Bytes of the header that the size includes."""
    alignment: int


def _layout(head: bytes) -> _Chunks:
    match head[:4]:
        case b"caff":
            return _Chunks(8, struct.Struct(">4sq"), 0, 1)
        case b"riff":
            return _Chunks(40, struct.Struct("<16sQ"), 24, 8)
        case b"FORM" | b"RIFX":
            return _Chunks(12, struct.Struct(">4sI"), 0, 2)
    return _Chunks(12, struct.Struct("<4sI"), 0, 2)


def _check_chunks(file: ByteFile, size: int, head: bytes) -> Mended | None:
    """Check that the chunk of the samples is there, and nothing unknown behind it."""
    layout, data_bytes_64, is_mp3 = _layout(head), -1, False
    at = layout.first
    for _ in range(MOST_CHUNKS):
        if len(header := _at(file, at, layout.header.size)) < layout.header.size:
            break
        name, stated = layout.header.unpack(header)
        body, length = at + layout.header.size, stated - layout.counted
        if name[:4] == b"ds64":
            data_bytes_64 = int.from_bytes(_at(file, body + 8, 8), "little")
        if name == b"fmt ":
            is_mp3 = _at(file, body, 2) == MP3_IN_WAV
        if name[:4] in (b"data", b"SSND", b"BODY"):
            if length == 2**32 - 1 and data_bytes_64 >= 0:
                length = data_bytes_64
            if not _is_unknown(length):
                if is_mp3:
                    _check_mp3_samples(file, size, body, length)
                    mp3 = _at(file, body, length)
                    return _mended_mp3(io.BytesIO(mp3), len(mp3)) or Mended(mp3)
                _check_samples(file, size, body, length)
            elif length == 0 and head[:4] == b"RIFF":
                samples = _at(file, body, size)
                if any(samples) and not _is_chunk(samples.lstrip(b"\0")):
                    return Mended(_at(file, 0, body - 4) + b"\xff" * 4 + samples)
            break
        at = body + max(0, length) + -(body + length) % layout.alignment
    return None


def _is_chunk(start: bytes) -> bool:
    """Return whether the first bytes can be those of a chunk, or of a tag, or are all zero."""
    return not any(start) or bool(re.match(rb"[\x20-\x7e]{3}", start))


def _is_unknown(length: int) -> bool:
    """Return whether a size is one of those that programs write to a pipe before they know it."""
    return length <= 0 or any(abs(length - full) <= 4096 for full in (2**31, 2**32, 2**63))


def _check_mp3_samples(file: ByteFile, size: int, start: int, length: int) -> None:
    """Check samples like `_check_samples`. The start of truncated ones cannot be read."""
    try:
        _check_samples(file, size, start, length)
    except TruncatedError as error:
        raise ContainerError(str(error)) from error


def _check_samples(file: ByteFile, size: int, start: int, length: int) -> None:
    """Raise ContainerError unless `length` bytes of samples and known data follow `start`."""
    # Some writers state the size of the whole file, or of all that follows its first 8 bytes.
    if length > size - start and length not in (size, size - 8):
        raise TruncatedError(f"truncated: {size - start} of {length} bytes of samples")
    if (rest := size - start - length) <= 0:
        return
    after = _at(file, start + length, 9)
    if any(text[:4] in FIRST_BYTES for text in (after, after[1:])):
        raise ContainerError(SECOND)
    if rest > ORDINARY_REST and not _is_chunk(after) and not _is_chunk(after[1:]):
        raise ContainerError(
            f"more samples than the header states: {size - start} bytes instead of {length}; "
            "write the file again with a correct header"
        )


def _check_au(file: ByteFile, size: int, head: bytes) -> None:
    order = "big" if head[:4] == b".snd" else "little"
    start, length = int.from_bytes(head[4:8], order), int.from_bytes(head[8:12], order)
    if not _is_unknown(length):
        _check_samples(file, size, start, length)


def _check_sphere(file: ByteFile, size: int) -> None:
    """Check a file of NIST's SPHERE, whose header is text."""
    header = _at(file, 0, 1024).decode("latin-1")
    if re.search(r"^sample_coding .*embedded", header, re.MULTILINE):
        raise ContainerError("compressed SPHERE (shorten); decompress it with sph2pipe")
    fields = dict(re.findall(r"^(\w+) -i (\d+)", header, re.MULTILINE))
    counts = [int(fields.get(name, 0)) for name in ("sample_count", "sample_n_bytes")]
    start = int(header[8:16]) if header[8:16].strip().isdigit() else 1024
    if length := counts[0] * counts[1] * int(fields.get("channel_count", 1)):
        _check_samples(file, size, start, length)


# Ogg.


def _check_ogg(file: ByteFile, size: int, head: bytes) -> None:
    """Check that the last page is complete and marked as the end of its stream."""
    tail = _at(file, max(0, size - 2 * OGG_PAGE_BYTES), 2 * OGG_PAGE_BYTES)
    page = tail[tail.rfind(b"OggS") :] if b"OggS" in tail else b""
    segments = page[27 : 27 + page[26]] if len(page) > 26 else b""
    length = 27 + len(segments) + sum(segments)
    if len(page) < 27 or len(segments) < page[26] or len(page) < length:
        start = Mended(_at(file, 0, size - len(page)))
        raise TruncatedError("truncated: its last page is incomplete", start)
    if not page[5] & 4:
        raise TruncatedError(
            "truncated: its last page does not end the stream; if nothing is missing, decode it "
            "and encode it again"
        )
    if head[28:35] == b"\x01vorbis":
        _check_vorbis_start(file, head)


def _check_vorbis_start(file: ByteFile, head: bytes) -> None:
    """Raise ContainerError for Vorbis whose first samples must be left out, which libsndfile plays.

    Such a stream was cut without decoding. Its first page of audio states fewer samples than it
    has, and libsndfile loses as many at the end.
    """
    at, packets, serial = 0, 0, head[14:18]
    # Encoders number the two sizes of their blocks 0 and 1.
    block_samples = [1 << (head[56] & 15), 1 << (head[56] >> 4)]
    while (page := _at(file, at, OGG_PAGE_BYTES))[:4] == b"OggS" and len(page) > 26:
        sizes = page[27 : 27 + page[26]]
        at += (start := 27 + len(sizes)) + sum(sizes)
        ends = [index for index, size in enumerate(sizes) if size < 255]
        if packets < 3 or page[14:18] != serial:  # three packets of headers
            packets += len(ends) if page[14:18] == serial else 0
            continue
        starts = [start + sum(sizes[: end + 1]) for end in [-1, *ends[:-1]]]
        blocks = [block_samples[page[first] >> 1 & 1] for first in starts if first < len(page)]
        samples = sum(a + b for a, b in itertools.pairwise(blocks)) // 4
        is_last = page[5] & 4
        if ends and not is_last and int.from_bytes(page[6:14], "little", signed=True) < samples:
            raise ContainerError(
                "its first samples are to be left out, since it was cut without decoding; "
                "decode it and encode it again"
            )
        break


def is_ogg(file: ByteFile) -> bool:
    """Return whether a file begins as Ogg."""
    return _at(file, 0, 4) == b"OggS"


def is_chained(file: ByteFile) -> bool:
    """Return whether an Ogg file holds several recordings, one after another.

    The whole file is read, because recordings that one program wrote may have equal numbers.
    """
    at = 0
    while (page := _at(file, at, OGG_PAGE_BYTES))[:6] == FIRST_OGG_PAGE and len(page) > 26:
        at += 27 + page[26] + sum(page[27 : 27 + page[26]])
    return _find(file, at, (FIRST_OGG_PAGE,))


def is_flac(file: ByteFile) -> bool:
    """Return whether a file begins as FLAC, which may have a tag before it."""
    return _at(file, _after_tags(file), 4) == b"fLaC"


def follows_flac(file: ByteFile) -> bool:
    """Return whether a second FLAC recording follows the first, which has been read to its end."""
    position = file.tell()
    return _find(file, max(_after_tags(file) + 4, position - FLAC_READ_AHEAD), FLAC_STARTS)


def _find(file: ByteFile, start: int, patterns: tuple[bytes, ...]) -> bool:
    """Return whether one of the patterns occurs in a file from `start` on."""
    file.seek(start)
    overlap = b""
    while block := file.read(BLOCK_BYTES):
        overlap += block
        if any(pattern in overlap for pattern in patterns):
            return True
        overlap = overlap[-8:]
    return False


# MP3 (and MPEG layers I and II).

KBPS = {
    (3, 3): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (3, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (3, 1): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 3): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
RATES_HZ = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
# Zeros that make libsndfile's estimate of the length too long rather than too short.
PADDING = bytes(4096)


def _frame_bytes(contents: bytes, at: int) -> int:
    """Return the length of the MPEG frame whose header is at `at`; 0 if there is none."""
    if len(contents) < at + 4 or contents[at] != 0xFF or contents[at + 1] & 0xE0 != 0xE0:
        return 0
    version, layer = contents[at + 1] >> 3 & 3, contents[at + 1] >> 1 & 3
    bits, rate = contents[at + 2] >> 4, contents[at + 2] >> 2 & 3
    if version == 1 or layer == 0 or bits in (0, 15) or rate == 3:
        return 0
    kbps = KBPS[3 if version == 3 else 2, 2 if version != 3 and layer == 1 else layer][bits - 1]
    rate_hz, padding = RATES_HZ[version][rate], contents[at + 2] >> 1 & 1
    if layer == 3:
        return (12_000 * kbps // rate_hz + padding) * 4
    return (72_000 if layer == 1 and version != 3 else 144_000) * kbps // rate_hz + padding


def _frame_samples(header: bytes) -> int:
    version, layer = header[1] >> 3 & 3, header[1] >> 1 & 3
    return 384 if layer == 3 else 576 if layer == 1 and version != 3 else 1152


def _info(frame: bytes) -> tuple[int, int] | None:
    """Return the frames and bytes that an Info frame states (0: not stated); None for audio."""
    is_mono, is_first_version = frame[3] >> 6 == 3, frame[1] >> 3 & 3 == 3
    at = 4 + ((17 if is_mono else 32) if is_first_version else 9 if is_mono else 17)
    if frame[at : at + 4] in (b"Xing", b"Info") and len(frame) >= at + 16:
        flags, first, second = struct.unpack_from(">III", frame, at + 4)
        return (first if flags & 1 else 0, (second if flags & 1 else first) if flags & 2 else 0)
    if frame[36:40] == b"VBRI" and len(frame) >= 54:
        return struct.unpack_from(">I", frame, 50)[0], 0
    return None


def _mended_mp3(file: ByteFile, size: int) -> Mended | None:
    """Return the frames of an MP3 file, with their number, unless its header states both."""
    start = _after_tags(file)
    head = _at(file, start, 2**16)
    junk = 0 if _frame_bytes(head, 0) else _next_frame(head, 0)
    if junk < 0:
        return None
    start, head = start + junk, head[junk:]
    first = _frame_bytes(head, 0)
    info = _info(head[:first])
    if info and all(info) and b"VBRI" not in head[:first]:
        end = start + info[1]
        if size == end or (size == end + 128 and _at(file, end, 3) == b"TAG"):
            return Mended(_at(file, start, size)) if junk else None
    contents = _at(file, start, size)
    frames, stated, parts, problem = _frames(contents)
    if not problem and frames < stated - 1:
        problem = f"truncated: {frames} of {stated} frames"
    if problem and info and all(info) and len(parts) == 1 and b"VBRI" not in head[:first]:
        raise TruncatedError(problem, Mended(_with_info(contents[: parts[0][1]], frames)))
    if problem and not frames:
        raise ContainerError(problem)
    if (
        not problem
        and info
        and frames == info[0] == stated
        and len(parts) == 1
        and b"VBRI" not in head[:first]
    ):
        return None
    # The first frame, whose bit rate is the lowest, makes libsndfile's estimate of the length too
    # long. It is silent, and its length is known.
    lead = bytes([0xFF, head[1] | 1, head[2] & 0x0C | 0x10, head[3]])
    lead = lead.ljust(_frame_bytes(lead, 0), b"\0")
    samples = _frame_samples(lead)
    audio = b"".join(contents[a:b] for a, b in parts)
    copy = Mended(lead + audio + PADDING, samples, frames * samples)
    if problem:
        raise TruncatedError(problem, copy)
    return copy


def _with_info(contents: bytes, frames: int) -> bytes:
    """Return an MP3 file whose Info frame, the first one, states its true frames and bytes.

    The frame also says how many samples at the start are the encoder's padding.
    """
    changed = bytearray(contents)
    at = min(place for name in (b"Xing", b"Info") if (place := contents.find(name)) >= 0)
    struct.pack_into(">II", changed, at + 8, frames, len(contents))
    return bytes(changed)


def _after_tags(file: ByteFile) -> int:
    """Return the position after the ID3v2 tags at the start."""
    at = 0
    while (tag := _at(file, at, 10))[:3] == b"ID3" and (length := _tag_bytes(tag)):
        at += length
    return at


def _tag_bytes(tag: bytes) -> int:
    """Return the length of a tag of ID3 (either version), APE or Lyrics; 0 if it is not known."""
    if tag[:3] == b"ID3" and len(tag) >= 10:
        size = 0
        for byte in tag[6:10]:
            size = size << 7 | byte & 0x7F
        return 10 + size + (10 if tag[5] & 0x10 else 0)
    if tag[:8] == b"APETAGEX" and len(tag) >= 24:
        size, _, flags = struct.unpack_from("<III", tag, 12)
        return size + 32 if flags & 0x20000000 else 32
    if tag[:11] == b"LYRICSBEGIN":
        return max(tag.find(b"LYRICS200"), tag.find(b"LYRICSEND")) + 9
    return 128 if tag[:3] == b"TAG" else 0


def _frames(contents: bytes) -> tuple[int, int, list[tuple[int, int]], str]:
    """Return the number of audio frames, the number that Info frames state, the audio's ranges, and
    the reason if they end early: with an incomplete frame, or before bytes that are no audio.

    Raises ContainerError if other frames follow.
    """
    frames, stated, at, problem = 0, 0, 0, ""
    parts: list[tuple[int, int]] = []
    while at < len(contents):
        if not (length := _frame_bytes(contents, at)) or not _is_alike(contents, at):
            if not (length := _tag_bytes(contents[at : at + 2**16])):
                problem = _problem_of_rest(contents, at)
                break
        elif at + length > len(contents):
            problem = "truncated: its last frame is incomplete"
            break
        elif info := _info(contents[at : at + length]):
            stated += info[0]
        else:
            frames += 1
            start = parts.pop()[0] if parts and parts[-1][1] == at else at
            parts.append((start, at + length))
        at += length
    return frames, stated, parts, problem


def _is_alike(contents: bytes, at: int) -> bool:
    """Return whether a frame has the version, layer and rate of the first one."""
    version_and_layer = contents[at + 1] ^ contents[1]
    return not version_and_layer & 0xFE and not (contents[at + 2] ^ contents[2]) & 0x0C


def _problem_of_rest(contents: bytes, at: int) -> str:
    """Return the reason if the bytes after a frame are part of one, or other bytes before frames.

    Raises ContainerError if other frames follow.
    """
    if contents[at] == 0xFF and len(contents) - at < 4:
        return "truncated: its last frame is incomplete"
    if (following := _next_frame(contents, at)) == at:
        raise ContainerError(SECOND)
    return f"damaged: {following - at} bytes between its frames are no audio" * (following > at)


def _next_frame(contents: bytes, start: int) -> int:
    """Return the position of the next three frames from `start` on, which are no coincidence.

    It is -1 if there are none.
    """
    at = start - 1
    while (at := contents.find(b"\xff", at + 1)) >= 0:
        end, found = at, 0
        while found < 3 and (length := _frame_bytes(contents, end)):
            end, found = end + length, found + 1
        if found == 3:
            return at
    return -1
