"""Cut manifests as Lhotse writes them."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from asr_jax.data.sources.lines import numbered_objects, root_of, seconds_in
from asr_jax.text import collapse_white_space
from asr_jax.types import Skipped, Utterance

# What Lhotse itself forgives a recording that is shorter than its manifest says.
TOLERANCE_SECONDS = 0.025
# Sums of binary fractions: below any sample.
DECIMALS = 9
# Recordings are resampled here as it is.
HARMLESS_TRANSFORMS = ("Resample",)


def is_lhotse(fields: dict[str, Any]) -> bool:
    """Whether an object of a JSONL manifest is one of Lhotse's: a cut, recording or supervision."""
    theirs = ("supervisions", "recording", "tracks", "sources", "recording_id")
    return "audio_filepath" not in fields and not fields.keys().isdisjoint(theirs)


def lhotse_utterances(manifest: Path) -> Iterator[Utterance | Skipped]:
    """Each supervision of each MonoCut, under the supervision's id.

    Its stretch is the supervision's, which must lie within the cut; of a recording with several
    channels it is the cut's. Paths are absolute, or relative as `root_of` finds. Raises ValueError
    for other cuts, recordings that are no files, and such as Lhotse would change on reading.
    """
    root: Path | None = None
    for where, cut in numbered_objects(manifest):
        path, channel = _recording(cut, where)
        if root is None:
            root = root_of(path, manifest.parent)
        start, length = _start(cut, where), _duration(cut, where)
        supervisions = _objects(cut, "supervisions", where)
        if not supervisions:
            yield Skipped(str(cut.get("id", where)), "a cut without supervisions")
        for supervision in supervisions:
            begin = _start(supervision, where)
            end = begin + _duration(supervision, where)
            id, text = str(supervision.get("id", cut.get("id"))), supervision.get("text")
            speaker = supervision.get("speaker")
            if begin < -TOLERANCE_SECONDS or end > length + TOLERANCE_SECONDS:
                yield Skipped(id, f"reaches beyond its cut: {begin:g} to {end:g} s of {length:g} s")
            elif not isinstance(text, str):
                yield Skipped(id, "a supervision without text")
            else:
                begin, end = max(begin, 0.0), min(end, length)
                yield Utterance(
                    id=id,
                    audio=root / path,
                    text=collapse_white_space(text),
                    duration_seconds=round(end - begin, DECIMALS),
                    speaker="" if speaker is None else str(speaker),
                    offset_seconds=round(start + begin, DECIMALS),
                    channel=channel,
                )


def _recording(cut: dict[str, Any], where: str) -> tuple[str, int | None]:
    """Path of the file with the cut's channel, and which of the file's channels that is."""
    if "recording_id" in cut or "sources" in cut:
        raise ValueError(
            f"{where}: a recording or supervision, but cuts are needed: "
            "lhotse cut simple -r RECORDINGS -s SUPERVISIONS CUTS"
        )
    if (kind := cut.get("type", "MonoCut")) != "MonoCut":
        raise ValueError(f"{where}: a {kind}, but only MonoCuts, of one recording, can be read")
    recording, channel = cut.get("recording"), cut.get("channel", 0)
    if not isinstance(recording, dict):
        raise ValueError(f"{where}: a cut without a recording; features alone cannot be read")
    for transform in _objects(recording, "transforms", where):
        if (name := transform.get("name")) not in HARMLESS_TRANSFORMS:
            raise ValueError(
                f"{where}: a recording to be changed by {name}; give the cuts without it, training "
                "changes recordings by itself"
            )
    for source in _objects(recording, "sources", where):
        channels = source.get("channels") or [channel]
        if channel in channels:
            break
    else:
        raise ValueError(f"{where}: no source of its recording has channel {channel}")
    if source.get("type") != "file":
        raise ValueError(
            f"{where}: a source of type {source.get('type')}, but only files can be read; nothing "
            "is run or fetched"
        )
    if not isinstance(source.get("source"), str):
        raise ValueError(f"{where}: a source of type file needs the field source, a path")
    return source["source"], None if len(channels) == 1 else channels.index(channel)


def _objects(fields: dict[str, Any], name: str, where: str) -> list[dict[str, Any]]:
    objects = fields.get(name) or []
    if not isinstance(objects, list) or not all(isinstance(one, dict) for one in objects):
        raise ValueError(f"{where}: {name} must be a list of objects")
    return objects


def _start(fields: dict[str, Any], where: str) -> float:
    """A supervision may begin before its cut, at a negative time."""
    value = fields.get("start", 0)
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{where}: start = {value!r} must be a number of seconds")
    return float(value)


def _duration(fields: dict[str, Any], where: str) -> float:
    seconds = seconds_in(fields, "duration", where)
    if math.isnan(seconds):
        raise ValueError(f"{where}: needs the field duration, a number of seconds")
    return seconds
