"""From padded audio to text: features, encoder and search compiled as one function."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from asr_jax.config import Config, chunk_frames
from asr_jax.decoding.search import search
from asr_jax.features.logmel import log_mel
from asr_jax.mesh import on_devices, over_rows
from asr_jax.text import Tokenizer
from asr_jax.types import Batch

Recognize = Callable[[Any, Batch], tuple[jax.Array, jax.Array, jax.Array]]


def recognize(
    params: Any, batch: Batch, *, graphdef: nnx.GraphDef, config: Config, mesh: Mesh
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Labels of every row [B, N], how many it has [B], and the utterances in the rows [B]."""
    model = nnx.merge(graphdef, params)
    mel = over_rows(functools.partial(log_mel, config=config.features), mesh)
    features, lengths = mel(batch.samples, batch.sample_lengths)
    chunk = chunk_frames(config.decoding.chunk_ms, config)
    encoded, lengths = model.encoder(features, lengths, chunk_frames=chunk)
    labels, counts = search(model, encoded, lengths, config=config.decoding)
    return labels, counts, jnp.asarray(batch.utterances)


@functools.cache
def make_recognizer(graphdef: nnx.GraphDef, config: Config, mesh: Mesh) -> Recognize:
    """`recognize`, compiled once per batch shape, the rows spread over the mesh.

    Of a batch each process gives its own rows (mesh.rows_here), and gets the labels of all.
    """
    compiled = jax.jit(
        functools.partial(recognize, graphdef=graphdef, config=config, mesh=mesh),
        out_shardings=NamedSharding(mesh, P()),
    )

    return lambda params, batch: compiled(params, on_devices(batch, mesh))


def hypotheses(
    run: Recognize,
    params: Any,
    batches: Iterable[Batch],
    tokenizer: Tokenizer,
    *,
    utterances: int,
) -> list[str | None]:
    """The text recognised for each of the `utterances` that the batches' rows refer to.

    None for one in no batch, since its recording could not be read.
    """
    texts: list[str | None] = [None] * utterances
    for batch in batches:
        labels, counts, rows = jax.device_get(run(params, batch))
        for row, utterance in enumerate(rows):
            if utterance >= 0:
                texts[utterance] = tokenizer.decode(labels[row, : counts[row]].tolist())
    return texts
