"""NeMo's JSONL manifests of audio files, or of the members of tar shards."""

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from asr_jax.data.sources.lines import (
    confidence_in,
    numbered_objects,
    root_of,
    seconds_in,
    string_in,
    unicode_fault,
)
from asr_jax.data.sources.tar_shards import tar_members
from asr_jax.text_files import decoded, transcript
from asr_jax.types import Member, Skipped, Utterance

# NeMo's shards hold a recording once; this suffix distinguishes the names of its segments.
SEGMENT_SUFFIX = re.compile(r"-sub\d+(?=(\.\w+)?$)")


def jsonl_utterances(manifest: Path) -> Iterator[Utterance | Skipped]:
    """Read a manifest with a JSON object per line.

    An object has `audio_filepath`, and `text` or `text_filepath`. Optional are `duration` (NaN if
    absent) and `offset` in seconds, `speaker`, `confidence` of a text that a machine wrote, and
    `id`, which defaults to the path, followed by the segment if there is an offset. Paths are
    absolute, or relative to `root_of`.

    With a `shard_id` N, `audio_filepath` names a member of audio_N.tar, which is in the manifest's
    folder or in its parent, where NeMo's converter writes it.
    """
    root: Path | None = None
    shards: dict[int, tuple[Path, dict[str, Member]]] = {}
    for location, fields in numbered_objects(manifest):
        name = fields.get("audio_filepath")
        if not isinstance(name, str):
            raise ValueError(f"{location}: needs the field audio_filepath, a string")
        shard = fields.get("shard_id")
        if shard is None:  # otherwise it is the name of a member
            root = root or root_of(name, manifest.parent)
        duration = seconds_in(fields, "duration", location)
        offset = seconds_in(fields, "offset", location)
        id = string_in(fields, "id") or (_segment_id(name, fields) if offset > 0 else name)
        text = _text(id, fields, location, root or manifest.parent)
        if isinstance(text, Skipped):
            yield text
            continue
        audio, member = (root or manifest.parent) / name, None
        if shard is not None:
            if not isinstance(shard, int):
                raise ValueError(f"{location}: shard_id = {shard!r} must be an integer")
            if shard not in shards:
                shards[shard] = _shard(manifest, shard, location)
            audio, members = shards[shard]
            member = members.get(name) or members.get(SEGMENT_SUFFIX.sub("", name))
            if member is None:
                yield Skipped(id, f"no such member of its shard: {name} in {audio}")
                continue
        yield Utterance(
            id=id,
            audio=audio,
            text=transcript(text),
            duration_seconds=duration,
            speaker=string_in(fields, "speaker"),
            offset_seconds=0.0 if math.isnan(offset) else offset,
            within=member,
            confidence=confidence_in(fields, location),
        )


def _text(id: str, fields: Mapping[str, object], location: str, root: Path) -> str | Skipped:
    """Return the transcript of a manifest's object, from its file if it has one."""
    text, path = fields.get("text"), fields.get("text_filepath")
    if text is None and isinstance(path, str):
        try:
            return decoded((root / path).read_bytes(), path)
        except (OSError, ValueError) as error:
            problem = getattr(error, "strerror", None) or error
            reason = f"transcript cannot be read: {location}: text_filepath = {path}: {problem}"
            return Skipped(id, reason)
    if not isinstance(text, str):
        raise ValueError(f"{location}: needs the field text, a string")
    fault = unicode_fault(text, location)
    return Skipped(id, fault) if fault else text


def _segment_id(name: str, fields: Mapping[str, object]) -> str:
    duration = fields.get("duration")
    return f"{name}@{fields['offset']}" + ("" if duration is None else f"+{duration}")


def _shard(manifest: Path, number: int, location: str) -> tuple[Path, dict[str, Member]]:
    """Return a shard's path and members."""
    name = f"audio_{number}.tar"
    for folder in (manifest.parent, manifest.absolute().parent.parent):
        if (folder / name).is_file():
            return folder / name, tar_members(folder / name)
    raise ValueError(
        f"{location}: shard_id = {number}, but {name} is neither in the manifest's folder nor in "
        "its parent"
    )
