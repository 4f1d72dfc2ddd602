"""Small recordings, manifests, configs and interruptions that tests of several folders need."""

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from unittest import mock

import numpy as np
import soundfile

from asr_jax.config import (
    Config,
    DataConfig,
    EncoderConfig,
    JointConfig,
    PredictorConfig,
    TokenizerConfig,
)
from asr_jax.training.metrics_log import MetricsLog

RATE_HZ = 16_000
TINY = Config(
    data=DataConfig(bucket_seconds=(1.0,), bucket_labels=(16,), bucket_utterances=(8,)),
    tokenizer=TokenizerConfig(kind="char"),
    encoder=EncoderConfig(
        layers=1,
        width=16,
        heads=2,
        kernel_frames=3,
        subsampling="conv1d",
        subsampling_channels=16,
        remat="none",
    ),
    predictor=PredictorConfig(embedding_width=8, width=8),
    joint=JointConfig(width=8),
)


def tiny_config(**changes: Mapping[str, object]) -> Config:
    """Return TINY with fields of its sections changed: `tiny_config(encoder={"layers": 2})`."""
    sections = {
        name: dataclasses.replace(getattr(TINY, name), **fields) for name, fields in changes.items()
    }
    return dataclasses.replace(TINY, **sections)


def write_tone(path: Path, seconds: float, *, pitch_hz: float = 300.0) -> Path:
    """Write a recording of a sine wave."""
    path.parent.mkdir(parents=True, exist_ok=True)
    n = np.arange(round(seconds * RATE_HZ))
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * pitch_hz / RATE_HZ * n), RATE_HZ)
    return path


def write_manifest(path: Path, transcripts: dict[str, str]) -> Path:
    """Write a JSONL manifest of `transcripts`, keyed by the recording's name."""
    lines = [json.dumps({"audio_filepath": a, "text": t}) for a, t in transcripts.items()]
    path.write_text("\n".join(lines))
    return path


def checkpoint_steps(run: Path) -> set[str]:
    """Return the names of the checkpoints in a run directory, which are their steps."""
    return {path.name for path in (run / "checkpoints").iterdir()}


@contextlib.contextmanager
def signalled(number: int, *, after_step: int, times: int = 1) -> Iterator[None]:
    """Send this process the signal when the training step is logged."""
    write = MetricsLog.write

    def write_and_send(log, step, figures):
        write(log, step, figures)
        if step == after_step and "loss" in figures:
            for _ in range(times):
                os.kill(os.getpid(), number)

    with mock.patch.object(MetricsLog, "write", write_and_send):
        yield
