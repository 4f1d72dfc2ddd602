"""Which utterances make up which batch, decided ahead by arithmetic alone.

An epoch is a pure function of durations, seed and epoch number, and the number of batches taken
since step 0 is the whole state of the data: every host derives the same batches, and a run that
resumes goes on with exactly those it would have had.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int32, Int64

from asr_jax.config import AugmentConfig, DataConfig


class PlannedBatch(NamedTuple):
    """A batch before its audio is read. Padding rows are -1 in `first` and come last."""

    seconds: float
    """Upper edge of the bucket, after speed and tempo changes."""
    labels: int
    """Labels that the bucket holds."""
    first: Int32[np.ndarray, " B"]
    """Index of the utterance."""
    second: Int32[np.ndarray, " B"]
    """Index of the utterance joined to its end, -1 for none."""
    speed: Float64[np.ndarray, " B"]
    tempo: Float64[np.ndarray, " B"]


class Buckets(NamedTuple):
    """Static shapes: upper edges in seconds, most labels, utterances per batch."""

    seconds: tuple[float, ...]
    labels: tuple[int, ...]
    utterances: tuple[int, ...]

    @classmethod
    def of(cls, data: DataConfig) -> "Buckets":
        """Those of a config. Raises ValueError where a longer bucket holds fewer labels."""
        if list(data.bucket_labels) != sorted(data.bucket_labels):
            raise ValueError(f"data.bucket_labels = {data.bucket_labels}: must not decrease")
        return cls(data.bucket_seconds, data.bucket_labels, data.bucket_utterances)

    def extended(self, seconds: float, labels: int, *, multiple: int = 1) -> "Buckets":
        """With multiples of the last bucket appended, until one holds `seconds` and `labels`.

        k times as long ones have a k-th of its utterances, in whole multiples of `multiple`.
        """
        # One more than the whole quotient, so that no rounding can make the last one too small.
        times = 1 + int(max(seconds / self.seconds[-1], labels / self.labels[-1]))
        more = range(2, times + 1)
        return Buckets(
            self.seconds + tuple(k * self.seconds[-1] for k in more),
            self.labels + tuple(k * self.labels[-1] for k in more),
            self.utterances
            + tuple(max(1, self.utterances[-1] // (k * multiple)) * multiple for k in more),
        )


class _Items(NamedTuple):
    """An epoch's items; item n begins with utterance n. M is N + 1: item -1 is a padding row's."""

    second: Int32[np.ndarray, " M"]
    speed: Float64[np.ndarray, " M"]
    tempo: Float64[np.ndarray, " M"]
    bucket: Int64[np.ndarray, " N"]


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """Every epoch's batches, from the durations and labels of N utterances.

    An item is an utterance, or with `augment.join_probability` two of a speaker; its length is the
    sum of their durations / speed / tempo, with one speed and one log-uniform tempo per item. It
    goes to the first bucket that holds its seconds and labels. One that fits none stays single,
    and if that does not fit either, is left at speed and tempo 1. Each utterance begins one item
    per epoch. What does not fill a batch of its bucket goes up to the next one, so that at most
    the batch of the last bucket has padding rows.

    Raises ValueError for no utterances, and for one that the last bucket does not hold.
    """

    durations_seconds: Float64[np.ndarray, " N"]
    label_lengths: Int64[np.ndarray, " N"]
    speakers: Int64[np.ndarray, " N"]
    """Number of the speaker, from 0; -1 for one unknown, who is not joined to anyone."""
    buckets: Buckets
    augment: AugmentConfig
    seed: int
    separator_labels: int = 0
    """Labels put between joined transcripts."""

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
        """The batches of `epoch`, in the order of training."""
        items, rng = self._items(epoch)
        order = rng.permutation(len(items.bucket))
        bucket = items.bucket[order]
        batches: list[PlannedBatch] = []
        left = np.empty(0, np.int64)
        for k, utterances in enumerate(self.buckets.utterances):
            left = np.concatenate([left, order[bucket == k]])
            full = len(left) - len(left) % utterances
            batches += _planned(k, left[:full], items, self.buckets)
            left = left[full:]
        batches += _planned(k, left, items, self.buckets)
        return [batches[n] for n in rng.permutation(len(batches))]

    def locate(self, position: int) -> tuple[int, int]:
        """(epoch, place in it) of the batch that `position` others come before, in all epochs."""
        epoch = 0
        while position >= (number := self.number_of_batches(epoch)):
            epoch, position = epoch + 1, position - number
        return epoch, position

    def number_of_batches(self, epoch: int) -> int:
        """len(batches(epoch)), from the draws alone, without making the batches."""
        if epoch not in self._numbers_of_batches:
            bucket = self._items(epoch)[0].bucket
            number = carried = 0
            for k, utterances in enumerate(self.buckets.utterances):
                full, carried = divmod(carried + int(np.sum(bucket == k)), utterances)
                number += full
            self._numbers_of_batches[epoch] = number + (carried > 0)
        return self._numbers_of_batches[epoch]

    @cached_property
    def _numbers_of_batches(self) -> dict[int, int]:
        return {}

    def _items(self, epoch: int) -> tuple[_Items, np.random.Generator]:
        rng = np.random.default_rng([self.seed, epoch])
        N = len(self.durations_seconds)
        low, high = np.log(self.augment.tempo_range)
        speed = rng.choice(np.array(self.augment.speeds, np.float64), N)
        tempo = np.exp(rng.uniform(low, high, N))
        wants_second = rng.random(N) < self.augment.join_probability
        second = np.where(wants_second, self._others(rng), -1)

        joined = second >= 0
        # Index -1 reads some utterance, which `where` then drops.
        seconds_joined = np.where(joined, self.durations_seconds[second], 0.0)
        labels_joined = np.where(joined, self.label_lengths[second] + self.separator_labels, 0)
        pace, longest_seconds = speed * tempo, self.buckets.seconds[-1]
        both_fit = (self.durations_seconds + seconds_joined) / pace <= longest_seconds
        both_fit &= self.label_lengths + labels_joined <= self.buckets.labels[-1]
        second = np.where(both_fit, second, -1)
        seconds = self.durations_seconds + np.where(both_fit, seconds_joined, 0.0)
        labels = self.label_lengths + np.where(both_fit, labels_joined, 0)

        single_fits = seconds / pace <= longest_seconds
        speed, tempo = np.where(single_fits, speed, 1.0), np.where(single_fits, tempo, 1.0)
        bucket = _buckets_of(seconds / (speed * tempo), labels, self.buckets)
        items = _Items(
            second=np.append(second, -1).astype(np.int32),
            speed=np.append(speed, 1.0),
            tempo=np.append(tempo, 1.0),
            bucket=bucket,
        )
        return items, rng

    def _others(self, rng: np.random.Generator) -> np.ndarray:
        """For each utterance another one of its speaker, evenly drawn; -1 where there is none."""
        by_speaker, place, start, count = self._speaker_groups
        step = 1 + np.floor(rng.random(len(start)) * (count - 1)).astype(np.int64)
        others = by_speaker[start + (place - start + step) % count]
        return np.where((count > 1) & (self.speakers >= 0), others, -1)

    @cached_property
    def _speaker_groups(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Utterances by speaker; of each one its place there, its group's start and size."""
        by_speaker = np.argsort(self.speakers, kind="stable")
        grouped = self.speakers[by_speaker]
        start = np.searchsorted(grouped, self.speakers, side="left")
        count = np.searchsorted(grouped, self.speakers, side="right") - start
        return by_speaker, np.argsort(by_speaker), start, count


def evaluation_plan(
    durations_seconds: Float64[np.ndarray, " N"],
    label_lengths: Int64[np.ndarray, " N"],
    *,
    buckets: Buckets,
    multiple: int = 1,
) -> list[PlannedBatch]:
    """Each utterance once, shortest first, unchanged, in the buckets of training.

    Longer ones than the last bucket's get shapes of multiples of it (`Buckets.extended`). Every
    bucket's last batch may have padding rows, since carrying them on would stretch them to the
    longest recording.
    """
    N = len(durations_seconds)
    if N == 0:
        return []
    buckets = buckets.extended(
        float(durations_seconds.max()), int(label_lengths.max()), multiple=multiple
    )
    ones = np.ones(N + 1)
    bucket = _buckets_of(durations_seconds, label_lengths, buckets)
    items = _Items(np.full(N + 1, -1, np.int32), ones, ones, bucket)
    order = np.argsort(durations_seconds, kind="stable")
    return [
        batch
        for k in range(len(buckets.seconds))
        for batch in _planned(k, order[bucket[order] == k], items, buckets)
    ]


def _buckets_of(seconds: np.ndarray, labels: np.ndarray, buckets: Buckets) -> np.ndarray:
    """First bucket that holds both."""
    return np.maximum(
        np.searchsorted(buckets.seconds, seconds), np.searchsorted(buckets.labels, labels)
    )


def _planned(
    bucket: int, indices: np.ndarray, items: _Items, buckets: Buckets
) -> list[PlannedBatch]:
    """Batches of the items `indices`, which all go to `bucket`; the last one may be padded."""
    utterances = buckets.utterances[bucket]
    first = np.full((-(-len(indices) // utterances), utterances), -1, np.int32)
    first.flat[: len(indices)] = indices
    rows = zip(first, items.second[first], items.speed[first], items.tempo[first])
    return [PlannedBatch(buckets.seconds[bucket], buckets.labels[bucket], *row) for row in rows]
