"""Recordings that are parts of a file read as the same recordings in files of their own."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from asr_jax.audio.samples import AudioError, read_audio
from asr_jax.data.recording_checks import checked_entry
from asr_jax.data.recordings import read_recording, recording_bytes, recording_seconds
from asr_jax.types import Member, Skipped, Utterance

DEV = Path(__file__).parents[2] / "samples/an4/dev"
RATE_HZ = 16_000


@pytest.fixture
def parts(tmp_path):
    """Recordings in separate files, and the same recordings in sequence in a single file."""
    file = tmp_path / "many"
    separate, contained = [], []
    for path in sorted(DEV.rglob("*.ogg"))[:3]:
        seconds = recording_seconds(Utterance("", path, "", 0.0))
        contents, start = path.read_bytes(), file.stat().st_size if file.exists() else 0
        with file.open("ab") as many:
            many.write(contents)
        separate.append(Utterance(path.stem, path, "", seconds))
        contained.append(
            Utterance(path.stem, file, "", seconds, within=Member(start, len(contents)))
        )
    assert separate
    return separate, contained


def test_part_of_a_file_reads_as_the_file(parts):
    for whole, part in zip(*parts, strict=True):
        assert recording_seconds(part) == recording_seconds(whole)
        np.testing.assert_array_equal(
            read_recording(part, sample_rate_hz=RATE_HZ),
            read_recording(whole, sample_rate_hz=RATE_HZ),
        )


def test_segment_of_a_part_is_the_segment_of_the_file(parts):
    for whole, part in zip(*parts, strict=True):
        both = (u._replace(offset_seconds=0.25, duration_seconds=0.5) for u in (whole, part))
        one, other = (read_recording(u, sample_rate_hz=RATE_HZ) for u in both)
        np.testing.assert_array_equal(one, other)
        assert len(one) == RATE_HZ // 2


def test_stored_bytes_of_parts_and_files(parts):
    for whole, part in zip(*parts, strict=True):
        stored = whole.audio.read_bytes()
        for utterance in (whole, part):
            assert recording_bytes(utterance, len(stored)) == stored
            assert recording_bytes(utterance, len(stored) - 1) is None
            assert recording_bytes(utterance._replace(audio=Path("none")), 10**9) is None


def test_truncated_part_is_named(parts):
    part = parts[1][-1]
    part.audio.write_bytes(part.audio.read_bytes()[:-100])
    with pytest.raises(AudioError, match=r"many: truncated: \d+ of \d+ bytes"):
        read_recording(part, sample_rate_hz=RATE_HZ)


def test_missing_file_is_named(parts):
    part = parts[1][0]
    part.audio.unlink()
    with pytest.raises(AudioError, match="many: No such file"):
        read_recording(part, sample_rate_hz=RATE_HZ)


@pytest.mark.parametrize(
    "stated, is_used",
    [(1.0, True), (1.14, True), (1.25, False), (2.0, False), (0.5, True)],
)
def test_a_segment_that_ends_after_its_recording_is_a_fault(tmp_path, stated, is_used):
    """Its transcript may be longer than its audio; a tenth is the rounding of manifests."""
    for rate_hz in (16_000, 44_100):
        soundfile.write(tmp_path / "a.flac", np.ones(3 * rate_hz) / 2, rate_hz)
        utterance = Utterance("a", tmp_path / "a.flac", "", stated, offset_seconds=2.0)
        if is_used:
            samples = read_recording(utterance, sample_rate_hz=RATE_HZ)
            assert len(samples) == RATE_HZ * min(stated, 1.0)
        else:
            with pytest.raises(AudioError, match="shorter than its manifest says: 16000 samples"):
                read_recording(utterance, sample_rate_hz=RATE_HZ)


def test_a_long_recording_may_be_half_a_second_shorter_than_its_manifest_says(tmp_path):
    soundfile.write(tmp_path / "a.flac", np.ones(20 * 8000) / 2, 8000)
    utterance = Utterance("a", tmp_path / "a.flac", "", 20.45)
    assert len(read_recording(utterance, sample_rate_hz=8000)) == 160_000
    with pytest.raises(AudioError, match="shorter than its manifest says"):
        read_recording(utterance._replace(duration_seconds=20.6), sample_rate_hz=8000)


@pytest.mark.parametrize("form", ["WAV", "FLAC", "MP3", "OGG"])
def test_segments_before_the_place_where_a_file_is_truncated_are_read(form, tmp_path):
    """Also those that prepare stores; those beyond are refused."""
    samples = np.random.default_rng(0).normal(0, 0.1, 6 * RATE_HZ)
    path = tmp_path / "long"
    soundfile.write(path, samples, RATE_HZ, format=form)
    whole = read_recording(Utterance("a", path, "a", 6.0), sample_rate_hz=RATE_HZ)
    contents = path.read_bytes()
    path.write_bytes(contents[: len(contents) * 2 // 3])
    for offset in (0.0, 1.5):
        part = Utterance("a", path, "a", 1.25, offset_seconds=offset)
        first = round(offset * RATE_HZ)
        expected = whole[first : first + round(1.25 * RATE_HZ)]
        found = read_recording(part, sample_rate_hz=RATE_HZ)
        np.testing.assert_allclose(found, expected, atol=1e-6)
        stored = checked_entry(part, min_seconds=0.1, max_seconds=9.0)
        assert not isinstance(stored, Skipped), stored
        samples = read_audio(path, sample_rate_hz=RATE_HZ, contents=stored[0].audio)
        np.testing.assert_allclose(samples, expected, atol=1e-4)
    for offset, seconds in ((3.0, 2.0), (0.0, 6.0), (4.5, 1.0)):
        part = Utterance("a", path, "a", seconds, offset_seconds=offset)
        with pytest.raises(AudioError, match="truncated|damaged|no samples|seek"):
            read_recording(part, sample_rate_hz=RATE_HZ)
        assert isinstance(checked_entry(part, min_seconds=0.1, max_seconds=9.0), Skipped)
