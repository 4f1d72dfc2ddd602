"""Plans of batches: an epoch has every utterance once, in batches that hold it, as drawn."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asr_jax.config import AugmentConfig, DataConfig
from asr_jax.data.buckets import Buckets
from asr_jax.data.epochs import COUNTED_EPOCHS, Epochs
from asr_jax.data.plan import PlannedBatch, TrainingPlan, evaluation_plan

BUCKETS = Buckets(seconds=(4.0, 8.0, 16.0), labels=(20, 64, 64), utterances=(8, 4, 3))
PLAIN = AugmentConfig(speeds=(1.0,))
VARIED = AugmentConfig(speeds=(0.8, 1.0, 1.25), tempo_range=(0.7, 1.3), join_probability=0.6)


def random_plan(N: int, seed: int = 0, augment: AugmentConfig = VARIED) -> TrainingPlan:
    rng = np.random.default_rng(seed)
    return TrainingPlan(
        durations_seconds=rng.uniform(0.2, 16.0, N),
        label_lengths=rng.integers(1, 64, N),
        speakers=rng.integers(-1, 1 + N // 8, N),
        buckets=BUCKETS,
        augment=augment,
        seed=seed,
        separator_labels=1,
    )


def items_of(batch: PlannedBatch) -> list[tuple[int, int, float, float]]:
    columns = (batch.first, batch.second, batch.speed, batch.tempo)
    return [item for item in zip(*(column.tolist() for column in columns)) if item[0] >= 0]


def lengths_of(plan: TrainingPlan, item: tuple[int, int, float, float]) -> tuple[float, int]:
    """Return the item's seconds after speed and tempo, and its labels, by their definition."""
    first, second, speed, tempo = item
    seconds, labels = plan.durations_seconds[first], plan.label_lengths[first]
    if second >= 0:
        seconds = seconds + plan.durations_seconds[second]
        labels = labels + plan.separator_labels + plan.label_lengths[second]
    return seconds / (speed * tempo), int(labels)


def assert_same(left: list[PlannedBatch], right: list[PlannedBatch]) -> None:
    assert len(left) == len(right)
    for one, other in zip(left, right):
        for field, value in one._asdict().items():
            np.testing.assert_array_equal(value, getattr(other, field))


@settings(max_examples=60, deadline=None)
@given(N=st.integers(1, 120), seed=st.integers(0, 10_000), epoch=st.integers(0, 50))
def test_an_epoch_has_every_utterance_once_in_batches_that_hold_it(N, seed, epoch):
    plan = random_plan(N, seed)
    batches = plan.batches(epoch)
    items = [(k, item) for k, batch in enumerate(batches) for item in items_of(batch)]
    assert sorted(item[0] for _, item in items) == list(range(N))
    assert len(batches) == plan.number_of_batches(epoch)

    carried = {seconds: 0 for seconds in BUCKETS.seconds}
    for k, item in items:
        seconds, labels = lengths_of(plan, item)
        assert seconds <= batches[k].seconds and labels <= batches[k].labels
        first_fit = next(
            edge
            for edge, most in zip(BUCKETS.seconds, BUCKETS.labels)
            if seconds <= edge and labels <= most
        )
        for edge in BUCKETS.seconds:
            carried[edge] += first_fit <= edge < batches[k].seconds
    # The items that leave a bucket for the next one are less than a batch of it.
    for edge, utterances in zip(BUCKETS.seconds, BUCKETS.utterances):
        assert carried[edge] < utterances

    sizes = dict(zip(BUCKETS.seconds, BUCKETS.utterances))
    padded = [batch for batch in batches if (batch.first < 0).any()]
    assert len(padded) <= 1 and all(batch.seconds == BUCKETS.seconds[-1] for batch in padded)
    for batch in batches:
        assert all(len(column) == sizes[batch.seconds] for column in batch[2:])
        real = len(items_of(batch))
        assert real > 0 and (batch.first[:real] >= 0).all()
        assert (batch.first[real:] == -1).all() and (batch.second[real:] == -1).all()
        assert (batch.speed[real:] == 1).all() and (batch.tempo[real:] == 1).all()


@settings(max_examples=30, deadline=None)
@given(N=st.integers(2, 120), seed=st.integers(0, 10_000))
def test_joined_utterances_are_two_of_one_known_speaker(N, seed):
    plan = random_plan(N, seed)
    for batch in plan.batches(0):
        for first, second, speed, tempo in items_of(batch):
            assert speed in VARIED.speeds
            assert 0.7 <= tempo * (1 + 1e-12) and tempo <= 1.3 * (1 + 1e-12)
            if second >= 0:
                assert first != second
                assert plan.speakers[first] == plan.speakers[second] >= 0


def test_speed_tempo_and_joins_have_their_distributions():
    N = 4000
    augment = AugmentConfig(speeds=(0.5, 2.0), tempo_range=(0.5, 2.0), join_probability=0.25)
    plan = TrainingPlan(
        durations_seconds=np.full(N, 0.5),
        label_lengths=np.ones(N, np.int64),
        speakers=np.arange(N) // 4,
        buckets=BUCKETS,
        augment=augment,
        seed=3,
    )
    items = np.array([item for batch in plan.batches(0) for item in items_of(batch)])
    first, second, speed, tempo = items[np.argsort(items[:, 0])].T
    # Five standard deviations of each sample mean; the seed fixes the draws.
    assert abs(np.mean(second >= 0) - 0.25) < 5 * np.sqrt(0.25 * 0.75 / N)
    assert abs(np.mean(speed == 0.5) - 0.5) < 5 * 0.5 / np.sqrt(N)
    quartiles = np.quantile(np.log2(tempo), [0.25, 0.5, 0.75])
    np.testing.assert_allclose(quartiles, [-0.5, 0.0, 0.5], atol=5 * 0.5 / np.sqrt(N))
    joined = second >= 0
    step = (second - first)[joined] % 4
    share = np.bincount(step.astype(int), minlength=4) / joined.sum()
    np.testing.assert_allclose(
        share, [0, 1 / 3, 1 / 3, 1 / 3], atol=5 * 0.5 / np.sqrt(joined.sum())
    )


def test_item_that_does_not_fit_loses_its_join_then_its_changes():
    def only(durations, labels, **augment) -> list[tuple[int, int, float, float]]:
        plan = TrainingPlan(
            durations_seconds=np.array(durations),
            label_lengths=np.array(labels),
            speakers=np.zeros(len(durations), np.int64),
            buckets=BUCKETS,
            augment=AugmentConfig(**augment),
            seed=0,
            separator_labels=1,
        )
        return sorted(item for batch in plan.batches(0) for item in items_of(batch))

    join = {"speeds": (1.0,), "join_probability": 1.0}
    assert only([8.0, 8.0], [31, 32], **join) == [(0, 1, 1.0, 1.0), (1, 0, 1.0, 1.0)]
    assert only([8.0, 8.1], [31, 32], **join) == [(0, -1, 1.0, 1.0), (1, -1, 1.0, 1.0)]
    assert only([8.0, 8.0], [32, 32], **join) == [(0, -1, 1.0, 1.0), (1, -1, 1.0, 1.0)]
    slow = {"speeds": (0.5,), "tempo_range": (1.25, 1.25)}
    (one,) = only([10.0], [1], **slow)
    assert one == (0, -1, 0.5, pytest.approx(1.25))
    assert only([10.1], [1], **slow) == [(0, -1, 1.0, 1.0)]
    assert [item[1] for item in only([6.0, 6.0], [1, 1], **slow, join_probability=1.0)] == [-1, -1]


def test_plan_depends_only_on_seed_and_epoch():
    plan = random_plan(100)
    later = plan.batches(7)
    plan.batches(3), Epochs(plan).locate(50)
    assert_same(plan.batches(7), later)
    assert_same(random_plan(100).batches(7), later)
    orders = {
        tuple(np.concatenate([batch.first for batch in batches]).tolist())
        for batches in (later, plan.batches(8), replace(plan, seed=1).batches(7))
    }
    assert len(orders) == 3


def test_position_counts_the_batches_of_all_epochs():
    plan = random_plan(50)
    expected = [(epoch, n) for epoch in range(12) for n in range(len(plan.batches(epoch)))]
    assert len({plan.number_of_batches(epoch) for epoch in range(12)}) > 1
    epochs = Epochs(plan)
    assert [epochs.locate(position) for position in range(len(expected))] == expected
    assert Epochs(plan).locate(len(expected) - 1) == expected[-1]


@pytest.mark.parametrize("augment", [AugmentConfig(), VARIED])
def test_counted_epochs_are_not_counted_again(tmp_path, monkeypatch, augment):
    plan, cache_path = random_plan(50, augment=augment), tmp_path / "epochs.json"
    counted = []
    count = TrainingPlan.number_of_batches

    def noted(plan, epoch):
        counted.append(epoch)
        return count(plan, epoch)

    monkeypatch.setattr(TrainingPlan, "number_of_batches", noted)
    positions = [0, 7, 40, 4000, 41, 4010]
    expected = [Epochs(plan).locate(position) for position in positions]
    Epochs(plan, cache_path=cache_path, write_cache=False).locate(0)
    assert not cache_path.exists() and expected[3][0] > 200
    Epochs(plan, cache_path=cache_path).locate(0)
    assert Epochs(plan, cache_path=cache_path).locate(4000) == expected[3]
    before = len(counted)
    for position, place in zip(positions, expected):
        assert (
            Epochs(random_plan(50, augment=augment), cache_path=cache_path).locate(position)
            == place
        )
    assert len(counted) <= before + COUNTED_EPOCHS

    # The file of another plan and a damaged file are not used.
    others = [replace(plan, seed=1), replace(plan, buckets=BUCKETS._replace(utterances=(8, 4, 2)))]
    others += [replace(plan, durations_seconds=plan.durations_seconds / 2)]
    for other in others:
        assert Epochs(other, cache_path=cache_path, write_cache=False).locate(40) == Epochs(
            other
        ).locate(40)
    whole = cache_path.read_text()
    for damaged in ("", whole[: len(whole) // 2], "[]", '{"plan": "", "ends": [1]}'):
        cache_path.write_text(damaged)
        assert Epochs(plan, cache_path=cache_path).locate(40) == expected[2]
    assert Epochs(plan, cache_path=tmp_path / "none" / "epochs.json").locate(40) == expected[2]


@settings(max_examples=30, deadline=None)
@given(N=st.integers(1, 120), seed=st.integers(0, 10_000), epoch=st.integers(0, 50))
def test_batch_counts_are_exact_if_only_speed_is_drawn(N, seed, epoch):
    plan = random_plan(N, seed, AugmentConfig(speeds=(0.5, 0.8, 1.0, 1.25)))
    sizes = (N // 2, N - N // 2)
    for other in (plan, replace(plan, weights=(0.3, 1.5), dataset_sizes=sizes)):
        assert other.number_of_batches(epoch) == len(other.batches(epoch))


@pytest.mark.parametrize("augment", [AugmentConfig(), VARIED])
def test_threads_may_locate_positions_in_any_order(augment):
    plan = random_plan(40, augment=augment)
    expected = [(epoch, n) for epoch in range(40) for n in range(plan.number_of_batches(epoch))]
    positions = np.random.default_rng(0).permutation(len(expected)).tolist()
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(Epochs(random_plan(40, augment=augment)).locate, positions))
    assert found == [expected[position] for position in positions]


SIZES, WEIGHTS = (30, 7, 11), (1.0, 0.3, 2.5)


def test_passes_through_datasets_follow_their_weights_evenly():
    plan = replace(random_plan(48), dataset_sizes=SIZES, weights=WEIGHTS)
    corpus = np.repeat(np.arange(3), SIZES)
    counts, orders = np.zeros(48, int), []
    for epoch in range(1, 21):
        first = np.concatenate([batch.first for batch in plan.batches(epoch - 1)])
        first = first[first >= 0]
        counts += np.bincount(first, minlength=48)
        orders.append(first[corpus[first] == 1].tolist())
        for number, (size, weight) in enumerate(zip(SIZES, WEIGHTS)):
            own = counts[corpus == number]
            assert own.max() - own.min() <= 1
            # Up to one item, which the next epoch contains: 0.3 x 7 = 2.1.
            assert int(epoch * weight * 10 + 0.5) * size // 10 == own.sum()
    # Twenty epochs with a weight of 0.3 are six passes.
    assert counts[corpus == 1].tolist() == [6] * 7
    halves = [sorted(a + b + c) for a, b, c in zip(orders, orders[1:], orders[2:])]
    assert len({tuple(half) for half in halves}) > 5


def test_weight_of_one_half_splits_each_pass_between_two_epochs():
    plan = replace(random_plan(50), dataset_sizes=(20, 30), weights=(1.0, 0.5))
    pairs = []
    for epoch in range(0, 8, 2):
        firsts = [np.concatenate([b.first for b in plan.batches(e)]) for e in (epoch, epoch + 1)]
        one, other = ({n for n in first.tolist() if n >= 20} for first in firsts)
        assert len(one) == len(other) == 15 and one | other == set(range(20, 50))
        pairs.append(frozenset(one))
    assert len(set(pairs)) == 4


def test_weights_of_one_change_nothing():
    plan = random_plan(50)
    assert_same(
        replace(plan, dataset_sizes=(20, 30), weights=(1.0, 1.0)).batches(3), plan.batches(3)
    )


def test_noise_impulse_responses_and_gain_change_no_other_draw():
    plan = random_plan(60)
    noise_seconds = np.array([0.5, 7.0, 40.0])
    augment = replace(
        VARIED, noise_probability=0.7, impulse_response_probability=0.4, gain_db=(-6.0, 3.0)
    )
    noisy = replace(plan, augment=augment, noise_seconds=noise_seconds, impulse_responses=5)
    effects = PlannedBatch._fields[PlannedBatch._fields.index("noise") :]
    for epoch in (0, 3):
        without = [
            batch._replace(**{name: getattr(plain, name) for name in effects})
            for batch, plain in zip(noisy.batches(epoch), plan.batches(epoch))
        ]
        assert_same(without, plan.batches(epoch))
        only_impulse_responses = replace(
            plan, augment=replace(VARIED, impulse_response_probability=0.4), impulse_responses=5
        )
        for one, other in zip(only_impulse_responses.batches(epoch), noisy.batches(epoch)):
            np.testing.assert_array_equal(one.impulse_response, other.impulse_response)
    for batch in noisy.batches(1):
        padding = batch.first < 0
        for name in effects:
            blank = -1 if name in ("noise", "impulse_response") else 0
            assert (getattr(batch, name)[padding] == blank).all()


def test_noise_impulse_responses_and_gain_have_their_distributions():
    N = 4000
    augment = AugmentConfig(
        noise_probability=0.25,
        noise_snr_db=(5.0, 15.0),
        impulse_response_probability=0.75,
        gain_db=(-6.0, 2.0),
    )
    plan = TrainingPlan(
        durations_seconds=np.full(N, 4.0),
        label_lengths=np.ones(N, np.int64),
        speakers=np.full(N, -1),
        buckets=BUCKETS,
        augment=augment,
        seed=3,
        noise_seconds=np.array([2.0, 10.0]),
        impulse_responses=4,
    )
    batches = plan.batches(0)
    column = lambda name: np.concatenate([getattr(batch, name) for batch in batches])
    noise, impulse_response, real = (
        column("noise"),
        column("impulse_response"),
        column("first") >= 0,
    )
    error = lambda p: 5 * np.sqrt(p * (1 - p) / N)
    for values, kinds, share in ((noise, 2, 0.25), (impulse_response, 4, 0.75)):
        found = np.bincount(values[real] + 1, minlength=kinds + 1) / N
        expected = [1 - share, *[share / kinds] * kinds]
        np.testing.assert_allclose(found, expected, atol=error(0.25))
    for name, low, high in (("snr_db", 5, 15), ("gain_db", -6, 2)):
        drawn = column(name)[real]
        assert low <= drawn.min() and drawn.max() <= high
        assert abs(drawn.mean() - (low + high) / 2) < 5 * (high - low) / np.sqrt(12 * N)
    # A recording that is long enough is not repeated; a shorter one may start anywhere.
    start, seconds = column("noise_start_seconds"), 4.0 / column("speed")
    long, short = real & (noise == 1), real & (noise == 0)
    assert 0 <= start[long].min() and (start + seconds)[long].max() <= 10 * (1 + 1e-12)
    assert 0 <= start[short].min() and 1.9 < start[short].max() < 2


def test_an_epoch_of_librispeech():
    N = 281_241
    rng = np.random.default_rng(0)
    durations = np.clip(rng.gamma(8.0, 1.55, N), 1.3, 16.0)
    plan = TrainingPlan(
        durations_seconds=durations,
        label_lengths=(durations * 3.9).astype(np.int64),
        speakers=rng.integers(0, 2338, N),
        buckets=Buckets((4.0, 8.0, 12.0, 16.0), (20, 40, 60, 100), (64, 48, 32, 24)),
        augment=AugmentConfig(join_probability=0.1, tempo_range=(0.9, 1.1)),
        seed=0,
    )
    batches = plan.batches(0)
    first = np.concatenate([batch.first for batch in batches])
    np.testing.assert_array_equal(np.sort(first[first >= 0]), np.arange(N))
    assert np.sum(first < 0) < 24 and len(batches) == plan.number_of_batches(0)
    # Batches are shuffled: the bucket often changes from one to the next.
    seconds = np.array([batch.seconds for batch in batches])
    assert np.mean(seconds[1:] != seconds[:-1]) > 0.3


def test_training_data_that_does_not_fit_is_an_error():
    plan = random_plan(5)
    with pytest.raises(ValueError, match=r"^durations_seconds\[2\] = 16.5: .* at most 16.0$"):
        replace(plan, durations_seconds=np.array([1.0, 2.0, 16.5, 3.0, 4.0]))
    with pytest.raises(ValueError, match=r"^label_lengths\[1\] = 65: .* at most 64$"):
        replace(plan, label_lengths=np.array([1, 65, 2, 3, 4]))
    with pytest.raises(ValueError, match="no utterances"):
        none = np.zeros(0, np.int64)
        replace(plan, durations_seconds=np.zeros(0), label_lengths=none, speakers=none)
    with pytest.raises(ValueError, match=r"data.bucket_labels = \(64, 32\): must not decrease"):
        Buckets.of(
            DataConfig(bucket_seconds=(4.0, 8.0), bucket_labels=(64, 32), bucket_utterances=(8, 8))
        )


@settings(max_examples=60, deadline=None)
@given(
    durations=st.lists(st.floats(0.01, 16.0), max_size=40),
    labels=st.lists(st.integers(0, 64), min_size=40, max_size=40),
)
def test_evaluation_has_every_utterance_once(durations, labels):
    seconds, lengths = np.array(durations, np.float64), np.array(labels)[: len(durations)]
    batches = evaluation_plan(seconds, lengths, buckets=BUCKETS)
    first = [n for batch in batches for n in batch.first.tolist() if n >= 0]
    assert sorted(first) == list(range(len(durations)))
    shapes = list(zip(BUCKETS.seconds, BUCKETS.labels))
    for batch in batches:
        real = batch.first[batch.first >= 0]
        assert (np.diff(seconds[real]) >= 0).all()
        assert (batch.second == -1).all() and (batch.speed == 1).all() and (batch.tempo == 1).all()
        for n in real:
            holding = [s for s in shapes if seconds[n] <= s[0] and lengths[n] <= s[1]]
            assert (batch.seconds, batch.labels) == holding[0]
    edges = [batch.seconds for batch in batches]
    assert edges == sorted(edges)
    full = [batch for batch, after in zip(batches, edges[1:]) if batch.seconds == after]
    assert all((batch.first >= 0).all() for batch in full)
