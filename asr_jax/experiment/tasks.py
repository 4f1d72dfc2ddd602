"""The differences between training a recognizer and training a language model."""

from collections.abc import Callable
from typing import NamedTuple

from flax import nnx
from jax.sharding import Mesh

from asr_jax.config import Config
from asr_jax.data.buckets import Buckets
from asr_jax.data.corpus import Corpus
from asr_jax.data.epochs import Epochs
from asr_jax.data.manifest import read_manifest
from asr_jax.data.pipeline import Batches, LocalRows, training_batches, training_plan
from asr_jax.data.plan import TrainingPlan
from asr_jax.data.texts import read_texts, text_plan, training_text_batches
from asr_jax.experiment.corpus import ReadDataset
from asr_jax.experiment.dev_perplexity import dev_perplexity
from asr_jax.experiment.dev_wer import dev_wer
from asr_jax.text import Tokenizer
from asr_jax.training.loop import DevEvaluation


class Task(NamedTuple):
    """The functions that differ between the two."""

    read: ReadDataset
    """Reads a dataset: data.train, or one of data.more_train."""
    plan: Callable[[Config, Corpus, Buckets], TrainingPlan]
    """Returns the plan of the batches to train on."""
    batches: Callable[[Config, Corpus, Epochs, LocalRows, int], Batches]
    """Returns the endless stream of planned batches that starts after a number of batches."""
    evaluation: Callable[[Config, nnx.GraphDef, Tokenizer, Mesh, Corpus], DevEvaluation | None]
    """Returns the function that measures on data.dev, or on what the corpus holds out; None without
    either."""
    amount: Callable[[Corpus], str]
    """Returns the amount of training data as text."""


def task_of(config: Config) -> Task:
    """Return the task of config.objective."""
    if config.objective.is_language_model:
        return Task(read_texts, _text_plan, _text_batches, dev_perplexity, _pieces)
    return Task(read_manifest, _audio_plan, _audio_batches, dev_wer, _hours)


def _audio_plan(config: Config, corpus: Corpus, buckets: Buckets) -> TrainingPlan:
    return training_plan(corpus, buckets=buckets, augment=config.augment, seed=config.train.seed)


def _text_plan(config: Config, corpus: Corpus, buckets: Buckets) -> TrainingPlan:
    return text_plan(corpus, buckets=buckets, seed=config.train.seed)


def _audio_batches(
    config: Config, corpus: Corpus, epochs: Epochs, local_rows: LocalRows, position: int
) -> Batches:
    return training_batches(
        corpus,
        epochs,
        data=config.data,
        sample_rate_hz=config.features.sample_rate_hz,
        position=position,
        local_rows=local_rows,
    )


def _text_batches(
    config: Config, corpus: Corpus, epochs: Epochs, local_rows: LocalRows, position: int
) -> Batches:
    return training_text_batches(corpus.labels, epochs, position=position, local_rows=local_rows)


def _hours(corpus: Corpus) -> str:
    return f"{sum(u.duration_seconds for u in corpus.utterances) / 3600:.2f} hours"


def _pieces(corpus: Corpus) -> str:
    return f"{sum(map(len, corpus.labels))} pieces"
