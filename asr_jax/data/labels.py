"""Labels of all transcripts, cached so that a second start does not encode them again."""

import contextlib
import hashlib
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int32

from asr_jax.data.gc_paused import gc_paused
from asr_jax.text import Tokenizer

Labels = list[Int32[np.ndarray, " _"]]


def encode_transcripts(
    transcripts: Sequence[str], tokenizer: Tokenizer, *, cache_path: Path, write_cache: bool = True
) -> Labels:
    """Return `tokenizer.encode_all(transcripts)`, read from `cache_path` if it holds exactly these.

    If it does not, or is damaged, the file is replaced atomically; of several processes, only one
    should `write_cache`. A failed write is not an error: the file only saves seconds.
    """
    digest = hashlib.sha256(tokenizer.model)
    # The lengths tell a line break within a transcript from the end of one.
    digest.update(np.array([len(text) for text in transcripts], np.int64).data)
    digest.update("\n".join(transcripts).encode())
    labels = _read(cache_path, digest.hexdigest())
    if labels is not None:
        return labels
    with gc_paused():
        labels = tokenizer.encode_all(transcripts)
    if write_cache:
        with contextlib.suppress(OSError):
            _write(cache_path, digest.hexdigest(), labels)
    return labels


def _read(path: Path, digest: str) -> Labels | None:
    """Return the cached labels, or None if the file does not have this digest or is damaged."""
    try:
        with path.open("rb") as opened, np.load(opened) as file:
            if str(file["digest"]) != digest:
                return None
            ids, ends = file["ids"], np.cumsum(file["lengths"]).tolist()
    # NumPy and zipfile raise these for files that are missing, truncated or of another format.
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return [ids[start:end] for start, end in zip([0, *ends], ends)]


def _write(path: Path, digest: str, labels: Labels) -> None:
    partial = path.with_suffix(".tmp")
    with partial.open("wb") as file:
        np.savez(
            file,
            digest=np.array(digest),
            lengths=np.array([len(ids) for ids in labels], np.int32),
            ids=np.concatenate([np.zeros(0, np.int32), *labels]),
        )
    os.replace(partial, path)
