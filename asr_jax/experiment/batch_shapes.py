"""The shapes of a config's batches, known before any batch is read."""

import jax
import numpy as np
from jaxtyping import PyTree

from asr_jax.config import Config
from asr_jax.data.buckets import Buckets
from asr_jax.data.pipeline import bucket_samples
from asr_jax.types import Batch


def batch_shapes(config: Config, buckets: Buckets) -> list[Batch]:
    """Return a batch of abstract arrays for every bucket."""
    return [
        _shape(rows, samples=_samples(config, seconds), labels=labels)
        for seconds, labels, rows in zip(*buckets)
    ]


def _samples(config: Config, bucket_seconds: float) -> int:
    if config.objective.is_language_model:
        return 0
    return bucket_samples(
        bucket_seconds,
        max_tempo=max(1.0, config.augment.tempo_range[1]),
        sample_rate_hz=config.features.sample_rate_hz,
    )


def _shape(rows: int, *, samples: int, labels: int) -> Batch:
    def abstract(dtype: type[np.generic], *width: int) -> PyTree:
        return jax.ShapeDtypeStruct((rows, *width), dtype)

    return Batch(
        samples=abstract(np.float32, samples),
        sample_lengths=abstract(np.int32),
        labels=abstract(np.int32, labels),
        label_lengths=abstract(np.int32),
        tempo=abstract(np.float32),
        utterances=abstract(np.int32),
        second_utterance=abstract(np.int32),
    )
