"""Batches of texts without audio, for a language model."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int32

from asr_jax.config import AugmentConfig
from asr_jax.data.buckets import Buckets
from asr_jax.data.corpus import Corpus
from asr_jax.data.epochs import Epochs
from asr_jax.data.manifest import read_manifest
from asr_jax.data.pipeline import Batches, LocalRows, padding_batch
from asr_jax.data.plan import PlannedBatch, TrainingPlan, evaluation_plan
from asr_jax.text_files import escaped, numbered_lines, transcript
from asr_jax.types import Batch, Skipped, Utterance

# The length of a label of a text, where batches are measured in seconds.
SECONDS_PER_LABEL = 0.1


def read_texts(data: str | Path) -> tuple[list[Utterance], list[Skipped]]:
    """Read a text file, one sentence per line, or the transcripts of another dataset.

    The sentences of a text file, .txt or .txt.gz, become utterances of 0 s with the ids NAME:LINE;
    any other dataset is read by `read_manifest`. Raises ValueError for a file that cannot be read
    or that contains no text.
    """
    path = Path(data)
    if not path.name.lower().endswith((".txt", ".txt.gz")) or path.is_dir():
        return read_manifest(data)
    utterances = [
        Utterance(f"{escaped(path.name)}:{number}", path, transcript(line), 0.0)
        for number, line in numbered_lines(path)
    ]
    if not utterances:
        raise ValueError(f"{data}: holds no text")
    return utterances, []


def text_plan(corpus: Corpus, *, buckets: Buckets, seed: int) -> TrainingPlan:
    """Return the plan of the batches to train on, where every text lasts 0 s.

    A text goes to the first bucket that holds its labels.
    """
    return TrainingPlan(
        durations_seconds=np.zeros(len(corpus.labels)),
        label_lengths=corpus.label_lengths(),
        speakers=np.full(len(corpus.labels), -1),
        buckets=buckets,
        augment=AugmentConfig(speeds=(1.0,)),
        seed=seed,
        dataset_sizes=tuple(corpus.sizes),
        weights=corpus.weights,
    )


def training_text_batches(
    labels: Sequence[Int32[np.ndarray, " _"]],
    epochs: Epochs,
    *,
    position: int = 0,
    local_rows: LocalRows = np.arange,
) -> Batches:
    """Return the endless stream of training batches that starts at `position`, without audio.

    `epochs` is of a `text_plan`; the rest is as in `pipeline.training_batches`. Rows have S = 0
    and U = bucket labels.
    """

    def batches() -> Iterator[Batch]:
        index = position
        while True:
            yield _batch(epochs.batch(index), labels, local_rows)
            index += 1

    return Batches(batches(), {})


def evaluation_text_batches(
    labels: Sequence[Int32[np.ndarray, " _"]],
    *,
    buckets: Buckets,
    local_rows: LocalRows = np.arange,
) -> Batches:
    """Return batches without audio that contain every text once."""
    lengths = np.array([len(ids) for ids in labels], np.int64)
    plan = evaluation_plan(np.zeros(len(labels)), lengths, buckets=buckets)
    return Batches((_batch(planned, labels, local_rows) for planned in plan), {})


def _batch(planned: PlannedBatch, labels: Sequence[np.ndarray], local_rows: LocalRows) -> Batch:
    texts = planned.first[local_rows(len(planned.first))]
    batch = padding_batch(len(texts), samples=0, labels=planned.labels)
    for row, text in enumerate(texts):
        if text >= 0:
            batch.labels[row, : len(labels[text])] = labels[text]
            batch.label_lengths[row] = len(labels[text])
            batch.utterances[row] = text
    return batch
