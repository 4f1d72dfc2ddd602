"""Files that libsndfile mends silently: all of their audio is read, or they are refused."""

import io
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asr_jax.audio.samples import AudioError, audio_duration_seconds, read_audio, read_audio_blocks

RATE_HZ = 16_000
FORMATS: dict[str, dict] = {
    "wav": {"format": "WAV", "subtype": "PCM_16"},
    "float": {"format": "WAV", "subtype": "FLOAT"},
    "gsm": {"format": "WAV", "subtype": "GSM610"},
    "g721": {"format": "WAV", "subtype": "G721_32"},
    "rf64": {"format": "RF64", "subtype": "PCM_16"},
    "w64": {"format": "W64", "subtype": "PCM_16"},
    "aiff": {"format": "AIFF", "subtype": "PCM_16"},
    "au": {"format": "AU", "subtype": "PCM_16"},
    "caf": {"format": "CAF", "subtype": "PCM_16"},
    "sphere": {"format": "NIST", "subtype": "PCM_16"},
    "flac": {"format": "FLAC"},
    "vorbis": {"format": "OGG", "subtype": "VORBIS"},
    "opus": {"format": "OGG", "subtype": "OPUS"},
    "mp3": {"format": "MP3", "bitrate_mode": "VARIABLE"},
    "constant mp3": {"format": "MP3", "bitrate_mode": "CONSTANT"},
}
every_format = pytest.mark.parametrize("kind", FORMATS)
ID3V1 = b"TAG" + bytes(125)
ID3V2 = b"ID3\x03\0\0\0\0\x10\0" + bytes(2048)
APE = b"APETAGEX" + struct.pack("<III8x", 2000, 2000, 0x20000000) + bytes(2000)
LIST = b"LIST" + struct.pack("<I", 5000) + b"INFO" + bytes(4996)


def speech(seconds: float, *, seed: int = 0) -> np.ndarray:
    """Return noise that is loud and quiet in turn, so that bit rates vary."""
    samples = np.random.default_rng(seed).normal(size=round(seconds * RATE_HZ)) / 10
    return (samples * (1 + 99 * (np.arange(len(samples)) // 4000 % 2)) / 100).astype(np.float32)


def encoded(kind: str, seconds: float, *, seed: int = 0) -> bytes:
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", RATE_HZ, 1, **FORMATS[kind]) as sound:
        sound.write(speech(seconds, seed=seed))
    return file.getvalue()


@pytest.fixture(scope="module")
def recordings() -> dict[str, bytes]:
    """Four seconds in every format."""
    return {kind: encoded(kind, 4.0) for kind in FORMATS}


def samples_of(path: Path, contents: bytes, **segment) -> np.ndarray:
    path.write_bytes(contents)
    return read_audio(path, sample_rate_hz=RATE_HZ, **segment)


def frames_of(mp3: bytes) -> list[bytes]:
    """Split an MP3 file of 16 kHz, all of whose frames start with the same two bytes."""
    kbps = [0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160]
    frames, at = [], 0
    while at < len(mp3):
        length = 72 * kbps[mp3[at + 2] >> 4] * 1000 // RATE_HZ + (mp3[at + 2] >> 1 & 1)
        frames.append(mp3[at : at + length])
        at += length
    return frames


@every_format
def test_a_truncated_file_is_refused_wherever_it_is_cut(kind, recordings, tmp_path):
    whole = recordings[kind]
    assert len(samples_of(tmp_path / "a", whole)) == pytest.approx(4 * RATE_HZ, abs=200)
    for size in (len(whole) // 2, len(whole) * 2 // 3, len(whole) - 300, len(whole) - 1):
        with pytest.raises(AudioError, match="truncated") as caught:
            samples_of(tmp_path / "a", whole[:size])
        assert "\n" not in str(caught.value)
        with pytest.raises(AudioError, match="truncated"):
            list(read_audio_blocks(tmp_path / "a", sample_rate_hz=RATE_HZ))


@pytest.mark.parametrize("kind", ["vorbis", "opus"])
def test_ogg_that_ends_between_two_pages_is_truncated(kind, recordings, tmp_path):
    whole = recordings[kind]
    with pytest.raises(AudioError, match="truncated"):
        samples_of(tmp_path / "a", whole[: whole.rindex(b"OggS")])


@every_format
def test_a_second_recording_in_a_file_is_not_lost(kind, recordings, tmp_path):
    whole = recordings[kind]
    for second in (whole, encoded(kind, 0.5, seed=1), encoded(kind, 6.0, seed=1)):
        try:
            samples = samples_of(tmp_path / "a", whole + second)
        except AudioError as error:
            assert "a second recording follows the first" in error.reason
        else:
            assert "mp3" in kind
            alone = samples_of(tmp_path / "b", second)
            assert len(samples) >= 4 * RATE_HZ + len(alone)
            blocks = list(read_audio_blocks(tmp_path / "a", sample_rate_hz=RATE_HZ))
            np.testing.assert_allclose(np.concatenate(blocks), samples, atol=1e-6)


@pytest.mark.parametrize("kind", ["vorbis", "opus"])
def test_chained_ogg_with_equal_serial_numbers_is_refused(kind, recordings, tmp_path):
    """Such as of encoders that give every stream the same number."""
    serial = recordings[kind][14:18]
    second = renumbered(encoded(kind, 6.0, seed=1), serial)
    assert len(samples_of(tmp_path / "a", second)) == 6 * RATE_HZ
    for contents in (recordings[kind] + second, second + recordings[kind]):
        with pytest.raises(AudioError, match="a second recording follows the first"):
            samples_of(tmp_path / "a", contents)


@pytest.mark.parametrize("channels", [1, 2])
def test_vorbis_that_was_cut_without_decoding_is_refused(channels, tmp_path):
    """Its pages count from the cut, which is within the first of them."""
    file = io.BytesIO()
    noise = np.stack([speech(2.0, seed=seed) for seed in range(channels)], axis=1)
    soundfile.write(file, noise, RATE_HZ, format="OGG")
    assert len(samples_of(tmp_path / "a", file.getvalue())) == 2 * RATE_HZ
    cut = renumbered(file.getvalue(), file.getvalue()[14:18], earlier=5000)
    with pytest.raises(AudioError, match="its first samples are to be left out"):
        samples_of(tmp_path / "a", cut)


def renumbered(ogg: bytes, serial: bytes, *, earlier: int = 0) -> bytes:
    """Return an Ogg file with another serial number, and its pages' new checksums.

    The positions of pages of audio are `earlier` by this number of samples.
    """
    pages, at = b"", 0
    while at < len(ogg):
        segments = ogg[at + 27 : at + 27 + ogg[at + 26]]
        page = bytearray(ogg[at : at + 27 + len(segments) + sum(segments)])
        at += len(page)
        position = max(0, int.from_bytes(page[6:14], "little") - earlier)
        page[6:14] = position.to_bytes(8, "little")
        page[14:18], page[22:26], checksum = serial, bytes(4), 0
        for byte in page:
            checksum ^= byte << 24
            for _ in range(8):
                checksum = checksum << 1 & 0xFFFFFFFF ^ (0x04C11DB7 if checksum >> 31 else 0)
        page[22:26] = struct.pack("<I", checksum)
        pages += page
    return pages


@every_format
def test_tags_and_chunks_are_ordinary(kind, recordings, tmp_path):
    whole = recordings[kind]
    expected = samples_of(tmp_path / "a", whole)
    after = [ID3V1] if kind in ("wav", "float", "gsm", "flac", "mp3") else []
    after += [LIST, bytes(6000)] if kind in ("wav", "float", "gsm", "aiff", "caf") else []
    after += [APE, APE + ID3V1] if "mp3" in kind else []
    for tags in after:
        np.testing.assert_array_equal(samples_of(tmp_path / "a", whole + tags), expected)
    if kind in ("mp3", "flac"):
        np.testing.assert_array_equal(samples_of(tmp_path / "a", ID3V2 + whole), expected)


@pytest.mark.parametrize("kind", ["mp3", "constant mp3"])
def test_mp3_without_an_info_frame_is_read_to_its_end(kind, recordings, tmp_path):
    whole = samples_of(tmp_path / "a", recordings[kind])
    _, *frames = frames_of(recordings[kind])
    stream, path = b"".join(frames), tmp_path / "b.mp3"
    junk = ID3V2 + bytes(300)
    for contents in (stream, junk + stream + ID3V1, stream + APE, stream + ID3V2 + stream):
        samples = samples_of(path, contents)
        assert len(samples) == 576 * len(frames) * contents.count(stream)
        assert audio_duration_seconds(path) == len(samples) / RATE_HZ
        blocks = np.concatenate(list(read_audio_blocks(path, sample_rate_hz=RATE_HZ)))
        np.testing.assert_allclose(blocks, samples, atol=1e-6)
        segment = samples_of(path, contents, offset_seconds=3.0, duration_seconds=0.5)
        np.testing.assert_allclose(segment, samples[48_000:56_000], atol=1e-6)
        # The Info frame states that the first 1105 samples are the encoder's padding.
        np.testing.assert_allclose(samples[1105 : 1105 + len(whole)], whole, atol=1e-6)
    for size in (len(stream) // 2, len(stream) - 1):
        with pytest.raises(AudioError, match="truncated"):
            samples_of(path, stream[:size])
    with pytest.raises(AudioError, match="damaged: 3000 bytes between its frames"):
        samples_of(path, b"".join([*frames[:50], bytes(3000), *frames[50:]]))


def test_mp3_of_another_rate_behind_the_first_is_refused(recordings, tmp_path):
    other = io.BytesIO()
    soundfile.write(other, speech(1.0), 44_100, format="MP3")
    with pytest.raises(AudioError, match="a second recording follows the first"):
        samples_of(tmp_path / "a", recordings["mp3"] + other.getvalue())


@pytest.mark.parametrize("rate", [44_100, 48_000])
def test_layer_2_is_read_to_its_end(rate, tmp_path):
    """Frames of 192 kbit/s, of which some of 44.1 kHz are a byte longer: silence."""
    frames, total = [], 0.0
    for number in range(200):
        length = int(144 * 192_000 / rate * (number + 1)) - int(total)
        total += length
        is_longer = length > 144 * 192_000 // rate
        header = bytes([0xFF, 0xFD, 0xA0 | (rate == 48_000) << 2 | is_longer << 1, 0])
        frames.append(header.ljust(length, b"\0"))
    path = tmp_path / "a"
    path.write_bytes(b"".join(frames))
    assert audio_duration_seconds(path) == 200 * 1152 / rate
    assert len(read_audio(path, sample_rate_hz=rate)) == 200 * 1152


def test_first_bytes_of_every_format_are_refused_in_one_line(recordings, tmp_path):
    for contents in [*recordings.values(), ID3V2, b".snd", b"NIST_1A", b"caff" + b"\xff" * 200]:
        for size in (4, 10, 30, 60):
            with pytest.raises(AudioError) as caught:
                samples_of(tmp_path / "a", contents[:size])
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [0, 0x7FFFF000, 0x80000000, 2**32 - 37, 2**32 - 1])
def test_wav_that_was_written_to_a_pipe_is_read_to_its_end(size, recordings, tmp_path):
    whole = recordings["wav"]
    expected, at = samples_of(tmp_path / "a", whole), whole.index(b"data") + 4
    unknown = struct.pack("<I", size)
    for riff in (whole[4:8], unknown):
        contents = whole[:4] + riff + whole[8:at] + unknown + whole[at + 4 :]
        np.testing.assert_array_equal(samples_of(tmp_path / "a", contents), expected)
        assert audio_duration_seconds(tmp_path / "a") == 4.0


def test_wav_of_a_recorder_that_was_stopped_may_begin_with_silence(recordings, tmp_path):
    whole, path = recordings["wav"], tmp_path / "a"
    at = whole.index(b"data") + 4
    head = whole[:at] + bytes(4)
    samples = samples_of(path, head + bytes(9000) + whole[at + 4 :])
    np.testing.assert_array_equal(samples[:4500], 0)
    np.testing.assert_array_equal(samples[4500:], samples_of(path, whole))
    for rest in (b"", bytes(9000), LIST, bytes(2) + LIST):
        with pytest.raises(AudioError, match="no samples"):
            samples_of(path, head + rest)


def test_compressed_sphere_is_named(recordings, tmp_path):
    """LDC distributes it; it has fewer bytes than its header states for its samples."""
    coded = b"sample_coding -s26 pcm,embedded-shorten-v2.00\n"
    whole = recordings["sphere"].replace(b"end_head", coded + b"end_head")
    with pytest.raises(AudioError, match="compressed SPHERE .shorten.; decompress it with sph2"):
        samples_of(tmp_path / "a", whole[: len(whole) // 3])


def test_w64_that_was_written_to_a_pipe_is_read_to_its_end(recordings, tmp_path):
    whole, path = recordings["w64"], tmp_path / "a"
    expected, at = samples_of(path, whole), whole.index(b"data") + 16
    piped = whole[:at] + struct.pack("<Q", 2**63 - 1) + whole[at + 8 :]
    np.testing.assert_array_equal(samples_of(path, piped), expected)


@pytest.mark.parametrize("kind", ["mp3", "constant mp3"])
@pytest.mark.parametrize("has_info", [True, False])
def test_mp3_in_wav_is_read_as_mp3(kind, has_info, recordings, tmp_path):
    mp3 = recordings[kind] if has_info else b"".join(frames_of(recordings[kind])[1:])
    format = struct.pack("<HHIIHHHHIHHH", 0x55, 1, RATE_HZ, 8000, 576, 0, 12, 1, 2, 576, 1, 0)
    chunks = b"".join(
        name + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)
        for name, body in ((b"fmt ", format), (b"data", mp3), (b"LIST", b"INFO"))
    )
    wav = b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks
    expected = samples_of(tmp_path / "a", mp3)
    np.testing.assert_array_equal(samples_of(tmp_path / "a", wav), expected)
    with pytest.raises(AudioError, match="truncated"):
        samples_of(tmp_path / "a", wav[:-300])


def test_wav_with_more_samples_than_its_header_states_is_refused(recordings, tmp_path):
    """Its size of four bytes may have overflowed, or its recorder was stopped."""
    whole = recordings["wav"]
    at = whole.index(b"data") + 4
    with pytest.raises(AudioError, match="more samples than the header states: 128000 bytes inst"):
        samples_of(tmp_path / "a", whole[:at] + struct.pack("<I", 1000) + whole[at + 4 :])


@pytest.mark.parametrize("kind", ["gsm", "g721"])
def test_segments_of_formats_that_cannot_seek(kind, recordings, tmp_path):
    whole = samples_of(tmp_path / "a", recordings[kind])
    segment = samples_of(tmp_path / "a", recordings[kind], offset_seconds=1.5, duration_seconds=1.0)
    np.testing.assert_array_equal(segment, whole[24_000:40_000])
    blocks = list(read_audio_blocks(tmp_path / "a", sample_rate_hz=RATE_HZ))
    np.testing.assert_array_equal(np.concatenate(blocks), whole)


def test_only_the_ends_of_long_recordings_are_read_for_a_segment(tmp_path, monkeypatch):
    """The checks of a WAV or FLAC file take no more than its header."""
    read: list[int] = []

    class Counted(io.FileIO):
        def read(self, size=-1, /):
            contents = super().read(size)
            read.append(len(contents))
            return contents

    kinds = ("wav", "flac")
    for kind in kinds:
        (tmp_path / kind).write_bytes(encoded(kind, 60.0))
    monkeypatch.setattr(Path, "open", lambda path, *_, **__: Counted(path))
    for path in (tmp_path / kind for kind in kinds):
        read.clear()
        read_audio(path, sample_rate_hz=RATE_HZ, offset_seconds=30.0, duration_seconds=1.0)
        assert sum(read) < 1000
        read.clear()
        assert len(read_audio(path, sample_rate_hz=RATE_HZ)) == 60 * RATE_HZ
        assert sum(read) < 30_000
