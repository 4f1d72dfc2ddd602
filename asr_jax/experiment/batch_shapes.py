"""The shapes of a config's batches, before there are any."""

from typing import Any

import jax
import numpy as np

from asr_jax.config import Config
from asr_jax.data.pipeline import bucket_samples
from asr_jax.types import Batch


def batch_shapes(config: Config) -> list[Batch]:
    """A batch of abstract arrays for every bucket."""
    data = config.data
    shapes = []
    for seconds, labels, rows in zip(
        data.bucket_seconds, data.bucket_labels, data.bucket_utterances
    ):
        samples = bucket_samples(
            seconds,
            max_tempo=max(1.0, config.augment.tempo_range[1]),
            sample_rate_hz=config.features.sample_rate_hz,
        )
        if config.objective.kind == "language_model":
            samples = 0
        abstract: Any = jax.ShapeDtypeStruct
        shapes.append(
            Batch(
                samples=abstract((rows, samples), np.float32),
                sample_lengths=abstract((rows,), np.int32),
                labels=abstract((rows, labels), np.int32),
                label_lengths=abstract((rows,), np.int32),
                tempo=abstract((rows,), np.float32),
                utterances=abstract((rows,), np.int32),
                second_utterance=abstract((rows,), np.int32),
            )
        )
    return shapes
