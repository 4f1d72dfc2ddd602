"""Folders in LibriSpeech layout."""

import itertools
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from asr_jax.data.sources.lines import numbered_lines
from asr_jax.text import collapse_white_space
from asr_jax.types import Skipped, Utterance

AUDIO_SUFFIXES = (".flac", ".wav", ".ogg", ".opus")


def folder_utterances(folder: Path) -> Iterator[Utterance | Skipped]:
    """Every `*.trans.txt` below the folder, of lines `ID TEXT`, with ID.flac (.wav, .ogg, .opus)
    beside it. The speaker is the S of S/C/S-C.trans.txt; durations are NaN. A recording beside them
    that none has a line for is left out."""
    listings = [path for path in files_below(folder) if path.name.endswith(".trans.txt")]
    listings.sort(key=lambda path: (path.parent, path.name))
    for beside, transcripts in itertools.groupby(listings, lambda path: path.parent):
        recordings = {
            path.stem: path
            for path in sorted(beside.iterdir())
            if path.suffix.lower() in AUDIO_SUFFIXES
        }
        listed = set()
        for listing in transcripts:
            for utterance in _listed(listing, recordings):
                listed.add(utterance.id)
                yield utterance
        for id in sorted(recordings.keys() - listed):
            yield Skipped(id, f"no line in a *.trans.txt: {recordings[id]}")


def files_below(folder: Path) -> Iterator[Path]:
    """Every file, then those below links to other folders; of each folder once."""
    seen: set[str] = set()
    waiting = [folder]
    while waiting:
        links = []
        for start in waiting:
            for parent, folders, files in os.walk(start):
                if (real := os.path.realpath(parent)) in seen:
                    folders.clear()
                    continue
                seen.add(real)
                folders.sort()
                below = (Path(parent, name) for name in folders)
                links += [path for path in below if path.is_symlink()]
                yield from (Path(parent, name) for name in files)
        waiting = links


def _listed(listing: Path, recordings: Mapping[str, Path]) -> Iterator[Utterance]:
    """The utterances of one file; `recordings` are those beside it, by name."""
    beside = listing.parent
    speaker, chapter = beside.absolute().parts[-2:]
    is_librispeech = listing.name == f"{speaker}-{chapter}.trans.txt"
    for _, line in numbered_lines(listing):
        id, _, text = line.strip().partition(" ")
        yield Utterance(
            id=id,
            audio=recordings.get(id, beside / f"{id}{AUDIO_SUFFIXES[0]}"),
            text=collapse_white_space(text),
            duration_seconds=math.nan,
            speaker=speaker if is_librispeech else "",
        )
