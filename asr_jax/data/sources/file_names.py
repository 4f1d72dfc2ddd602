"""Names of files in folders, archives and buckets: recordings, leftovers of operating systems."""

import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path, PurePath

AUDIO_SUFFIXES = tuple(
    ".flac .wav .w64 .rf64 .aiff .aif .caf .au .sph .ogg .oga .opus .mp3".split()
)
"""Suffixes of recordings, in either case; the first is taken if a name has several."""

BUCKET = re.compile(r"(s3|gs|gcs|abfss?|hf):/+(.+)")


def bucket_url(path: Path) -> str:
    """Return the URL of a file or folder in a bucket; empty for a path of this machine.

    A path that is made of s3://bucket/file is s3:/bucket/file.
    """
    matched = BUCKET.fullmatch(str(path))
    return f"{matched[1]}://{matched[2]}" if matched else ""


def is_leftover(path: PurePath) -> bool:
    """Return whether a path within a dataset is hidden, or macOS's copy of a file's attributes."""
    return any(part.startswith(".") or part == "__MACOSX" for part in path.parts)


def is_recording(path: PurePath) -> bool:
    """Return whether the suffix is that of a recording."""
    return path.suffix.lower() in AUDIO_SUFFIXES


def recordings_by_id(paths: Iterable[Path]) -> dict[str, Path]:
    """Return the recordings among the files of a folder by `file_id`."""
    recordings = sorted(
        (path for path in paths if is_recording(path) and not path.name.startswith(".")),
        key=lambda path: (-AUDIO_SUFFIXES.index(path.suffix.lower()), path),
    )
    return {file_id(path.stem): path for path in recordings}


def file_id(stem: str) -> str:
    """Return the form of a name by which a recording and its id in a text file are compared."""
    # macOS writes the accents of a file's name as characters of their own.
    return unicodedata.normalize("NFC", stem)
