"""Noise, reverberation and gain: the laws of their arithmetic, and errors of bad files."""

import numpy as np
import pytest
import soundfile

from asr_jax.audio.samples import read_audio
from asr_jax.data.augment import (
    add_noise,
    add_reverberation,
    change_gain,
    read_segment,
    read_untranscribed,
)
from asr_jax.data.recordings import read_recording

RATE_HZ = 8000


def noise_of(seed: int, size: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(scale=0.1, size=size).astype(np.float32)


def power(samples: np.ndarray) -> float:
    return float(np.mean(np.square(samples, dtype=np.float64)))


@pytest.mark.parametrize("snr_db", [-20.0, 0.0, 3.7, 40.0])
def test_measured_snr_is_the_requested_snr(snr_db):
    samples, noise = noise_of(0, 5000), 300 * noise_of(1, 5000)
    added = add_noise(samples, noise, snr_db=snr_db).astype(np.float64) - samples
    assert 10 * np.log10(power(samples) / power(added)) == pytest.approx(snr_db, abs=1e-3)
    correlation = np.corrcoef(added, noise)[0, 1]
    assert correlation == pytest.approx(1, abs=1e-4)


def test_silence_and_empty_audio_are_unchanged():
    silence, empty, sound = np.zeros(100, np.float32), np.zeros(0, np.float32), noise_of(0, 100)
    for samples, other in ((silence, sound), (sound, silence), (silence, silence), (empty, empty)):
        np.testing.assert_array_equal(add_noise(samples, other, snr_db=0.0), samples)
    all_but_silent = np.full(100, 1e-44, np.float32)
    np.testing.assert_array_equal(add_noise(sound, all_but_silent, snr_db=0.0), sound)
    np.testing.assert_array_equal(add_reverberation(silence, sound), silence)
    np.testing.assert_array_equal(add_reverberation(sound, silence), sound)
    np.testing.assert_array_equal(add_reverberation(empty, sound), empty)


@pytest.mark.parametrize("size, length", [(1, 1), (500, 77), (77, 500), (4096, 1)])
def test_reverberation_is_a_convolution_with_the_direct_path_at_zero(size, length):
    samples, response = noise_of(0, size), noise_of(1, length)
    direct = length // 3
    response[direct] = -3.0
    reverberant = add_reverberation(samples, response)
    expected = np.convolve(samples.astype(np.float64), response)[direct : direct + size]
    expected *= np.sqrt(power(samples) / power(expected))
    assert reverberant.dtype == np.float32
    np.testing.assert_allclose(reverberant, expected, atol=1e-6)


def test_a_delayed_impulse_changes_nothing():
    samples, response = noise_of(0, 300), np.zeros(200, np.float32)
    response[150] = 0.25
    np.testing.assert_allclose(add_reverberation(samples, response), samples, atol=1e-7)


def test_gain_is_a_factor_without_clipping():
    samples = noise_of(0, 100)
    assert change_gain(samples, 0.0) is samples
    np.testing.assert_allclose(change_gain(samples, 40.0), 100 * samples, rtol=1e-6)
    assert np.abs(change_gain(samples, 40.0)).max() > 10


def test_a_segment_continues_at_the_beginning_of_the_recording(tmp_path):
    soundfile.write(tmp_path / "a.wav", noise_of(0, 1000), RATE_HZ, subtype="FLOAT")
    (recording,), _ = read_untranscribed(str(tmp_path), "augment.noise")
    whole, decoded = read_audio(tmp_path / "a.wav", sample_rate_hz=RATE_HZ), []

    def read(utterance):
        decoded.append(len(samples := read_recording(utterance, sample_rate_hz=RATE_HZ)))
        return samples

    endless = np.tile(whole, 6)
    for start, size in ((0, 1000), (300, 700), (300, 701), (0, 4500), (999, 2), (640, 200)):
        segment = read_segment(
            recording, read, start_seconds=start / RATE_HZ, samples=size, sample_rate_hz=RATE_HZ
        )
        np.testing.assert_array_equal(segment, endless[start : start + size], err_msg=f"{start}")
    assert decoded[-1] == 200


def test_reads_folders_of_recordings_and_names_their_errors(tmp_path):
    def message(folder):
        with pytest.raises(ValueError) as error:
            read_untranscribed(str(folder), "augment.noise")
        return str(error.value)

    assert message(tmp_path / "x") == f"augment.noise = {tmp_path / 'x'}: no such folder"
    assert message(tmp_path) == (
        f"augment.noise = {tmp_path}: no recordings (.flac, .wav, .w64, "
        ".rf64, .aiff, .aif, .caf, .au, .sph, .ogg, .oga, .opus, .mp3) in it"
    )
    (tmp_path / "b.wav").write_bytes(b"no recording")
    assert message(tmp_path).startswith(
        f"augment.noise = {tmp_path}: none of its 1 recordings can be read, the first is "
        "augment.noise:b.wav: "
    )
    (tmp_path / "deep").mkdir()
    soundfile.write(tmp_path / "deep" / "a.flac", noise_of(0, 2000), 16_000)
    (tmp_path / "README").write_text("not audio")
    recordings, skipped = read_untranscribed(str(tmp_path), "augment.noise")
    assert [(r.id, r.duration_seconds) for r in recordings] == [
        ("augment.noise:deep/a.flac", 0.125)
    ]
    assert [item.id for item in skipped] == ["augment.noise:b.wav"]
