"""Tar shards: recordings with their transcripts beside them, read in place."""

import json
import re
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from asr_jax.data.sources.librispeech_folder import AUDIO_SUFFIXES
from asr_jax.data.sources.lines import seconds_in
from asr_jax.text import collapse_white_space
from asr_jax.types import Member, Skipped, Utterance

SHARD_RANGE = re.compile(r"(.*)\{(\d+)\.\.(\d+)\}(.*)")
COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}


def is_shard_name(name: str) -> bool:
    """Whether a path or pattern names tar shards, compressed ones included."""
    return re.search(r"\.(tar(\.(gz|bz2|xz|zst))?|tgz|tbz2|txz)$", name.lower()) is not None


def shard_paths(pattern: str) -> list[Path]:
    """The shards of shards_{000..010}.tar, or the one that a plain path names.

    Raises ValueError for a range that falls, and for a shard that is missing.
    """
    matched = SHARD_RANGE.fullmatch(pattern)
    if not matched:
        return [Path(pattern)]
    before, first, last, after = matched.groups()
    if int(first) > int(last):
        raise ValueError(f"{pattern}: {{{first}..{last}}} must rise")
    paths = []
    for number in range(int(first), int(last) + 1):
        path = Path(f"{before}{number:0{len(first)}d}{after}")
        if not path.is_file():
            raise ValueError(f"{pattern}: no such shard: {path}")
        paths.append(path)
    return paths


def tar_utterances(shards: Iterable[Path]) -> Iterator[Utterance | Skipped]:
    """Every NAME.flac (.wav, .ogg, .opus) with its transcript NAME.txt, or NAME.json of `text`,
    optionally `duration` (NaN without) in seconds and `speaker`. NAME, folders included, is the id.
    """
    for shard in shards:
        samples: dict[str, dict[str, Member]] = {}
        for name, member in tar_members(shard).items():
            suffix = PurePosixPath(name).suffix
            parts = samples.setdefault(name.removesuffix(suffix), {})
            parts[suffix.lower()] = member
        with shard.open("rb") as file:
            for id, parts in samples.items():
                audio = next((parts[s] for s in AUDIO_SUFFIXES if s in parts), None)
                has_text = ".txt" in parts or ".json" in parts
                if audio is None and not has_text:
                    continue
                if audio is None or not has_text:
                    missing = "recording" if audio is None else "transcript"
                    yield Skipped(id, f"no {missing} beside it: in {shard}")
                    continue
                where = f"{shard}: {id}"
                fields = _fields(parts[".json"], file, where) if ".json" in parts else {}
                text = _text(parts[".txt"], file, where) if ".txt" in parts else fields.get("text")
                if not isinstance(text, str):
                    raise ValueError(f"{where}.json: needs the field text, a string")
                speaker = fields.get("speaker")
                yield Utterance(
                    id=id,
                    audio=shard,
                    text=collapse_white_space(text),
                    duration_seconds=seconds_in(fields, "duration", f"{where}.json"),
                    speaker="" if speaker is None else str(speaker),
                    within=audio,
                )


def tar_members(path: Path) -> dict[str, Member]:
    """Where in an uncompressed tar each of its files lies, in its order.

    Raises ValueError for one that is compressed, truncated or no tar, and for members that have no
    business in a shard: links, devices, and names that leave the folder.
    """
    members: dict[str, Member] = {}
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
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for info in tar:
                    name = PurePosixPath(info.name)
                    if name.is_absolute() or ".." in name.parts:
                        raise ValueError(f"{path}: its member {info.name} leaves the folder")
                    end = info.offset_data + -(-info.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                    if info.isdir():
                        continue
                    if not info.isreg() or info.issparse():
                        raise ValueError(f"{path}: its member {info.name} is no plain file")
                    members[str(name)] = Member(info.offset_data, info.size)
            # Python ends in silence at a header that is cut off or damaged.
            file.seek(end)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise ValueError(f"{path}: truncated or damaged after byte {end}")
    except tarfile.TarError as error:
        raise ValueError(f"{path}: truncated, or no tar: {error}") from error
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or 'cannot be read'}") from error
    return members


def _read(member: Member, file: BinaryIO) -> bytes:
    file.seek(member.offset_bytes)
    return file.read(member.size_bytes)


def _text(member: Member, file: BinaryIO, where: str) -> str:
    try:
        return _read(member, file).decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}.txt: not UTF-8 text") from error


def _fields(member: Member, file: BinaryIO, where: str) -> dict[str, Any]:
    try:
        fields = json.loads(_read(member, file))
    except ValueError as error:
        raise ValueError(f"{where}.json: not JSON, {error}") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{where}.json: needs a JSON object")
    return fields
