"""Folders of recordings, each with a text file of the same name beside it."""

import itertools
import math
from collections.abc import Iterator
from pathlib import Path

from asr_jax.data.sources.file_names import file_id, is_recording, recordings_by_id
from asr_jax.data.sources.librispeech_folder import files_below
from asr_jax.text_files import decoded, transcript
from asr_jax.types import Skipped, Utterance


def paired_utterances(folder: Path) -> Iterator[Utterance | Skipped]:
    """Read every recording NAME.wav below the folder with its transcript NAME.txt.

    The recording may have any of AUDIO_SUFFIXES. The id is NAME, including its folders. Durations
    are NaN. Nothing is read from a folder without such a pair.
    """
    files = sorted(files_below(folder), key=lambda path: (path.parent, path.name))
    has_pair, listed = False, []
    for parent, children in itertools.groupby(files, lambda path: path.parent):
        names = list(children)
        recordings = recordings_by_id(filter(is_recording, names))
        texts = {file_id(path.stem): path for path in names if path.suffix.lower() == ".txt"}
        has_pair |= not recordings.keys().isdisjoint(texts)
        for name in sorted(recordings.keys() | texts.keys()):
            id = (parent.relative_to(folder) / name).as_posix()
            listed.append(_paired(id, recordings.get(name), texts.get(name)))
    return iter(listed if has_pair else ())


def _paired(id: str, recording: Path | None, text: Path | None) -> Utterance | Skipped:
    if recording is None:
        return Skipped(id, f"no recording beside it: {text}")
    untranscribed = Utterance(id, recording, "", math.nan)
    if text is None:
        return Skipped(id, f"no text file beside it: {recording}", untranscribed)
    try:
        words = transcript(decoded(text.read_bytes(), str(text)))
    except (OSError, ValueError) as error:
        return Skipped(id, f"transcript cannot be read: {error}", untranscribed)
    return untranscribed._replace(text=words)
