"""Small recordings and manifests that tests of several rooms fabricate."""

import json
from pathlib import Path

import numpy as np
import soundfile

RATE_HZ = 16_000


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
