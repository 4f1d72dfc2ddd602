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
from asr_jax.export.sherpa_onnx import PARTS
from asr_jax.features.logmel import log_mel
from asr_jax.models.predictor import BLANK_ID, NONE_ID

# Recordings that are encoded at a time, padded to one length.
_BATCH = 8


class Found(NamedTuple):
    """What the files make of recordings, and how far they are from the JAX model."""

    labels: list[list[int]]
    """Of greedy search, as sherpa-onnx has it: at most one label per frame."""
    encoded: float
    """Largest difference of the encoder's outputs, as a share of the largest of these."""
    logits: float
    """The same, of the logits along each recording's labels."""


class Runtime:
    """encoder, decoder and joiner as functions of NumPy arrays."""

    def __init__(self, folder: Path, *, suffix: str):
        self._encoder, self._decoder, self._joiner = (
            onnxruntime.InferenceSession(folder / f"{part}{suffix}.onnx") for part in PARTS
        )

    def encode(
        self, features: Float32[np.ndarray, "B T F"], lengths: Int[np.ndarray, " B"]
    ) -> tuple[Float32[np.ndarray, "B T2 D"], Int[np.ndarray, " B"]]:
        encoded, frames = _run(self._encoder, features, lengths.astype(np.int64))
        # C's long long there, which NumPy tells from int64.
        return encoded, frames.astype(np.int64)

    def predict(self, labels: Int[np.ndarray, "B K"]) -> Float32[np.ndarray, "B D"]:
        return _run(self._decoder, labels.astype(np.int64))[0]

    def join(
        self, encoded: Float32[np.ndarray, "B D"], predicted: Float32[np.ndarray, "B D"]
    ) -> Float32[np.ndarray, "B V"]:
        return _run(self._joiner, encoded, predicted)[0]

    def greedy(
        self, encoded: Float32[np.ndarray, "T D"], context: int
    ) -> tuple[Int32[np.ndarray, "T K"], Float32[np.ndarray, "T V"]]:
        """The last labels before every frame, and the logits there."""
        labels = np.array([[NONE_ID] * (context - 1) + [BLANK_ID]], np.int32)
        predicted, contexts, logits = self.predict(labels), [], []
        for frame in encoded:
            contexts.append(labels[0])
            logits.append(self.join(frame[None], predicted)[0])
            if (best := int(logits[-1].argmax())) != BLANK_ID:
                labels = np.append(labels[:, 1:], np.array([[best]], np.int32), axis=1)
                predicted = self.predict(labels)
        return np.array(contexts), np.array(logits)


def _run(session: onnxruntime.InferenceSession, *arrays: np.ndarray) -> Any:
    names = [value.name for value in session.get_inputs()]
    return session.run(None, dict(zip(names, arrays, strict=True)))


def compare(
    runtime: Runtime,
    graphdef: nnx.GraphDef,
    params: Any,
    config: Config,
    recordings: Sequence[Float32[np.ndarray, " _"]],
) -> Found:
    """Runs the files and the JAX model on recordings, samples in -1..1.

    Raises ValueError where the numbers of encoded frames differ.
    """
    encode, join = _in_jax(graphdef, config)
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
        contexts = np.zeros((*encoded.shape[:2], config.predictor.context), np.int32)
        logits = []
        for row, real in enumerate(map(slice, frames[: len(batch)])):
            of_encoded.append((encoded[row, real], expected[row, real]))
            contexts[row, real], found = runtime.greedy(encoded[row, real], contexts.shape[-1])
            logits.append(found)
            best = found.argmax(axis=1)
            labels.append(best[best != BLANK_ID].tolist())
        expected = jax.device_get(join(params, expected, contexts))
        of_logits += [(found, right[: len(found)]) for found, right in zip(logits, expected)]
    return Found(labels, _apart(of_encoded), _apart(of_logits))


def _apart(pairs: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """The largest difference as a share of the largest magnitude; infinite where one is NaN."""
    largest = max(np.abs(expected).max() for _, expected in pairs)
    difference = max(np.abs(found - expected).max() for found, expected in pairs)
    return float(difference / largest) if np.isfinite(difference) else np.inf


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
        params: Any, encoded: Float[Array, "B T D"], contexts: Int32[Array, "B T K"]
    ) -> Float[Array, "B T V"]:
        model: Any = nnx.merge(graphdef, params)
        predicted = jax.vmap(model.predictor.output)(contexts)
        return model.joint(encoded, model.joint.predictor_projection(predicted))

    return jax.jit(encode), jax.jit(join)
