"""The likelihood of given texts of recordings."""

import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Float64, PyTree

from asr_jax.capacity.flops import utterance_work
from asr_jax.config import Config, chunk_frames
from asr_jax.data.buckets import evaluation_buckets
from asr_jax.data.pipeline import evaluation_batches
from asr_jax.decoding.likelihood import label_log_likelihoods
from asr_jax.features.logmel import log_mel
from asr_jax.inference.decode_batch import encoded_frame_seconds
from asr_jax.inference.recognizer import Recognizer
from asr_jax.types import Utterance


def text_log_likelihoods(
    recognizer: Recognizer, utterances: Sequence[Utterance]
) -> Float64[np.ndarray, " N"]:
    """Return log P(text | audio) of each utterance in nats, in a single process.

    It is -inf where the recording cannot be read.
    """
    found = np.full(len(utterances), -np.inf)
    if not utterances:
        return found
    config = recognizer.config
    labels = recognizer.tokenizer.encode_all([utterance.text for utterance in utterances])
    buckets = evaluation_buckets(
        np.array([utterance.duration_seconds for utterance in utterances]),
        np.array([len(of_text) for of_text in labels], np.int64),
        data=config.data,
        work=utterance_work(config, recognizer.tokenizer.vocabulary_size),
        frame_seconds=encoded_frame_seconds(config),
        devices=1,
    )
    batches = evaluation_batches(
        [utterance._replace(id=str(n)) for n, utterance in enumerate(utterances)],
        labels,
        buckets=buckets,
        data=config.data,
        sample_rate_hz=config.features.sample_rate_hz,
    )
    compiled = _jitted_likelihoods(recognizer.graphdef, config)
    params = jax.device_get(recognizer.params)  # Spread over devices, they would stay so.
    for batch in batches:
        real = batch.utterances >= 0
        found[batch.utterances[real]] = jax.device_get(compiled(params, batch))[real]
    return found


@functools.cache
def _jitted_likelihoods(graphdef: nnx.GraphDef, config: Config) -> Callable[..., jax.Array]:
    """Return the one compiled `_batch_likelihoods` of a model structure and config."""
    return jax.jit(functools.partial(_batch_likelihoods, graphdef=graphdef, config=config))


def _batch_likelihoods(
    params: PyTree, batch: PyTree[Array], *, graphdef: nnx.GraphDef, config: Config
) -> Float[Array, " B"]:
    """Return log P(labels) of a Batch whose fields are on the device."""
    model = nnx.merge(graphdef, params)
    features, lengths = log_mel(batch.samples, batch.sample_lengths, config.features)
    chunk = chunk_frames(config.decoding.chunk_ms, config)
    encoded, lengths = model.encoder(features, lengths, chunk_frames=chunk)
    return label_log_likelihoods(
        model, encoded, lengths, batch.labels, batch.label_lengths, config=config.decoding
    )
