"""Plans of batches: which utterances make up each batch, computed before any audio is read.

An epoch is a pure function of durations, seed and epoch number, and the number of batches taken
since step 0 is the whole state of the data: every host derives the same batches, and a resumed run
gets exactly the batches that it would have got without the interruption.
"""

import math
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int32, Int64

from asr_jax.config import AugmentConfig
from asr_jax.data.buckets import Buckets

# Each kind of draw has its own generator, so that enabling it changes no other draw.
NOISE_DRAWS, IMPULSE_RESPONSE_DRAWS, GAIN_DRAWS, PASS_DRAWS = 1, 2, 3, 4
# Buckets are chosen by about this many items, from at most this many epochs.
EXPECTED_ITEMS, MOST_EPOCHS = 50_000, 64


class PlannedBatch(NamedTuple):
    """A batch before its audio is read. Padding rows are -1 in `first` and come last."""

    seconds: float
    """Upper edge of the bucket, after speed and tempo changes."""
    labels: int
    """Most labels of a row."""
    first: Int32[np.ndarray, " B"]
    """Index of the utterance."""
    second: Int32[np.ndarray, " B"]
    """Index of the utterance joined to its end, -1 for none."""
    speed: Float64[np.ndarray, " B"]
    tempo: Float64[np.ndarray, " B"]
    noise: Int32[np.ndarray, " B"]
    """Index of the noise recording added, -1 for none."""
    noise_start_seconds: Float64[np.ndarray, " B"]
    """Start of the added noise in its recording."""
    snr_db: Float64[np.ndarray, " B"]
    impulse_response: Int32[np.ndarray, " B"]
    """Index of the impulse response, -1 for none."""
    gain_db: Float64[np.ndarray, " B"]

    def take_rows(self, rows: Int64[np.ndarray, " R"]) -> "PlannedBatch":
        """Return the batch with only these rows."""
        return PlannedBatch(self.seconds, self.labels, *(column[rows] for column in self[2:]))


class _Items(NamedTuple):
    """Items of an epoch, in columns that have the meaning they have in PlannedBatch."""

    first: Int32[np.ndarray, " M"]
    second: Int32[np.ndarray, " M"]
    speed: Float64[np.ndarray, " M"]
    tempo: Float64[np.ndarray, " M"]
    noise: Int32[np.ndarray, " M"]
    noise_start_seconds: Float64[np.ndarray, " M"]
    snr_db: Float64[np.ndarray, " M"]
    impulse_response: Int32[np.ndarray, " M"]
    gain_db: Float64[np.ndarray, " M"]

    @classmethod
    def unchanged(cls, first: np.ndarray) -> "_Items":
        """Return items that are single utterances without augmentation."""
        none, zeros = np.full(len(first), -1, np.int32), np.zeros(len(first))
        return cls(
            first.astype(np.int32), none, zeros + 1, zeros + 1, none, zeros, zeros, none, zeros
        )


PADDING = _Items.unchanged(np.array([-1]))


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """The batches of every epoch, from the durations and labels of N utterances.

    An item is an utterance or, with probability `augment.join_probability`, two utterances of one
    speaker. It has one speed and one log-uniform tempo; its length is the sum of the durations
    divided by speed and tempo. It goes to the first bucket that holds its seconds and labels. An
    item that fits no bucket loses its second utterance; if it still does not fit, it keeps speed
    and tempo 1. Every utterance is the first of one item per epoch. Items that do not fill a batch
    of their bucket move up to the next bucket, unless that one is so much longer that padding rows
    take less (`Buckets.keeps`).

    If the utterances are from several datasets, one dataset after another, dataset d is the source
    of `weights[d]` times its size of items. Passes through it follow each other, each in its own
    random order, and an epoch starts where the one before ended: at any time the numbers of items
    that the utterances of a dataset have started differ by at most one.

    Noise, its start, signal-to-noise ratio, impulse response and gain are drawn per item, each from
    a uniform distribution.

    Raises ValueError if there are no utterances, or if the last bucket does not hold one of them.
    """

    durations_seconds: Float64[np.ndarray, " N"]
    label_lengths: Int64[np.ndarray, " N"]
    speakers: Int64[np.ndarray, " N"]
    """Number of the speaker, from 0; -1 if unknown: such utterances are not joined."""
    buckets: Buckets
    augment: AugmentConfig
    seed: int
    separator_labels: int = 0
    """Number of labels between joined transcripts."""
    dataset_sizes: tuple[int, ...] = ()
    """Number of utterances of each dataset; empty: all are from one."""
    weights: tuple[float, ...] = ()
    """Passes through each dataset per epoch; empty: one."""
    noise_seconds: Float64[np.ndarray, " K"] = field(default_factory=lambda: np.zeros(0))
    """Durations of the noise recordings."""
    impulse_responses: int = 0
    """Number of impulse responses."""

    def __post_init__(self) -> None:
        if len(self.durations_seconds) == 0:
            raise ValueError("durations_seconds: there are no utterances to train on")
        self._require_fit(self.durations_seconds, "durations_seconds", self.buckets.seconds[-1])
        self._require_fit(self.label_lengths, "label_lengths", self.buckets.labels[-1])

    @staticmethod
    def _require_fit(values: np.ndarray, name: str, largest: float | int) -> None:
        n = int(np.argmax(values))
        if values[n] > largest:
            raise ValueError(f"{name}[{n}] = {values[n]}: the last bucket holds at most {largest}")

    def batches(self, epoch: int) -> list[PlannedBatch]:
        """Return the batches of an epoch in the order of training."""
        rng = self._generator(epoch)
        items, seconds, labels = self._draw_items(epoch, rng)
        bucket = self.buckets.first_fit(seconds, labels)
        items = self._draw_noise(items, epoch)
        items = self._draw_impulse_responses(items, epoch)
        items = self._draw_gain(items, epoch)
        order = rng.permutation(len(bucket))
        bucket = bucket[order]
        batches: list[PlannedBatch] = []
        remaining = np.empty(0, np.int64)
        for k, utterances in enumerate(self.buckets.utterances):
            remaining = np.concatenate([remaining, order[bucket == k]])
            taken = len(remaining) - len(remaining) % utterances
            if self.buckets.keeps(k, len(remaining) - taken):
                taken = len(remaining)
            batches += _fill_batches(k, remaining[:taken], items, self.buckets)
            remaining = remaining[taken:]
        return [batches[n] for n in rng.permutation(len(batches))]

    def row_seconds(self, batch: PlannedBatch) -> Float64[np.ndarray, " B"]:
        """Return the seconds of a batch's rows after speed and tempo changes; 0 for padding."""
        seconds = np.where(batch.first >= 0, self.durations_seconds[batch.first], 0.0)
        seconds += np.where(batch.second >= 0, self.durations_seconds[batch.second], 0.0)
        return seconds / (batch.speed * batch.tempo)

    def number_of_batches(self, epoch: int) -> int:
        """Return len(batches(epoch)), computed without making the batches."""
        number = remaining = 0
        counts = zip(self._bucket_counts(epoch), self.buckets.utterances)
        for k, (count, utterances) in enumerate(counts):
            full, remaining = divmod(remaining + count, utterances)
            number += full
            if remaining and self.buckets.keeps(k, remaining):
                number, remaining = number + 1, 0
        return number

    def _generator(self, epoch: int, *kind: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, epoch, *kind])

    def _bucket_counts(self, epoch: int) -> list[int]:
        """Return the number of items in each bucket."""
        buckets, rng = len(self.buckets.utterances), self._generator(epoch)
        if self.augment.tempo_range != (1.0, 1.0) or self.augment.join_probability > 0:
            bucket = self.buckets.first_fit(*self._draw_items(epoch, rng)[1:])
            return np.bincount(bucket, minlength=buckets).tolist()
        # Only speed is drawn: looking up buckets takes a twentieth of the time of making the items.
        first, (class_buckets, class_start) = self._first_utterances(epoch), self._speed_classes
        drawn = rng.choice(len(self.augment.speeds), len(first))
        drawn += class_start if len(self.weights) == 0 else class_start[first]
        counts = np.bincount(drawn, minlength=class_buckets.size)
        return np.bincount(class_buckets.ravel(), counts, minlength=buckets).astype(int).tolist()

    @cached_property
    def _speed_classes(self) -> tuple[np.ndarray, np.ndarray]:
        """Classes of utterances that share a bucket at every speed, if only speed changes them.

        The first array has the bucket of each class at each speed, [classes, speeds]; the second
        has for each utterance the index of its class's first entry in the first one, flattened.
        """
        class_buckets = np.zeros((1, 0), np.int64)
        class_of = np.zeros(len(self.durations_seconds), np.int64)
        for speed in self.augment.speeds:
            seconds = self.durations_seconds / speed
            seconds = np.where(seconds <= self.buckets.seconds[-1], seconds, self.durations_seconds)
            bucket = self.buckets.first_fit(seconds, self.label_lengths)
            pairs, class_of = np.unique(
                class_of * len(self.buckets.seconds) + bucket, return_inverse=True
            )
            parent, bucket = np.divmod(pairs, len(self.buckets.seconds))
            class_buckets = np.column_stack([class_buckets[parent], bucket])
        return class_buckets, class_of * len(self.augment.speeds)

    def _first_utterances(self, epoch: int) -> np.ndarray:
        """Return the first utterance of each item of the epoch."""
        if all(weight == 1 for weight in self.weights):
            return np.arange(len(self.durations_seconds))
        start, parts = 0, [np.zeros(0, np.int64)]
        for dataset, (size, weight) in enumerate(zip(self.dataset_sizes, self.weights)):
            # The weight exactly as written: ten times 0.1 is 1.
            per_epoch = size * Fraction(str(weight))
            begin, end = math.floor(epoch * per_epoch), math.floor((epoch + 1) * per_epoch)
            for number in range(begin // size, -(-end // size)) if size else ():
                order = self._generator(number, PASS_DRAWS, dataset).permutation(size)
                parts.append(start + order[max(0, begin - number * size) : end - number * size])
            start += size
        return np.concatenate(parts)

    def item_lengths(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the seconds, after speed and tempo changes, and the labels of an epoch's items."""
        return self._draw_items(epoch, self._generator(epoch))[1:]

    def _draw_items(
        self, epoch: int, rng: np.random.Generator
    ) -> tuple[_Items, Float64[np.ndarray, " M"], Int64[np.ndarray, " M"]]:
        """Return the epoch's items without noise, impulse response and gain; seconds; labels."""
        first = self._first_utterances(epoch)
        M = len(first)
        low, high = np.log(self.augment.tempo_range)
        speed = rng.choice(np.array(self.augment.speeds, np.float64), M)
        tempo = np.exp(rng.uniform(low, high, M))
        wants_second = rng.random(M) < self.augment.join_probability
        second = np.where(wants_second, self._draw_partners(first, rng), -1)
        pace, longest_seconds = speed * tempo, self.buckets.seconds[-1]

        is_joined = second >= 0
        # Index -1 reads some utterance, which `where` then drops.
        second_seconds = np.where(is_joined, self.durations_seconds[second], 0.0)
        second_labels = np.where(is_joined, self.label_lengths[second] + self.separator_labels, 0)
        seconds, labels = self.durations_seconds[first], self.label_lengths[first]
        both_fit = (seconds + second_seconds) / pace <= longest_seconds
        both_fit &= labels + second_labels <= self.buckets.labels[-1]
        second = np.where(both_fit, second, -1)
        seconds = seconds + np.where(both_fit, second_seconds, 0.0)
        labels = labels + np.where(both_fit, second_labels, 0)

        fits = seconds / pace <= longest_seconds
        speed, tempo = np.where(fits, speed, 1.0), np.where(fits, tempo, 1.0)
        items = _Items.unchanged(first)
        items = items._replace(second=second.astype(np.int32), speed=speed, tempo=tempo)
        return items, seconds / (speed * tempo), labels

    def _draw_noise(self, items: _Items, epoch: int) -> _Items:
        if not len(self.noise_seconds):
            return items
        M, rng = len(items.first), self._generator(epoch, NOISE_DRAWS)
        noise = rng.integers(len(self.noise_seconds), size=M)
        seconds = self.durations_seconds[items.first]
        seconds += np.where(items.second >= 0, self.durations_seconds[items.second], 0.0)
        available = self.noise_seconds[noise]
        # A recording that is long enough is not repeated; a shorter one may start anywhere.
        spare = available - seconds / items.speed
        start = rng.random(M) * np.where(spare > 0, spare, available)
        has_noise = rng.random(M) < self.augment.noise_probability
        return items._replace(
            noise=np.where(has_noise, noise, -1).astype(np.int32),
            noise_start_seconds=start,
            snr_db=rng.uniform(*self.augment.noise_snr_db, M),
        )

    def _draw_impulse_responses(self, items: _Items, epoch: int) -> _Items:
        if not self.impulse_responses:
            return items
        M, rng = len(items.first), self._generator(epoch, IMPULSE_RESPONSE_DRAWS)
        drawn = rng.integers(self.impulse_responses, size=M)
        has_one = rng.random(M) < self.augment.impulse_response_probability
        return items._replace(impulse_response=np.where(has_one, drawn, -1).astype(np.int32))

    def _draw_gain(self, items: _Items, epoch: int) -> _Items:
        if not any(self.augment.gain_db):
            return items
        rng = self._generator(epoch, GAIN_DRAWS)
        return items._replace(gain_db=rng.uniform(*self.augment.gain_db, len(items.first)))

    def _draw_partners(self, first: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return for each utterance another one of its speaker, drawn uniformly; -1 for none."""
        by_speaker, *columns = self._speaker_groups
        place, start, count = (column[first] for column in columns)
        step = 1 + np.floor(rng.random(len(start)) * (count - 1)).astype(np.int64)
        partners = by_speaker[start + (place - start + step) % count]
        return np.where((count > 1) & (self.speakers[first] >= 0), partners, -1)

    @cached_property
    def _speaker_groups(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The utterances sorted by speaker, and each one's index in that order, with the start and
        size of its speaker's group."""
        by_speaker = np.argsort(self.speakers, kind="stable")
        grouped = self.speakers[by_speaker]
        start = np.searchsorted(grouped, self.speakers, side="left")
        count = np.searchsorted(grouped, self.speakers, side="right") - start
        return by_speaker, np.argsort(by_speaker), start, count


class ExpectedLengths(NamedTuple):
    """The lengths of the items of several epochs, and one artificial item, the last.

    That item has the seconds and labels of the plan's last bucket, which thus are among the lengths
    whatever is drawn.
    """

    seconds: Float64[np.ndarray, " M"]
    labels: Int64[np.ndarray, " M"]
    epochs: int


def expected_lengths(plan: TrainingPlan) -> ExpectedLengths:
    """Return the lengths of the items of the first epochs."""
    epochs = [plan.item_lengths(0)]
    number = min(MOST_EPOCHS, -(-EXPECTED_ITEMS // max(1, len(epochs[0][0]))))
    epochs += map(plan.item_lengths, range(1, number))
    seconds, labels = map(np.concatenate, zip(*epochs))
    seconds = np.append(seconds, plan.buckets.seconds[-1])
    return ExpectedLengths(seconds, np.append(labels, plan.buckets.labels[-1]), len(epochs))


def evaluation_plan(
    durations_seconds: Float64[np.ndarray, " N"],
    label_lengths: Int64[np.ndarray, " N"],
    *,
    buckets: Buckets,
) -> list[PlannedBatch]:
    """Return batches with each utterance once, shortest first, unchanged.

    The last bucket must hold every utterance. The last batch of every bucket may have padding rows,
    since moving its utterances up would pad them to the longest recording.
    """
    bucket = buckets.first_fit(durations_seconds, label_lengths)
    items = _Items.unchanged(np.arange(len(bucket)))
    order = np.argsort(durations_seconds, kind="stable")
    return [
        batch
        for k in range(len(buckets.seconds))
        for batch in _fill_batches(k, order[bucket[order] == k], items, buckets)
    ]


def _fill_batches(
    bucket: int, indices: np.ndarray, items: _Items, buckets: Buckets
) -> list[PlannedBatch]:
    """Return batches of the items `indices`, which all go to `bucket`; the last may be padded."""
    utterances = buckets.utterances[bucket]
    shape = (-(-len(indices) // utterances), utterances)
    columns = []
    for column, padding in zip(items, PADDING):
        rows = np.repeat(padding, shape[0] * utterances)
        rows[: len(indices)] = column[indices]
        columns.append(rows.reshape(shape))
    return [
        PlannedBatch(buckets.seconds[bucket], buckets.labels[bucket], *rows)
        for rows in zip(*columns)
    ]
