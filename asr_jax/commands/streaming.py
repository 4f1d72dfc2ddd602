"""`asr-jax transcribe --stream`: words while they are said, and how long after."""

import functools
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from asr_jax.audio import read_audio
from asr_jax.commands.recognition import Recognizer, with_decoding
from asr_jax.config import Config, chunk_frames
from asr_jax.decoding.hypotheses import Hypotheses
from asr_jax.decoding.recognizer import encoded_frame_seconds, transcripts
from asr_jax.decoding.stream import (
    cannot_stream,
    chunk_features,
    chunk_samples,
    start_stream,
    stream_step,
)
from asr_jax.features.frames import frame_count, hop_samples
from asr_jax.models.transducer import Transducer
from asr_jax.types import Word

STDIN, MICROPHONE = "-", "microphone"


class Heard(NamedTuple):
    """What a chunk added."""

    seconds: float
    """Audio recognised so far."""
    final: tuple[Word, ...]
    """Words that are complete now."""
    partial: str
    """The word that may go on."""
    latency_seconds: float
    """From when the chunk's last sample was there."""


def stream_source(source: Path, recognizer: Recognizer, *, as_json: bool) -> None:
    """Prints a line for every chunk that adds something, then the text, and latencies to stderr."""
    words, latencies, seconds, partial = [], [], 0.0, ""
    for heard in recognize_stream(recognizer, _pieces(source, recognizer)):
        changed = heard.final or heard.partial != partial
        partial = heard.partial
        words += heard.final
        latencies.append(1000 * heard.latency_seconds)
        seconds = heard.seconds
        if not changed:
            continue
        if as_json:
            fields = {"seconds": heard.seconds, "latency_ms": round(latencies[-1], 1)}
            fields |= {"final": [asdict(word) for word in heard.final], "partial": heard.partial}
            print(json.dumps(fields, ensure_ascii=False), flush=True)
        else:
            final = " ".join(word.text for word in heard.final)
            print(
                f"{heard.seconds:.2f}\t{latencies[-1]:.0f} ms\t{final}\t{heard.partial}", flush=True
            )
    text = " ".join(word.text for word in words)
    if as_json:
        fields = {"audio_filepath": str(source), "duration": seconds, "text": text}
        print(json.dumps(fields, ensure_ascii=False), flush=True)
    else:
        print(f"{source}\t{text}", flush=True)
    if latencies:
        middle, most = np.quantile(latencies, [0.5, 0.95])
        print(
            f"{len(latencies)} chunks of {recognizer.config.decoding.chunk_ms:g} ms; from the end "
            f"of one to its words {middle:.0f} ms, 95 of 100 within {most:.0f} ms",
            file=sys.stderr,
        )


def streaming(recognizer: Recognizer) -> Recognizer:
    """With the smallest chunks it was trained with, where decoding.chunk_ms is 0.

    Raises ValueError for a model that cannot recognise a stream.
    """
    config = recognizer.config
    if reason := cannot_stream(config):
        raise ValueError(f"--stream: {reason}")
    smallest = min(size for size in config.encoder.chunk_ms if size)
    return with_decoding(recognizer, chunk_ms=config.decoding.chunk_ms or smallest)


@functools.cache
def _compiled_step(graphdef: nnx.GraphDef, config: Config) -> Callable:
    @jax.jit
    def step(params, state, samples, length):
        model = nnx.merge(graphdef, params)
        assert isinstance(model, Transducer)
        return stream_step(model, state, samples[None], length[None], config=config)

    return step


def recognize_stream(recognizer: Recognizer, pieces: Iterable[np.ndarray]) -> Iterator[Heard]:
    """What every chunk of a stream adds; `pieces` are samples at the model's rate, of any length.

    The words are those that greedy search finds in the whole with the same decoding.chunk_ms.
    """
    config, tokenizer = recognizer.config, recognizer.tokenizer
    hop, size = hop_samples(config.features), chunk_samples(config)
    number, frame_seconds = chunk_features(config), encoded_frame_seconds(config)
    params = jax.device_get(recognizer.params)

    step = _compiled_step(recognizer.graphdef, config)
    model = nnx.merge(recognizer.graphdef, params)
    start = functools.partial(start_stream, model, 1, config=config)
    params = jax.device_put(params)
    nothing = jnp.zeros(size, jnp.float32)
    jax.block_until_ready(step(params, start(), nothing, jnp.int32(0)))

    state, chunks = start(), 0
    labels, frames, log_probabilities = [], [], []
    # Samples from a hop before the next chunk on, and the number of all that came.
    kept, total = np.zeros(hop, np.float32), 0

    def next_chunk(*, ended: bool) -> Heard:
        nonlocal state, chunks, kept
        began = time.monotonic()
        samples = np.zeros(size, np.float32)
        length = len(kept[:size])
        samples[:length] = kept[:size]
        state, found = step(params, state, samples, jnp.int32(length))
        found = jax.device_get(found)
        count = int(found.counts[0, 0])
        labels.extend(found.labels[0, 0, :count].tolist())
        offset = chunks * chunk_frames(config.decoding.chunk_ms, config)
        frames.extend((found.frames[0, 0, :count] + offset).tolist())
        log_probabilities.extend(found.log_probabilities[0, 0, :count].tolist())
        chunks += 1
        kept = kept[number * hop :]
        last = ended and frame_count(total, config.features) <= chunks * number
        final, partial = finished(last)
        seconds = min(chunks * number * hop, total) / config.features.sample_rate_hz
        return Heard(seconds, final, partial, time.monotonic() - began)

    def finished(ended: bool) -> tuple[tuple[Word, ...], str]:
        """Takes the complete words' labels off; those of the word that may go on stay."""
        rows = (labels, len(labels), frames, log_probabilities, 0.0)
        fields = (np.array([field]) for field in rows)
        row = Hypotheses(*fields)  # pyright: ignore[reportArgumentType]
        words = transcripts(row, tokenizer, frame_seconds=frame_seconds)[0].words
        if not words:
            return (), ""
        places = tokenizer.words(labels)[-1][1]
        if ended or places[-1] + 1 < len(labels):  # something follows the last word
            taken, partial = len(labels), ""
        else:
            taken, partial, words = places[0], words[-1].text, words[:-1]
        for field in (labels, frames, log_probabilities):
            del field[:taken]
        return words, partial

    for piece in pieces:
        total += len(piece)
        kept = np.concatenate([kept, piece])
        while len(kept) >= size:
            yield next_chunk(ended=False)
    while frame_count(total, config.features) > chunks * number:
        yield next_chunk(ended=True)
    final, _ = finished(True)
    if final:
        yield Heard(total / config.features.sample_rate_hz, final, "", 0.0)


def _pieces(source: Path, recognizer: Recognizer) -> Iterator[np.ndarray]:
    """Samples of a recording, of raw PCM at standard input, or of a microphone."""
    rate_hz = recognizer.config.features.sample_rate_hz
    size = 2 * hop_samples(recognizer.config.features)
    if str(source) == STDIN:
        while contents := sys.stdin.buffer.read(2 * size):
            whole = contents[: len(contents) // 2 * 2]
            yield np.frombuffer(whole, "<i2").astype(np.float32) / 2**15
    elif str(source) == MICROPHONE:
        yield from _microphone(rate_hz, size)
    else:
        samples = read_audio(source, sample_rate_hz=rate_hz)
        yield from (samples[start : start + size] for start in range(0, len(samples), size))


def _microphone(rate_hz: int, size: int) -> Iterator[np.ndarray]:
    try:
        import sounddevice  # pyright: ignore[reportMissingImports]
    except (ImportError, OSError) as error:  # OSError: without PortAudio
        raise ValueError(
            f"AUDIO {MICROPHONE}: needs sounddevice, pip install 'asr_jax[microphone]': {error}"
        ) from error
    try:
        with sounddevice.InputStream(samplerate=rate_hz, channels=1, dtype="float32") as stream:
            while True:
                yield stream.read(size)[0][:, 0].copy()
    except sounddevice.PortAudioError as error:
        raise ValueError(f"{MICROPHONE}: {error}") from error
