"""A stream of samples to timed words, chunk by chunk, and how long after."""

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
    start_stream,
    stream_step,
)
from asr_jax.features.frames import frame_count, hop_samples
from asr_jax.inference.decode_batch import encoded_frame_seconds, transcripts
from asr_jax.inference.recognizer import Recognizer
from asr_jax.models.transducer import Transducer
from asr_jax.types import Word


class StreamUpdate(NamedTuple):
    """What a chunk added."""

    seconds: float
    """Audio recognised so far."""
    final: tuple[Word, ...]
    """Words that are complete now."""
    partial: str
    """The word that may go on."""
    latency_seconds: float
    """From when the chunk's last sample was there."""


def recognize_stream(
    recognizer: Recognizer, pieces: Iterable[np.ndarray]
) -> Iterator[StreamUpdate]:
    """What every chunk of a stream adds; `pieces` are samples at the model's rate, of any length.

    The words are those that greedy search finds in the whole with the same decoding.chunk_ms.
    """
    config = recognizer.config
    step, state = _ready(recognizer)
    waiting = _NO_LABELS
    for number, chunk in enumerate(_chunks(pieces, config)):
        began = time.monotonic()
        state, found = step(state, chunk.samples, chunk.length)
        first_frame = number * chunk_frames(config.decoding.chunk_ms, config)
        waiting = _followed_by(waiting, jax.device_get(found), first_frame=first_frame)
        final, partial, waiting = _complete(waiting, recognizer, is_last=chunk.is_last)
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


def _ready(recognizer: Recognizer) -> tuple[Callable, StreamState]:
    """step(state, samples, length) -> (state, labels), compiled, and what a stream begins with."""
    config, params = recognizer.config, jax.device_get(recognizer.params)
    model = nnx.merge(recognizer.graphdef, params)
    assert isinstance(model, Transducer)
    start = start_stream(model, 1, config=config)
    compiled = _compiled_step(recognizer.graphdef, config)
    step = functools.partial(compiled, jax.device_put(params))
    nothing = np.zeros(chunk_samples(config), np.float32)
    jax.block_until_ready(step(start, nothing, np.int32(0)))
    return step, start


class _Chunk(NamedTuple):
    samples: Float32[np.ndarray, " S"]
    """Of `encode_chunk`."""
    length: np.int32
    """How many of them there are."""
    end_sample: int
    """Of the stream, behind the chunk."""
    is_last: bool


def _chunks(pieces: Iterable[np.ndarray], config: Config) -> Iterator[_Chunk]:
    """A stream's chunks, each as soon as its samples are there."""
    hop, size = hop_samples(config.features), chunk_samples(config)
    step = chunk_features(config) * hop
    # Samples from a hop before the next chunk on, and where in the stream that one begins.
    kept, begin = np.zeros(hop, np.float32), 0
    for piece in pieces:
        kept = np.concatenate([kept, piece])
        # What such a chunk reaches beyond its end is a frame of the next: that one comes too.
        while len(kept) >= size:
            yield _Chunk(kept[:size], np.int32(size), begin + step, is_last=False)
            kept, begin = kept[step:], begin + step
    total = begin + len(kept) - hop
    while frame_count(total - begin, config.features) > 0:
        there = kept[:size]
        samples = np.pad(there, (0, size - len(there)))
        is_last = frame_count(total - begin - step, config.features) <= 0
        yield _Chunk(samples, np.int32(len(there)), min(begin + step, total), is_last)
        kept, begin = kept[step:], begin + step


class _Labels(NamedTuple):
    """Of words that may go on."""

    labels: list[int]
    frames: list[int]
    log_probabilities: list[float]


_NO_LABELS = _Labels([], [], [])


def _followed_by(waiting: _Labels, found: Hypotheses, *, first_frame: int) -> _Labels:
    """And then by those of a chunk that begins at the stream's encoded frame `first_frame`."""
    new = (0, 0, slice(found.counts[0, 0]))
    return _Labels(
        waiting.labels + found.labels[new].tolist(),
        waiting.frames + (found.frames[new] + first_frame).tolist(),
        waiting.log_probabilities + found.log_probabilities[new].tolist(),
    )


def _complete(
    found: _Labels, recognizer: Recognizer, *, is_last: bool
) -> tuple[tuple[Word, ...], str, _Labels]:
    """The words that are complete, the one that may go on, and its labels."""
    rows = (found.labels, len(found.labels), found.frames, found.log_probabilities, 0.0)
    row = Hypotheses(*(np.array([field]) for field in rows))  # pyright: ignore[reportArgumentType]
    tokenizer, frame_seconds = recognizer.tokenizer, encoded_frame_seconds(recognizer.config)
    words = transcripts(row, tokenizer, frame_seconds=frame_seconds)[0].words
    if not words:
        return (), "", found
    places = tokenizer.words(found.labels)[-1][1]
    if is_last or places[-1] + 1 < len(found.labels):  # something follows the last word
        return words, "", _NO_LABELS
    begin = places[0]
    rest = _Labels(found.labels[begin:], found.frames[begin:], found.log_probabilities[begin:])
    return words[:-1], words[-1].text, rest
