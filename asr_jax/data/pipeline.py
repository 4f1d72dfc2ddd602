"""Batches that threads read and pad ahead of the training step."""

import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import ceil

import numpy as np
from jaxtyping import Float32, Int32, Int64

from asr_jax.audio.samples import AudioError, change_speed
from asr_jax.config import AugmentConfig, DataConfig
from asr_jax.data.augment import add_noise, add_reverberation, change_gain, read_segment
from asr_jax.data.buckets import Buckets
from asr_jax.data.cache import AudioCache
from asr_jax.data.corpus import Corpus
from asr_jax.data.epochs import Epochs
from asr_jax.data.plan import PlannedBatch, TrainingPlan, evaluation_plan
from asr_jax.data.recordings import FAR_BEYOND_FULL_SCALE, read_recording
from asr_jax.types import Batch, Skipped, Utterance

# Reading, resampling and changing the speed each round to whole samples, for up to two recordings.
ROUNDING_SAMPLES = 16
BYTES_PER_GIB = 2**30

# Maps the number of rows of a batch to the rows that this process reads.
LocalRows = Callable[[int], Int64[np.ndarray, " _"]]


class Batches(Iterator[Batch]):
    """An iterator over batches that also lists the recordings that could not be read.

    A row whose recording cannot be read is a padding row. Since batches are read ahead, a failure
    may be listed before its batch is taken.
    """

    def __init__(self, batches: Iterator[Batch], failures: dict[str, Skipped]):
        self._batches = batches
        self._failures = failures

    def __next__(self) -> Batch:
        return next(self._batches)

    @property
    def failed(self) -> list[Skipped]:
        """The recordings that could not be read so far, each once."""
        return list(self._failures.values())


def bucket_samples(bucket_seconds: float, *, max_tempo: float, sample_rate_hz: int) -> int:
    """Return S for rows that last at most `bucket_seconds` after a tempo of at most `max_tempo`."""
    return ceil(bucket_seconds * max_tempo * sample_rate_hz) + ROUNDING_SAMPLES


def padding_batch(rows: int, *, samples: int, labels: int) -> Batch:
    """Return a batch of B = `rows` padding rows with S = `samples` and U = `labels`."""
    return Batch(
        samples=np.zeros((rows, samples), np.float32),
        sample_lengths=np.zeros(rows, np.int32),
        labels=np.zeros((rows, labels), np.int32),
        label_lengths=np.zeros(rows, np.int32),
        tempo=np.ones(rows, np.float32),
        utterances=np.full(rows, -1, np.int32),
        second_utterance=np.full(rows, -1, np.int32),
    )


def training_plan(
    corpus: Corpus, *, buckets: Buckets, augment: AugmentConfig, seed: int
) -> TrainingPlan:
    """Return the plan of the batches to train on."""
    return TrainingPlan(
        durations_seconds=corpus.durations_seconds(),
        label_lengths=corpus.label_lengths(),
        speakers=corpus.speaker_numbers(),
        buckets=buckets,
        augment=augment,
        seed=seed,
        separator_labels=len(corpus.separator),
        dataset_sizes=tuple(corpus.sizes),
        weights=corpus.weights,
        noise_seconds=np.array([noise.duration_seconds for noise in corpus.noise], np.float64),
        impulse_responses=len(corpus.impulse_responses),
    )


def training_batches(
    corpus: Corpus,
    epochs: Epochs,
    *,
    data: DataConfig,
    sample_rate_hz: int,
    position: int = 0,
    local_rows: LocalRows = np.arange,
) -> Batches:
    """Return the endless stream of training batches that starts at `position`.

    `position` is the number of batches taken since step 0. The stream depends only on it, the
    corpus and the plan of `epochs` (`training_plan`), not on threads, cache or earlier calls. Rows
    have S = bucket_samples(bucket seconds) and U = bucket labels.

    Speed comes first, then reverberation, noise and gain. If a noise recording or impulse response
    cannot be read, it is listed and not applied.
    """
    capacity_bytes = int(data.cache_gib * BYTES_PER_GIB)
    reader = BatchReader(
        corpus=corpus,
        planned=lambda index: epochs.batch(position + index),
        length=sys.maxsize - position,
        local_rows=local_rows,
        cache=AudioCache(sample_rate_hz=sample_rate_hz, capacity_bytes=capacity_bytes),
        sample_rate_hz=sample_rate_hz,
        max_tempo=max(1.0, epochs.plan.augment.tempo_range[1]),
        # Without a single frame the loss would be infinite.
        min_samples=int(data.min_seconds * sample_rate_hz) - ROUNDING_SAMPLES,
    )
    return _read_ahead(reader, data)


def evaluation_batches(
    utterances: Sequence[Utterance],
    labels: Sequence[Int32[np.ndarray, " _"]],
    *,
    buckets: Buckets,
    data: DataConfig,
    sample_rate_hz: int,
    local_rows: LocalRows = np.arange,
) -> Batches:
    """Return batches that contain every utterance once, unchanged, shortest first.

    The last of the buckets must hold every utterance (`evaluation_buckets`).
    """
    corpus = Corpus(utterances, labels)
    plan = evaluation_plan(corpus.durations_seconds(), corpus.label_lengths(), buckets=buckets)
    reader = BatchReader(
        corpus=corpus,
        planned=plan.__getitem__,
        length=len(plan),
        local_rows=local_rows,
        # Each recording is read once per evaluation; training recordings use the memory better.
        cache=AudioCache(sample_rate_hz=sample_rate_hz, capacity_bytes=0),
        sample_rate_hz=sample_rate_hz,
    )
    return _read_ahead(reader, data)


# No comparison and no repr: grain keeps the reader as its source, and a corpus is large.
@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class BatchReader:
    """A sequence of `length` batches, each read and padded when it is indexed, by any thread.

    Only `cache`, `failures` and `loud` change.
    """

    corpus: Corpus
    planned: Callable[[int], PlannedBatch]
    """Returns the planned batch at an index."""
    length: int
    local_rows: LocalRows
    cache: AudioCache
    sample_rate_hz: int
    max_tempo: float = 1.0
    min_samples: int = 0
    """Shorter recordings are failures."""
    failures: dict[str, Skipped] = field(default_factory=dict)
    """The recordings that could not be read, by id."""
    loud: dict[str, Utterance] = field(default_factory=dict)
    """The first recording whose samples are far beyond full scale, which is said once."""

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Batch:
        plan = self.planned(index)
        plan = plan.take_rows(self.local_rows(len(plan.first)))
        samples = bucket_samples(
            plan.seconds, max_tempo=self.max_tempo, sample_rate_hz=self.sample_rate_hz
        )
        batch = padding_batch(len(plan.first), samples=samples, labels=plan.labels)
        for row in np.flatnonzero(plan.first >= 0).tolist():
            self._fill_row(batch, plan, row)
        return batch

    def _fill_row(self, batch: Batch, plan: PlannedBatch, row: int) -> None:
        """Write a row's utterance into the batch, unless a recording of it cannot be read."""
        first, second = int(plan.first[row]), int(plan.second[row])
        samples = self._speech([first] if second < 0 else [first, second])
        if samples is None:
            return
        samples = self._augmented(change_speed(samples, plan.speed[row]), plan, row)
        labels = self.corpus.labels[first]
        if second >= 0:
            separator = np.array(self.corpus.separator, np.int32)
            labels = np.concatenate([labels, separator, self.corpus.labels[second]])
        batch.samples[row, : len(samples)] = samples
        batch.sample_lengths[row] = len(samples)
        batch.labels[row, : len(labels)] = labels
        batch.label_lengths[row] = len(labels)
        batch.tempo[row] = plan.tempo[row]
        batch.utterances[row] = first
        batch.second_utterance[row] = second

    def _speech(self, indices: list[int]) -> Float32[np.ndarray, " S"] | None:
        """Return the utterances' samples, joined; None if one of them cannot be read."""
        parts = []
        for utterance in (self.corpus.utterances[index] for index in indices):
            try:
                samples = self.cache.read(utterance)
                if len(samples) < self.min_samples:
                    reason = f"shorter than its manifest says: {len(samples)} samples"
                    raise AudioError(utterance.audio, reason)
            except AudioError as error:
                self._list_failure(utterance, error)
                return None
            if samples.max() > FAR_BEYOND_FULL_SCALE:
                self._say_loud(utterance)
            parts.append(samples)
        return np.concatenate(parts) if len(parts) > 1 else parts[0]

    def _augmented(self, samples: np.ndarray, plan: PlannedBatch, row: int) -> np.ndarray:
        """Return the samples with the reverberation, noise and gain that the plan gives a row."""
        if (index := plan.impulse_response[row]) >= 0:
            impulse_response = self.corpus.impulse_responses[index]
            try:
                samples = add_reverberation(samples, self.cache.read(impulse_response))
            except AudioError as error:
                self._list_failure(impulse_response, error)
        if (index := plan.noise[row]) >= 0:
            noise = self.corpus.noise[index]
            try:
                segment = read_segment(
                    noise,
                    functools.partial(read_recording, sample_rate_hz=self.sample_rate_hz),
                    start_seconds=plan.noise_start_seconds[row],
                    samples=len(samples),
                    sample_rate_hz=self.sample_rate_hz,
                )
                samples = add_noise(samples, segment, snr_db=plan.snr_db[row])
            except AudioError as error:
                self._list_failure(noise, error)
        return change_gain(samples, plan.gain_db[row])

    def _say_loud(self, recording: Utterance) -> None:
        if self.loud.setdefault("first", recording) is recording:
            print(
                f"warning: {recording.place}: samples beyond {FAR_BEYOND_FULL_SCALE:g} times full "
                "scale are used as they are; if they are 16-bit samples in a float file, divide "
                "them by 32768",
                file=sys.stderr,
            )

    def _list_failure(self, recording: Utterance, error: AudioError) -> None:
        self.failures[recording.id] = Skipped(recording.id, f"{error.reason}: {recording.place}")


def _read_ahead(reader: BatchReader, data: DataConfig) -> Batches:
    """Return the reader's batches in order, read ahead by `data.read_threads` threads."""
    import grain  # takes half a second, and is only needed once audio is read

    options = grain.ReadOptions(
        num_threads=data.read_threads, prefetch_buffer_size=data.read_ahead_batches
    )
    batches = grain.MapDataset.source(reader).to_iter_dataset(options)
    return Batches(iter(batches), reader.failures)
