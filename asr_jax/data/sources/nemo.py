"""JSONL manifests as NeMo has them, of files or of the members of tar shards."""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from asr_jax.data.sources.lines import numbered_objects, root_of, seconds_in
from asr_jax.data.sources.tar_shards import tar_members
from asr_jax.text import collapse_white_space
from asr_jax.types import Member, Skipped, Utterance

# NeMo's shards hold a recording once, and tell its stretches apart by an ending of the name.
STRETCH_ENDING = re.compile(r"-sub\d+(?=(\.\w+)?$)")


def jsonl_utterances(manifest: Path) -> Iterator[Utterance | Skipped]:
    """A JSON object per line: `audio_filepath`, and `text` or `text_filepath`; optionally
    `duration` (NaN without) and `offset` in seconds, `speaker`, and `id` (else the path, with the
    stretch where it has an offset). Paths are absolute, or relative as `root_of` finds.

    With a `shard_id` N, `audio_filepath` names a member of audio_N.tar beside the manifest or in
    the folder above, where NeMo's converter puts them.
    """
    root: Path | None = None
    shards: dict[int, tuple[Path, dict[str, Member]]] = {}
    for where, fields in numbered_objects(manifest):
        name = fields.get("audio_filepath")
        if not isinstance(name, str):
            raise ValueError(f"{where}: needs the field audio_filepath, a string")
        if root is None:
            root = root_of(name, manifest.parent)
        text = _text(fields, where, root)
        duration = seconds_in(fields, "duration", where)
        offset = seconds_in(fields, "offset", where)
        id, speaker, shard = fields.get("id"), fields.get("speaker"), fields.get("shard_id")
        if id is None or id == "":
            id = _stretch(name, fields) if offset > 0 else name
        if shard is None:
            audio, member = root / name, None
        else:
            if not isinstance(shard, int):
                raise ValueError(f"{where}: shard_id = {shard!r} must be an integer")
            if shard not in shards:
                shards[shard] = _shard(manifest, shard, where)
            audio, members = shards[shard]
            member = members.get(name) or members.get(STRETCH_ENDING.sub("", name))
            if member is None:
                yield Skipped(str(id), f"no such member of its shard: {name} in {audio}")
                continue
        yield Utterance(
            id=str(id),
            audio=audio,
            text=collapse_white_space(text),
            duration_seconds=duration,
            speaker="" if speaker is None else str(speaker),
            offset_seconds=0.0 if math.isnan(offset) else offset,
            within=member,
        )


def _text(fields: dict[str, Any], where: str, root: Path) -> str:
    text, path = fields.get("text"), fields.get("text_filepath")
    if text is None and isinstance(path, str):
        try:
            return (root / path).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise ValueError(f"{where}: text_filepath = {path}: cannot be read") from error
    if not isinstance(text, str):
        raise ValueError(f"{where}: needs the field text, a string")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # half of a pair, as JSON may escape it
        raise ValueError(f"{where}: text has {text[error.start]!r}, no character") from error
    return text


def _stretch(name: str, fields: dict[str, Any]) -> str:
    duration = fields.get("duration")
    return f"{name}@{fields['offset']}" + ("" if duration is None else f"+{duration}")


def _shard(manifest: Path, number: int, where: str) -> tuple[Path, dict[str, Member]]:
    name = f"audio_{number}.tar"
    for folder in (manifest.parent, manifest.absolute().parent.parent):
        if (folder / name).is_file():
            return folder / name, tar_members(folder / name)
    raise ValueError(
        f"{where}: shard_id = {number}, but {name} is neither beside the manifest nor in the "
        "folder above"
    )
