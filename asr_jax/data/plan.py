"""Which utterances make up which batch, decided ahead by arithmetic alone.

An epoch is a pure function of durations, seed and epoch number, and the number of batches taken
since step 0 is the whole state of the data: every host derives the same batches, and a run that
resumes goes on with exactly those it would have had.
"""

import math
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int32, Int64

from asr_jax.config import AugmentConfig, DataConfig

# Each kind of draw has a generator of its own, [seed, epoch, kind], and so leaves the others alone.
NOISE_DRAWS, ROOM_DRAWS, GAIN_DRAWS, PASS_DRAWS = 1, 2, 3, 4


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
    noise: Int32[np.ndarray, " B"]
    """Index of the noise recording added, -1 for none."""
    noise_start_seconds: Float64[np.ndarray, " B"]
    """Where in that recording the noise begins."""
    snr_db: Float64[np.ndarray, " B"]
    impulse_response: Int32[np.ndarray, " B"]
    """Index of the room response, -1 for none."""
    gain_db: Float64[np.ndarray, " B"]


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
    """An epoch's items, columns as in PlannedBatch."""

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
        none, zeros = np.full(len(first), -1, np.int32), np.zeros(len(first))
        return cls(
            first.astype(np.int32), none, zeros + 1, zeros + 1, none, zeros, zeros, none, zeros
        )


PADDING = _Items.unchanged(np.array([-1]))


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """Every epoch's batches, from the durations and labels of N utterances.

    An item is an utterance, or with `augment.join_probability` two of a speaker; its length is the
    sum of their durations / speed / tempo, with one speed and one log-uniform tempo per item. It
    goes to the first bucket that holds its seconds and labels. One that fits none stays single,
    and if that does not fit either, is left at speed and tempo 1. Each utterance begins one item
    per epoch. What does not fill a batch of its bucket goes up to the next one, so that at most
    the batch of the last bucket has padding rows.

    Where the utterances are of several corpora, one after the other, corpus c begins `weights[c]`
    times its size of items. It is passed through again and again, each pass in an order of its
    own, and an epoch goes on where the one before ended: at any time all of its utterances have
    begun equally many items, up to one.

    Noise, its start, signal-to-noise ratio, room and gain are drawn per item, each evenly.

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
    corpus_sizes: tuple[int, ...] = ()
    """Utterances of each corpus; none given: all are of one."""
    weights: tuple[float, ...] = ()
    """How many times an epoch goes through each corpus; none given: once."""
    noise_seconds: Float64[np.ndarray, " K"] = field(default_factory=lambda: np.zeros(0))
    """Durations of the noise recordings."""
    impulse_responses: int = 0
    """Number of room responses."""

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
        items, bucket, rng = self._items(epoch)
        items = self._with_effects(items, epoch)
        order = rng.permutation(len(bucket))
        bucket = bucket[order]
        batches: list[PlannedBatch] = []
        left = np.empty(0, np.int64)
        for k, utterances in enumerate(self.buckets.utterances):
            left = np.concatenate([left, order[bucket == k]])
            full = len(left) - len(left) % utterances
            batches += _planned(k, left[:full], items, self.buckets)
            left = left[full:]
        batches += _planned(k, left, items, self.buckets)
        return [batches[n] for n in rng.permutation(len(batches))]

    def number_of_batches(self, epoch: int) -> int:
        """len(batches(epoch)), from the draws alone, without making the batches."""
        number = carried = 0
        for count, utterances in zip(self._bucket_counts(epoch), self.buckets.utterances):
            full, carried = divmod(carried + count, utterances)
            number += full
        return number + (carried > 0)

    def _bucket_counts(self, epoch: int) -> list[int]:
        """Items of each bucket."""
        buckets = len(self.buckets.utterances)
        if self.augment.tempo_range != (1.0, 1.0) or self.augment.join_probability > 0:
            return np.bincount(self._items(epoch)[1], minlength=buckets).tolist()
        # A twentieth of the time. Utterances differ in their buckets at each speed alone.
        first, rng = self._first(epoch), np.random.default_rng([self.seed, epoch])
        kinds, kind = self._kinds
        drawn = rng.choice(kinds.shape[1], len(first))
        drawn += kind if len(self.weights) == 0 else kind[first]
        counts = np.bincount(drawn, minlength=kinds.size)
        return np.bincount(kinds.ravel(), counts, minlength=buckets).astype(int).tolist()

    @cached_property
    def _kinds(self) -> tuple[np.ndarray, np.ndarray]:
        """Kinds of utterances: each one's bucket at each speed [kinds, speeds], and where in it
        each utterance's kind begins, if nothing but speed changes it."""
        kinds, kind = np.zeros((1, 0), np.int64), np.zeros(len(self.durations_seconds), np.int64)
        for speed in self.augment.speeds:
            seconds = self.durations_seconds / speed
            seconds = np.where(seconds <= self.buckets.seconds[-1], seconds, self.durations_seconds)
            bucket = _buckets_of(seconds, self.label_lengths, self.buckets)
            pairs, kind = np.unique(kind * len(self.buckets.seconds) + bucket, return_inverse=True)
            before, bucket = np.divmod(pairs, len(self.buckets.seconds))
            kinds = np.column_stack([kinds[before], bucket])
        return kinds, kind * len(self.augment.speeds)

    def _first(self, epoch: int) -> np.ndarray:
        """The utterance that each item of the epoch begins with."""
        if all(weight == 1 for weight in self.weights):
            return np.arange(len(self.durations_seconds))
        start, parts = 0, [np.zeros(0, np.int64)]
        for corpus, (size, weight) in enumerate(zip(self.corpus_sizes, self.weights)):
            # Exactly what was written: ten times 0.1 are 1.
            per_epoch = size * Fraction(str(weight))
            begin, end = math.floor(epoch * per_epoch), math.floor((epoch + 1) * per_epoch)
            for number in range(begin // size, -(-end // size)) if size else ():
                rng = np.random.default_rng([self.seed, number, PASS_DRAWS, corpus])
                here = slice(max(0, begin - number * size), end - number * size)
                parts.append(start + rng.permutation(size)[here])
            start += size
        return np.concatenate(parts)

    def _items(self, epoch: int) -> tuple[_Items, np.ndarray, np.random.Generator]:
        """Items without effects, their buckets, and the generator that shuffles them."""
        rng = np.random.default_rng([self.seed, epoch])
        first = self._first(epoch)
        M = len(first)
        low, high = np.log(self.augment.tempo_range)
        speed = rng.choice(np.array(self.augment.speeds, np.float64), M)
        tempo = np.exp(rng.uniform(low, high, M))
        wants_second = rng.random(M) < self.augment.join_probability
        second = np.where(wants_second, self._others(first, rng), -1)

        joined = second >= 0
        # Index -1 reads some utterance, which `where` then drops.
        seconds_joined = np.where(joined, self.durations_seconds[second], 0.0)
        labels_joined = np.where(joined, self.label_lengths[second] + self.separator_labels, 0)
        seconds, labels = self.durations_seconds[first], self.label_lengths[first]
        pace, longest_seconds = speed * tempo, self.buckets.seconds[-1]
        both_fit = (seconds + seconds_joined) / pace <= longest_seconds
        both_fit &= labels + labels_joined <= self.buckets.labels[-1]
        second = np.where(both_fit, second, -1)
        seconds = seconds + np.where(both_fit, seconds_joined, 0.0)
        labels = labels + np.where(both_fit, labels_joined, 0)

        single_fits = seconds / pace <= longest_seconds
        speed, tempo = np.where(single_fits, speed, 1.0), np.where(single_fits, tempo, 1.0)
        bucket = _buckets_of(seconds / (speed * tempo), labels, self.buckets)
        items = _Items.unchanged(first)
        return items._replace(second=second.astype(np.int32), speed=speed, tempo=tempo), bucket, rng

    def _with_effects(self, items: _Items, epoch: int) -> _Items:
        """The items with noise, room and gain."""
        M, augment = len(items.first), self.augment
        draws = lambda kind: np.random.default_rng([self.seed, epoch, kind])
        if len(self.noise_seconds):
            rng = draws(NOISE_DRAWS)
            noise = rng.integers(len(self.noise_seconds), size=M)
            seconds = self.durations_seconds[items.first]
            seconds += np.where(items.second >= 0, self.durations_seconds[items.second], 0.0)
            available = self.noise_seconds[noise]
            # All of it from one stretch where it is long enough; else it begins anywhere.
            spare = available - seconds / items.speed
            start = rng.random(M) * np.where(spare > 0, spare, available)
            has_noise = rng.random(M) < augment.noise_probability
            items = items._replace(
                noise=np.where(has_noise, noise, -1).astype(np.int32),
                noise_start_seconds=start,
                snr_db=rng.uniform(*augment.noise_snr_db, M),
            )
        if self.impulse_responses:
            rng = draws(ROOM_DRAWS)
            room = rng.integers(self.impulse_responses, size=M)
            has_room = rng.random(M) < augment.impulse_response_probability
            items = items._replace(impulse_response=np.where(has_room, room, -1).astype(np.int32))
        if any(augment.gain_db):
            items = items._replace(gain_db=draws(GAIN_DRAWS).uniform(*augment.gain_db, M))
        return items

    def _others(self, first: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """For each of the utterances another one of its speaker, evenly drawn; -1 for none."""
        by_speaker, *columns = self._speaker_groups
        place, start, count = (column[first] for column in columns)
        step = 1 + np.floor(rng.random(len(start)) * (count - 1)).astype(np.int64)
        others = by_speaker[start + (place - start + step) % count]
        return np.where((count > 1) & (self.speakers[first] >= 0), others, -1)

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
    bucket = _buckets_of(durations_seconds, label_lengths, buckets)
    items = _Items.unchanged(np.arange(N))
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
