"""Checks of a recording and its transcript, before training or before both are stored."""

import math
import unicodedata
from collections.abc import Callable

import numpy as np

from asr_jax.audio.levels import Levels, measure
from asr_jax.audio.samples import AudioError, mean_at_rate
from asr_jax.data.recordings import (
    read_recording_channels,
    readable_recording_seconds,
    recording_as_flac,
    recording_contents,
    stored_gain,
    too_short,
)
from asr_jax.data.sources.prepared import Entry
from asr_jax.types import InMemory, Skipped, Utterance

# First bytes of FLAC, Ogg and MP3, which are stored unchanged; other formats become FLAC.
STORED_UNCHANGED = (b"fLaC", b"OggS", b"ID3")
# A recording is silent if its samples stay below about one bit of 16.
SILENT = 2e-5
RATE_HZ = 16_000
# Manifests round durations: a segment that ends this close to the end is the whole recording.
ROUNDING_SECONDS = 0.02


Taken = Callable[[Utterance], tuple[Utterance, float]]
"""Returns a recording as it is to be used, and the gain that restores it. Raises AudioError."""


def checked_recording(
    utterance: Utterance, *, min_seconds: float, max_seconds: float
) -> tuple[Utterance, Levels] | Skipped:
    """Return the utterance with its true duration, and its levels, or why it is left out.

    The recording, or the segment of it, is decoded completely; a duration of NaN means all after
    the offset. A reason is a phrase that many utterances share, then ": " and numbers.
    """
    taken = lambda segment: (segment, stored_gain(segment))
    checked = _checked(utterance, taken, min_seconds=min_seconds, max_seconds=max_seconds)
    return checked if isinstance(checked, Skipped) else (checked[0], checked[2])


def checked_entry(
    utterance: Utterance, *, min_seconds: float, max_seconds: float
) -> tuple[Entry, Levels] | Skipped:
    """Return the utterance as it is to be stored, and its levels, or why it is left out.

    What is to be stored is what is decoded. Reasons are as in checked_recording.
    """
    checked = _checked(utterance, _stored, min_seconds=min_seconds, max_seconds=max_seconds)
    if isinstance(checked, Skipped):
        return checked
    stored, gain, levels = checked
    assert isinstance(stored.within, InMemory)
    confidence = None if math.isnan(stored.confidence) else stored.confidence
    kept = stored.id, stored.text, stored.speaker, stored.duration_seconds
    return Entry(*kept, stored.within.contents, gain, confidence), levels


def _checked(
    utterance: Utterance, taken: Taken, *, min_seconds: float, max_seconds: float
) -> tuple[Utterance, float, Levels] | Skipped:
    """Return what is taken of the utterance with its duration, gain and levels, or a reason."""
    id, text = utterance.id, utterance.text
    try:
        segment = _segment(utterance)
        if not text:
            return Skipped(id, "empty transcript")
        if odd := sorted(filter(_is_odd, set(text))):
            return Skipped(id, f"odd characters: {''.join(odd)!r}")
        recording, gain = taken(segment)
        channels, rate_hz = read_recording_channels(recording)
        samples = mean_at_rate(utterance.audio, channels, rate_hz, sample_rate_hz=RATE_HZ)
    except AudioError as error:
        return Skipped(id, error.reason)
    seconds = len(channels) / rate_hz
    if gain * np.abs(samples).max() < SILENT:
        return Skipped(id, "silent")
    if seconds < min_seconds:
        return Skipped(id, f"shorter than {min_seconds:g} s: {seconds:.3g} s")
    if seconds > max_seconds:
        return Skipped(id, f"longer than {max_seconds:g} s: {seconds:.4g} s")
    if reason := too_short(len(samples), RATE_HZ, utterance):
        return Skipped(id, reason)
    levels = measure(channels, rate_hz, gain=gain)
    return recording._replace(duration_seconds=seconds), gain, levels


def _segment(utterance: Utterance) -> Utterance:
    """Return the utterance; with a duration of NaN if it is a whole recording. Raises AudioError.

    Manifests round the durations of whole recordings.
    """
    recording = readable_recording_seconds(utterance)
    end = utterance.offset_seconds + utterance.duration_seconds
    is_whole = utterance.offset_seconds == 0 and not end < recording - ROUNDING_SECONDS
    return utterance._replace(duration_seconds=math.nan) if is_whole else utterance


def _stored(segment: Utterance) -> tuple[Utterance, float]:
    """Return the segment in memory, as it is to be stored; only it is read. Raises AudioError."""
    contents, gain = _as_flac_or_unchanged(segment)
    recording = segment._replace(within=InMemory(contents), offset_seconds=0.0, channel=None)
    return recording._replace(duration_seconds=math.nan), gain


def _as_flac_or_unchanged(segment: Utterance) -> tuple[bytes, float]:
    is_whole = segment.offset_seconds == 0 and math.isnan(segment.duration_seconds)
    if is_whole and segment.channel is None:
        start = recording_contents(segment, len(STORED_UNCHANGED[0]))
        if start.startswith(STORED_UNCHANGED):
            return recording_contents(segment), stored_gain(segment)
    return recording_as_flac(segment)


def _is_odd(character: str) -> bool:
    """Return whether a character is a control, private, unassigned or replacement character."""
    return unicodedata.category(character) in ("Cc", "Co", "Cn", "Cs") or character == "\ufffd"
