"""`asr-jax transcribe --stream`: print words while they are spoken, with their latency."""

import codecs
import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from asr_jax.audio.samples import AudioError, read_audio_blocks
from asr_jax.decoding.stream import cannot_stream
from asr_jax.features.frames import hop_samples
from asr_jax.inference.inputs import STDIN_PATHS, is_pipe
from asr_jax.inference.piped_audio import piped_samples
from asr_jax.inference.recognizer import Recognizer, with_decoding
from asr_jax.inference.streaming import StreamUpdate, recognize_stream
from asr_jax.text_files import field, json_line
from asr_jax.types import Word

MICROPHONE = "microphone"


def stream_source(source: Path, recognizer: Recognizer, *, as_json: bool) -> None:
    """Print a line for every chunk that changes the text, then the text; latencies go to stderr."""
    words, latencies, seconds, partial = [], [], 0.0, ""
    for update in recognize_stream(recognizer, _pieces(source, recognizer)):
        if update.final or update.partial != partial:
            print(_update_line(update, as_json=as_json), end="", flush=True)
        partial, seconds = update.partial, update.seconds
        words += update.final
        latencies.append(1000 * update.latency_seconds)
    text = _joined(words)
    if as_json:
        fields = {"audio_filepath": str(source), "duration": seconds, "text": text}
        print(printable_json(json_line(fields)), end="", flush=True)
    else:
        print(f"{field(str(source))}\t{text}", flush=True)
    if latencies:
        median, percentile_95 = np.quantile(latencies, [0.5, 0.95])
        print(
            f"{len(latencies)} chunks of {recognizer.config.decoding.chunk_ms:g} ms; latency after "
            f"the end of a chunk: median {median:.0f} ms, 95th percentile {percentile_95:.0f} ms",
            file=sys.stderr,
        )


def _update_line(update: StreamUpdate, *, as_json: bool) -> str:
    latency_ms = 1000 * update.latency_seconds
    if as_json:
        fields = {
            "seconds": update.seconds,
            "latency_ms": round(latency_ms, 1),
            "final": [asdict(word) for word in update.final],
            "partial": update.partial,
        }
        return printable_json(json_line(fields))
    final = _joined(update.final)
    return f"{update.seconds:.2f}\t{latency_ms:.0f} ms\t{final}\t{update.partial}\n"


def printable_json(line: str) -> str:
    """Return a line of JSON that standard output can encode: in ASCII if it is not UTF-8."""
    encoding = codecs.lookup(sys.stdout.encoding or "utf-8").name
    return line if encoding == "utf-8" else json.dumps(json.loads(line)) + "\n"


def _joined(words: Sequence[Word]) -> str:
    return " ".join(word.text for word in words)


def streaming(recognizer: Recognizer) -> Recognizer:
    """Return the recognizer with the smallest chunks of its training if decoding.chunk_ms is 0.

    Raises ValueError for a model that cannot recognize a stream.
    """
    config = recognizer.config
    if reason := cannot_stream(config):
        raise ValueError(f"--stream: {reason}")
    smallest = min(size for size in config.encoder.chunk_ms if size)
    return with_decoding(recognizer, chunk_ms=config.decoding.chunk_ms or smallest)


def _pieces(source: Path, recognizer: Recognizer) -> Iterator[np.ndarray]:
    """Yield samples of a recording, of standard input or another pipe, or of a microphone.

    Ctrl-C ends pipes and the microphone.
    """
    rate_hz = recognizer.config.features.sample_rate_hz
    size = 2 * hop_samples(recognizer.config.features)
    if is_pipe(source):
        yield from _until_interrupted(_piped(source, rate_hz, size))
    elif str(source) == MICROPHONE:
        yield from _until_interrupted(_microphone(rate_hz, size))
    else:
        yield from read_audio_blocks(source, sample_rate_hz=rate_hz)


def _until_interrupted(pieces: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    while True:
        try:
            piece = next(pieces, None)
        except KeyboardInterrupt:
            return
        if piece is None:
            return
        yield piece


def _piped(source: Path, rate_hz: int, size: int) -> Iterator[np.ndarray]:
    is_stdin = source in STDIN_PATHS
    try:
        with contextlib.nullcontext(sys.stdin.buffer) if is_stdin else source.open("rb") as pipe:
            yield from piped_samples(pipe.read, source, sample_rate_hz=rate_hz, block_samples=size)
    except OSError as error:
        raise AudioError(source, error.strerror or "cannot be read") from error


def _microphone(rate_hz: int, size: int) -> Iterator[np.ndarray]:
    try:
        import sounddevice  # pyright: ignore[reportMissingImports]
    except (ImportError, OSError) as error:  # OSError: PortAudio is missing
        raise ValueError(
            f"AUDIO {MICROPHONE}: needs sounddevice, pip install 'asr_jax[microphone]': {error}"
        ) from error
    try:
        with sounddevice.InputStream(samplerate=rate_hz, channels=1, dtype="float32") as stream:
            while True:
                yield stream.read(size)[0][:, 0].copy()
    except sounddevice.PortAudioError as error:
        raise ValueError(f"{MICROPHONE}: {error}") from error
