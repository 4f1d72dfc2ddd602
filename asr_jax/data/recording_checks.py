"""Checks of a recording and its transcript before both are stored in a prepared dataset."""

import math
import unicodedata

import numpy as np

from asr_jax.audio.levels import Levels, measure
from asr_jax.audio.samples import AudioError, audio_duration_seconds, mean_at_rate, read_channels
from asr_jax.data.recordings import (
    recording_as_flac,
    recording_contents,
    recording_seconds,
    stored_gain,
    too_short,
)
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
) -> tuple[Entry, Levels] | Skipped:
    """Return the utterance as it is to be stored and its levels, or why it is not stored.

    The recording, or the segment of it, is decoded completely; a duration of NaN means all after
    the offset. A reason is a phrase that many utterances share, then ": " and numbers.
    """
    id, text = utterance.id, utterance.text
    try:
        is_whole = _is_whole(utterance)
    except AudioError as error:
        return Skipped(id, error.reason)
    if not text:
        return Skipped(id, "empty transcript")
    if odd := sorted(filter(_is_odd, set(text))):
        return Skipped(id, f"odd characters: {''.join(odd)!r}")
    try:
        contents, gain = _as_stored(utterance, is_whole=is_whole)
        channels, rate_hz = read_channels(utterance.audio, contents=contents)
        samples = mean_at_rate(utterance.audio, channels, rate_hz, sample_rate_hz=RATE_HZ)
        seconds = audio_duration_seconds(utterance.audio, contents=contents)
    except AudioError as error:
        return Skipped(id, error.reason)
    if gain * np.abs(samples).max() < SILENT:
        return Skipped(id, "silent")
    if seconds < min_seconds:
        return Skipped(id, f"shorter than {min_seconds:g} s: {seconds:.3g} s")
    if seconds > max_seconds:
        return Skipped(id, f"longer than {max_seconds:g} s: {seconds:.4g} s")
    if reason := too_short(len(samples), RATE_HZ, utterance):
        return Skipped(id, reason)
    confidence = None if math.isnan(utterance.confidence) else utterance.confidence
    entry = Entry(id, text, utterance.speaker, seconds, contents, gain, confidence)
    return entry, measure(channels, rate_hz, gain=gain)


def _is_whole(utterance: Utterance) -> bool:
    """Return whether the utterance is the whole recording. Raises AudioError."""
    recording = recording_seconds(utterance)
    if math.isnan(utterance.duration_seconds):
        return utterance.offset_seconds == 0
    end = utterance.offset_seconds + utterance.duration_seconds
    return end >= recording - ROUNDING_SECONDS and utterance.offset_seconds == 0


def _as_stored(utterance: Utterance, *, is_whole: bool) -> tuple[bytes, float]:
    """Return the bytes to store, and the gain that restores the recording. Raises AudioError.

    Only the segment of a longer recording is read.
    """
    if is_whole:
        utterance = utterance._replace(duration_seconds=math.nan)
        if utterance.channel is None:
            start = recording_contents(utterance, len(STORED_UNCHANGED[0]))
            if start.startswith(STORED_UNCHANGED):
                return recording_contents(utterance), stored_gain(utterance)
    return recording_as_flac(utterance)


def _is_odd(character: str) -> bool:
    """Return whether a character is a control, private, unassigned or replacement character."""
    return unicodedata.category(character) in ("Cc", "Co", "Cn", "Cs") or character == "\ufffd"
