"""The chosen buckets waste the least operations of all; no odd recording spoils them."""

import itertools
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from asr_jax.capacity.flops import utterance_work
from asr_jax.config import AugmentConfig, Config, DataConfig
from asr_jax.data.buckets import (
    MOST_BUCKETS,
    BatchSize,
    Buckets,
    Cost,
    choose_buckets,
    common_length,
    evaluation_buckets,
)
from asr_jax.data.plan import TrainingPlan, evaluation_plan, expected_lengths

FRAME_SECONDS, MINUTE = 0.04, BatchSize(60.0)
QUADRATIC = lambda seconds: seconds * (1 + seconds / 40)


def choose(seconds, labels=None, *, size=MINUTE, number=0, batches=5000.0, **options):
    seconds = np.asarray(seconds, np.float64)
    labels = np.ceil(4 * seconds).astype(np.int64) if labels is None else np.asarray(labels)
    labels = labels.astype(np.int64)
    cost = Cost(QUADRATIC, FRAME_SECONDS, batches=batches, compile_batches=250.0)
    return choose_buckets(seconds, labels, cost=cost, size=size, number=number, **options)


def speech(N: int, seed: int = 0, longest: float = 20.0) -> np.ndarray:
    return np.clip(np.random.default_rng(seed).gamma(4.0, 2.0, N), 0.3, longest)


def operations(seconds: np.ndarray, buckets: Buckets) -> float:
    edges = np.array(buckets.seconds)[buckets.first_fit(seconds, np.zeros(len(seconds)))]
    return float(QUADRATIC(edges).sum())


@settings(max_examples=40, deadline=None)
@given(
    ticks=st.lists(st.integers(1, 40), min_size=2, max_size=30),
    number=st.integers(1, 4),
)
@example(ticks=[28, 29], number=2)
@example(ticks=[1, 2, 3, 28, 29], number=4)
def test_no_other_edges_take_fewer_operations(ticks, number):
    seconds = FRAME_SECONDS * np.array(ticks)
    alone = BatchSize(1e-9)
    found = choose(seconds, np.zeros(len(ticks)), size=alone, number=number)
    lengths = np.unique(seconds)
    assert len(found.seconds) == min(number, len(lengths))
    assert set(found.utterances) == {1}

    def with_remainder(edges: tuple[float, ...]) -> float:
        """Half an utterance of every bucket moves up, or takes half an utterance of padding."""
        more = sum(
            0.5 * (QUADRATIC(low) if high > 4 * low else QUADRATIC(high) - QUADRATIC(low))
            for low, high in itertools.pairwise(edges)
        )
        return operations(seconds, Buckets(edges, (0,) * len(edges), ())) + more

    all_edges = [
        (*edges, lengths[-1])
        for edges in itertools.combinations(lengths[:-1], len(found.seconds) - 1)
    ]
    least = min(map(with_remainder, all_edges))
    assert with_remainder(found.seconds) == pytest.approx(least, rel=1e-9)


def test_more_steps_pay_for_more_programs():
    seconds = speech(3000)
    numbers = [
        len(choose(seconds, batches=batches).seconds) for batches in (10, 1e3, 3e3, 1e4, 1e7)
    ]
    assert numbers == sorted(numbers) and numbers[0] == 1 and numbers[-1] == MOST_BUCKETS
    assert len(choose(seconds, number=11).seconds) == 11


@settings(max_examples=60, deadline=None)
@given(
    seconds=st.lists(st.floats(0.05, 40.0), min_size=1, max_size=60),
    batch_seconds=st.floats(0.1, 2000.0),
    devices=st.sampled_from([1, 2, 3, 8, 16]),
    accumulate=st.sampled_from([1, 2]),
    number=st.integers(0, 9),
    seed=st.integers(0, 100),
)
def test_buckets_hold_everything_and_batches_divide(
    seconds, batch_seconds, devices, accumulate, number, seed
):
    lengths = np.array(seconds)
    labels = np.random.default_rng(seed).integers(0, 300, len(seconds))
    size = BatchSize(batch_seconds, devices * accumulate, 8 * accumulate)
    buckets = choose(lengths, labels, size=size, number=number)
    assert list(buckets.seconds) == sorted(buckets.seconds)
    assert list(buckets.labels) == sorted(buckets.labels) and min(buckets.labels) >= 1
    assert (buckets.first_fit(lengths, labels) < len(buckets.seconds)).all()
    assert buckets.seconds[-1] == max(lengths.max(), FRAME_SECONDS)
    for rows in buckets.utterances:
        assert rows % (devices * accumulate) == 0
        assert rows <= max(len(seconds), devices * accumulate)
        if rows > 16 * accumulate and devices in (1, 2, 8):
            assert rows % (8 * accumulate) == 0


def test_batches_of_all_buckets_take_the_same_operations_and_hold_the_seconds():
    seconds = speech(20_000)
    buckets = choose(seconds, size=BatchSize(3000.0, 1, 8), number=6)
    work = QUADRATIC(np.array(buckets.seconds)) * buckets.utterances
    assert work.max() / work.min() < 1.1
    audio = np.multiply(buckets.seconds, buckets.utterances)
    assert 0.75 * 3000 < audio.min() and audio.max() < 1.3 * 3000
    assert all(rows % 8 == 0 for rows in buckets.utterances)


def test_few_seconds_make_batches_of_powers_of_two():
    assert choose([7.0] * 100, size=BatchSize(44.0, 1, 8)).utterances == (4,)
    assert choose([7.0] * 100, size=BatchSize(1.0, 1, 8)).utterances == (1,)
    # Every device has a row, although that is more audio.
    assert choose([7.0] * 100, size=BatchSize(1.0, 8, 8)).utterances == (8,)
    assert choose([7.0] * 100, size=BatchSize(44.0, 3, 8)).utterances == (6,)


def test_one_recording_of_an_hour_gets_a_bucket_and_changes_no_other():
    usual = speech(5000)
    without, with_it = choose(usual, number=4), choose([*usual, 3600.0], number=5)
    assert with_it.seconds[-1] == 3600.0 and with_it.utterances[-1] == 1
    np.testing.assert_allclose(with_it.seconds[:-1], without.seconds, rtol=0.1)
    chosen = choose([*usual, 3600.0])
    assert chosen.seconds[-2] <= usual.max() + FRAME_SECONDS
    assert np.multiply(chosen.seconds, chosen.utterances)[:-1].max() <= 1.25 * MINUTE.seconds


def test_a_transcript_of_2000_labels_raises_the_labels_of_no_short_bucket():
    seconds = speech(5000)
    labels = np.ceil(4 * seconds).astype(np.int64)
    without = choose(seconds, labels, number=3)
    odd = choose([*seconds, 5.0], [*labels, 2000], number=4)
    assert odd.labels[-1] == 2000 and odd.labels[-2] <= without.labels[-1]
    assert odd.utterances[-1] < without.utterances[-1]


def test_odd_corpora_have_sensible_buckets():
    ten = choose(speech(10), size=BatchSize(3000.0, 1, 8))
    assert set(ten.utterances) == {8} and len(ten.seconds) <= 2
    assert choose([2.0] * 500).seconds == (2.0,)
    assert choose([2.0] * 3, size=BatchSize(3000.0, 1, 8)).utterances == (2,)
    short = choose(np.linspace(0.1, 0.5, 400), number=2)
    assert len(short.seconds) == 2 and short.seconds[-1] == 0.5
    assert choose([1.0], [0]) == Buckets((1.0,), (1,), (1,))
    # A shape has at least one of the encoder's frames.
    assert choose([1e-4]).seconds == (FRAME_SECONDS,)


def test_buckets_of_librispeech_take_milliseconds():
    N = 281_241
    rng = np.random.default_rng(0)
    durations = np.clip(rng.gamma(8.0, 1.55, N), 1.3, 24.5)
    plan = TrainingPlan(
        durations_seconds=durations,
        label_lengths=(durations * 3.9).astype(np.int64) + 1,
        speakers=rng.integers(0, 2338, N),
        buckets=Buckets((30.0,), (120,), (1,)),
        augment=AugmentConfig(tempo_range=(0.9, 1.1)),
        seed=0,
    )
    seconds, labels, epochs = expected_lengths(plan)
    work = utterance_work(Config(), 1024, labels_per_second=4.0)
    cost = Cost(work, FRAME_SECONDS, batches=115_000, compile_batches=250.0)
    size = BatchSize(3000.0, 8, 8)
    began = time.process_time()
    buckets = choose_buckets(seconds, labels, cost=cost, size=size, repeats=epochs)
    assert time.process_time() - began < 2.0
    edges = np.array(buckets.seconds)[buckets.first_fit(seconds, labels)]
    assert len(buckets.seconds) == 8 and 1 - seconds.sum() / edges.sum() < 0.1


def test_expected_lengths_are_those_of_the_epochs_and_the_limit():
    seconds = speech(40)
    plan = TrainingPlan(
        durations_seconds=seconds,
        label_lengths=np.arange(1, 41),
        speakers=np.zeros(40, np.int64),
        buckets=Buckets((25.0,), (60,), (4,)),
        augment=AugmentConfig(speeds=(0.9, 1.1), tempo_range=(0.8, 1.2), join_probability=0.5),
        seed=3,
    )
    lengths, labels, epochs = expected_lengths(plan)
    assert (lengths[-1], labels[-1], epochs) == (25.0, 60, 64)
    found = np.sort(np.concatenate([plan.row_seconds(batch) for batch in plan.batches(2)]))
    np.testing.assert_allclose(found[found > 0], np.sort(lengths[80:120]), rtol=1e-12)


@pytest.mark.parametrize(
    "seconds, most_padding",
    [([3.0] * 5 + [600.0], 0.01), ([3.0] * 200 + [35.0], 0.45), ([1.0, 2.0, 4.0], 0.45)],
)
def test_evaluation_pads_as_little_as_its_programs_are_worth(seconds, most_padding):
    buckets = evaluation_buckets(
        np.array(seconds),
        np.zeros(len(seconds), np.int64),
        data=DataConfig(batch_seconds=120.0),
        work=QUADRATIC,
        frame_seconds=0.04,
        devices=1,
        passes=40.0,
    )
    plan = evaluation_plan(np.array(seconds), np.zeros(len(seconds), int), buckets=buckets)
    padded = sum(len(batch.first) * batch.seconds for batch in plan)
    assert 1 - sum(seconds) / padded < most_padding


def test_few_recordings_have_common_lengths():
    lengths = [0.01, 1.0, 1.01, 5.0, 8.0, 8.01, 15.0, 16.0, 16.1, 29.0, 33.0, 1500.0]
    expected = [1, 1, 2, 8, 8, 10, 16, 16, 20, 32, 40, 1536]
    assert list(map(common_length, lengths)) == expected
    shapes = {
        evaluation_buckets(
            np.array([seconds]),
            np.zeros(1, np.int64),
            data=DataConfig(),
            work=QUADRATIC,
            frame_seconds=0.04,
            devices=1,
        )
        for seconds in np.linspace(0.1, 30.0, 500)
    }
    assert len(shapes) == 12


@settings(max_examples=30, deadline=None)
@given(
    seconds=st.lists(st.floats(0.05, 4000.0), max_size=30),
    devices=st.sampled_from([1, 4]),
    explicit=st.booleans(),
)
def test_evaluation_buckets_hold_every_recording(seconds, devices, explicit):
    data = DataConfig(batch_seconds=32.0)
    if explicit:
        data = DataConfig(bucket_seconds=(4.0,), bucket_labels=(9,), bucket_utterances=(8,))
    lengths, labels = np.array(seconds, np.float64), np.zeros(len(seconds), np.int64)
    buckets = evaluation_buckets(
        lengths, labels, data=data, work=QUADRATIC, frame_seconds=0.04, devices=devices
    )
    batches = evaluation_plan(lengths, labels, buckets=buckets)
    assert sum(int((batch.first >= 0).sum()) for batch in batches) == len(seconds)
    for batch in batches:
        rows = len(batch.first)
        # Edges of few batches are rounded up by at most a third, or by 2 from below 1.
        short = batch.seconds if batch.seconds > 8 else batch.seconds / 2
        assert rows % devices == 0 and (rows == devices or rows * short <= 1.25 * 1.34 * 32)


def test_work_is_that_of_the_padded_model():
    config = Config()
    work = utterance_work(config, 100)
    assert work(np.array([20.0]))[0] > 2 * work(np.array([10.0]))[0]
    longer = replace(config, encoder=replace(config.encoder, context_frames=(8, 8)))
    bounded = utterance_work(longer, 100)(np.array([10.0, 20.0]))
    assert bounded[1] == pytest.approx(2 * bounded[0], rel=0.02)
