"""Log-mel features against Kaldi's, and the laws of padding."""

import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import kaldi_native_fbank
import numpy as np
import pytest

from asr_jax.audio.samples import read_audio
from asr_jax.config import FeaturesConfig
from asr_jax.features.frames import frame_count
from asr_jax.features.logmel import log_mel

DEV = Path(__file__).parents[2] / "samples/an4/dev"
RAW = FeaturesConfig(normalization="none")
NORMALIZED = FeaturesConfig()
jitted = jax.jit(log_mel, static_argnums=2)


def features_of(recordings, config, *, padded=None, padding=0.0):
    """Return the frames of each recording in one padded batch, and the padded result."""
    padded = padded or max(1, *map(len, recordings))
    samples = np.full((len(recordings), padded), padding, np.float32)
    for row, recording in zip(samples, recordings):
        row[: len(recording)] = recording
    lengths = np.array([len(r) for r in recordings], np.int32)
    features, frame_lengths = map(np.asarray, jitted(samples, lengths, config))
    assert frame_lengths.tolist() == [frame_count(n, config) for n in lengths.tolist()]
    return [row[:n] for row, n in zip(features, frame_lengths)], features


def kaldi(recording, config, *, window=None):
    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.samp_freq = config.sample_rate_hz
    options.frame_opts.dither = 0
    options.frame_opts.snip_edges = False
    options.frame_opts.frame_length_ms = config.window_ms
    options.frame_opts.frame_shift_ms = config.hop_ms
    options.frame_opts.window_type = window or config.window
    options.frame_opts.preemph_coeff = config.preemphasis
    options.frame_opts.remove_dc_offset = config.remove_dc
    options.mel_opts.num_bins = config.mel_bins
    options.mel_opts.low_freq = config.low_hz
    options.mel_opts.high_freq = config.high_hz
    options.mel_opts.is_librosa = config.mel_scale == "slaney"
    fbank = kaldi_native_fbank.OnlineFbank(options)
    fbank.accept_waveform(config.sample_rate_hz, recording.tolist())
    fbank.input_finished()
    frames = [fbank.get_frame(t) for t in range(fbank.num_frames_ready)]
    return np.stack(frames) if frames else np.zeros((0, config.mel_bins), np.float32)


def noise(num_samples, seed=0):
    """Return noise that gets louder, with an offset, so that all frames and bins differ."""
    rng = np.random.default_rng(seed)
    swell = np.geomspace(0.01, 0.3, num_samples) if num_samples else np.zeros(0)
    return (0.01 + swell * rng.normal(size=num_samples)).astype(np.float32)


@pytest.fixture(scope="module")
def speech():
    paths = sorted(DEV.rglob("*.ogg"))[::4]
    assert len(paths) >= 10
    return [read_audio(path, sample_rate_hz=16_000) for path in paths]


def test_defaults_equal_kaldis_on_real_speech(speech):
    rows, _ = features_of(speech, RAW)
    error = np.abs(np.concatenate(rows) - np.concatenate([kaldi(r, RAW) for r in speech]))
    assert np.mean(error <= 1e-3) >= 0.9999
    assert error.max() <= 1e-2


@pytest.mark.parametrize(
    ("config", "window"),
    [
        (FeaturesConfig(normalization="none", window="hamming", mel_bins=23), "hamming"),
        (FeaturesConfig(normalization="none", window="hann", preemphasis=0.0), "hanning"),
        (FeaturesConfig(normalization="none", mel_scale="slaney", remove_dc=False), "povey"),
        (FeaturesConfig(normalization="none", window_ms=32.0, hop_ms=8.0, high_hz=4000.0), "povey"),
        (FeaturesConfig(normalization="none", sample_rate_hz=11_025, mel_bins=40), "povey"),
        (FeaturesConfig(normalization="none", window_ms=25.0, hop_ms=25.0), "povey"),
    ],
)
def test_options_equal_kaldis(config, window):
    recording = noise(9000)
    (row,), _ = features_of([recording], config)
    np.testing.assert_allclose(row, kaldi(recording, config, window=window), atol=1e-2)


def test_short_recordings_are_reflected_repeatedly():
    recordings = [
        noise(n, seed=n) for n in (80, 81, 90, 120, 199, 200, 201, 239, 240, 399, 400, 561)
    ]
    rows, _ = features_of(recordings, RAW)
    for row, recording in zip(rows, recordings):
        np.testing.assert_allclose(row, kaldi(recording, RAW), atol=1e-2)


@pytest.mark.parametrize("config", [RAW, NORMALIZED])
def test_padding_changes_nothing(config):
    recordings = [noise(n, seed=n) for n in (4000, 7039, 7041, 1, 200)]
    rows, _ = features_of(recordings, config)
    for padded, padding in ((8000, 0.0), (12_345, np.nan)):
        others, features = features_of(recordings, config, padded=padded, padding=padding)
        for row, other in zip(rows, others):
            np.testing.assert_allclose(row, other, atol=1e-5)
        for other, whole in zip(others, features):
            assert not whole[len(other) :].any()


@pytest.mark.parametrize("config", [RAW, NORMALIZED])
def test_batch_equals_its_rows(config):
    recordings = [noise(n, seed=n) for n in (4000, 7039, 3, 1000)]
    rows, _ = features_of(recordings, config)
    for row, recording in zip(rows, recordings):
        (single,), _ = features_of([recording], config, padded=7039)
        np.testing.assert_allclose(row, single, atol=1e-5)


def test_normalized_bins_have_mean_zero_and_deviation_one(speech):
    raw, _ = features_of(speech, RAW)
    normalized, _ = features_of(speech, NORMALIZED)
    for before, after in zip(raw, normalized):
        before = before.astype(np.float64)
        expected = (before - before.mean(axis=0)) / before.std(axis=0)
        np.testing.assert_allclose(after, expected, atol=1e-4)


@pytest.mark.parametrize("config", [RAW, NORMALIZED])
def test_empty_and_silent_recordings_are_finite(config):
    silence = np.zeros(40_000, np.float32)
    (nothing, short, silent), features = features_of([silence[:0], silence[:79], silence], config)
    assert len(nothing) == len(short) == 0
    assert not features[:2].any()
    floor = np.log(np.finfo(np.float32).eps) if config is RAW else 0
    np.testing.assert_allclose(silent, floor, atol=1e-4)


def test_rows_stay_on_their_devices():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.P("data")
    samples = np.stack([noise(1600, seed=i) for i in range(16)])
    lengths = np.arange(16, dtype=np.int32) * 100
    sharded = jax.jit(
        jax.shard_map(
            partial(log_mel, config=NORMALIZED), mesh=mesh, in_specs=(rows, rows), out_specs=rows
        )
    )
    compiled = sharded.lower(samples, lengths).compile()
    assert not re.search(r"all-|collective-|reduce-scatter", compiled.as_text())
    # Compared with the same two rows alone: a program of another shape may sum in another order,
    # and normalizing a row of two frames divides that rounding error by their small deviation.
    pairs = [jitted(samples[i : i + 2], lengths[i : i + 2], NORMALIZED)[0] for i in range(0, 16, 2)]
    np.testing.assert_allclose(sharded(samples, lengths)[0], np.concatenate(pairs), atol=1e-5)


NEMO = FeaturesConfig(
    layout="nemo", window="hann", mel_scale="slaney", low_hz=0.0, high_hz=0.0, remove_dc=False
)
# What ParakeetFeatureExtractor of transformers 5.24 computes from these samples of AN4.
TRANSFORMERS = Path(__file__).parent / "transformers_features.npz"
EXTRACTED_FROM = {"20025/2/20025-2-0001.ogg": 33_555, "20025/1/20025-1-0002.ogg": 25_523}


def extracted_recordings():
    test = DEV.parent / "test"
    return [
        read_audio(test / name, sample_rate_hz=16_000)[:length]
        for name, length in EXTRACTED_FROM.items()
    ]


def test_layout_nemo_equals_the_feature_extractor_of_parakeet():
    expected = np.load(TRANSFORMERS)
    first, second = extracted_recordings()
    rows, padded = features_of([first, second], NEMO, padded=40_000, padding=0.7)
    assert [len(row) for row in rows] == [209, 159]
    np.testing.assert_allclose(padded[:, :209], expected["bins_80"], atol=2e-5)
    [wide], _ = features_of([second], replace(NEMO, mel_bins=128))
    np.testing.assert_allclose(wide, expected["bins_128"], atol=1e-4)
    plain = replace(NEMO, mel_bins=128, normalization="none")
    [wide], _ = features_of([second], plain)
    np.testing.assert_allclose(wide[:40], expected["unnormalized_128"], atol=1e-4)


def test_layout_nemo_of_short_recordings_is_finite_and_ignores_padding():
    recordings = [noise(n, seed=n) for n in (0, 159, 160, 320, 1000)]
    rows, padded = features_of(recordings, NEMO, padded=1200, padding=np.nan)
    assert [len(row) for row in rows] == [0, 0, 1, 2, 6]
    assert np.all(np.isfinite(padded))
    assert np.all(padded[2] == 0)
    for row, recording in zip(rows, recordings):
        if len(row):
            alone, _ = features_of([recording], NEMO)
            np.testing.assert_allclose(row, alone[0], atol=2e-5)
