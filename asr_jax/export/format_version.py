"""Format and version that every export carries, and the check when it is read."""

from collections.abc import Mapping
from pathlib import Path

ABOUT = {"format": "asr_jax", "version": "1"}
"""Written into the metadata of safetensors and ONNX files, and into about.json with programs."""


class ArtifactError(ValueError):
    """An exported file that is damaged, or of another model or version; its text is one line."""


def require_readable(path: Path, about: Mapping[str, str]) -> None:
    """Raise ArtifactError unless `about`, read from `path`, has the format and version of ABOUT."""
    if {name: about.get(name) for name in ABOUT} != ABOUT:
        raise ArtifactError(
            f"{path}: written by {about.get('format', 'something else')}, version "
            f"{about.get('version', 'unknown')}; this is {ABOUT['format']}, version "
            f"{ABOUT['version']} of the format: export the run again"
        )
