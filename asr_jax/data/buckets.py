"""Buckets: the few static shapes of batches, chosen so that padding costs the least."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from asr_jax.config import DataConfig

# Where data.buckets is 0, at most this many are chosen.
MOST_BUCKETS = 8
# Lengths are rounded up to at most this many different ones, from which the edges are chosen.
MOST_LENGTHS = 1024
# In evaluation, compiling for a shape counts as much as ten batches. The true number may be above
# 100 on an accelerator, and below 1 if a large model runs on a CPU.
EVALUATION_COMPILE_BATCHES = 10.0
# A batch of short utterances takes the operations of a batch of usual ones, but never holds more
# than this many times the audio.
MOST_AUDIO = 1.25
# An utterance with more labels per second than this many times the median counts as longer.
DENSE = 2.0

# Maps lengths in seconds to the operations that an utterance padded to each of them takes.
Work = Callable[[Float64[np.ndarray, " _"]], Float64[np.ndarray, " _"]]


class Buckets(NamedTuple):
    """Static shapes of batches: upper edges in seconds, most labels, utterances per batch.

    Neither edges nor labels decrease. An utterance goes to the first bucket that holds both its
    seconds and its labels.
    """

    seconds: tuple[float, ...]
    labels: tuple[int, ...]
    utterances: tuple[int, ...]

    @classmethod
    def of(cls, data: DataConfig) -> "Buckets | None":
        """Return the buckets that a config states; None if they are to be chosen.

        Raises ValueError if a longer bucket holds fewer labels.
        """
        if not data.bucket_seconds:
            return None
        if list(data.bucket_labels) != sorted(data.bucket_labels):
            raise ValueError(f"data.bucket_labels = {data.bucket_labels}: must not decrease")
        return cls(data.bucket_seconds, data.bucket_labels, data.bucket_utterances)

    def keeps(self, bucket: int, remainder: int) -> bool:
        """Return whether utterances that fill no batch of a bucket are padded there to a batch.

        They move up to the next bucket unless that takes more than twice the seconds.
        """
        if bucket + 1 == len(self.seconds):
            return True
        seconds, longer_seconds = self.seconds[bucket : bucket + 2]
        return remainder * longer_seconds > 2 * self.utterances[bucket] * seconds

    def first_fit(self, seconds: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Return the index of the first bucket that holds each pair of seconds and labels."""
        return np.maximum(
            np.searchsorted(self.seconds, seconds), np.searchsorted(self.labels, labels)
        )


class BatchSize(NamedTuple):
    """How many utterances a batch may have."""

    seconds: float
    """Audio of a batch, padding included (data.batch_seconds)."""
    parts: int = 1
    """Parts into which every batch divides: devices times train.accumulate."""
    preferred_multiple: int = 1
    """The number of utterances is a multiple of this number if `seconds` suffices for it."""

    def rows(self, wanted: Float64[np.ndarray, " K"], most: float) -> Int64[np.ndarray, " K"]:
        """Round numbers of utterances, at most `most`, down to numbers that are allowed.

        Below `preferred_multiple`, the number is `parts` times a power of two; it is at least
        `parts`, whatever is wanted.
        """
        wanted = np.minimum(wanted, most)
        unit = math.lcm(self.parts, self.preferred_multiple)
        doublings = np.floor(np.log2(np.maximum(wanted / self.parts, 1)))
        few = self.parts * 2 ** doublings.astype(np.int64)
        return np.where(wanted < unit, few, (wanted // unit).astype(np.int64) * unit)


class Cost(NamedTuple):
    """The operations that buckets are to save."""

    work: Work
    frame_seconds: float
    """The step between lengths that differ in the encoder's frames."""
    batches: float
    """The number of batches that will be computed."""
    compile_batches: float
    """The number of batches that take as long as compiling the program for one shape."""


class _Lengths(NamedTuple):
    """The different lengths of utterances, increasing, and how many utterances have each."""

    seconds: Float64[np.ndarray, " n"]
    counts: Int64[np.ndarray, " n"]
    work: Float64[np.ndarray, " n"]
    """Operations of an utterance of this length."""


def choose_buckets(
    seconds: Float64[np.ndarray, " M"],
    labels: Int64[np.ndarray, " M"],
    *,
    cost: Cost,
    size: BatchSize,
    number: int = 0,
    repeats: int = 1,
) -> Buckets:
    """Return the buckets whose padding takes the least operations in training.

    The length of an utterance is max(seconds, labels / rate), where `rate` is DENSE times the
    median of labels per second: an utterance with very many labels is treated like a longer one, so
    that it cannot raise the labels of short buckets. The edges take the least operations of all
    that could be chosen among the lengths. The operations are those of the padded utterances, and
    of the utterances that fill no batch of their bucket, half a batch on average, which move up to
    the next bucket or are padded (`Buckets.keeps`). They are found by dynamic programming. Batches
    of all buckets take the operations of `size.seconds` of audio in utterances of usual length, as
    far as `size` allows that many utterances.

    The result is a pure function of its arguments, the same on every host.

    Args:
        seconds: lengths of M >= 1 utterances, after speed and tempo changes.
        labels: numbers of labels.
        cost: the operations of an utterance, of compiling, and how much is computed.
        size: the utterances that a batch may have.
        number: the number of buckets, if there are as many different lengths; 0: the one, up to
            MOST_BUCKETS, that takes the least operations, compiling included.
        repeats: how often each utterance is in `seconds`, on average.
    """
    rate = _highest_label_rate(seconds, labels)
    effective = np.maximum(seconds, labels / rate)
    lengths = _lengths(effective, cost)
    rows = size.rows(_wanted_rows(lengths, size), len(seconds) / repeats)
    work, ends = lengths.work, np.cumsum(lengths.counts)
    # Utterances up to an edge that fill no batch, in all repetitions.
    remainder = repeats * np.where(ends / repeats < rows, ends / repeats, rows / 2)
    # Entry [j, i] is the operations of a bucket with edge i after one with edge j: those of its own
    # utterances, and those in addition for the remainder of the bucket before.
    moved = remainder[:, None] * (work - work[:, None])
    padded = ((repeats * rows - remainder) * work)[:, None]
    keeps = remainder[:, None] * lengths.seconds > 2 * (repeats * rows * lengths.seconds)[:, None]
    added = (ends - ends[:, None]) * work + np.where(keeps, padded, moved)
    edges = _best_edges(ends * work, added, cost=cost, number=number)
    most_labels = np.array([labels[effective <= lengths.seconds[edge]].max() for edge in edges])
    dense_labels = np.ceil(lengths.seconds[edges] * rate).astype(np.int64)
    longest_seconds = max(float(seconds.max()), cost.frame_seconds)
    return Buckets(
        tuple(np.minimum(lengths.seconds[edges], longest_seconds).tolist()),
        tuple(np.maximum(1, np.minimum(most_labels, dense_labels)).tolist()),
        tuple(rows[edges].tolist()),
    )


def evaluation_buckets(
    seconds: Float64[np.ndarray, " N"],
    labels: Int64[np.ndarray, " N"],
    *,
    data: DataConfig,
    work: Work,
    frame_seconds: float,
    devices: int,
    passes: float = 1.0,
) -> Buckets:
    """Return the buckets for utterances that are evaluated `passes` times, on any devices.

    Batches hold as much audio as those of training, and their sizes are multiples of `devices`.
    The edges take the least operations, compiling included, when the last batch of every bucket is
    padded (`evaluation_plan`). Where compiling takes longer than all batches, edges are rounded up
    to `common_length`, so that other recordings find their program compiled.
    """
    if len(seconds) == 0:
        return Buckets((), (), ())
    batch_seconds = data.batch_seconds
    if stated := Buckets.of(data):
        batch_seconds = max(np.multiply(stated.seconds, stated.utterances).tolist())
    batches = passes * float(seconds.sum()) / batch_seconds
    cost = Cost(work, frame_seconds, batches, EVALUATION_COMPILE_BATCHES)
    lengths, size = _lengths(seconds, cost), BatchSize(batch_seconds, parts=devices)
    most_rows = size.rows(_wanted_rows(lengths, size), float(len(seconds)))
    ends = np.cumsum(lengths.counts)

    def rows_of(count: np.ndarray, most: np.ndarray) -> np.ndarray:
        return np.clip(-(-count // devices) * devices, devices, most)

    def operations(count: np.ndarray) -> np.ndarray:
        rows = rows_of(count, most_rows)
        return -(-count // rows) * rows * lengths.work

    edges = _best_edges(operations(ends), operations(ends - ends[:, None]), cost=cost, number=0)
    rows = rows_of(np.diff(ends[edges], prepend=0), most_rows[edges])
    longest = lengths.seconds[edges].tolist()
    if batches < EVALUATION_COMPILE_BATCHES:
        longest = list(map(common_length, longest))
    return Buckets(
        tuple(longest),
        (max(1, int(labels.max())),) * len(edges),
        tuple(rows.tolist()),
    )


def common_length(seconds: float) -> float:
    """Return the next of the lengths 1, 2, 4, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, ... s."""
    if seconds <= 8.0:
        return next(length for length in (1.0, 2.0, 4.0, 8.0) if seconds <= length)
    step = 2.0 ** (math.floor(math.log2(seconds)) - 2)
    return math.ceil(seconds / step) * step


def _highest_label_rate(seconds: np.ndarray, labels: np.ndarray) -> float:
    """Return the labels per second above which an utterance counts as longer."""
    if not labels.any():
        return 1.0
    return DENSE * float(np.median(labels / np.maximum(seconds, 1e-3))) or 1.0


def _lengths(effective: np.ndarray, cost: Cost) -> _Lengths:
    """Return the lengths, those of equally many frames, or of several frames, taken as the longest.

    The number of frames is the least power of two that leaves at most MOST_LENGTHS lengths.
    """
    step, increasing = cost.frame_seconds, np.sort(np.maximum(effective, cost.frame_seconds))
    while True:
        # The tolerance is for multiples of the step: 1.12 / 0.04 is above 28.
        ticks, first = np.unique(np.ceil(increasing / step - 1e-6), return_index=True)
        if len(ticks) <= MOST_LENGTHS:
            ends = np.append(first[1:], len(increasing))
            seconds = increasing[ends - 1]
            return _Lengths(seconds, np.diff(ends, prepend=0), cost.work(seconds))
        step *= 2


def _wanted_rows(lengths: _Lengths, size: BatchSize) -> Float64[np.ndarray, " n"]:
    """Return how many utterances of each length take the operations of a batch.

    A batch is `size.seconds` of utterances of usual length: half of the audio is in shorter ones.
    Batches of short utterances hold at most MOST_AUDIO times `size.seconds`, whatever the usual
    length is: one recording of hours may be most of the audio.
    """
    audio = np.cumsum(lengths.counts * lengths.seconds)
    usual = np.searchsorted(audio, audio[-1] / 2)
    wanted = size.seconds / lengths.seconds[usual] * (lengths.work[usual] / lengths.work)
    return np.minimum(wanted, MOST_AUDIO * size.seconds / lengths.seconds)


def _best_edges(
    first: Float64[np.ndarray, " n"],
    added: Float64[np.ndarray, "n n"],
    *,
    cost: Cost,
    number: int,
) -> list[int]:
    """Return the indices of the lengths that are the edges of `number` buckets, or of the best.

    `first` is the operations of a first bucket with each edge; `added[j, i]`, those of a bucket
    with edge i that follows one with edge j.
    """
    n = len(first)
    following = np.where(np.triu(np.ones((n, n), bool), k=1), added, math.inf)
    least, previous = [first.astype(np.float64)], []
    for _ in range(1, min(number or MOST_BUCKETS, n)):
        totals = least[-1][:, None] + following
        previous.append(totals.argmin(axis=0))
        least.append(totals.min(axis=0))
    totals = np.array([operations[-1] for operations in least])
    compiled = cost.compile_batches * np.arange(1, len(totals) + 1)
    best = 1 + int(np.argmin(cost.batches * totals / totals.min() + compiled))
    edges = [n - 1]
    for before in reversed(previous[: (min(number, n) or best) - 1]):
        edges.append(int(before[edges[-1]]))
    return edges[::-1]
