"""The archives that LibriSpeech is published in (openslr.org/12, CC BY 4.0)."""

import math
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from asr_jax.data.sources.file_names import is_leftover
from asr_jax.text_files import EncodingError, decoded, transcript
from asr_jax.types import InMemory, Skipped, Utterance

ADDRESS = "https://www.openslr.org/resources/12"


class Archive(NamedTuple):
    """Size and checksum of an archive."""

    size_bytes: int
    sha256: str


# The checksums come from tensorflow-datasets (Apache-2.0), which records them for its downloads.
ARCHIVES = {
    "dev-clean": Archive(
        337926286, "76f87d090650617fca0cac8f88b9416e0ebf80350acb97b343a85fa903728ab3"
    ),
    "dev-other": Archive(
        314305928, "12661c48e8c3fe1de2c1caa4c3e135193bfb1811584f11f569dd12645aa84365"
    ),
    "test-clean": Archive(
        346663984, "39fde525e59672dc6d1551919b1478f724438a95aa55f874b576be21967e6c23"
    ),
    "test-other": Archive(
        328757843, "d09c181bba5cf717b3dee7d4d592af11a3ee3a09e08ae025c5506f6ebe961c29"
    ),
    "train-clean-100": Archive(
        6387309499, "d4ddd1d5a6ab303066f14971d768ee43278a5f2a0aa43dc716b0e64ecbbbf6e2"
    ),
    "train-clean-360": Archive(
        23049477885, "146a56496217e96c14334a160df97fffedd6e0a04e66b9c5af0d40be3c792ecf"
    ),
    "train-other-500": Archive(
        30593501606, "ddb22f27f96ec163645d53215559df6aa36515f26e01dd70798188350adcb6d2"
    ),
}


def read_archive(path: Path) -> Iterator[Utterance | Skipped]:
    """Read the recordings of PART.tar.gz, chapter by chapter; nothing is unpacked to disk.

    Durations are NaN. Raises ValueError, naming the archive, if it is damaged or a member's path
    leads out of its folder.
    """
    chapter: PurePosixPath | None = None
    recordings: dict[str, bytes] = {}
    transcripts: dict[str, str] = {}
    try:
        with tarfile.open(path, "r|*", encoding="utf-8") as archive:
            for member in archive:
                name = PurePosixPath(member.name)
                if name.is_absolute() or ".." in name.parts or member.issym() or member.islnk():
                    raise ValueError(f"{path}: its member {member.name} leads out of its folder")
                opened = archive.extractfile(member) if member.isfile() else None
                is_listed = name.suffix in (".flac", ".txt") and not is_leftover(name)
                if opened is None or not is_listed:
                    continue
                if name.parent != chapter:
                    yield from _chapter_utterances(path, recordings, transcripts)
                    chapter, recordings, transcripts = name.parent, {}, {}
                if name.suffix == ".flac":
                    recordings[name.stem] = opened.read()
                elif name.name.endswith(".trans.txt"):
                    for line in decoded(opened.read(), f"{path}: {name}").split("\n"):
                        if words := line.split(maxsplit=1):
                            transcripts[words[0]] = transcript("".join(words[1:]))
    except (tarfile.TarError, EOFError, OSError, EncodingError) as error:
        raise ValueError(
            f"{path}: damaged ({error}); delete it to have it downloaded again"
        ) from error
    yield from _chapter_utterances(path, recordings, transcripts)


def _chapter_utterances(
    archive: Path, recordings: dict[str, bytes], transcripts: dict[str, str]
) -> Iterator[Utterance | Skipped]:
    for id in sorted(recordings.keys() | transcripts.keys()):
        if id not in transcripts:
            yield Skipped(id, "no transcript")
        elif id not in recordings:
            yield Skipped(id, "no recording")
        else:
            yield Utterance(
                id=id,
                audio=archive / f"{id}.flac",
                text=transcripts[id],
                duration_seconds=math.nan,
                speaker=re.split(r"\D", id, maxsplit=1)[0],
                within=InMemory(recordings[id]),
            )
