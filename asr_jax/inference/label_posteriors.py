"""When each label of a reference comes: the lattice's posteriors, for a report."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from flax import nnx

from asr_jax.config import Config, chunk_frames
from asr_jax.data.pipeline import evaluation_batches
from asr_jax.decoding.alignment import align_labels
from asr_jax.features.logmel import log_mel
from asr_jax.inference.decode_batch import encoded_frame_seconds
from asr_jax.inference.recognizer import Recognizer
from asr_jax.models.transducer import Transducer
from asr_jax.types import LabelPosterior, Utterance

# Of so many at once, at the longest one's length: one program, whatever their lengths.
ROWS = 8
# A probability below is drawn as nothing.
SMALLEST = 0.01


def require_lattice(config: Config) -> None:
    if config.objective.kind not in ("transducer", "tdt", "hat"):
        raise ValueError(f"--lattices: a model of objective {config.objective.kind!r} has none")


def label_posteriors(
    recognizer: Recognizer, utterances: Sequence[Utterance]
) -> Mapping[str, list[LabelPosterior]]:
    """By the utterance's id; of those that can be read and have a text. One process."""
    config, tokenizer = recognizer.config, recognizer.tokenizer
    utterances = [utterance for utterance in utterances if utterance.text]
    labels = tokenizer.encode_all([utterance.text for utterance in utterances])
    if not utterances:
        return {}
    data = dataclasses.replace(
        config.data,
        bucket_seconds=(max(utterance.duration_seconds for utterance in utterances),),
        bucket_labels=(max(map(len, labels)),),
        bucket_utterances=(ROWS,),
    )

    @jax.jit
    def posteriors(params, batch):
        model = nnx.merge(recognizer.graphdef, params)
        assert isinstance(model, Transducer)
        mel = functools.partial(log_mel, config=config.features)
        chunk = chunk_frames(config.decoding.chunk_ms, config)
        encoded, lengths = model.encoder(
            *mel(batch.samples, batch.sample_lengths), chunk_frames=chunk
        )
        target = (batch.labels, batch.label_lengths)
        return align_labels(model, encoded, lengths, *target).posteriors

    found = {}
    batches = evaluation_batches(
        utterances, labels, data=data, sample_rate_hz=config.features.sample_rate_hz
    )
    params = jax.device_get(recognizer.params)  # Spread over devices, they would stay so.
    for batch in batches:
        of_rows = jax.device_get(posteriors(params, batch))
        for row, n in enumerate(batch.utterances):
            if n >= 0:
                found[utterances[n].id] = [
                    _label(tokenizer.pieces[label], of_rows[row, :, u], recognizer)
                    for u, label in enumerate(labels[n])
                ]
    return found


def _label(piece: str, probabilities: np.ndarray, recognizer: Recognizer) -> LabelPosterior:
    frame_seconds = encoded_frame_seconds(recognizer.config)
    (frames,) = np.nonzero(probabilities >= SMALLEST)
    first, end = (frames[0], frames[-1] + 1) if len(frames) else (0, 0)
    likely = tuple(map(float, probabilities[first:end]))
    return LabelPosterior(piece, float(first * frame_seconds), frame_seconds, likely)
