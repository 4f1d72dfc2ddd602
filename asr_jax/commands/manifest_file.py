"""Manifests of recognized or segmented utterances, as files."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from asr_jax.errors import name_full_disk
from asr_jax.text_files import json_line


class ManifestEntry(NamedTuple):
    """A part of a recording, its text and the model's confidence in 0..1."""

    audio: Path
    offset_seconds: float
    duration_seconds: float
    text: str
    confidence: float


def write_manifest_file(path: Path, entries: Iterable[ManifestEntry]) -> None:
    """Write a JSONL manifest with absolute paths. The file appears once it is complete."""
    lines = [
        json_line(
            {
                "audio_filepath": str(entry.audio.absolute()),
                "offset": entry.offset_seconds,
                "duration": entry.duration_seconds,
                "text": entry.text,
                "confidence": entry.confidence,
            }
        )
        for entry in entries
    ]
    partial = path.with_name(f"{path.name}.partial")
    with name_full_disk(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text("".join(lines), encoding="utf-8")
        os.replace(partial, path)
