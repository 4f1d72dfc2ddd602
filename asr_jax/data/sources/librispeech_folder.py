"""Folders in LibriSpeech layout."""

import itertools
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath

from asr_jax.data.sources.file_names import (
    AUDIO_SUFFIXES,
    file_id,
    is_leftover,
    recordings_by_id,
)
from asr_jax.text_files import escaped, numbered_lines, transcript
from asr_jax.types import Skipped, Utterance


def folder_utterances(folder: Path) -> Iterator[Utterance | Skipped]:
    """Read every `*.trans.txt` below the folder, with lines `ID TEXT`.

    The recording ID.flac, or ID with another of AUDIO_SUFFIXES, is in the same folder as the file;
    other recordings in that folder are skipped. The speaker is the S of S/C/S-C.trans.txt.
    Durations are NaN.
    """
    listings = [path for path in files_below(folder) if path.name.lower().endswith(".trans.txt")]
    listings.sort(key=lambda path: (path.parent, path.name))
    for parent, transcripts in itertools.groupby(listings, lambda path: path.parent):
        recordings = recordings_by_id(parent.iterdir())
        listed_ids = set()
        for listing in transcripts:
            for utterance in _listed_utterances(listing, recordings):
                listed_ids.add(file_id(utterance.id))
                yield utterance
        for id in sorted(recordings.keys() - listed_ids):
            audio = recordings[id]
            unlisted = Utterance(audio.stem, audio, "", math.nan)
            yield Skipped(audio.stem, f"no line in a *.trans.txt: {audio}", unlisted)


def files_below(folder: Path) -> Iterator[Path]:
    """Yield every file below a folder, then the files below linked folders, each folder once.

    Leftovers of operating systems are not yielded.
    """
    seen: set[str] = set()
    starts = [folder]
    while starts:
        links = []
        for start in starts:
            for parent, folders, files in os.walk(start):
                if (real := os.path.realpath(parent)) in seen:
                    folders.clear()
                    continue
                seen.add(real)
                folders[:] = sorted(name for name in folders if not is_leftover(PurePath(name)))
                subfolders = (Path(parent, name) for name in folders)
                links += [path for path in subfolders if path.is_symlink()]
                yield from (Path(parent, n) for n in files if not is_leftover(PurePath(n)))
        starts = links


def _listed_utterances(listing: Path, recordings: Mapping[str, Path]) -> Iterator[Utterance]:
    """Read the utterances of one file; `recordings` are those of its folder, by id."""
    speaker, chapter = listing.parent.absolute().parts[-2:]
    is_librispeech = listing.name == f"{speaker}-{chapter}.trans.txt"
    for _, line in numbered_lines(listing):
        id, *text = line.split(maxsplit=1)
        yield Utterance(
            id=id,
            audio=recordings.get(file_id(id), listing.parent / f"{id}{AUDIO_SUFFIXES[0]}"),
            text=transcript("".join(text)),
            duration_seconds=math.nan,
            speaker=escaped(speaker) if is_librispeech else "",
        )
