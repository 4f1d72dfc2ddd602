"""The perplexity on data.dev, measured while a language model is trained."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, PyTree

from asr_jax.capacity.flops import utterance_work
from asr_jax.config import Config
from asr_jax.data.buckets import evaluation_buckets
from asr_jax.data.corpus import Corpus
from asr_jax.data.texts import SECONDS_PER_LABEL, evaluation_text_batches, read_texts
from asr_jax.distributed.mesh import local_rows, on_devices, utterance_shards
from asr_jax.experiment.corpus import usable_utterances
from asr_jax.experiment.skipped import print_left_out
from asr_jax.text import Tokenizer
from asr_jax.training.loop import DevEvaluation
from asr_jax.training.objective import text_losses
from asr_jax.types import Batch


def dev_perplexity(
    config: Config, graphdef: nnx.GraphDef, tokenizer: Tokenizer, mesh: Mesh, corpus: Corpus
) -> DevEvaluation | None:
    """Return a function that measures the perplexity per piece and per word.

    It is exp(-log P / n) over all texts of data.dev, where n counts the pieces or words and one end
    per text. Texts that could not be trained on are left out. Returns None without texts for it.
    """
    texts, skipped = list(corpus.held_out), []
    if config.data.dev:
        texts, skipped = read_texts(config.data.dev)
    elif not texts:
        return None
    texts, labels, unfit = usable_utterances(config, texts, tokenizer)
    print_left_out("data.dev", skipped + unfit)
    if not texts:
        raise ValueError(f"data.dev = {config.data.dev}: none of its texts can be measured")
    pieces = sum(map(len, labels))
    words = sum(len(text.text.split()) for text in texts)
    lengths = np.array([len(ids) for ids in labels], np.int64)
    buckets = evaluation_buckets(
        lengths * SECONDS_PER_LABEL,
        lengths,
        data=config.data,
        work=utterance_work(config, tokenizer.vocabulary_size),
        frame_seconds=SECONDS_PER_LABEL,
        devices=utterance_shards(mesh),
        passes=config.train.steps / config.train.evaluate_every_steps,
    )
    nats = jax.jit(
        functools.partial(_nats, graphdef=graphdef), out_shardings=NamedSharding(mesh, P())
    )

    def evaluate(averaged: PyTree, *, note: Callable[[str], None]) -> dict[str, float]:
        batches = evaluation_text_batches(
            labels,
            buckets=buckets,
            local_rows=functools.partial(local_rows, mesh),
        )
        total = sum(
            float(jax.device_get(nats(averaged, on_devices(batch, mesh))).sum(dtype=float))
            for batch in batches
        )
        return {
            "dev_perplexity": _perplexity(total, pieces + len(texts)),
            "dev_word_perplexity": _perplexity(total, words + len(texts)),
        }

    return DevEvaluation(evaluate, "dev_perplexity")


def _nats(params: PyTree, batch: Batch, *, graphdef: nnx.GraphDef) -> Float[Array, " B"]:
    """Return -log P of every row's text, 0 for padding rows."""
    model = nnx.merge(graphdef, params)
    losses = text_losses(model, jnp.asarray(batch.labels), jnp.asarray(batch.label_lengths))
    return jnp.where(batch.utterances >= 0, losses, 0)


def _perplexity(nats: float, number: int) -> float:
    # With random parameters, a word's perplexity may exceed the range of a float.
    return math.exp(min(nats / number, 700.0))
