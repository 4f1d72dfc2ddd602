"""The files of `sherpa_onnx` run by onnxruntime, and held against the JAX model they are of."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import onnxruntime  # pyright: ignore[reportMissingImports]
from flax import nnx
from jaxtyping import Array, Float, Float32, Int, Int32

from asr_jax.config import Config, chunk_frames
from asr_jax.export.difference import relative_difference
from asr_jax.export.format_version import require_readable
from asr_jax.export.nemo_layout import NEVER
from asr_jax.export.sherpa_onnx import PARTS, layout, max_symbols_per_frame
from asr_jax.features.logmel import log_mel
from asr_jax.models.predictor import BLANK_ID, NONE_ID

# Recordings that are encoded at a time, padded to one length.
_BATCH = 8


class Found(NamedTuple):
    """What the files make of recordings, and how far they are from the JAX model."""

    labels: list[list[int]]
    """Of greedy search, as sherpa-onnx has it."""
    encoded: float
    """Largest difference of the encoder's outputs, as a share of the largest of these."""
    logits: float
    """The same, of the logits along each recording's labels."""


class Searched(NamedTuple):
    """A greedy search of one recording."""

    labels: list[int]
    frames: Int[np.ndarray, " P"]
    """Those that the joint was asked about, one after the other."""
    counts: Int[np.ndarray, " P"]
    """Labels found before."""
    logits: Float32[np.ndarray, "P W"]


class IcefallRuntime:
    """encoder, decoder and joiner as functions of NumPy arrays."""

    def __init__(self, folder: Path, *, suffix: str, context: int):
        self._encoder, self._decoder, self._joiner = _sessions(folder, suffix)
        self._context = context

    def encode(
        self, features: Float32[np.ndarray, "B T F"], lengths: Int[np.ndarray, " B"]
    ) -> tuple[Float32[np.ndarray, "B T2 D"], Int[np.ndarray, " B"]]:
        """A streaming encoder is given whole chunks."""
        if len(self._encoder.get_inputs()) > 2:
            return self._encode_chunks(features, lengths)
        encoded, frames = _run(self._encoder, features, lengths.astype(np.int64))
        # C's long long there, which NumPy tells from int64.
        return encoded, frames.astype(np.int64)

    def _encode_chunks(self, features: Any, lengths: Any) -> tuple[Any, Any]:
        x, *caches, _ = self._encoder.get_inputs()
        size, batch = x.shape[1], len(features)
        state = [
            np.zeros([n if isinstance(n, int) else batch for n in cache.shape], np.float32)
            for cache in caches
        ]
        whole = np.pad(features, ((0, 0), (0, -features.shape[1] % size), (0, 0)))
        parts = []
        for first in range(0, whole.shape[1], size):
            chunk = whole[:, first : first + size]
            encoded, *state = _run(self._encoder, chunk, *state, np.full(batch, first))
            parts.append(encoded)
        return np.concatenate(parts, axis=1), -(-lengths // (size // parts[0].shape[1]))

    def predict(self, label: int, state: Any) -> tuple[Any, Any]:
        """The decoder's output after a label, and the state; None before the first, the blank."""
        none = np.full((1, self._context), NONE_ID)
        labels = np.append((none if state is None else state)[:, 1:], [[label]], axis=1)
        return _run(self._decoder, labels.astype(np.int64))[0], labels

    def join(self, frame: Float32[np.ndarray, " D"], predicted: Any) -> Float32[np.ndarray, " W"]:
        return _run(self._joiner, frame[None], predicted)[0][0]


class NemoRuntime:
    """The same of the other layout, with the model's labels."""

    def __init__(self, folder: Path, *, suffix: str, vocabulary: int):
        self._encoder, self._decoder, self._joiner = _sessions(folder, suffix)
        self._vocabulary = vocabulary

    def encode(
        self, features: Float32[np.ndarray, "B T F"], lengths: Int[np.ndarray, " B"]
    ) -> tuple[Float32[np.ndarray, "B T2 D"], Int[np.ndarray, " B"]]:
        encoded, frames = _run(self._encoder, features.swapaxes(1, 2), lengths.astype(np.int64))
        return encoded.swapaxes(1, 2), frames.astype(np.int64)

    def predict(self, label: int, state: Any) -> tuple[Any, Any]:
        width = self._decoder.get_inputs()[2].shape[2]
        before = [np.zeros((1, 1, width), np.float32)] * 2 if state is None else state
        target = np.array([[(label - 1) % self._vocabulary]], np.int32)
        predicted, _, *after = _run(self._decoder, target, np.ones(1, np.int32), *before)
        return predicted, after

    def join(self, frame: Float32[np.ndarray, " D"], predicted: Any) -> Float32[np.ndarray, " W"]:
        logits = _run(self._joiner, frame[None, :, None], predicted)[0][0, 0, 0]
        symbols, durations = np.split(logits, [self._vocabulary])
        return np.concatenate([np.roll(symbols, 1), durations])


Runtime = IcefallRuntime | NemoRuntime


def open_runtime(folder: Path, config: Config, *, suffix: str, vocabulary: int) -> Runtime:
    """The files with that suffix, in the layout that holds the config's model.

    Raises ArtifactError for those of another version.
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
) -> Searched:
    """As sherpa-onnx searches; of a joint with durations the best of these says how far to go."""
    predicted, state = runtime.predict(BLANK_ID, None)
    labels, frames, counts, logits = [], [], [], []
    frame = here = 0
    while frame < len(encoded):
        logits.append(runtime.join(encoded[frame], predicted))
        frames.append(frame)
        counts.append(len(labels))
        symbols, durations = np.split(logits[-1], [vocabulary])
        best = int(symbols.argmax())
        lasts = int(durations.argmax()) if durations.size else int(best == BLANK_ID)
        if best != BLANK_ID:
            labels.append(best)
            predicted, state = runtime.predict(best, state)
            here += 1
        if lasts == 0 and (here == max_symbols_per_frame or best == BLANK_ID):
            lasts = 1
        frame, here = frame + lasts, 0 if lasts else here
    return Searched(labels, np.array(frames), np.array(counts), np.array(logits))


def _sessions(folder: Path, suffix: str) -> list[onnxruntime.InferenceSession]:
    paths = [folder / f"{part}{suffix}.onnx" for part in PARTS]
    sessions = [*map(onnxruntime.InferenceSession, paths)]
    for path, session in zip(paths, sessions):
        require_readable(path, session.get_modelmeta().custom_metadata_map)
    return sessions


def _run(session: onnxruntime.InferenceSession, *arrays: np.ndarray) -> Any:
    names = [value.name for value in session.get_inputs()]
    return session.run(None, dict(zip(names, arrays, strict=True)))


def compare(
    runtime: Runtime,
    graphdef: nnx.GraphDef,
    params: Any,
    config: Config,
    recordings: Sequence[Float32[np.ndarray, " _"]],
    *,
    vocabulary: int,
) -> Found:
    """Runs the files and the JAX model on recordings, samples in -1..1.

    Raises ValueError where the numbers of encoded frames differ.
    """
    encode, join = _in_jax(graphdef, config)
    bound = max_symbols_per_frame(config)
    longest = max(map(len, recordings))
    labels, of_encoded, of_logits = [], [], []
    for first in range(0, len(recordings), _BATCH):
        batch = recordings[first : first + _BATCH]
        # One shape for all, so that JAX compiles once.
        samples = np.zeros((_BATCH, longest), np.float32)
        for row, recording in enumerate(batch):
            samples[row, : len(recording)] = recording
        sample_lengths = np.array([*map(len, batch)] + [1] * (_BATCH - len(batch)), np.int32)
        features, lengths, expected, frames = jax.device_get(
            encode(params, samples, sample_lengths)
        )
        encoded, found_frames = runtime.encode(features, lengths)
        if not np.array_equal(found_frames, frames):
            raise ValueError(f"encoder.onnx makes {found_frames} frames, the model {frames}")
        for row, real in enumerate(map(slice, frames[: len(batch)])):
            of_encoded.append((encoded[row, real], expected[row, real]))
            found = greedy(
                runtime, encoded[row, real], vocabulary=vocabulary, max_symbols_per_frame=bound
            )
            labels.append(found.labels)
            # As many labels and pairs as there may be, for one shape.
            most = encoded.shape[1] * bound
            pad = lambda x, most: np.pad(np.asarray(x, np.int32), (0, most - len(x)))
            logits = join(
                params,
                expected[row],
                pad(found.labels, most),
                pad(found.frames, 2 * most),
                pad(found.counts, 2 * most),
            )
            logits = jax.device_get(logits)[: len(found.frames)]
            never = found.logits == NEVER
            of_logits.append((np.where(never, logits, found.logits), logits))
    return Found(labels, _apart(of_encoded), _apart(of_logits))


def _apart(pairs: list[tuple[np.ndarray, np.ndarray]]) -> float:
    found, expected = (np.concatenate([x.ravel() for x in side]) for side in zip(*pairs))
    return relative_difference(found, expected)


@functools.cache
def _in_jax(graphdef: nnx.GraphDef, config: Config) -> tuple[Any, Any]:
    """What the files compute, in JAX: the encoder, with the features that encoder.onnx is given,
    and decoder with joiner."""
    given = dataclasses.replace(config.features, normalization="none")

    def encode(
        params: Any, samples: Float32[Array, "B S"], sample_lengths: Int32[Array, " B"]
    ) -> tuple[Array, Array, Array, Array]:
        model: Any = nnx.merge(graphdef, params)
        features, lengths = log_mel(samples, sample_lengths, config.features)
        unnormalized, _ = log_mel(samples, sample_lengths, given)
        chunk = chunk_frames(config.decoding.chunk_ms, config)
        encoded, frames = model.encoder(features, lengths, chunk_frames=chunk)
        return unnormalized, lengths, model.joint.encoder_projection(encoded), frames

    def join(
        params: Any,
        encoded: Float[Array, "T D"],
        labels: Int32[Array, " U"],
        frames: Int32[Array, " P"],
        counts: Int32[Array, " P"],
    ) -> Float[Array, "P W"]:
        model: Any = nnx.merge(graphdef, params)
        predicted = model.joint.predictor_projection(model.predictor(labels[None])[0])
        return model.joint(encoded[frames], predicted[counts])

    return jax.jit(encode), jax.jit(join)
