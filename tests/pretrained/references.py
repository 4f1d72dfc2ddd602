"""Tiny random Parakeet models, and what transformers 5.24.0 computes with them in float32.

`models/NAME` is a folder of transformers, `models/NAME.nemo` the same weights in NeMo's form.
features.npz and reference.npz hold every stage for two recordings of samples/an4.
"""

import functools
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

MODELS = Path(__file__).parent / "models"
SAMPLES = Path(__file__).parents[2] / "samples" / "an4"


class Recordings(NamedTuple):
    """Two recordings, padded to one length with zeros."""

    samples: np.ndarray
    lengths: np.ndarray


@functools.cache
def reference(name: str) -> dict[str, np.ndarray]:
    """Return the arrays of a model's reference, by their names."""
    return dict(np.load(MODELS / name / "reference.npz"))


@functools.cache
def reference_features(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the features [2, T, F] of a model and their lengths; 80 bins are those of ctc."""
    features = np.load(MODELS / {"rnnt": "ctc"}.get(name, name) / "features.npz")
    return features["input_features"], features["feature_lengths"].astype(np.int32)


@functools.cache
def recordings(name: str) -> Recordings:
    """Return the recordings of a model's reference."""
    listed = json.loads(str(reference(name)["recordings_json"]))
    read = [soundfile.read(SAMPLES / path, dtype="float32")[0][:n] for path, n in listed]
    lengths = np.array([len(samples) for samples in read], np.int32)
    padded = [np.pad(samples, (0, lengths.max() - len(samples))) for samples in read]
    return Recordings(np.stack(padded), lengths)


def greedy_reference(name: str, row: int) -> tuple[list[int], list[int]]:
    """Return the labels (blank is 0) and frames of a recording that was recognized alone."""
    arrays, labels, frames, frame = reference(name), [], [], 0
    tokens = arrays[f"greedy_sequences_alone_{row}"]
    blank = tokens[0]
    for token, duration in zip(tokens[1:], arrays[f"greedy_durations_alone_{row}"][1:]):
        if frame >= arrays["encoder_lengths"][row]:
            break
        if token != blank:
            labels.append(int(token) + 1)
            frames.append(frame)
        frame += int(duration)
    return labels, frames
