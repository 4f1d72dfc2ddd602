"""Tar shards of recordings with their transcripts, read in place."""

import json
import math
import re
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from asr_jax.data.sources.file_names import AUDIO_SUFFIXES, is_leftover
from asr_jax.data.sources.lines import seconds_in, string_in, unicode_fault
from asr_jax.text_files import decoded, transcript
from asr_jax.types import Member, Skipped, Utterance

SHARD_RANGE = re.compile(r"(.*)\{(\d+)\.\.(\d+)\}(.*)")
COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}


def is_shard_name(name: str) -> bool:
    """Return whether a path or pattern names tar shards, including compressed ones."""
    return re.search(r"\.(tar(\.(gz|bz2|xz|zst))?|tgz|tbz2|txz)$", name.lower()) is not None


def shard_paths(pattern: str) -> list[Path]:
    """Return the shards of a pattern such as shards_{000..010}.tar, or the path without a range.

    Raises ValueError for a range that decreases, and for a missing shard.
    """
    matched = SHARD_RANGE.fullmatch(pattern)
    if not matched:
        return [Path(pattern)]
    before, first, last, after = matched.groups()
    if int(first) > int(last):
        raise ValueError(f"{pattern}: {{{first}..{last}}} must increase")
    paths = []
    for number in range(int(first), int(last) + 1):
        path = Path(f"{before}{number:0{len(first)}d}{after}")
        if not path.is_file():
            raise ValueError(f"{pattern}: no such shard: {path}")
        paths.append(path)
    return paths


def tar_utterances(shards: Iterable[Path]) -> Iterator[Utterance | Skipped]:
    """Read every recording NAME.flac with its transcript NAME.txt or NAME.json.

    The recording may have any of AUDIO_SUFFIXES. The JSON has `text` and optionally `duration` in
    seconds (NaN if absent) and `speaker`. The id is NAME, including its folders.
    """
    for shard in shards:
        samples: dict[str, dict[str, Member]] = {}
        for name, member in tar_members(shard).items():
            suffix = PurePosixPath(name).suffix
            samples.setdefault(name.removesuffix(suffix), {})[suffix.lower()] = member
        with shard.open("rb") as file:
            for id, members in samples.items():
                audio = next((members[s] for s in AUDIO_SUFFIXES if s in members), None)
                has_text = ".txt" in members or ".json" in members
                if audio is not None and has_text:
                    try:
                        listed = _utterance(id, shard, file, audio, members)
                    except ValueError as error:
                        listed = Skipped(id, f"transcript cannot be read: {error}")
                    yield listed
                elif audio is not None or has_text:
                    missing = "recording" if audio is None else "transcript"
                    heard = audio and Utterance(id, shard, "", math.nan, within=audio)
                    yield Skipped(id, f"no {missing} next to it: in {shard}", heard)


def _utterance(
    id: str, shard: Path, file: BinaryIO, audio: Member, members: dict[str, Member]
) -> Utterance:
    """Return the utterance with this id, whose `members` of the open shard are named by suffix."""
    location = f"{shard}: {id}"
    fields = member_fields(members[".json"], file, location) if ".json" in members else {}
    text = _text(members[".txt"], file, location) if ".txt" in members else fields.get("text")
    if not isinstance(text, str):
        raise ValueError(f"{location}.json: needs the field text, a string")
    if fault := unicode_fault(text, f"{location}.json"):
        raise ValueError(fault)
    return Utterance(
        id=id,
        audio=shard,
        text=transcript(text),
        duration_seconds=seconds_in(fields, "duration", f"{location}.json"),
        speaker=string_in(fields, "speaker"),
        within=audio,
    )


def tar_members(path: Path) -> dict[str, Member]:
    """Return the recordings and texts of an uncompressed tar file by name, in their order.

    Raises the errors of `tar_entries`, and ValueError for members that do not belong in a shard:
    links, devices, and names that lead out of the folder. Leftovers of operating systems are not
    returned.
    """
    members: dict[str, Member] = {}
    for info in tar_entries(path):
        name = PurePosixPath(info.name)
        if name.is_absolute() or ".." in name.parts:
            raise ValueError(f"{path}: its member {info.name} leaves the folder")
        if info.isdir() or is_leftover(name):
            continue
        if not info.isreg() or info.issparse():
            raise ValueError(f"{path}: its member {info.name} is not a plain file")
        members[str(name)] = Member(info.offset_data, info.size)
    return members


def tar_entries(path: Path) -> Iterator[tarfile.TarInfo]:
    """Read the headers of all members of an uncompressed tar file, in their order.

    Raises ValueError if the file is compressed, truncated or not a tar file.
    """
    end = 0
    try:
        with path.open("rb") as file:
            start = file.read(6)
            for magic, program in COMPRESSED.items():
                if start.startswith(magic):
                    raise ValueError(
                        f"{path}: compressed with {program}; recordings are read in place, which "
                        "needs a plain tar: decompress it"
                    )
            file.seek(0)
            with tarfile.open(fileobj=file, mode="r:", encoding="utf-8") as tar:
                for info in tar:
                    end = info.offset_data + -(-info.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                    yield info
            # Python's tarfile stops without an error at a truncated or damaged header.
            file.seek(end)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise ValueError(f"{path}: truncated or damaged after byte {end}")
    except tarfile.TarError as error:
        raise ValueError(f"{path}: truncated, or not a tar file: {error}") from error
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or 'cannot be read'}") from error


def _read(member: Member, file: BinaryIO) -> bytes:
    file.seek(member.offset_bytes)
    return file.read(member.size_bytes)


def _text(member: Member, file: BinaryIO, location: str) -> str:
    return decoded(_read(member, file), f"{location}.txt")


def member_fields(member: Member, file: BinaryIO, location: str) -> dict[str, object]:
    """Read a member of an open tar that is a JSON object. Raises ValueError if it is not."""
    try:
        fields = json.loads(_read(member, file), strict=False)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{location}.json: not JSON, {error}") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{location}.json: needs a JSON object")
    return fields
