"""Composition: the networks that each objective needs."""

import dataclasses

from flax import nnx
from jaxtyping import PyTree

from asr_jax.config import AdapterConfig, Config
from asr_jax.layers.adapter import adapt, merged
from asr_jax.models.ctc import CTC
from asr_jax.models.encoder_decoder import AttentionModel
from asr_jax.models.language_model import LanguageModel
from asr_jax.models.transducer import Transducer

Model = Transducer | CTC | AttentionModel


def make_model(config: Config, vocabulary_size: int, *, rngs: nnx.Rngs) -> Model | LanguageModel:
    """Make the model that config.objective trains, with random parameters.

    All but the language model have an `encoder` and a `ctc_head`, which may be None. Parts with the
    same purpose have the same name in all models. Raises ValueError for an adapter.pattern that
    matches no linear layer.
    """
    kinds = {"ctc": CTC, "attention": AttentionModel, "language_model": LanguageModel}
    model = kinds.get(config.objective.kind, Transducer)(config, vocabulary_size, rngs=rngs)
    if config.adapter.rank:
        adapt(model, config.adapter.pattern, rank=config.adapter.rank, rngs=rngs)
    return model


def split_model(config: Config, vocabulary_size: int) -> tuple[nnx.GraphDef, PyTree]:
    """Return the model's structure, and its parameters as a nested dict of abstract arrays."""
    model = nnx.eval_shape(lambda: make_model(config, vocabulary_size, rngs=nnx.Rngs(0)))
    graphdef, params = nnx.split(model, nnx.Param)
    return graphdef, nnx.to_pure_dict(params)


def merge_adapters(config: Config, params: dict[str, PyTree]) -> tuple[Config, dict[str, PyTree]]:
    """Return the same model without adapters: their matrices are added to those of the layers."""
    return dataclasses.replace(config, adapter=AdapterConfig()), merged(params)
