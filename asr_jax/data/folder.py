"""Folders in LibriSpeech layout."""

import math
from collections.abc import Iterator
from pathlib import Path

from asr_jax.data.listing import numbered_lines
from asr_jax.text import collapse_white_space
from asr_jax.types import Utterance

AUDIO_SUFFIXES = (".flac", ".wav", ".ogg", ".opus")


def folder_utterances(folder: Path) -> Iterator[Utterance]:
    """Every `*.trans.txt` below the folder, of lines `ID TEXT`, with ID.flac (.wav, .ogg, .opus)
    beside it. The speaker is the S of S/C/S-C.trans.txt; durations are NaN."""
    for transcripts in sorted(folder.rglob("*.trans.txt")):
        beside = transcripts.parent
        recordings = {
            path.stem: path
            for path in sorted(beside.iterdir())
            if path.suffix.lower() in AUDIO_SUFFIXES
        }
        speaker, chapter = beside.absolute().parts[-2:]
        is_librispeech = transcripts.name == f"{speaker}-{chapter}.trans.txt"
        for _, line in numbered_lines(transcripts):
            id, _, text = line.strip().partition(" ")
            yield Utterance(
                id=id,
                audio=recordings.get(id, beside / f"{id}{AUDIO_SUFFIXES[0]}"),
                text=collapse_white_space(text),
                duration_seconds=math.nan,
                speaker=speaker if is_librispeech else "",
            )
