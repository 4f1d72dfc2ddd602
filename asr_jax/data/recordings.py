"""The samples of an utterance, wherever its recording lies: a file, or a part of one."""

import numpy as np
from jaxtyping import Float32

from asr_jax.audio import AudioError, audio_duration_seconds, read_audio
from asr_jax.types import Member, Utterance


def read_recording(utterance: Utterance, *, sample_rate_hz: int) -> Float32[np.ndarray, " S"]:
    """Samples of the utterance's stretch, in -1..1, at `sample_rate_hz`. Raises AudioError."""
    return read_audio(
        utterance.audio,
        sample_rate_hz=sample_rate_hz,
        offset_seconds=utterance.offset_seconds,
        duration_seconds=utterance.duration_seconds,
        contents=_contents(utterance),
    )


def recording_seconds(utterance: Utterance) -> float:
    """Length of the whole recording that the utterance is a stretch of. Raises AudioError."""
    return audio_duration_seconds(utterance.audio, contents=_contents(utterance))


def _contents(utterance: Utterance) -> bytes | None:
    """The recording's bytes where it is a part of a file, None where it is the file."""
    within = utterance.within
    if within is None:
        return None
    if not isinstance(within, Member):
        raise AudioError(utterance.audio, f"{within}: not a part of a file that can be read")
    try:
        with utterance.audio.open("rb") as file:
            file.seek(within.offset_bytes)
            contents = file.read(within.size_bytes)
    except OSError as error:
        raise AudioError(utterance.audio, error.strerror or "cannot be read") from error
    if len(contents) < within.size_bytes:
        raise AudioError(
            utterance.audio, f"truncated, {len(contents)} of {within.size_bytes} bytes"
        )
    return contents
