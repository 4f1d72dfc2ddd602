"""Label posteriors: when each label of a reference is spoken, for the evaluation report."""

import functools
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, PyTree

from asr_jax.config import Config, chunk_frames
from asr_jax.data.buckets import Buckets
from asr_jax.data.pipeline import evaluation_batches
from asr_jax.decoding.alignment import align_labels
from asr_jax.features.logmel import log_mel
from asr_jax.inference.decode_batch import encoded_frame_seconds
from asr_jax.inference.recognizer import Recognizer
from asr_jax.models.transducer import Transducer
from asr_jax.types import LabelPosterior, Utterance

# Utterances in a batch. All batches have the length of the longest utterance: one program.
ROWS = 8
# Smaller probabilities at either end of a label are not drawn.
SMALLEST = 0.01


def require_lattice(config: Config) -> None:
    """Raise ValueError for a model without a lattice of frames and labels."""
    if config.objective.kind not in ("transducer", "tdt", "hat"):
        raise ValueError(f"--lattices: a model of objective {config.objective.kind!r} has none")


def label_posteriors(
    recognizer: Recognizer, utterances: Sequence[Utterance]
) -> Mapping[str, list[LabelPosterior]]:
    """Return the posteriors of each reference's labels, by utterance id, in a single process.

    Utterances without a text, or whose recording cannot be read, are left out.
    """
    config, tokenizer = recognizer.config, recognizer.tokenizer
    utterances = [utterance for utterance in utterances if utterance.text]
    labels = tokenizer.encode_all([utterance.text for utterance in utterances])
    if not utterances:
        return {}
    longest = max(utterance.duration_seconds for utterance in utterances)
    batches = evaluation_batches(
        utterances,
        labels,
        buckets=Buckets((longest,), (max(map(len, labels)),), (ROWS,)),
        data=config.data,
        sample_rate_hz=config.features.sample_rate_hz,
    )
    compiled = jax.jit(
        functools.partial(_batch_posteriors, graphdef=recognizer.graphdef, config=config)
    )
    params = jax.device_get(recognizer.params)  # Spread over devices, they would stay so.
    by_id = {}
    for batch in batches:
        posteriors = jax.device_get(compiled(params, batch))
        for row, n in enumerate(batch.utterances):
            if n >= 0:
                by_id[utterances[n].id] = [
                    _label(tokenizer.pieces[label], posteriors[row, :, u], recognizer)
                    for u, label in enumerate(labels[n])
                ]
    return by_id


def _batch_posteriors(
    params: PyTree, batch: PyTree[Array], *, graphdef: nnx.GraphDef, config: Config
) -> Float[Array, "B T U"]:
    """Return the posteriors of a Batch whose fields are on the device."""
    model = nnx.merge(graphdef, params)
    assert isinstance(model, Transducer)
    features, lengths = log_mel(batch.samples, batch.sample_lengths, config.features)
    chunk = chunk_frames(config.decoding.chunk_ms, config)
    encoded, lengths = model.encoder(features, lengths, chunk_frames=chunk)
    return align_labels(model, encoded, lengths, batch.labels, batch.label_lengths).posteriors


def _label(piece: str, probabilities: np.ndarray, recognizer: Recognizer) -> LabelPosterior:
    """Return the label's posterior from the first to the last frame with a probability to draw."""
    frame_seconds = encoded_frame_seconds(recognizer.config)
    (frames,) = np.nonzero(probabilities >= SMALLEST)
    first, end = (frames[0], frames[-1] + 1) if len(frames) else (0, 0)
    likely = tuple(map(float, probabilities[first:end]))
    return LabelPosterior(piece, float(first * frame_seconds), frame_seconds, likely)
