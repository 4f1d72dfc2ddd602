"""From padded audio to text: features, encoder and search compiled as one function."""

import functools
import math
from collections.abc import Iterable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Int, PyTree

from asr_jax.config import Config, chunk_frames
from asr_jax.decoding.fusion import NO_FUSION, Fusion
from asr_jax.decoding.hypotheses import Hypotheses
from asr_jax.decoding.search import search
from asr_jax.distributed.mesh import on_devices, over_rows
from asr_jax.features.frames import hop_samples
from asr_jax.features.logmel import log_mel
from asr_jax.text import Tokenizer
from asr_jax.types import Batch, Transcript, Word


def decode_batch(
    params: PyTree,
    batch: Batch,
    fusion: Fusion,
    *,
    graphdef: nnx.GraphDef,
    config: Config,
    mesh: Mesh,
) -> tuple[Hypotheses, Int[Array, " B"]]:
    """What is found for every row, and the utterances in the rows."""
    model = nnx.merge(graphdef, params)
    mel = over_rows(functools.partial(log_mel, config=config.features), mesh)
    features, lengths = mel(batch.samples, batch.sample_lengths)
    chunk = chunk_frames(config.decoding.chunk_ms, config)
    encoded, lengths = model.encoder(features, lengths, chunk_frames=chunk)
    found = search(model, encoded, lengths, config=config.decoding, fusion=fusion)
    return found, jnp.asarray(batch.utterances)


class JittedDecoding:
    """`decode_batch`, compiled once per shape of its arguments, the rows spread over the mesh.

    Of a batch each process gives its own rows (mesh.local_rows), and gets the labels of all.
    """

    def __init__(self, graphdef: nnx.GraphDef, config: Config, mesh: Mesh):
        self._decode = jax.jit(
            functools.partial(decode_batch, graphdef=graphdef, config=config, mesh=mesh),
            out_shardings=NamedSharding(mesh, P()),
        )
        self._mesh = mesh
        self._compiled: set[tuple[tuple[int, ...], ...]] = set()

    def __call__(
        self, params: PyTree, batch: Batch, fusion: Fusion = NO_FUSION
    ) -> tuple[Hypotheses, jax.Array]:
        return self._decode(params, on_devices(batch, self._mesh), fusion)

    def compile(self, params: PyTree, batch: Batch, fusion: Fusion = NO_FUSION) -> None:
        """Decode the batch once where its shape is new, so that the next call need not compile."""
        shapes = tuple(leaf.shape for leaf in jax.tree.leaves((batch.samples, fusion)))
        if shapes not in self._compiled:
            self._compiled.add(shapes)
            jax.block_until_ready(self(params, batch, fusion))


@functools.cache
def jitted_decoding(graphdef: nnx.GraphDef, config: Config, mesh: Mesh) -> JittedDecoding:
    """One JittedDecoding per model structure, config and mesh."""
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
    """What is found for each of the `utterances` that the batches' rows refer to, the best first.

    None for one in no batch, since its recording could not be read.
    """
    found: list[Hypotheses | None] = [None] * utterances
    for batch in batches:
        store_rows(found, *decode(params, batch))
    frame_seconds = encoded_frame_seconds(config)
    return [row and transcripts(row, tokenizer, frame_seconds=frame_seconds) for row in found]


def store_rows(
    found: list[Hypotheses | None], hypotheses: Hypotheses, utterances: jax.Array
) -> None:
    """Store a batch's hypotheses by utterance: fields without axis B, N the most that one has."""
    hypotheses, utterances = jax.device_get((hypotheses, utterances))
    for row, utterance in enumerate(utterances):
        if utterance >= 0:
            of_row = Hypotheses(*(field[row] for field in hypotheses))
            most = int(of_row.counts.max())
            fields = (x[:, :most].copy() if x.ndim == 2 else x.copy() for x in of_row)
            found[utterance] = Hypotheses(*fields)


def transcripts(
    found: Hypotheses, tokenizer: Tokenizer, *, frame_seconds: float
) -> list[Transcript]:
    """The hypotheses of one row, fields without their axis B, as text with timed words.

    Times are in whole milliseconds, confidence has four digits.
    """

    def word(text: str, places: list[int], k: int) -> Word:
        return Word(
            text,
            round(int(found.frames[k, places[0]]) * frame_seconds, 3),
            round(int(found.frames[k, places[-1]] + 1) * frame_seconds, 3),
            round(math.exp(found.log_probabilities[k, places].sum()), 4),
        )

    def transcript(k: int) -> Transcript:
        labels = found.labels[k, : found.counts[k]].tolist()
        words = tuple(word(text, places, k) for text, places in tokenizer.words(labels))
        return Transcript(tokenizer.decode(labels), words, float(found.scores[k]))

    return [transcript(k) for k, score in enumerate(found.scores) if k == 0 or score > -math.inf]


def encoded_frame_seconds(config: Config) -> float:
    """From one of the encoder's frames to the next."""
    features = config.features
    return config.encoder.subsampling_factor * hop_samples(features) / features.sample_rate_hz
