"""Checks of a recording and its transcript before both are stored in a prepared dataset."""

import math
import unicodedata

import numpy as np

from asr_jax.audio import AudioError, as_flac, audio_duration_seconds, read_audio
from asr_jax.data.recordings import recording_contents, recording_seconds
from asr_jax.data.sources.prepared import Entry
from asr_jax.types import Skipped, Utterance

# First bytes of FLAC, Ogg and MP3, which are stored unchanged; other formats become FLAC.
STORED_UNCHANGED = (b"fLaC", b"OggS", b"ID3")
# A recording is silent if its samples stay below about one bit of 16.
SILENT = 2e-5
RATE_HZ = 16_000
# Manifests round durations: a segment that ends this close to the end is the whole recording.
ROUNDING_SECONDS = 0.02


def checked_entry(
    utterance: Utterance, *, min_seconds: float, max_seconds: float
) -> Entry | Skipped:
    """Return the utterance with its recording as it is to be stored, or the reason why it is not.

    The recording, or the segment of it, is decoded completely; a duration of NaN means the whole
    recording. A reason is a phrase that many utterances share, then ": " and numbers.
    """
    id, text = utterance.id, utterance.text
    try:
        contents = recording_contents(utterance)
        is_whole = _is_whole(utterance)
    except AudioError as error:
        return Skipped(id, error.reason)
    if not text:
        return Skipped(id, "empty transcript")
    if odd := sorted(filter(_is_odd, set(text))):
        return Skipped(id, f"odd characters: {''.join(odd)!r}")
    try:
        must_encode = not contents.startswith(STORED_UNCHANGED)
        if must_encode or not is_whole or utterance.channel is not None:
            contents = as_flac(
                utterance.audio,
                contents=contents,
                offset_seconds=utterance.offset_seconds,
                duration_seconds=None if is_whole else utterance.duration_seconds,
                channel=utterance.channel,
            )
        samples = read_audio(utterance.audio, sample_rate_hz=RATE_HZ, contents=contents)
        seconds = audio_duration_seconds(utterance.audio, contents=contents)
    except AudioError as error:
        return Skipped(id, error.reason)
    if np.abs(samples).max() < SILENT:
        return Skipped(id, "silent")
    if seconds < min_seconds:
        return Skipped(id, f"shorter than {min_seconds:g} s: {seconds:.3g} s")
    if seconds > max_seconds:
        return Skipped(id, f"longer than {max_seconds:g} s: {seconds:.4g} s")
    return Entry(id, text, utterance.speaker, seconds, contents)


def _is_whole(utterance: Utterance) -> bool:
    """Return whether the utterance is the whole recording. Raises AudioError."""
    if math.isnan(utterance.duration_seconds):
        return True
    end = utterance.offset_seconds + utterance.duration_seconds
    reaches_end = end >= recording_seconds(utterance) - ROUNDING_SECONDS
    return reaches_end and utterance.offset_seconds == 0


def _is_odd(character: str) -> bool:
    """Return whether a character is a control, private, unassigned or replacement character."""
    return unicodedata.category(character) in ("Cc", "Co", "Cn", "Cs") or character == "\ufffd"
