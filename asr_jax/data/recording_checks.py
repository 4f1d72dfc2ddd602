"""What of a recording with its transcript can be stored to train on, and what cannot."""

import unicodedata
from pathlib import Path

import numpy as np

from asr_jax.audio import AudioError, as_flac, audio_duration_seconds, read_audio
from asr_jax.data.sources.prepared import Entry
from asr_jax.types import Skipped

# Lossy ones are kept as they are; what is not in this list becomes FLAC.
STORED_AS_THEY_ARE = (b"fLaC", b"OggS", b"ID3")
# Largest sample of what is called silent: a bit or so of 16.
SILENT = 2e-5
RATE_HZ = 16_000


def validated(
    id: str,
    text: str,
    speaker: str,
    contents: bytes,
    *,
    path: Path,
    min_seconds: float,
    max_seconds: float,
    offset_seconds: float = 0.0,
    duration_seconds: float | None = None,
    channel: int | None = None,
) -> Entry | Skipped:
    """The recording, or the stretch of it, as it is to be stored; or why it is not.

    All of it is decoded. A reason is a phrase that many share, then ": " and this one's figures.
    """
    # U+FFFD stands where a decoder gave up.
    is_odd = lambda c: unicodedata.category(c) in ("Cc", "Co", "Cn", "Cs") or c == "\ufffd"
    odd = sorted(set(filter(is_odd, text)))
    if not text:
        return Skipped(id, "empty transcript")
    if odd:
        return Skipped(id, f"odd characters: {''.join(odd)!r}")
    try:
        is_stretch = offset_seconds or duration_seconds is not None or channel is not None
        if is_stretch or not contents.startswith(STORED_AS_THEY_ARE):
            contents = as_flac(
                path,
                contents=contents,
                offset_seconds=offset_seconds,
                duration_seconds=duration_seconds,
                channel=channel,
            )
        samples = read_audio(path, sample_rate_hz=RATE_HZ, contents=contents)
        seconds = audio_duration_seconds(path, contents=contents)
    except AudioError as error:
        return Skipped(id, error.reason)
    if np.abs(samples).max() < SILENT:
        return Skipped(id, "silent")
    if seconds < min_seconds:
        return Skipped(id, f"shorter than {min_seconds:g} s: {seconds:.3g} s")
    if seconds > max_seconds:
        return Skipped(id, f"longer than {max_seconds:g} s: {seconds:.4g} s")
    return Entry(id, text, speaker, seconds, contents)
