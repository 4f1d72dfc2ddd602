"""Planned batches, read and padded by threads ahead of the step."""

import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from math import ceil
from pathlib import Path

import numpy as np
from jaxtyping import Int32, Int64

from asr_jax.audio import AudioError, change_speed
from asr_jax.config import AugmentConfig, DataConfig
from asr_jax.data.augment import add_noise, add_reverberation, change_gain, read_stretch
from asr_jax.data.cache import AudioCache
from asr_jax.data.epochs import Epochs
from asr_jax.data.plan import Buckets, PlannedBatch, TrainingPlan, evaluation_plan
from asr_jax.data.recordings import read_recording
from asr_jax.types import Batch, Skipped, Utterance

# Reading, resampling, and a change of speed each round to whole samples, of two recordings.
ROUNDING_SAMPLES = 16
BYTES_PER_GIB = 2**30


class Batches(Iterator[Batch]):
    """Batches one after the other; `failed` lists the recordings that could not be read so far.

    A row whose recording fails is a padding row. Since batches are read ahead, a failure may be
    listed before its batch has been taken.
    """

    def __init__(self, batches: Iterator[Batch], failures: dict[str, Skipped]):
        self._batches = batches
        self._failures = failures

    def __next__(self) -> Batch:
        return next(self._batches)

    @property
    def failed(self) -> list[Skipped]:
        """Each once, however often it was tried."""
        return list(self._failures.values())


def bucket_samples(bucket_seconds: float, *, max_tempo: float, sample_rate_hz: int) -> int:
    """S of a batch whose rows have at most `bucket_seconds` after a tempo up to `max_tempo`."""
    return ceil(bucket_seconds * max_tempo * sample_rate_hz) + ROUNDING_SAMPLES


def training_plan(
    utterances: Sequence[Utterance],
    labels: Sequence[Int32[np.ndarray, " _"]],
    *,
    data: DataConfig,
    augment: AugmentConfig,
    seed: int,
    separator: Sequence[int] = (),
    corpus_sizes: Sequence[int] = (),
    noise: Sequence[Utterance] = (),
    impulse_responses: Sequence[Utterance] = (),
) -> TrainingPlan:
    """The plan that `training_batches` follows."""
    numbers: dict[str, int] = {"": -1}
    for utterance in utterances:
        numbers.setdefault(utterance.speaker, len(numbers) - 1)
    return TrainingPlan(
        durations_seconds=np.array([u.duration_seconds for u in utterances], np.float64),
        label_lengths=np.array([len(ids) for ids in labels], np.int64),
        speakers=np.array([numbers[u.speaker] for u in utterances], np.int64),
        buckets=Buckets.of(data),
        augment=augment,
        seed=seed,
        separator_labels=len(separator),
        corpus_sizes=tuple(corpus_sizes),
        weights=data.train_weights,
        noise_seconds=np.array([one.duration_seconds for one in noise], np.float64),
        impulse_responses=len(impulse_responses),
    )


def training_batches(
    utterances: Sequence[Utterance],
    labels: Sequence[Int32[np.ndarray, " _"]],
    *,
    data: DataConfig,
    augment: AugmentConfig,
    sample_rate_hz: int,
    seed: int,
    position: int = 0,
    separator: Sequence[int] = (),
    corpus_sizes: Sequence[int] = (),
    noise: Sequence[Utterance] = (),
    impulse_responses: Sequence[Utterance] = (),
    local_rows: Callable[[int], Int64[np.ndarray, " _"]] = np.arange,
    cache_path: Path | None = None,
    write_cache: bool = True,
) -> Batches:
    """The endless stream of training batches from `position` on.

    `position` is the number of batches taken since step 0; the stream depends on it, the
    utterances, the configs and the seed alone, not on threads, cache or what ran before.
    `local_rows(rows)` gives the rows of a batch that this process reads. `separator` is put
    between the labels of joined utterances (`Tokenizer.separator`). Rows have
    S = bucket_samples(bucket seconds) and U = bucket labels.

    `corpus_sizes`: how many of the utterances are of each corpus that data.train_weights weighs.
    The recordings `noise` and `impulse_responses` change utterances as `augment` says: after speed,
    first reverberation, then noise, then gain. A recording that cannot be read is listed, and its
    row does without it.

    `cache_path`, `write_cache`: the file of the epochs' batch counts (`Epochs`), and whether to
    write it; without it, finding a late position counts from the first epoch.
    """
    plan = training_plan(
        utterances,
        labels,
        data=data,
        augment=augment,
        seed=seed,
        separator=separator,
        corpus_sizes=corpus_sizes,
        noise=noise,
        impulse_responses=impulse_responses,
    )
    epochs = Epochs(plan, cache_path=cache_path, write_cache=write_cache)
    # Threads ahead of the step may be in the next epoch already.
    epoch_batches = lru_cache(maxsize=2)(plan.batches)

    def planned(index: int) -> PlannedBatch:
        epoch, place = epochs.locate(position + index)
        return _rows(epoch_batches(epoch)[place], local_rows)

    return _batches(
        planned,
        sys.maxsize - position,
        utterances,
        labels,
        data=data,
        sample_rate_hz=sample_rate_hz,
        max_tempo=max(1.0, augment.tempo_range[1]),
        separator=separator,
        # Without a single frame the loss would be infinite.
        min_samples=int(data.min_seconds * sample_rate_hz) - ROUNDING_SAMPLES,
        noise=noise,
        impulse_responses=impulse_responses,
    )


def evaluation_batches(
    utterances: Sequence[Utterance],
    labels: Sequence[Int32[np.ndarray, " _"]],
    *,
    data: DataConfig,
    sample_rate_hz: int,
    multiple: int = 1,
    local_rows: Callable[[int], Int64[np.ndarray, " _"]] = np.arange,
) -> Batches:
    """Batches in which every utterance occurs once as it is, shortest first (evaluation_plan).

    Batches of recordings beyond the last bucket have fewer rows, a multiple of `multiple`.
    `local_rows` is that of training_batches.
    """
    plan = evaluation_plan(
        np.array([u.duration_seconds for u in utterances], np.float64),
        np.array([len(ids) for ids in labels], np.int64),
        buckets=Buckets.of(data),
        multiple=multiple,
    )
    return _batches(
        lambda index: _rows(plan[index], local_rows),
        len(plan),
        utterances,
        labels,
        # Read once per evaluation: the memory is better spent on the training recordings.
        data=replace(data, cache_gib=0.0),
        sample_rate_hz=sample_rate_hz,
        max_tempo=1.0,
        separator=(),
        min_samples=0,
    )


class _Source:
    """What grain reads by index."""

    def __init__(self, read: Callable[[int], Batch], length: int):
        self._read, self._length = read, length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Batch:
        return self._read(index)


def _batches(
    planned: Callable[[int], PlannedBatch],
    number: int,
    utterances: Sequence[Utterance],
    labels: Sequence[np.ndarray],
    *,
    data: DataConfig,
    sample_rate_hz: int,
    max_tempo: float,
    separator: Sequence[int],
    min_samples: int,
    noise: Sequence[Utterance] = (),
    impulse_responses: Sequence[Utterance] = (),
) -> Batches:
    cache = AudioCache(
        sample_rate_hz=sample_rate_hz, capacity_bytes=int(data.cache_gib * BYTES_PER_GIB)
    )
    failures: dict[str, Skipped] = {}

    def fail(recording: Utterance, reason: str) -> None:
        failures[recording.id] = Skipped(recording.id, f"{reason}: {recording.place}")

    def row_samples(parts: list[Utterance], speed: float) -> np.ndarray | None:
        samples = []
        for utterance in parts:
            try:
                samples.append(cache.read(utterance))
            except AudioError as error:
                return fail(utterance, error.reason)
            if len(samples[-1]) < min_samples:
                reason = f"shorter than its manifest says: {len(samples[-1])} samples"
                return fail(utterance, reason)
        return change_speed(np.concatenate(samples) if len(samples) > 1 else samples[0], speed)

    def with_effects(samples: np.ndarray, plan: PlannedBatch, row: int) -> np.ndarray:
        if (n := plan.impulse_response[row]) >= 0:
            try:
                samples = add_reverberation(samples, cache.read(impulse_responses[n]))
            except AudioError as error:
                fail(impulse_responses[n], error.reason)
        if (n := plan.noise[row]) >= 0:
            try:
                stretch = read_stretch(
                    noise[n],
                    functools.partial(read_recording, sample_rate_hz=sample_rate_hz),
                    start_seconds=plan.noise_start_seconds[row],
                    samples=len(samples),
                    sample_rate_hz=sample_rate_hz,
                )
                samples = add_noise(samples, stretch, snr_db=plan.snr_db[row])
            except AudioError as error:
                fail(noise[n], error.reason)
        return change_gain(samples, plan.gain_db[row])

    def read(index: int) -> Batch:
        plan = planned(index)
        rows = len(plan.first)
        S = bucket_samples(plan.seconds, max_tempo=max_tempo, sample_rate_hz=sample_rate_hz)
        batch = Batch(
            samples=np.zeros((rows, S), np.float32),
            sample_lengths=np.zeros(rows, np.int32),
            labels=np.zeros((rows, plan.labels), np.int32),
            label_lengths=np.zeros(rows, np.int32),
            tempo=np.ones(rows, np.float32),
            utterances=np.full(rows, -1, np.int32),
            second_utterance=np.full(rows, -1, np.int32),
        )
        for row, (first, second) in enumerate(zip(plan.first, plan.second)):
            if first < 0:
                continue
            parts = [first] if second < 0 else [first, second]
            samples = row_samples([utterances[n] for n in parts], plan.speed[row])
            if samples is None:
                continue
            samples = with_effects(samples, plan, row)
            ids = labels[first]
            if second >= 0:
                ids = np.concatenate([ids, np.array(separator, np.int32), labels[second]])
            batch.samples[row, : len(samples)] = samples
            batch.sample_lengths[row] = len(samples)
            batch.labels[row, : len(ids)] = ids
            batch.label_lengths[row] = len(ids)
            batch.tempo[row] = plan.tempo[row]
            batch.utterances[row] = first
            batch.second_utterance[row] = second
        return batch

    import grain  # takes half a second, and is only needed once audio is read

    options = grain.ReadOptions(
        num_threads=data.read_threads, prefetch_buffer_size=data.read_ahead_batches
    )
    dataset = grain.MapDataset.source(_Source(read, number)).to_iter_dataset(options)
    return Batches(iter(dataset), failures)


def _rows(batch: PlannedBatch, local_rows: Callable[[int], np.ndarray]) -> PlannedBatch:
    rows = local_rows(len(batch.first))
    return batch._replace(**{name: getattr(batch, name)[rows] for name in batch._fields[2:]})
