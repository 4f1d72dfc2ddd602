"""Run the files of `sherpa_onnx` in onnxruntime and compare them with the JAX model."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import onnxruntime  # pyright: ignore[reportMissingImports]
from flax import nnx
from jaxtyping import Array, Float, Float32, Int, Int32, PyTree

from asr_jax.config import Config, chunk_frames
from asr_jax.export.difference import relative_difference
from asr_jax.export.format_version import require_readable
from asr_jax.export.sherpa_onnx import PARTS, layout, max_symbols_per_frame
from asr_jax.features.logmel import log_mel
from asr_jax.models.predictor import BLANK_ID, NONE_ID
from asr_jax.models.transducer import Transducer

# Recordings that are encoded at a time, padded to one length.
_BATCH = 8


class OnnxCheck(NamedTuple):
    """Labels that the files find, and their largest differences from the JAX model."""

    labels: list[list[int]]
    """Labels of each recording, found by sherpa-onnx's greedy search."""
    encoded: float
    """Largest difference of the encoder's outputs, as a fraction of the largest output."""
    logits: float
    """Largest difference of the logits along each recording's labels, as such a fraction."""


class Search(NamedTuple):
    """A greedy search of one recording that called the joint P times."""

    labels: list[int]
    frames: Int[np.ndarray, " P"]
    """Encoded frame of each call."""
    counts: Int[np.ndarray, " P"]
    """Labels found before each call."""
    logits: Float32[np.ndarray, "P W"]


Features = Float32[np.ndarray, "B T F"]
Encoded = Float32[np.ndarray, "B T2 D"]
Lengths = Int[np.ndarray, " B"]
# Output of a decoder, and the state that it needs with the next label.
Predicted = Float32[np.ndarray, "1 D ..."]
State = list[np.ndarray]


class IcefallRuntime:
    """encoder, decoder and joiner of icefall's layout as functions of NumPy arrays."""

    def __init__(self, folder: Path, *, suffix: str, context: int):
        self._encoder, self._decoder, self._joiner = _sessions(folder, suffix)
        self._context = context

    def encode(self, features: Features, lengths: Lengths) -> tuple[Encoded, Lengths]:
        """Return encoded frames and their number; a streaming encoder is given whole chunks."""
        if len(self._encoder.get_inputs()) > 2:
            return self._encode_chunks(features, lengths)
        encoded, frames = _run(self._encoder, features, lengths.astype(np.int64))
        # The lengths are C's long long, which NumPy distinguishes from int64.
        return encoded, frames.astype(np.int64)

    def _encode_chunks(self, features: Features, lengths: Lengths) -> tuple[Encoded, Lengths]:
        x, *caches, _ = self._encoder.get_inputs()
        size, batch = x.shape[1], len(features)
        state = [
            np.zeros([n if isinstance(n, int) else batch for n in cache.shape], np.float32)
            for cache in caches
        ]
        padded = np.pad(features, ((0, 0), (0, -features.shape[1] % size), (0, 0)))
        parts = []
        for first in range(0, padded.shape[1], size):
            chunk = padded[:, first : first + size]
            encoded, *state = _run(self._encoder, chunk, *state, np.full(batch, first))
            parts.append(encoded)
        return np.concatenate(parts, axis=1), -(-lengths // (size // parts[0].shape[1]))

    def predict(self, label: int, state: State | None) -> tuple[Predicted, State]:
        """Return the decoder's output after a label, and the state; None before the first label,
        which is the blank."""
        (labels,) = [np.full((1, self._context), NONE_ID)] if state is None else state
        labels = np.append(labels[:, 1:], [[label]], axis=1)
        return _run(self._decoder, labels.astype(np.int64))[0], [labels]

    def join(
        self, frame: Float32[np.ndarray, " D"], predicted: Predicted
    ) -> Float32[np.ndarray, " W"]:
        """Return the logits of one frame."""
        return _run(self._joiner, frame[None], predicted)[0][0]


class NemoRuntime:
    """encoder, decoder and joiner of NeMo's layout, with the model's numbers of labels."""

    def __init__(self, folder: Path, *, suffix: str, vocabulary: int):
        self._encoder, self._decoder, self._joiner = _sessions(folder, suffix)
        self._vocabulary = vocabulary

    def encode(self, features: Features, lengths: Lengths) -> tuple[Encoded, Lengths]:
        """Return encoded frames and their number."""
        encoded, frames = _run(self._encoder, features.swapaxes(1, 2), lengths.astype(np.int64))
        return encoded.swapaxes(1, 2), frames.astype(np.int64)

    def predict(self, label: int, state: State | None) -> tuple[Predicted, State]:
        """Return the decoder's output after a label, and the state; None before the first label,
        which is the blank."""
        layers, _, width = self._decoder.get_inputs()[2].shape
        before = [np.zeros((layers, 1, width), np.float32)] * 2 if state is None else state
        target = np.array([[(label - 1) % self._vocabulary]], np.int32)
        predicted, _, *after = _run(self._decoder, target, np.ones(1, np.int32), *before)
        return predicted, after

    def join(
        self, frame: Float32[np.ndarray, " D"], predicted: Predicted
    ) -> Float32[np.ndarray, " W"]:
        """Return the logits of one frame."""
        logits = _run(self._joiner, frame[None, :, None], predicted)[0][0, 0, 0]
        symbols, durations = np.split(logits, [self._vocabulary])
        return np.concatenate([np.roll(symbols, 1), durations])


Runtime = IcefallRuntime | NemoRuntime


def open_runtime(folder: Path, config: Config, *, suffix: str, vocabulary: int) -> Runtime:
    """Open the files with that suffix, in the layout that holds the config's model.

    Raises ArtifactError for files of another version.
    """
    if layout(config) == "icefall":
        return IcefallRuntime(folder, suffix=suffix, context=config.predictor.context)
    return NemoRuntime(folder, suffix=suffix, vocabulary=vocabulary)


def greedy(
    runtime: Runtime,
    encoded: Float32[np.ndarray, "T D"],
    *,
    vocabulary: int,
    max_symbols_per_frame: int,
) -> Search:
    """Search as sherpa-onnx does; a joint with durations moves on by the best duration."""
    predicted, state = runtime.predict(BLANK_ID, None)
    labels, frames, counts, logits = [], [], [], []
    frame = symbols_at_frame = 0
    while frame < len(encoded):
        logits.append(runtime.join(encoded[frame], predicted))
        frames.append(frame)
        counts.append(len(labels))
        symbols, durations = np.split(logits[-1], [vocabulary])
        best = int(symbols.argmax())
        duration = int(durations.argmax()) if durations.size else int(best == BLANK_ID)
        if best != BLANK_ID:
            labels.append(best)
            predicted, state = runtime.predict(best, state)
            symbols_at_frame += 1
        if duration == 0 and (symbols_at_frame == max_symbols_per_frame or best == BLANK_ID):
            duration = 1
        frame, symbols_at_frame = frame + duration, 0 if duration else symbols_at_frame
    return Search(labels, np.array(frames), np.array(counts), np.array(logits))


def _sessions(folder: Path, suffix: str) -> list[onnxruntime.InferenceSession]:
    paths = [folder / f"{part}{suffix}.onnx" for part in PARTS]
    sessions = [*map(onnxruntime.InferenceSession, paths)]
    for path, session in zip(paths, sessions):
        require_readable(path, session.get_modelmeta().custom_metadata_map)
    return sessions


def _run(session: onnxruntime.InferenceSession, *arrays: np.ndarray) -> list[np.ndarray]:
    names = [value.name for value in session.get_inputs()]
    return session.run(None, dict(zip(names, arrays, strict=True)))


def compare(
    runtime: Runtime,
    graphdef: nnx.GraphDef,
    params: PyTree,
    config: Config,
    recordings: Sequence[Float32[np.ndarray, " _"]],
    *,
    vocabulary: int,
) -> OnnxCheck:
    """Run the files and the JAX model on recordings, samples in -1..1.

    Raises ValueError where the numbers of encoded frames differ.
    """
    encode = functools.partial(_encode, graphdef, config, params)
    join = functools.partial(_join, graphdef, params)
    bound = max_symbols_per_frame(config)
    longest = max(map(len, recordings))
    labels, encoded_pairs, logit_pairs = [], [], []
    for first in range(0, len(recordings), _BATCH):
        batch = recordings[first : first + _BATCH]
        features, lengths, expected, frames = jax.device_get(encode(*_padded_batch(batch, longest)))
        encoded, runtime_frames = runtime.encode(features, lengths)
        if not np.array_equal(runtime_frames, frames):
            raise ValueError(f"encoder.onnx makes {runtime_frames} frames, the model {frames}")
        # Room for the labels and calls of any recording, so that JAX compiles once.
        most = encoded.shape[1] * bound
        for row in range(len(batch)):
            real = slice(frames[row])
            encoded_pairs.append((encoded[row, real], expected[row, real]))
            search = greedy(
                runtime, encoded[row, real], vocabulary=vocabulary, max_symbols_per_frame=bound
            )
            labels.append(search.labels)
            logits = join(
                expected[row],
                _padded(search.labels, most),
                _padded(search.frames, 2 * most),
                _padded(search.counts, 2 * most),
            )
            logits = jax.device_get(logits)[: len(search.frames)]
            logit_pairs.append((search.logits, logits))
    return OnnxCheck(labels, _largest_difference(encoded_pairs), _largest_difference(logit_pairs))


def _padded_batch(
    recordings: Sequence[Float32[np.ndarray, " _"]], longest: int
) -> tuple[Float32[np.ndarray, "B S"], Int32[np.ndarray, " B"]]:
    """Return samples and lengths of one shape for all batches, so that JAX compiles once."""
    samples = np.zeros((_BATCH, longest), np.float32)
    for row, recording in zip(samples, recordings):
        row[: len(recording)] = recording
    lengths = [*map(len, recordings)] + [1] * (_BATCH - len(recordings))
    return samples, np.array(lengths, np.int32)


def _padded(numbers: Sequence[int] | np.ndarray, length: int) -> Int32[np.ndarray, " _"]:
    return np.pad(np.asarray(numbers, np.int32), (0, length - len(numbers)))


def _largest_difference(pairs: list[tuple[np.ndarray, np.ndarray]]) -> float:
    actual, expected = (np.concatenate([x.ravel() for x in side]) for side in zip(*pairs))
    return relative_difference(actual, expected)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _encode(
    graphdef: nnx.GraphDef,
    config: Config,
    params: PyTree,
    samples: Float32[Array, "B S"],
    sample_lengths: Int32[Array, " B"],
) -> tuple[Float[Array, "B T F"], Int[Array, " B"], Float[Array, "B T2 D"], Int[Array, " B"]]:
    """Return the features that encoder.onnx is given and their lengths, and the encoded frames and
    lengths that it must return."""
    model = nnx.merge(graphdef, params)
    assert isinstance(model, Transducer)
    features, lengths = log_mel(samples, sample_lengths, config.features)
    plain = dataclasses.replace(config.features, normalization="none")
    unnormalized, _ = log_mel(samples, sample_lengths, plain)
    chunk = chunk_frames(config.decoding.chunk_ms, config)
    encoded, frames = model.encoder(features, lengths, chunk_frames=chunk)
    return unnormalized, lengths, model.joint.encoder_projection(encoded), frames


@functools.partial(jax.jit, static_argnums=0)
def _join(
    graphdef: nnx.GraphDef,
    params: PyTree,
    encoded: Float[Array, "T D"],
    labels: Int32[Array, " U"],
    frames: Int32[Array, " P"],
    counts: Int32[Array, " P"],
) -> Float[Array, "P W"]:
    """Return the logits of frames, each after its count of the labels."""
    model = nnx.merge(graphdef, params)
    assert isinstance(model, Transducer)
    predicted = model.joint.predictor_projection(model.predictor(labels[None])[0])
    return model.joint(encoded[frames], predicted[counts])
