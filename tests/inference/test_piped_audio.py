"""WAV and raw samples from a pipe equal the samples of the file, however the bytes arrive."""

import io
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asr_jax.audio.samples import AudioError, read_audio
from asr_jax.inference.piped_audio import piped_samples

RATE_HZ = 16_000
RANDOM = np.random.default_rng(0)
PATH = Path("-")


def pieces_of(contents: bytes, size: int):
    """Return a function that reads `size` bytes at most, as a slow writer sends them."""
    file = io.BytesIO(contents)
    return lambda wanted: file.read(min(wanted, size))


def streamed(contents: bytes, *, size: int = 10_000) -> np.ndarray:
    options = dict(sample_rate_hz=RATE_HZ, block_samples=320)
    return np.concatenate([*piped_samples(pieces_of(contents, size), PATH, **options)])


def wav(samples: np.ndarray, rate_hz: int, subtype: str, form: str = "WAV") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate_hz, format=form, subtype=subtype)
    return file.getvalue()


def with_data_size(contents: bytes, size: int) -> bytes:
    at = contents.index(b"data")
    return contents[: at + 4] + struct.pack("<I", size) + contents[at + 8 :]


@pytest.mark.parametrize("form", ["WAV", "WAVEX"])
@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
@pytest.mark.parametrize("rate_hz, channels", [(16_000, 1), (16_000, 2), (44_100, 3), (8_000, 1)])
def test_wav_equals_the_file(form, subtype, rate_hz, channels, tmp_path):
    samples = 0.2 * RANDOM.normal(size=(2_345, channels))
    contents = wav(samples, rate_hz, subtype, form)
    (tmp_path / "a.wav").write_bytes(contents)
    expected = read_audio(tmp_path / "a.wav", sample_rate_hz=RATE_HZ)
    for found in (streamed(contents), streamed(contents, size=7)):
        if rate_hz == RATE_HZ:
            np.testing.assert_allclose(found, expected, atol=1e-7)
        else:
            assert len(found) == pytest.approx(len(expected), abs=1)
            n = min(len(found), len(expected))
            np.testing.assert_allclose(found[:n], expected[:n], atol=1e-3)


def test_a_header_that_states_no_length_lasts_to_the_end():
    samples = 0.2 * RANDOM.normal(size=1_000)
    contents = wav(samples, RATE_HZ, "PCM_16")
    expected = streamed(contents)
    for size in (0, 0xFFFF_FFFF, 0x7FFF_F000, 0x8000_0000):
        np.testing.assert_array_equal(streamed(with_data_size(contents, size)), expected)
    # Chunks before and after the samples are no samples.
    at = contents.index(b"fmt ")
    more = contents[:at] + b"LIST\x03\0\0\0abc\0" + contents[at:] + b"LIST\x04\0\0\0abcd"
    np.testing.assert_array_equal(streamed(more), expected)
    np.testing.assert_array_equal(streamed(more, size=1), expected)


@pytest.mark.parametrize("length", [0, 1, 2, 3, 4, 11, 12, 13, 1_001])
def test_anything_else_is_raw_samples(length):
    contents = RANDOM.integers(0, 100, length, np.uint8).tobytes()
    whole = np.frombuffer(contents[: length // 2 * 2], "<i2").astype(np.float32) / 2**15
    for size in (1, 5, 10_000):
        pieces = piped_samples(
            pieces_of(contents, size), PATH, sample_rate_hz=RATE_HZ, block_samples=320
        )
        assert np.concatenate([np.zeros(0, np.float32), *pieces]).tolist() == whole.tolist()


@pytest.mark.parametrize("form, name", [("FLAC", "FLAC"), ("OGG", "Ogg"), ("AIFF", "AIFF")])
def test_other_formats_are_named(form, name):
    contents = io.BytesIO()
    soundfile.write(contents, np.zeros(4_000), RATE_HZ, format=form)
    for size in (1, 10_000):
        with pytest.raises(AudioError, match=f"^-: {name}: only WAV and raw samples can be stre"):
            streamed(contents.getvalue(), size=size)


def test_mp3_is_named():
    contents = io.BytesIO()
    soundfile.write(contents, 0.1 * RANDOM.normal(size=9_000), RATE_HZ, format="MP3")
    for stored in (contents.getvalue(), b"ID3\x04" + bytes(20) + contents.getvalue()):
        with pytest.raises(AudioError, match="^-: MP3: only WAV"):
            streamed(stored)


def test_damaged_and_incomplete_files_are_one_line():
    contents = wav(0.1 * RANDOM.normal(size=1_000), RATE_HZ, "PCM_16")
    at = contents.index(b"data")
    for length in range(12, at + 8):
        with pytest.raises(AudioError, match="^-: incomplete WAV header$"):
            streamed(contents[:length])
    with pytest.raises(AudioError, match="^-: truncated, 1956 of 2000 bytes of samples$"):
        streamed(contents[:2_000])
    with pytest.raises(AudioError, match="^-: damaged WAV header, its samples come before"):
        streamed(contents[:12] + contents[at:])
    with pytest.raises(AudioError, match="^-: damaged WAV header, 0 channels"):
        streamed(contents[:22] + b"\0\0" + contents[24:])
    with pytest.raises(AudioError, match="^-: WAV of format 7 with 8 bits: must be PCM or float"):
        streamed(wav(np.zeros(100), RATE_HZ, "ULAW"))
    with pytest.raises(AudioError, match="^-: samples that are not finite$"):
        streamed(wav(np.full(100, np.nan), RATE_HZ, "FLOAT"))


def test_channels_that_cancel_in_their_mean_are_reported_at_the_end():
    left = 0.2 * RANDOM.normal(size=(2_000, 1))
    with pytest.raises(AudioError, match="^-: its channels cancel when they are averaged"):
        streamed(wav(left * [1, -1], RATE_HZ, "PCM_16"))
    assert len(streamed(wav(left * [1, 0], RATE_HZ, "PCM_16"))) == 2_000
