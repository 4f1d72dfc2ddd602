"""Decoding a batch: features, encoder and search compiled as one function."""

import functools
import math
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Int, PyTree

from asr_jax.capacity.flops import utterance_work
from asr_jax.config import Config, chunk_frames
from asr_jax.data.buckets import Buckets, evaluation_buckets
from asr_jax.decoding.fusion import NO_FUSION, Fusion
from asr_jax.decoding.hypotheses import Hypotheses
from asr_jax.decoding.search import search
from asr_jax.distributed.mesh import on_devices, over_rows
from asr_jax.features.frames import hop_samples
from asr_jax.features.logmel import log_mel
from asr_jax.text import Tokenizer
from asr_jax.types import Batch, Transcript, Utterance, Word


def decode_batch(
    params: PyTree,
    batch: Batch,
    fusion: Fusion,
    *,
    graphdef: nnx.GraphDef,
    config: Config,
    mesh: Mesh,
) -> tuple[Hypotheses, Int[Array, " B"]]:
    """Return the hypotheses of every row, and the index of the utterance in each row."""
    model = nnx.merge(graphdef, params)
    mel = over_rows(functools.partial(log_mel, config=config.features), mesh)
    features, lengths = mel(batch.samples, batch.sample_lengths)
    chunk = chunk_frames(config.decoding.chunk_ms, config)
    encoded, lengths = model.encoder(features, lengths, chunk_frames=chunk)
    hypotheses = search(model, encoded, lengths, config=config.decoding, fusion=fusion)
    return hypotheses, jnp.asarray(batch.utterances)


class JittedDecoding:
    """`decode_batch`, compiled once per shape of its arguments, with rows sharded over the mesh.

    Each process passes its own rows of a batch (mesh.local_rows) and receives the results of all.
    """

    def __init__(self, graphdef: nnx.GraphDef, config: Config, mesh: Mesh):
        self._decode = jax.jit(
            functools.partial(decode_batch, graphdef=graphdef, config=config, mesh=mesh),
            out_shardings=NamedSharding(mesh, P()),
        )
        self._mesh = mesh
        self._compiled: set[tuple[object, ...]] = set()

    def __call__(
        self, params: PyTree, batch: Batch, fusion: Fusion = NO_FUSION
    ) -> tuple[Hypotheses, jax.Array]:
        return self._decode(params, on_devices(batch, self._mesh), fusion)

    def compile(self, params: PyTree, batch: Batch, fusion: Fusion = NO_FUSION) -> None:
        """Decode a batch of a new shape once, so that the next call need not compile."""
        leaves, structure = jax.tree.flatten((batch.samples, fusion))
        program = (structure, *(leaf.shape for leaf in leaves))
        if program not in self._compiled:
            self._compiled.add(program)
            jax.block_until_ready(self(params, batch, fusion))


@functools.cache
def jitted_decoding(graphdef: nnx.GraphDef, config: Config, mesh: Mesh) -> JittedDecoding:
    """Return the one JittedDecoding of a model structure, config and mesh."""
    return JittedDecoding(graphdef, config, mesh)


def transcribe_batches(
    decode: JittedDecoding,
    params: PyTree,
    batches: Iterable[Batch],
    tokenizer: Tokenizer,
    *,
    config: Config,
    utterances: int,
) -> list[list[Transcript] | None]:
    """Return the N-best transcripts, best first, of each of the `utterances` in the batches.

    None stands for an utterance that is in no batch because its recording could not be read.
    """
    found: list[Hypotheses | None] = [None] * utterances
    for batch in batches:
        store_rows(found, *decode(params, batch))
    frame_seconds = encoded_frame_seconds(config)
    return [row and transcripts(row, tokenizer, frame_seconds=frame_seconds) for row in found]


def store_rows(
    found: list[Hypotheses | None], hypotheses: Hypotheses, utterances: jax.Array
) -> None:
    """Store each row's hypotheses, without axis B and with N cut to their most labels."""
    hypotheses, utterances = jax.device_get((hypotheses, utterances))
    for row, utterance in enumerate(utterances):
        if utterance >= 0:
            fields = [field[row] for field in hypotheses]
            most = int(hypotheses.counts[row].max())
            fields = (x[:, :most].copy() if x.ndim == 2 else x.copy() for x in fields)
            found[utterance] = Hypotheses(*fields)


def transcripts(row: Hypotheses, tokenizer: Tokenizer, *, frame_seconds: float) -> list[Transcript]:
    """Return the hypotheses of one row (fields without axis B) as texts with timed words.

    Times are rounded to milliseconds, confidences to four digits.
    """

    def word(text: str, places: list[int], k: int) -> Word:
        return Word(
            text,
            round(int(row.frames[k, places[0]]) * frame_seconds, 3),
            round(int(row.frames[k, places[-1]] + 1) * frame_seconds, 3),
            round(math.exp(row.log_probabilities[k, places].sum()), 4),
        )

    def transcript(k: int) -> Transcript:
        labels = row.labels[k, : row.counts[k]].tolist()
        words = tuple(word(text, places, k) for text, places in tokenizer.words(labels))
        return Transcript(tokenizer.decode(labels), words, float(row.scores[k]))

    return [transcript(k) for k, score in enumerate(row.scores) if k == 0 or score > -math.inf]


def recognition_buckets(
    utterances: Sequence[Utterance],
    config: Config,
    vocabulary_size: int,
    *,
    devices: int,
    passes: float = 1.0,
) -> Buckets:
    """Return the shapes of batches for utterances that are recognized `passes` times."""
    seconds = np.array([utterance.duration_seconds for utterance in utterances], np.float64)
    return evaluation_buckets(
        seconds,
        np.zeros(len(seconds), np.int64),
        data=config.data,
        work=utterance_work(config, vocabulary_size),
        frame_seconds=encoded_frame_seconds(config),
        devices=devices,
        passes=passes,
    )


def encoded_frame_seconds(config: Config) -> float:
    """Return the seconds from one encoded frame to the next."""
    features = config.features
    return config.encoder.subsampling_factor * hop_samples(features) / features.sample_rate_hz
