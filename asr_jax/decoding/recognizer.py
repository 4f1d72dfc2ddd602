"""From padded audio to text: features, encoder and greedy search compiled as one function."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from asr_jax.config import Config
from asr_jax.decoding.greedy import greedy_search
from asr_jax.features.logmel import log_mel
from asr_jax.mesh import batch_sharding, over_rows
from asr_jax.text import Tokenizer
from asr_jax.types import Batch


def recognize(
    params: Any, batch: Batch, *, graphdef: nnx.GraphDef, config: Config, mesh: Mesh
) -> tuple[jax.Array, jax.Array]:
    """Labels of every row [B, N] and how many it has [B]."""
    model = nnx.merge(graphdef, params)
    mel = over_rows(functools.partial(log_mel, config=config.features), mesh)
    features, lengths = mel(batch.samples, batch.sample_lengths)
    encoded, lengths = model.encoder(features, lengths)
    return greedy_search(
        model, encoded, lengths, max_symbols_per_frame=config.decoding.max_symbols_per_frame
    )


def make_recognizer(
    graphdef: nnx.GraphDef, config: Config, mesh: Mesh
) -> Callable[[Any, Batch], tuple[jax.Array, jax.Array]]:
    """`recognize`, compiled once per batch shape, the batch's rows spread over the mesh."""
    compiled = jax.jit(
        functools.partial(recognize, graphdef=graphdef, config=config, mesh=mesh),
        out_shardings=NamedSharding(mesh, P()),
    )

    return lambda params, batch: compiled(params, jax.device_put(batch, batch_sharding(mesh)))


def hypotheses(
    run: Callable[[Any, Batch], tuple[jax.Array, jax.Array]],
    params: Any,
    batches: Iterable[Batch],
    tokenizer: Tokenizer,
    *,
    utterances: int,
) -> list[str]:
    """The text recognised for each of the `utterances` that the batches' rows refer to."""
    texts = [""] * utterances
    for batch in batches:
        labels, counts = jax.device_get(run(params, batch))
        for row, utterance in enumerate(np.asarray(batch.utterances)):
            if utterance >= 0:
                texts[utterance] = tokenizer.decode(labels[row, : counts[row]].tolist())
    return texts
