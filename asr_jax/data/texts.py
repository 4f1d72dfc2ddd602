"""Texts without audio, for a language model: a sentence a line, or the transcripts of DATA."""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Int32, Int64

from asr_jax.config import AugmentConfig, DataConfig
from asr_jax.data.epochs import Epochs
from asr_jax.data.manifest import read_manifest
from asr_jax.data.pipeline import Batches
from asr_jax.data.plan import Buckets, PlannedBatch, TrainingPlan, evaluation_plan
from asr_jax.data.sources.lines import numbered_lines
from asr_jax.text import collapse_white_space
from asr_jax.types import Batch, Skipped, Utterance

RowsOf = Callable[[int], Int64[np.ndarray, " _"]]


def read_texts(data: str | Path) -> tuple[list[Utterance], list[Skipped]]:
    """The sentences of a text file, .txt or .txt.gz, as utterances that last for 0 s and are named
    by their lines; of any other DATA `read_manifest`.

    Raises ValueError for a file that cannot be read, or holds no text.
    """
    path = Path(data)
    if not path.name.endswith((".txt", ".txt.gz")) or path.is_dir():
        return read_manifest(data)
    utterances = [
        Utterance(f"{path.name}:{number}", path, collapse_white_space(line), 0.0)
        for number, line in numbered_lines(path)
    ]
    if not utterances:
        raise ValueError(f"{data}: holds no text")
    return utterances, []


def training_text_batches(
    labels: Sequence[Int32[np.ndarray, " _"]],
    *,
    data: DataConfig,
    seed: int,
    position: int = 0,
    corpus_sizes: Sequence[int] = (),
    local_rows: RowsOf = np.arange,
    cache_path: Path | None = None,
    write_cache: bool = True,
) -> Batches:
    """`pipeline.training_batches` without audio, of rows that have S = 0 and U = bucket labels.

    A text goes to the first bucket that holds its labels.
    """
    plan = TrainingPlan(
        durations_seconds=np.zeros(len(labels)),
        label_lengths=np.array([len(ids) for ids in labels], np.int64),
        speakers=np.full(len(labels), -1),
        buckets=Buckets.of(data),
        augment=AugmentConfig(speeds=(1.0,)),
        seed=seed,
        corpus_sizes=tuple(corpus_sizes),
        weights=data.train_weights,
    )
    epochs = Epochs(plan, cache_path=cache_path, write_cache=write_cache)
    epoch_batches = lru_cache(maxsize=1)(plan.batches)

    def batches() -> Iterator[Batch]:
        index = position
        while True:
            epoch, place = epochs.locate(index)
            yield _batch(epoch_batches(epoch)[place], labels, local_rows)
            index += 1

    return Batches(batches(), {})


def evaluation_text_batches(
    labels: Sequence[Int32[np.ndarray, " _"]],
    *,
    data: DataConfig,
    multiple: int = 1,
    local_rows: RowsOf = np.arange,
) -> Batches:
    """`pipeline.evaluation_batches` without audio: every text once."""
    lengths = np.array([len(ids) for ids in labels], np.int64)
    plan = evaluation_plan(
        np.zeros(len(labels)), lengths, buckets=Buckets.of(data), multiple=multiple
    )
    return Batches((_batch(planned, labels, local_rows) for planned in plan), {})


def _batch(planned: PlannedBatch, labels: Sequence[np.ndarray], local_rows: RowsOf) -> Batch:
    texts = planned.first[local_rows(len(planned.first))]
    rows = len(texts)
    batch = Batch(
        samples=np.zeros((rows, 0), np.float32),
        sample_lengths=np.zeros(rows, np.int32),
        labels=np.zeros((rows, planned.labels), np.int32),
        label_lengths=np.zeros(rows, np.int32),
        tempo=np.ones(rows, np.float32),
        utterances=texts.astype(np.int32),
        second_utterance=np.full(rows, -1, np.int32),
    )
    for row, text in enumerate(texts):
        if text >= 0:
            batch.labels[row, : len(labels[text])] = labels[text]
            batch.label_lengths[row] = len(labels[text])
    return batch
