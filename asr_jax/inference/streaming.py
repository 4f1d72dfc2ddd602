"""Streaming recognition: samples to timed words, chunk by chunk, with the latency of each chunk."""

import functools
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float32

from asr_jax.config import Config, chunk_frames
from asr_jax.decoding.hypotheses import Hypotheses
from asr_jax.decoding.stream import (
    StreamState,
    chunk_features,
    chunk_samples,
    start_samples,
    start_stream,
    stream_step,
)
from asr_jax.features.frames import frame_count, hop_samples, reach_hops
from asr_jax.inference.decode_batch import encoded_frame_seconds, transcripts
from asr_jax.inference.recognizer import Recognizer
from asr_jax.models.transducer import Transducer
from asr_jax.types import Word


class StreamUpdate(NamedTuple):
    """The words that a chunk of a stream adds."""

    seconds: float
    """Audio recognized so far."""
    final: tuple[Word, ...]
    """Words that this chunk completes."""
    partial: str
    """The last word, if a later chunk may extend it."""
    latency_seconds: float
    """Time from the chunk's last sample to this update."""


def recognize_stream(
    recognizer: Recognizer, pieces: Iterable[np.ndarray]
) -> Iterator[StreamUpdate]:
    """Yield an update for every chunk of a stream.

    The words equal those that greedy search finds in the whole recording with the same
    decoding.chunk_ms.

    Args:
        pieces: samples at the model's rate, in pieces of any length.
    """
    config = recognizer.config
    step, state = _compile(recognizer)
    unfinished = _NO_LABELS
    for number, chunk in enumerate(_chunks(pieces, config)):
        began = time.monotonic()
        state, hypotheses = step(state, chunk.samples, chunk.length)
        first_frame = number * chunk_frames(config.decoding.chunk_ms, config)
        labels = _append(unfinished, jax.device_get(hypotheses), first_frame=first_frame)
        final, partial, unfinished = _split_words(labels, recognizer, is_last=chunk.is_last)
        seconds = chunk.end_sample / config.features.sample_rate_hz
        yield StreamUpdate(seconds, final, partial, time.monotonic() - began)


@functools.cache
def _compiled_step(graphdef: nnx.GraphDef, config: Config) -> Callable:
    @jax.jit
    def step(params, state, samples, length):
        model = nnx.merge(graphdef, params)
        assert isinstance(model, Transducer)
        return stream_step(model, state, samples[None], length[None], config=config)

    return step


def _compile(recognizer: Recognizer) -> tuple[Callable, StreamState]:
    """Return step(state, samples, length) -> (state, hypotheses), compiled, and the first state."""
    config, params = recognizer.config, jax.device_get(recognizer.params)
    model = nnx.merge(recognizer.graphdef, params)
    assert isinstance(model, Transducer)
    start = start_stream(model, 1, config=config)
    compiled = _compiled_step(recognizer.graphdef, config)
    step = functools.partial(compiled, jax.device_put(params))
    silence = np.zeros(chunk_samples(config), np.float32)
    jax.block_until_ready(step(start, silence, np.int32(0)))
    return step, start


class _Chunk(NamedTuple):
    """The samples of one chunk."""

    samples: Float32[np.ndarray, " S"]
    """Samples as `encode_chunk` takes them, padded to S."""
    length: np.int32
    """Samples before the padding."""
    end_sample: int
    """The stream's sample at which the chunk ends."""
    is_last: bool


def _chunks(pieces: Iterable[np.ndarray], config: Config) -> Iterator[_Chunk]:
    """Yield a stream's chunks, each as soon as its samples have arrived."""
    hop, size = hop_samples(config.features), chunk_samples(config)
    step, before = chunk_features(config) * hop, reach_hops(config.features)[0] * hop
    # Samples of the next chunk and before it, and the stream's sample at which that chunk begins.
    buffer = np.zeros(start_samples(config), np.float32)
    begin = before - len(buffer)
    for piece in pieces:
        buffer = np.concatenate([buffer, piece])
        # A full chunk's samples reach into the first frame of the next, so that one exists too.
        while len(buffer) >= size:
            yield _Chunk(buffer[:size], np.int32(size), begin + step, is_last=False)
            buffer, begin = buffer[step:], begin + step
    total = begin + len(buffer) - before
    features = frame_count(total, config.features)
    while features > max(0, begin // hop):
        real = buffer[:size]
        samples = np.pad(real, (0, size - len(real)))
        is_last = features <= (begin + step) // hop
        end = total if is_last else min(begin + step, total)
        yield _Chunk(samples, np.int32(len(real)), end, is_last)
        buffer, begin = buffer[step:], begin + step


class _Labels(NamedTuple):
    """Labels of words that are not final yet."""

    labels: list[int]
    frames: list[int]
    log_probabilities: list[float]


_NO_LABELS = _Labels([], [], [])


def _append(labels: _Labels, hypotheses: Hypotheses, *, first_frame: int) -> _Labels:
    """Append the labels of a chunk that begins at the stream's encoded frame `first_frame`."""
    best = (0, 0, slice(hypotheses.counts[0, 0]))
    return _Labels(
        labels.labels + hypotheses.labels[best].tolist(),
        labels.frames + (hypotheses.frames[best] + first_frame).tolist(),
        labels.log_probabilities + hypotheses.log_probabilities[best].tolist(),
    )


def _split_words(
    labels: _Labels, recognizer: Recognizer, *, is_last: bool
) -> tuple[tuple[Word, ...], str, _Labels]:
    """Return the final words, the partial word, and the labels of the partial word."""
    rows = (labels.labels, len(labels.labels), labels.frames, labels.log_probabilities, 0.0)
    row = Hypotheses(*(np.array([field]) for field in rows))  # pyright: ignore[reportArgumentType]
    tokenizer, frame_seconds = recognizer.tokenizer, encoded_frame_seconds(recognizer.config)
    words = transcripts(row, tokenizer, frame_seconds=frame_seconds)[0].words
    if not words:
        return (), "", labels
    places = tokenizer.words(labels.labels)[-1][1]
    if is_last or places[-1] + 1 < len(labels.labels):  # something follows the last word
        return words, "", _NO_LABELS
    begin = places[0]
    rest = _Labels(labels.labels[begin:], labels.frames[begin:], labels.log_probabilities[begin:])
    return words[:-1], words[-1].text, rest
