"""Recordings that are parts of a file read as the same recordings in files of their own."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from asr_jax.audio.samples import AudioError
from asr_jax.data.recordings import read_recording, recording_bytes, recording_seconds
from asr_jax.types import Member, Utterance

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
