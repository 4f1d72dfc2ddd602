"""Lhotse Shar: shards of cuts, each beside a tar of their recordings, read in place."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from asr_jax.data.sources.lhotse import cut_utterances
from asr_jax.data.sources.lines import numbered_objects, objects_in, string_in
from asr_jax.data.sources.tar_shards import member_fields, tar_entries
from asr_jax.types import Member, Skipped, Utterance

CUTS = re.compile(r"cuts(?P<number>(\..+)?)\.jsonl(\.gz)?")
RECORDINGS = re.compile(r"recording(?P<number>(\..+)?)\.tar")
# A recording NAME.flac is followed by its manifest; a cut without one has two empty members.
MANIFEST, NO_RECORDING = "json", ("nodata", "nometa")


def is_shar(folder: Path) -> bool:
    """Return whether the folder is a Shar: it has numbered cuts, or a shard of both kinds."""
    cuts, recordings = _shards(folder, CUTS), _shards(folder, RECORDINGS)
    is_numbered = any(re.fullmatch(r"\.\d+", number) for number in cuts)
    return is_numbered or not cuts.keys().isdisjoint(recordings)


def shar_utterances(folder: Path) -> Iterator[Utterance | Skipped]:
    """Read each supervision of the cuts of all shards; see `cut_utterances`.

    The shard cuts.N.jsonl.gz (or .jsonl) has its recordings in recording.N.tar, under the ids of
    the cuts; other fields are ignored. A cut without a recording, or a recording without a cut, is
    left out. Raises ValueError for a shard without its tar or its cuts, for damaged ones, and for
    cuts that have the same id.
    """
    cuts, recordings = _shards(folder, CUTS), _shards(folder, RECORDINGS)
    for number in sorted(cuts.keys() | recordings.keys()):
        if number not in recordings:
            raise ValueError(f"{cuts[number]}: no recording{number}.tar beside it")
        if number not in cuts:
            raise ValueError(f"{recordings[number]}: no cuts{number}.jsonl.gz beside it")
        yield from _shard_utterances(cuts[number], recordings[number])


def _shards(folder: Path, pattern: re.Pattern[str]) -> dict[str, Path]:
    """Return the files of a field by the part of their names that the fields share."""
    matches = ((pattern.fullmatch(path.name), path) for path in folder.iterdir())
    return {matched["number"]: path for matched, path in matches if matched}


def _shard_utterances(cuts: Path, tar: Path) -> Iterator[Utterance | Skipped]:
    """Read the utterances of a shard."""
    recordings: dict[str, dict[str, Member]] = {}
    for info in tar_entries(tar):
        if info.isreg():
            # An id may be any string, such as an absolute path or one with a hidden folder.
            id, _, suffix = info.name.rpartition(".")
            member = Member(info.offset_data, info.size)
            recordings.setdefault(id, {})[suffix] = member
    seen: set[str] = set()
    with tar.open("rb") as file:
        for location, cut in numbered_objects(cuts):
            id = string_in(cut, "id")
            if id in seen:
                raise ValueError(f"{location}: a second cut {id}; ids must be unique in a shard")
            seen.add(id)
            yield from _cut_utterances(cut, location, recordings.get(id, {}), tar, file)
    for id in recordings:
        if id not in seen:
            yield Skipped(id, f"a recording without a cut: in {tar}")


def _cut_utterances(
    cut: dict[str, object],
    location: str,
    members: Mapping[str, Member],
    tar: Path,
    file: BinaryIO,
) -> Iterator[Utterance | Skipped]:
    """Read the utterances of a cut, whose `members` of the open tar are named by suffix."""
    id = string_in(cut, "id")
    audio = [m for suffix, m in members.items() if suffix not in (MANIFEST, *NO_RECORDING)]
    if not audio:
        yield Skipped(id, f"a cut without a recording: in {tar}")
        return
    recording = cut.get("recording")
    if MANIFEST in members:
        # Lhotse takes it too: the recordings may have been added after the cuts were written.
        try:
            recording = member_fields(members[MANIFEST], file, f"{tar}: {id}")
        except ValueError as error:
            yield Skipped(id, f"recording cannot be read: {error}")
            return
    if isinstance(recording, dict):
        in_tar = {"type": "file", "source": tar.name}
        sources = [source | in_tar for source in objects_in(recording, "sources", location)]
        cut = cut | {"recording": recording | {"sources": sources}}
    for listed in cut_utterances(cut, location, lambda _: tar):
        yield listed._replace(within=audio[0]) if isinstance(listed, Utterance) else listed
