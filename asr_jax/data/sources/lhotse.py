"""Lhotse's manifests of cuts."""

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from asr_jax.data.sources.lines import (
    numbered_objects,
    objects_in,
    root_of,
    seconds_in,
    string_in,
    unicode_fault,
)
from asr_jax.text_files import transcript
from asr_jax.types import Skipped, Utterance

# Lhotse's own tolerance for recordings that are shorter than their manifest says.
TOLERANCE_SECONDS = 0.025
# Rounds off the errors of sums of seconds; finer than any sample.
DECIMALS = 9
# Recordings are resampled by this package in any case.
HARMLESS_TRANSFORMS = ("Resample",)


def is_lhotse(fields: Mapping[str, object]) -> bool:
    """Return whether a JSONL manifest's object is Lhotse's: a cut, recording or supervision."""
    lhotse_fields = ("supervisions", "recording", "tracks", "sources", "recording_id")
    return "audio_filepath" not in fields and not fields.keys().isdisjoint(lhotse_fields)


def lhotse_utterances(manifest: Path) -> Iterator[Utterance | Skipped]:
    """Read each supervision of each cut of a manifest; see `cut_utterances`.

    Paths are absolute, or relative to `root_of`.
    """
    root: Path | None = None

    def file_of(path: str) -> Path:
        nonlocal root
        root = root or root_of(path, manifest.parent)
        return (root or manifest.parent) / path

    for location, cut in numbered_objects(manifest):
        yield from cut_utterances(cut, location, file_of)


def cut_utterances(
    cut: Mapping[str, object], location: str, file_of: Callable[[str], Path]
) -> Iterator[Utterance | Skipped]:
    """Read each supervision of a MonoCut, under the supervision's id.

    The utterance is the supervision's segment, which must be within the cut, on the supervision's
    channel (or the cut's) if the recording has several. `file_of` returns the file at the path of a
    source. Raises ValueError for other cuts, for recordings that are not files, and for those that
    Lhotse would transform.
    """
    sources = _sources(cut, location)
    cut_path, cut_channel = _channel(sources, cut.get("channel", 0), location)
    cut_start, cut_seconds = _start(cut, location), _duration(cut, location)
    supervisions = objects_in(cut, "supervisions", location)
    if not supervisions:
        yield Skipped(str(cut.get("id", location)), "a cut without supervisions")
    for supervision in supervisions:
        start = _start(supervision, location)
        end = start + _duration(supervision, location)
        id, text = str(supervision.get("id", cut.get("id"))), supervision.get("text")
        if start < -TOLERANCE_SECONDS or end > cut_seconds + TOLERANCE_SECONDS:
            reason = f"{start:g} to {end:g} s of {cut_seconds:g} s"
            yield Skipped(id, f"extends beyond its cut: {reason}")
        elif not isinstance(text, str):
            yield Skipped(id, "a supervision without text")
        elif fault := unicode_fault(text, location):
            yield Skipped(id, fault)
        else:
            start, end = max(start, 0.0), min(end, cut_seconds)
            path, channel = cut_path, cut_channel
            if (own := supervision.get("channel")) is not None:
                path, channel = _channel(sources, own, location)
            yield Utterance(
                id=id,
                audio=file_of(path),
                text=transcript(text),
                duration_seconds=round(end - start, DECIMALS),
                speaker=string_in(supervision, "speaker"),
                offset_seconds=round(cut_start + start, DECIMALS),
                channel=channel,
            )


def _sources(cut: Mapping[str, object], location: str) -> list[dict[str, object]]:
    """Return the sources of the cut's recording: files, each with some of its channels."""
    if "recording_id" in cut or "sources" in cut:
        raise ValueError(
            f"{location}: a recording or supervision, but cuts are needed: "
            "lhotse cut simple -r RECORDINGS -s SUPERVISIONS CUTS"
        )
    if (kind := cut.get("type", "MonoCut")) != "MonoCut":
        raise ValueError(f"{location}: a {kind}, but only MonoCuts, of one recording, can be read")
    recording = cut.get("recording")
    if not isinstance(recording, dict):
        raise ValueError(f"{location}: a cut without a recording; features alone cannot be read")
    for transform in objects_in(recording, "transforms", location):
        if (name := transform.get("name")) not in HARMLESS_TRANSFORMS:
            raise ValueError(
                f"{location}: a recording to be changed by {name}; pass cuts without it, training "
                "does its own augmentation"
            )
    return objects_in(recording, "sources", location)


def _channel(
    sources: list[dict[str, object]], channel: object, location: str
) -> tuple[str, int | None]:
    """Return the path of the file with a channel, or with all of several, and its index in it.

    The index is None if the file has no other channel.
    """
    wanted = channel if isinstance(channel, list) else [channel]
    for source in sources:
        channels = source.get("channels") or wanted
        if isinstance(channels, list) and wanted and all(one in channels for one in wanted):
            break
    else:
        raise ValueError(f"{location}: no source of its recording has channel {channel}")
    if 1 < len(wanted) < len(channels):
        raise ValueError(
            f"{location}: channels {channel} of the {len(channels)} of its recording; can be read: "
            "one channel, or the mean of all"
        )
    if source.get("type") == "shar":
        raise ValueError(
            f"{location}: a source of type shar; pass the folder of the Shar, in which "
            "cuts.*.jsonl.gz and recording.*.tar are together"
        )
    if source.get("type") != "file":
        raise ValueError(
            f"{location}: a source of type {source.get('type')}, but only files can be read; "
            "no command is run and nothing is downloaded"
        )
    path = source.get("source")
    if not isinstance(path, str):
        raise ValueError(f"{location}: a source of type file needs the field source, a path")
    return path, None if len(wanted) == len(channels) else channels.index(wanted[0])


def _start(fields: Mapping[str, object], location: str) -> float:
    """Return the start in seconds; negative for a supervision that starts before its cut."""
    value = fields.get("start", 0)
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{location}: start = {value!r} must be a number of seconds")
    return float(value)


def _duration(fields: Mapping[str, object], location: str) -> float:
    seconds = seconds_in(fields, "duration", location)
    if math.isnan(seconds):
        raise ValueError(f"{location}: needs the field duration, a number of seconds")
    return seconds
