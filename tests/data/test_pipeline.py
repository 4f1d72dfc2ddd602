"""Batches of audio: each row is what the plan says, on any number of threads and processes."""

from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asr_jax.audio.samples import change_speed, read_audio
from asr_jax.config import AugmentConfig, DataConfig
from asr_jax.data.augment import add_reverberation, read_untranscribed
from asr_jax.data.buckets import Buckets
from asr_jax.data.cache import AudioCache
from asr_jax.data.corpus import Corpus
from asr_jax.data.epochs import Epochs
from asr_jax.data.pipeline import (
    Batches,
    bucket_samples,
    evaluation_batches,
    training_batches,
    training_plan,
)
from asr_jax.types import Batch, Utterance

RATE_HZ = 8000
DATA = DataConfig(
    bucket_seconds=(0.5, 1.0),
    bucket_labels=(6, 12),
    bucket_utterances=(4, 2),
    read_threads=2,
    read_ahead_batches=3,
    cache_gib=1.0,
)
VARIED = AugmentConfig(speeds=(0.9, 1.0, 1.1), tempo_range=(0.8, 1.25), join_probability=0.5)
SEPARATOR = (2,)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Corpus:
    """23 recordings of noise by three speakers, at three rates, some resampled when read."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    utterances, labels = [], []
    for n in range(23):
        rate_hz = (8000, 8000, 16_000, 11_025)[n % 4]
        size = rate_hz // 10 + int(rng.integers(0, rate_hz * 8 // 10))
        path = folder / f"{n:02d}.wav"
        soundfile.write(path, rng.uniform(-0.9, 0.9, size), rate_hz, subtype="PCM_16")
        utterances.append(Utterance(f"{n:02d}", path, "", size / rate_hz, f"speaker {n % 3}"))
        labels.append(rng.integers(3, 30, 1 + n % 6).astype(np.int32))
    return Corpus(utterances, labels, separator=SEPARATOR)


def buckets_of(data: DataConfig) -> Buckets:
    buckets = Buckets.of(data)
    assert buckets is not None
    return buckets


def training(corpus: Corpus, *, data=DATA, augment=VARIED, **options) -> Batches:
    epochs = Epochs(training_plan(corpus, buckets=buckets_of(data), augment=augment, seed=5))
    return training_batches(corpus, epochs, data=data, sample_rate_hz=RATE_HZ, **options)


def assert_same(left: list[Batch], right: list[Batch]) -> None:
    assert len(left) == len(right)
    for one, other in zip(left, right):
        for field, value in one._asdict().items():
            np.testing.assert_array_equal(value, getattr(other, field), strict=True)


def test_rows_are_what_the_plan_says(corpus):
    utterances, labels = corpus.utterances, corpus.labels
    plan = training_plan(corpus, buckets=buckets_of(DATA), augment=VARIED, seed=5)
    planned = [batch for epoch in range(2) for batch in plan.batches(epoch)]
    joins = 0
    for plan_batch, batch in zip(planned, training(corpus)):
        S = bucket_samples(plan_batch.seconds, max_tempo=1.25, sample_rate_hz=RATE_HZ)
        assert batch.samples.shape == (len(plan_batch.first), S)
        assert batch.labels.shape == (len(plan_batch.first), plan_batch.labels)
        np.testing.assert_array_equal(batch.utterances, plan_batch.first)
        np.testing.assert_array_equal(batch.tempo, plan_batch.tempo.astype(np.float32))
        for row, (first, second) in enumerate(zip(plan_batch.first, plan_batch.second)):
            parts = [n for n in (first, second) if n >= 0]
            joins += len(parts) == 2
            sound = [read_audio(utterances[n].audio, sample_rate_hz=RATE_HZ) for n in parts]
            ids = [labels[n] for n in parts]
            samples = np.concatenate([np.zeros(0, np.float32), *sound])
            if len(parts) == 2:
                ids.insert(1, np.array(SEPARATOR))
            if parts:
                samples = change_speed(samples, plan_batch.speed[row])
            ids = np.concatenate([np.zeros(0, np.int32), *ids])

            assert batch.sample_lengths[row] == len(samples)
            assert batch.label_lengths[row] == len(ids)
            np.testing.assert_array_equal(batch.samples[row, : len(samples)], samples)
            np.testing.assert_array_equal(batch.labels[row, : len(ids)], ids)
            assert not batch.samples[row, len(samples) :].any()
            assert not batch.labels[row, len(ids) :].any()
    assert joins > 5


def test_threads_cache_and_read_ahead_change_nothing(corpus):
    expected = list(islice(training(corpus), 25))
    for threads, ahead, cache_gib in ((1, 1, 0.0), (4, 7, 0.0), (3, 2, 1e-5), (8, 30, 1.0)):
        data = replace(DATA, read_threads=threads, read_ahead_batches=ahead, cache_gib=cache_gib)
        assert_same(list(islice(training(corpus, data=data), 25)), expected)


@pytest.mark.parametrize("position", [1, 6, 7, 8, 20])
def test_resuming_at_a_position_gives_the_rest_of_the_stream(corpus, position):
    whole = list(islice(training(corpus), 25))
    assert_same(list(islice(training(corpus, position=position), 25 - position)), whole[position:])


def test_processes_share_the_rows_of_each_batch(corpus):
    whole = list(islice(training(corpus), 12))
    every_other = lambda k: training(corpus, local_rows=lambda rows: np.arange(rows)[k::2])
    for batch, evens, odds in zip(whole, every_other(0), every_other(1)):
        for column, first, second in zip(batch, evens, odds):
            np.testing.assert_array_equal(column[::2], first)
            np.testing.assert_array_equal(column[1::2], second)


def test_unreadable_recording_becomes_a_padding_row(corpus, tmp_path):
    utterances = corpus.utterances
    broken = list(utterances)
    for n, content in ((4, b""), (9, b"no recording")):
        path = tmp_path / f"{n}.wav"
        path.write_bytes(content)
        broken[n] = utterances[n]._replace(audio=path)
    augment = AugmentConfig(speeds=(0.9, 1.1))
    expected = list(islice(training(corpus, augment=augment), 20))
    stream = training(corpus._replace(utterances=broken), augment=augment)
    batches = list(islice(stream, 20))

    lost = 0
    for batch, whole in zip(batches, expected):
        failed = np.isin(whole.utterances, (4, 9))
        lost += failed.sum()
        for field, value in whole._asdict().items():
            padding = {"tempo": 1, "utterances": -1, "second_utterance": -1}.get(field, 0)
            mask = failed.reshape(-1, *(1,) * (value.ndim - 1))
            np.testing.assert_array_equal(getattr(batch, field), np.where(mask, padding, value))
    assert lost >= 4
    assert sorted(one.id for one in stream.failed) == ["04", "09"]
    reasons = {one.id: one.reason for one in stream.failed}
    assert reasons["04"] == f"the file is empty: {tmp_path / '4.wav'}"


def test_a_recording_shorter_than_its_manifest_says_is_listed(corpus, tmp_path):
    """Without a frame its loss would be infinite, and its batches would be lost."""
    utterances = corpus.utterances
    soundfile.write(tmp_path / "0.wav", np.zeros(48), RATE_HZ)
    mislisted = [utterances[0]._replace(audio=tmp_path / "0.wav"), *utterances[1:]]
    stream = training(corpus._replace(utterances=mislisted), augment=AugmentConfig())
    for batch in islice(stream, 20):
        assert 0 not in batch.utterances
    (failed,) = stream.failed
    assert (failed.id, failed.reason) == (
        mislisted[0].id,
        f"shorter than its manifest says: 48 samples: {tmp_path / '0.wav'}",
    )


def test_a_joined_row_needs_both_recordings(corpus):
    utterances = corpus.utterances
    plan = training_plan(corpus, buckets=buckets_of(DATA), augment=VARIED, seed=5)
    planned = [batch for epoch in range(3) for batch in plan.batches(epoch)]
    lost = max(int(batch.second.max()) for batch in planned)
    missing = utterances[lost]._replace(audio=Path("/missing.wav"))
    damaged = [*utterances[:lost], missing, *utterances[lost + 1 :]]
    stream = training(corpus._replace(utterances=damaged))
    for expected, batch in zip(planned, stream):
        fails = (expected.first == lost) | (expected.second == lost)
        np.testing.assert_array_equal(batch.utterances, np.where(fails, -1, expected.first))
        assert not batch.samples[fails].any() and not batch.label_lengths[fails].any()


def test_evaluation_reads_each_utterance_once_unchanged(corpus):
    utterances, labels = corpus.utterances, corpus.labels
    long = Utterance("long", utterances[0].audio, "", 0.3)
    options = {"data": DATA, "sample_rate_hz": RATE_HZ}
    options["buckets"] = Buckets((0.1, 0.25, 1.0), (1, 2, 17), (4, 2, 2))
    everything, all_labels = [*utterances, long], [*labels, np.arange(3, 20, dtype=np.int32)]
    seen = []
    for batch in evaluation_batches(everything, all_labels, **options):
        for row, n in enumerate(batch.utterances.tolist()):
            if n < 0:
                assert not batch.samples[row].any() and not batch.labels[row].any()
                assert batch.sample_lengths[row] == batch.label_lengths[row] == 0
                continue
            seen.append(n)
            samples = read_audio(
                everything[n].audio,
                sample_rate_hz=RATE_HZ,
                duration_seconds=everything[n].duration_seconds,
            )
            length = batch.sample_lengths[row]
            np.testing.assert_array_equal(batch.samples[row, :length], samples)
            assert not batch.samples[row, length:].any() and batch.tempo[row] == 1
            np.testing.assert_array_equal(
                batch.labels[row, : batch.label_lengths[row]], all_labels[n]
            )
    assert sorted(seen) == list(range(24))


def test_evaluation_of_no_utterances_has_no_batches():
    none = Buckets((), (), ())
    batches = evaluation_batches([], [], buckets=none, data=DATA, sample_rate_hz=RATE_HZ)
    assert list(batches) == []


def test_cache_is_exact_and_bounded(corpus):
    utterances = corpus.utterances
    fresh = {u.id: read_audio(u.audio, sample_rate_hz=RATE_HZ) for u in utterances}
    capacity_bytes = sum(samples.nbytes for samples in fresh.values()) // 3
    cache = AudioCache(sample_rate_hz=RATE_HZ, capacity_bytes=capacity_bytes)
    for _ in range(2):
        for utterance in utterances:
            np.testing.assert_array_equal(cache.read(utterance), fresh[utterance.id], strict=True)
    assert 0 <= cache.free_bytes < capacity_bytes / 2


def test_cache_stores_sixteen_bits_in_two_bytes_and_reads_once(tmp_path):
    integers = np.random.default_rng(0).integers(-32768, 32768, 4000).astype(np.int16)
    integers[:2] = -32768, 32767
    soundfile.write(tmp_path / "a.wav", integers, RATE_HZ)
    utterance = Utterance("a", tmp_path / "a.wav", "", 0.5)
    cache = AudioCache(sample_rate_hz=RATE_HZ, capacity_bytes=2 * 4000)
    cache.read(utterance)
    assert cache.free_bytes == 0
    (tmp_path / "a.wav").unlink()
    np.testing.assert_array_equal(cache.read(utterance), integers / 32768)


NOISY = AugmentConfig(
    speeds=(0.9, 1.1),
    noise_probability=0.7,
    noise_snr_db=(0.0, 20.0),
    impulse_response_probability=0.6,
    gain_db=(-10.0, 30.0),
)


@pytest.fixture(scope="module")
def effects(tmp_path_factory) -> dict[str, list[Utterance]]:
    """Noise recordings shorter and longer than the utterances, and two impulse responses."""
    folder = tmp_path_factory.mktemp("effects")
    rng = np.random.default_rng(1)
    for name, seconds in (
        ("noise/0", 0.15),
        ("noise/1", 3.0),
        ("impulse_responses/0", 0.05),
        ("impulse_responses/1", 0.2),
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        samples = rng.uniform(-0.5, 0.5, round(RATE_HZ * seconds))
        samples[10] = -0.9
        soundfile.write(folder / f"{name}.wav", samples, RATE_HZ)
    return {
        name: read_untranscribed(str(folder / name), f"augment.{name}")[0]
        for name in ("noise", "impulse_responses")
    }


def test_augmentation_is_that_of_the_plan_in_its_order(corpus, effects):
    utterances, corpus = corpus.utterances, corpus._replace(**effects)
    plan = training_plan(corpus, buckets=buckets_of(DATA), augment=NOISY, seed=5)
    planned, seen = plan.batches(0), np.zeros(4, int)
    for drawn, batch in zip(planned, training(corpus, augment=NOISY)):
        for row, n in enumerate(drawn.first.tolist()):
            if n < 0:
                assert not batch.samples[row].any()
                continue
            samples = read_audio(utterances[n].audio, sample_rate_hz=RATE_HZ)
            samples = change_speed(samples, drawn.speed[row])
            if (impulse_response := drawn.impulse_response[row]) >= 0:
                response = read_audio(
                    effects["impulse_responses"][impulse_response].audio, sample_rate_hz=RATE_HZ
                )
                samples = add_reverberation(samples, response)
            augmented = batch.samples[row, : batch.sample_lengths[row]].astype(np.float64)
            augmented /= 10 ** (drawn.gain_db[row] / 20)
            added = augmented - samples
            if (noise := drawn.noise[row]) >= 0:
                snr_db = 10 * np.log10(np.mean(np.square(samples)) / np.mean(np.square(added)))
                assert snr_db == pytest.approx(drawn.snr_db[row], abs=1e-3)
                whole = read_audio(effects["noise"][noise].audio, sample_rate_hz=RATE_HZ)
                start = round(drawn.noise_start_seconds[row] * RATE_HZ)
                segment = np.resize(np.roll(whole, -start), len(samples))
                assert np.corrcoef(added, segment)[0, 1] > 0.999
            else:
                np.testing.assert_allclose(augmented, samples, atol=1e-5)
            seen += [
                noise == 0,
                noise == 1,
                impulse_response >= 0,
                np.abs(batch.samples[row]).max() > 1,
            ]
    assert (seen > 3).all()


def test_unreadable_augmentation_recordings_are_listed_and_not_applied(corpus, effects, tmp_path):
    (tmp_path / "broken.wav").write_bytes(b"no recording")
    broken = {
        name: [one._replace(audio=tmp_path / "broken.wav") for one in listed]
        for name, listed in effects.items()
    }
    augment = replace(NOISY, gain_db=(0.0, 0.0))
    stream = training(corpus._replace(**broken), augment=augment)
    clean = training(corpus, augment=AugmentConfig(speeds=(0.9, 1.1)))
    assert_same(list(islice(stream, 12)), list(islice(clean, 12)))
    assert sorted({one.id for one in stream.failed}) == [
        f"augment.{name}:{n}.wav" for name in ("impulse_responses", "noise") for n in (0, 1)
    ]


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_any_number_of_processes_and_threads_reads_the_same_batches(corpus, effects, processes):
    corpus = corpus._replace(sizes=(10, 13), weights=(1.0, 0.5), **effects)
    augment, data = replace(NOISY, join_probability=0.3), replace(DATA, bucket_utterances=(4, 4))
    whole = list(islice(training(corpus, data=data, augment=augment), 14))
    for position in (0, 9):
        shares = []
        for process in range(processes):
            share = lambda rows, p=process: np.arange(rows).reshape(processes, -1)[p]
            stream = training(
                corpus,
                data=replace(data, read_threads=1 + process),
                augment=augment,
                position=position,
                local_rows=share,
            )
            shares.append(list(islice(stream, 14 - position)))
        joined = [
            Batch(*(np.concatenate(columns) for columns in zip(*batches)))
            for batches in zip(*shares)
        ]
        assert_same(joined, whole[position:])
