"""A small model of any kind to export."""

from collections.abc import Callable

import jax
import numpy as np
import pytest
from flax import nnx

from asr_jax.config import Config, EncoderConfig, FeaturesConfig, JointConfig, PredictorConfig
from asr_jax.models.composition import make_model

SIZES: dict = dict(
    **dict(layers=4, width=12, heads=2, kernel_frames=5, subsampling_channels=6),
    **dict(feedforward_factor=2, left_chunks=2),
)


@pytest.fixture(scope="session")
def small_model() -> Callable[..., tuple[Config, nnx.GraphDef, dict]]:
    """Make a config, the structure of its model, and nonzero parameters as NumPy."""
    return make_small_model


def make_small_model(
    encoder: dict, *, vocabulary: int = 11, noise: float = 0.1, **sections
) -> tuple[Config, nnx.GraphDef, dict]:
    config = Config(
        encoder=EncoderConfig(**SIZES | encoder),
        **dict(
            features=FeaturesConfig(mel_bins=20, normalization="none"),
            predictor=PredictorConfig(width=7, embedding_width=5, context=3),
            joint=JointConfig(width=9),
        )
        | sections,
    )
    graphdef, params = nnx.split(make_model(config, vocabulary, rngs=nnx.Rngs(0)), nnx.Param)
    random = np.random.default_rng(2)
    params = jax.tree.map(
        lambda a: np.asarray(a) + noise * random.normal(size=a.shape).astype(np.float32),
        nnx.to_pure_dict(params),
    )
    return config, graphdef, params
