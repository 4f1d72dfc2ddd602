"""The differences between training a recognizer and training a language model."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from flax import nnx
from jax.sharding import Mesh

from asr_jax.config import Config
from asr_jax.data.corpus import Corpus
from asr_jax.data.epochs import Epochs
from asr_jax.data.manifest import read_manifest
from asr_jax.data.pipeline import Batches, training_batches, training_plan
from asr_jax.data.texts import read_texts, text_plan, training_text_batches
from asr_jax.distributed.mesh import local_rows
from asr_jax.distributed.processes import is_first
from asr_jax.experiment.corpus import ReadDataset
from asr_jax.experiment.dev_perplexity import dev_perplexity
from asr_jax.experiment.dev_wer import dev_wer
from asr_jax.text import Tokenizer
from asr_jax.training.loop import Evaluate

# The file of a run that holds the number of batches in each epoch so far.
EPOCHS = "epochs.json"


class Task(NamedTuple):
    """The functions that differ between the two."""

    read: ReadDataset
    """Reads a dataset: data.train, or one of data.more_train."""
    batches: Callable[[Config, Corpus, Mesh, Path, int], Batches]
    """Returns the endless stream of batches that starts after a number of batches."""
    evaluation: Callable[[Config, nnx.GraphDef, Tokenizer, Mesh], Evaluate | None]
    """Reads data.dev and returns the function that measures on it; None without data.dev."""
    selection_metric: str
    """The figure of the evaluation that selects the best checkpoint."""
    amount: Callable[[Corpus], str]
    """Returns the amount of training data as text."""


def task_of(config: Config) -> Task:
    """Return the task of config.objective."""
    if config.objective.is_language_model:
        return Task(read_texts, _text_batches, dev_perplexity, "dev_perplexity", _pieces)
    return Task(read_manifest, _audio_batches, dev_wer, "dev_wer", _hours)


def _audio_batches(config: Config, corpus: Corpus, mesh: Mesh, run: Path, position: int) -> Batches:
    plan = training_plan(corpus, data=config.data, augment=config.augment, seed=config.train.seed)
    return training_batches(
        corpus,
        Epochs(plan, cache_path=run / EPOCHS, write_cache=is_first()),
        data=config.data,
        sample_rate_hz=config.features.sample_rate_hz,
        position=position,
        local_rows=functools.partial(local_rows, mesh),
    )


def _text_batches(config: Config, corpus: Corpus, mesh: Mesh, run: Path, position: int) -> Batches:
    plan = text_plan(corpus, data=config.data, seed=config.train.seed)
    return training_text_batches(
        corpus.labels,
        Epochs(plan, cache_path=run / EPOCHS, write_cache=is_first()),
        position=position,
        local_rows=functools.partial(local_rows, mesh),
    )


def _hours(corpus: Corpus) -> str:
    return f"{sum(u.duration_seconds for u in corpus.utterances) / 3600:.2f} hours"


def _pieces(corpus: Corpus) -> str:
    return f"{sum(map(len, corpus.labels))} pieces"
