"""What every export says of itself, and which of them this package reads."""

from collections.abc import Mapping
from pathlib import Path

ABOUT = {"format": "asr_jax", "version": "1"}
"""Lies in what is written: metadata of safetensors and ONNX, about.json beside programs."""


class ArtifactError(ValueError):
    """An exported file that is damaged, or of another model or version; one line."""


def require_readable(path: Path, about: Mapping[str, str]) -> None:
    """Raises ArtifactError unless `about`, read from there, says what ABOUT does."""
    if {name: about.get(name) for name in ABOUT} != ABOUT:
        raise ArtifactError(
            f"{path}: written by {about.get('format', 'something else')}, version "
            f"{about.get('version', 'unknown')}; this is {ABOUT['format']}, version "
            f"{ABOUT['version']} of the format: export the run again"
        )
