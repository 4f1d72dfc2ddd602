"""Reading of recordings, changes of rate and speed, and the errors of bad files."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asr_jax.audio.samples import (
    AudioError,
    audio_duration_seconds,
    change_speed,
    read_audio,
    read_audio_blocks,
)

RATE = 16_000

SAMPLES = Path(__file__).parents[2] / "samples"


def tone(frequency_hz: float, *, sample_rate_hz: int, seconds: float = 1.0) -> np.ndarray:
    n = np.arange(round(seconds * sample_rate_hz))
    return (0.5 * np.sin(2 * np.pi * frequency_hz * n / sample_rate_hz)).astype(np.float32)


def strongest_hz(samples: np.ndarray, sample_rate_hz: int) -> float:
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples)), 1 << 18))
    return float(np.argmax(spectrum)) * sample_rate_hz / (1 << 18)


def test_sixteen_bit_samples_are_read_exactly(tmp_path):
    integers = np.random.default_rng(0).integers(-32768, 32768, 5000).astype(np.int16)
    for suffix in (".wav", ".flac"):
        soundfile.write(tmp_path / f"a{suffix}", integers, 16_000, subtype="PCM_16")
        samples = read_audio(tmp_path / f"a{suffix}", sample_rate_hz=16_000)
        np.testing.assert_array_equal(samples, integers / 32768)


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_a_segment_is_a_slice_of_the_whole(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    soundfile.write(path, np.random.default_rng(3).uniform(-0.9, 0.9, 16_000), 16_000)
    whole = read_audio(path, sample_rate_hz=16_000)
    segment = read_audio(path, sample_rate_hz=16_000, offset_seconds=0.25, duration_seconds=0.5)
    np.testing.assert_array_equal(segment, whole[4000:12_000])
    to_the_end = read_audio(path, sample_rate_hz=16_000, offset_seconds=0.75, duration_seconds=9.0)
    np.testing.assert_array_equal(to_the_end, whole[12_000:])


def test_channels_are_averaged(tmp_path):
    channels = np.random.default_rng(1).uniform(-1, 1, (1000, 2)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", channels, 16_000, subtype="FLOAT")
    samples = read_audio(tmp_path / "a.wav", sample_rate_hz=16_000)
    np.testing.assert_array_equal(samples, (channels[:, 0] + channels[:, 1]) / 2)


@pytest.mark.parametrize("rate_hz", [8000, 16_000, 22_050, 44_100, 48_000])
def test_blocks_concatenate_to_the_whole(tmp_path, rate_hz):
    """Also for lengths around a whole number of blocks."""
    for more in (0, 1, 2 * rate_hz - 1, 2 * rate_hz, 2 * rate_hz + 1):
        samples = np.random.default_rng(0).uniform(-0.9, 0.9, (rate_hz // 2 + more, 2))
        soundfile.write(tmp_path / "a.flac", samples, rate_hz)
        blocks = list(read_audio_blocks(tmp_path / "a.flac", sample_rate_hz=16_000))
        assert max(map(len, blocks)) < 20_000
        whole = read_audio(tmp_path / "a.flac", sample_rate_hz=16_000)
        np.testing.assert_array_equal(np.concatenate(blocks), whole)


@pytest.mark.parametrize("rate_hz", [8000, 22_050, 48_000])
def test_another_rate_gives_the_same_sound(tmp_path, rate_hz):
    soundfile.write(tmp_path / "a.wav", tone(440, sample_rate_hz=rate_hz), rate_hz, subtype="FLOAT")
    samples = read_audio(tmp_path / "a.wav", sample_rate_hz=16_000)
    expected = tone(440, sample_rate_hz=16_000)
    assert len(samples) == len(expected) and samples.dtype == np.float32
    # The ends differ, because the filter sees the tone start there.
    np.testing.assert_allclose(samples[1000:-1000], expected[1000:-1000], atol=1e-4)


@pytest.mark.parametrize("speed", [0.9, 1.1, 1.5])
def test_speed_divides_the_length_and_multiplies_the_pitch(speed):
    samples = tone(500, sample_rate_hz=16_000, seconds=2.0)
    changed = change_speed(samples, speed)
    assert abs(len(changed) - len(samples) / speed) <= 1 and changed.dtype == np.float32
    assert strongest_hz(changed, 16_000) == pytest.approx(500 * speed, abs=0.5)
    np.testing.assert_array_equal(change_speed(samples, 1.0), samples)


def unusable(folder: Path) -> list[tuple[str, Path]]:
    """Write files that cannot be read; return a pattern of the message and the path for each."""
    noise = np.random.default_rng(2).uniform(-0.5, 0.5, 60_000).astype(np.float32)
    for name, samples in (
        ("none.wav", noise[:0]),
        ("nan.wav", np.append(noise, np.nan)),
        ("infinite.wav", np.append(noise, -np.inf)),
    ):
        soundfile.write(folder / name, samples, 16_000, subtype="FLOAT")
    (folder / "empty.wav").write_bytes(b"")
    (folder / "samples.raw").write_bytes(bytes(3200))
    (folder / "text.wav").write_bytes(b"this is no recording" * 50)
    (folder / "text.mp3").write_bytes(b"not audio")

    soundfile.write(folder / "whole.ogg", noise, 16_000, format="OGG", subtype="OPUS")
    ogg = bytearray((folder / "whole.ogg").read_bytes())
    ogg[len(ogg) // 2 : len(ogg) // 2 + 3000] = bytes(3000)
    (folder / "damaged.ogg").write_bytes(ogg)

    soundfile.write(folder / "whole.flac", noise, 16_000)
    flac = bytearray((folder / "whole.flac").read_bytes())
    (folder / "half.flac").write_bytes(flac[: len(flac) // 2])
    # A FLAC file written to a pipe leaves the 36 bits of the number of samples at zero.
    flac[21] &= 0xF0
    flac[22:26] = bytes(4)
    (folder / "streamed.flac").write_bytes(flac)
    return [
        ("no such file", folder / "missing.wav"),
        ("no such file", folder),
        ("the file is empty", folder / "empty.wav"),
        ("raw samples, without a header", folder / "samples.raw"),
        ("not recognised", folder / "text.wav"),
        ("no audio; if another program plays it", folder / "text.mp3"),
        ("no samples", folder / "none.wav"),
        ("not finite", folder / "nan.wav"),
        ("not finite", folder / "infinite.wav"),
        ("truncated: [0-9]+ of 60000 samples", folder / "damaged.ogg"),
        ("corrupt|truncated|sync", folder / "half.flac"),
        ("does not state the length", folder / "streamed.flac"),
    ]


def test_error_of_an_unusable_recording_is_one_line_with_path_and_reason(tmp_path):
    for reason, path in unusable(tmp_path):
        with pytest.raises(AudioError, match=reason) as caught:
            read_audio(path, sample_rate_hz=16_000)
        assert str(caught.value) == f"{path}: {caught.value.reason}"
        assert "\n" not in str(caught.value)


def test_a_name_may_have_any_bytes(tmp_path):
    path = tmp_path / "caf\udce9 \n\t\\ größer.wav"
    soundfile.write(tmp_path / "a.wav", tone(300, sample_rate_hz=16_000), 16_000)
    (tmp_path / "a.wav").rename(path)
    assert audio_duration_seconds(path) == 1.0
    assert len(read_audio(path, sample_rate_hz=16_000)) == 16_000
    assert len(np.concatenate(list(read_audio_blocks(path, sample_rate_hz=8_000)))) == 8_000


def test_a_segment_outside_the_recording_is_an_error(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(300, sample_rate_hz=16_000), 16_000)
    for offset, duration in ((1.0, None), (3.0, 1.0), (0.5, 0.0)):
        with pytest.raises(
            AudioError, match="no samples in its segment: from .* has 1 s"
        ) as caught:
            read_audio(
                tmp_path / "a.wav",
                sample_rate_hz=16_000,
                offset_seconds=offset,
                duration_seconds=duration,
            )
        # Summaries group reasons by what comes before the colon.
        assert caught.value.reason.partition(":")[0] == "no samples in its segment"


def test_sample_corpus_decodes_to_the_lengths_in_its_headers():
    recordings = sorted((SAMPLES / "an4" / "test").rglob("*.ogg"))
    assert len(recordings) == 91
    seconds = 0.0
    for path in recordings:
        samples = read_audio(path, sample_rate_hz=16_000)
        assert len(samples) == round(audio_duration_seconds(path) * 16_000)
        assert 0.01 < np.abs(samples).max() < 1.5
        seconds += len(samples) / 16_000
    assert seconds / 60 == pytest.approx(4.36, abs=0.005)


def test_encode_opus_preserves_lengths_and_other_files(tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    chapter = source / "train" / "7" / "1"
    chapter.mkdir(parents=True)
    (chapter / "7-1.trans.txt").write_bytes(b"7-1-0000 A TONE\n7-1-0001 ANOTHER")
    recordings = {
        "7-1-0000": tone(300, sample_rate_hz=16_000),
        "7-1-0001": tone(50, sample_rate_hz=16_000)[:3333],
    }
    for id, samples in recordings.items():
        soundfile.write(chapter / f"{id}.flac", samples, 16_000)
    command = [sys.executable, str(SAMPLES / "encode_opus.py"), str(source), str(out)]
    assert subprocess.run(command, check=True, capture_output=True).stdout == b"2 recordings\n"

    written = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert written == {f"train/7/1/7-1{end}" for end in (".trans.txt", "-0000.ogg", "-0001.ogg")}
    transcripts = out / "train" / "7" / "1" / "7-1.trans.txt"
    assert transcripts.read_bytes() == (chapter / "7-1.trans.txt").read_bytes()
    for id, samples in recordings.items():
        decoded = read_audio(transcripts.with_name(f"{id}.ogg"), sample_rate_hz=16_000)
        assert len(decoded) == len(samples)
        assert np.corrcoef(decoded, samples)[0, 1] > 0.95


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "opus"])
def test_segment_of_a_long_recording_is_a_slice_of_the_whole(tmp_path, suffix):
    samples = np.random.default_rng(0).uniform(-0.1, 0.1, 40 * RATE).astype(np.float32)
    path = tmp_path / f"long.{suffix}"
    opus = {"format": "OGG", "subtype": "OPUS"} if suffix == "opus" else {}
    soundfile.write(path, samples, RATE, **opus)
    whole = read_audio(path, sample_rate_hz=RATE)
    for start in (1, 17 * RATE + 5, 38 * RATE):
        segment = read_audio(
            path, sample_rate_hz=RATE, offset_seconds=start / RATE, duration_seconds=0.75
        )
        np.testing.assert_array_equal(segment, whole[start : start + 12_000])


@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE"])
def test_segments_and_blocks_of_mp3_have_the_bits_of_the_frames_before(tmp_path, mode):
    """At low bit rates, frames use bits of many frames before them."""
    speech = [read_audio(p, sample_rate_hz=RATE) for p in sorted(SAMPLES.rglob("*.ogg"))[:4]]
    options = {"bitrate_mode": mode, "compression_level": 0.99}
    soundfile.write(tmp_path / "a.mp3", np.concatenate(speech), RATE, **options)
    whole = read_audio(tmp_path / "a.mp3", sample_rate_hz=RATE)
    blocks = np.concatenate(list(read_audio_blocks(tmp_path / "a.mp3", sample_rate_hz=RATE)))
    np.testing.assert_allclose(blocks, whole, atol=1e-6)
    for start in range(RATE, len(whole) - RATE, 7001):
        segment = read_audio(
            tmp_path / "a.mp3",
            sample_rate_hz=RATE,
            offset_seconds=start / RATE,
            duration_seconds=1.0,
        )
        np.testing.assert_allclose(segment, whole[start : start + RATE], atol=1e-6)


def test_audio_before_a_segment_is_not_decoded(tmp_path):
    """Damage before the segment changes nothing, though reading the whole file fails."""
    path = tmp_path / "long.flac"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.1, 0.1, 40 * RATE), RATE)
    segment = dict(sample_rate_hz=RATE, offset_seconds=30.0, duration_seconds=2.0)
    before, contents = read_audio(path, **segment), bytearray(path.read_bytes())
    quarter = len(contents) // 4
    contents[quarter : 2 * quarter] = bytes(quarter)
    path.write_bytes(contents)
    np.testing.assert_array_equal(read_audio(path, **segment), before)
    with pytest.raises(AudioError):
        read_audio(path, sample_rate_hz=RATE)


def test_one_channel_or_the_mean_of_all(tmp_path):
    left, right = np.random.default_rng(0).integers(-1000, 1000, (2, 800)).astype(np.int16)
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], axis=1), RATE)
    read = lambda channel: read_audio(tmp_path / "a.wav", sample_rate_hz=RATE, channel=channel)
    np.testing.assert_array_equal(read(0) * 32768, left)
    np.testing.assert_array_equal(read(1) * 32768, right)
    np.testing.assert_array_equal(read(None), (read(0) + read(1)) / 2)
    with pytest.raises(AudioError, match="a.wav: no channel 2, the recording has 2"):
        read(2)


@pytest.mark.parametrize("subtype", ["PCM_16", "FLOAT", "VORBIS", "OPUS", "MPEG_LAYER_III"])
def test_channels_that_cancel_in_their_mean_are_refused(tmp_path, subtype):
    """Such as of a microphone cable with one polarity reversed."""
    speech = read_audio(sorted(SAMPLES.rglob("*.ogg"))[0], sample_rate_hz=RATE)
    kinds = {"VORBIS": "OGG", "OPUS": "OGG", "MPEG_LAYER_III": "MP3"}
    kind, path = kinds.get(subtype, "WAV"), tmp_path / "a"
    write = lambda left, right: soundfile.write(
        path, np.stack([left, right], axis=1), RATE, format=kind, subtype=subtype
    )
    write(speech, -speech)
    with pytest.raises(AudioError, match="its channels cancel when they are averaged; name one"):
        read_audio(path, sample_rate_hz=RATE)
    with pytest.raises(AudioError, match="its channels cancel"):
        list(read_audio_blocks(path, sample_rate_hz=RATE))
    left = read_audio(path, sample_rate_hz=RATE, channel=0)
    assert np.corrcoef(left[: len(speech)], speech)[0, 1] > 0.95
    noise = np.random.default_rng(0).normal(size=len(speech)) / 100
    for right in (np.zeros_like(speech), speech, noise, -0.5 * speech):
        write(speech, right)
        assert len(read_audio(path, sample_rate_hz=RATE)) == len(speech)
    write(0 * speech, 0 * speech)
    assert np.abs(read_audio(path, sample_rate_hz=RATE)).max() < 1e-30
