"""Kaldi data directories."""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from asr_jax.data.sources.lines import numbered_lines, root_of
from asr_jax.text import collapse_white_space
from asr_jax.types import Skipped, Utterance

ARCHIVE = re.compile(r"\.ark(:\d+)?(\[.*\])?$")
DECIMALS = 9


class Stretch(NamedTuple):
    """What utt2dur or a line of segments says; `duration_seconds` NaN is up to the end."""

    recording: str
    start_seconds: float
    duration_seconds: float
    channel: int | None = None


def is_kaldi(folder: Path) -> bool:
    """Whether the folder is a Kaldi data directory."""
    return (folder / "wav.scp").is_file()


def kaldi_utterances(folder: Path) -> Iterator[Utterance | Skipped]:
    """The utterances of segments, or else the recordings of wav.scp, that have a line in text.

    utt2spk gives speakers, utt2dur the durations where there are no segments (else NaN); both may
    be missing. Paths are absolute, or relative as `root_of` finds. Raises ValueError, naming file
    and line, for a wav.scp entry that is a command or lies in an archive, and for malformed lines.
    """
    recordings = _recordings(folder)
    texts = _table(folder / "text")
    speakers = _table(folder / "utt2spk", optional=True)
    has_segments = (folder / "segments").is_file()
    if has_segments:
        stretches = _segments(folder / "segments")
    else:
        durations = _table(folder / "utt2dur", optional=True)
        stretches = {
            id: Stretch(id, 0.0, _seconds(*durations[id]) if id in durations else math.nan)
            for id in recordings
        }
    for id, stretch in stretches.items():
        if id not in texts:
            yield Skipped(id, f"no line in text: {folder / 'text'}")
        elif stretch.recording not in recordings:
            yield Skipped(id, f"its recording has no line in wav.scp: {stretch.recording}")
        else:
            yield Utterance(
                id=id,
                audio=recordings[stretch.recording],
                text=collapse_white_space(texts[id][1]),
                duration_seconds=stretch.duration_seconds,
                speaker=speakers[id][1] if id in speakers else "",
                offset_seconds=stretch.start_seconds,
                channel=stretch.channel,
            )
    lister = "segments" if has_segments else "wav.scp"
    for id in texts:
        if id not in stretches:
            yield Skipped(id, f"no line in {lister}: {folder / lister}")


def _recordings(folder: Path) -> dict[str, Path]:
    entries = _table(folder / "wav.scp")
    root: Path | None = None
    recordings = {}
    for id, (where, path) in entries.items():
        if path.endswith("|"):
            raise ValueError(
                f"{where}: {id} is a command (it ends in |), and none is ever run: write what it "
                "gives to a file, and its path here (FLAC, WAV, Ogg, Opus and MP3 can be read)"
            )
        if not path or ARCHIVE.search(path):
            raise ValueError(f"{where}: {id} needs the path of an audio file, not {path or '-'}")
        if root is None:
            root = root_of(path, folder)
        recordings[id] = root / path
    return recordings


def _segments(path: Path) -> dict[str, Stretch]:
    """Lines UTTERANCE RECORDING START END [CHANNEL]; the end -1 is the recording's."""
    stretches = {}
    for id, (where, rest) in _table(path).items():
        match rest.split():
            case [recording, start, end]:
                channel = None
            case [recording, start, end, ("0" | "1") as channel]:
                channel = int(channel)
            case _:
                raise ValueError(f"{where}: needs UTTERANCE RECORDING START END [CHANNEL]")
        begin = _seconds(where, start)
        seconds = math.nan if end in ("-1", "-1.0") else _seconds(where, end) - begin
        if seconds <= 0:
            raise ValueError(f"{where}: {id} ends at {end} s, not after its start at {start} s")
        stretches[id] = Stretch(recording, begin, round(seconds, DECIMALS), channel)
    return stretches


def _table(path: Path, *, optional: bool = False) -> dict[str, tuple[str, str]]:
    """Lines `KEY REST` as KEY to (FILE:LINE, REST)."""
    table: dict[str, tuple[str, str]] = {}
    if optional and not path.is_file():
        return table
    for number, line in numbered_lines(path):
        key, *rest = line.split(maxsplit=1)
        if key in table:
            raise ValueError(f"{path}:{number}: {key} occurs a second time")
        table[key] = (f"{path}:{number}", rest[0].strip() if rest else "")
    return table


def _seconds(where: str, text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise ValueError(f"{where}: {text!r} must be a number of seconds")
    return seconds
