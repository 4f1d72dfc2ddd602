"""Kaldi data directories."""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from asr_jax.data.sources.lines import root_of
from asr_jax.text_files import numbered_lines, transcript
from asr_jax.types import Skipped, Utterance

ARCHIVE = re.compile(r"\.ark(:\d+)?(\[.*\])?$")
DECIMALS = 9


class Segment(NamedTuple):
    """Part of a recording; a duration of NaN extends to its end."""

    recording: str
    start_seconds: float
    duration_seconds: float
    channel: int | None = None


def is_kaldi(folder: Path) -> bool:
    """Return whether the folder is a Kaldi data directory."""
    return (folder / "wav.scp").is_file()


def kaldi_utterances(folder: Path) -> Iterator[Utterance | Skipped]:
    """Read the utterances of segments or, without that file, the recordings of wav.scp.

    The file text has the transcripts, utt2spk the speakers, and utt2dur the durations if there are
    no segments (NaN if absent); utt2spk and utt2dur are optional. Paths are absolute, or relative
    to `root_of`. Raises ValueError, naming file and line, for a wav.scp entry that is a command or
    in an archive, and for malformed lines.
    """
    recordings = _recordings(folder)
    texts = _table(folder / "text")
    speakers = _table(folder / "utt2spk", optional=True)
    has_segments = (folder / "segments").is_file()
    if has_segments:
        segments = _segments(folder / "segments")
    else:
        durations = _table(folder / "utt2dur", optional=True)
        segments = {
            id: Segment(id, 0.0, _seconds(*durations[id]) if id in durations else math.nan)
            for id in recordings
        }
    for id, segment in segments.items():
        recording = None
        if segment.recording in recordings:
            recording = Utterance(
                id=id,
                audio=recordings[segment.recording],
                text=transcript(texts[id][1]) if id in texts else "",
                duration_seconds=segment.duration_seconds,
                speaker=speakers[id][1] if id in speakers else "",
                offset_seconds=segment.start_seconds,
                channel=segment.channel,
            )
        if id not in texts:
            yield Skipped(id, f"no line in text: {folder / 'text'}", recording)
        else:
            missing = f"its recording has no line in wav.scp: {segment.recording}"
            yield recording or Skipped(id, missing)
    listing = "segments" if has_segments else "wav.scp"
    for id in texts:
        if id not in segments:
            yield Skipped(id, f"no line in {listing}: {folder / listing}")


def _recordings(folder: Path) -> dict[str, Path]:
    """Return the path of each recording of wav.scp."""
    root: Path | None = None
    recordings = {}
    for id, (location, path) in _table(folder / "wav.scp").items():
        if path.endswith("|"):
            raise ValueError(
                f"{location}: {id} is a command (it ends in |), and commands are not run: write "
                "its output to a file, and its path here (FLAC, WAV, Ogg, Opus and MP3 can be read)"
            )
        if not path or ARCHIVE.search(path):
            raise ValueError(f"{location}: {id} needs the path of an audio file, not {path or '-'}")
        root = root or root_of(path, folder)
        recordings[id] = (root or folder) / path
    return recordings


def _segments(path: Path) -> dict[str, Segment]:
    """Read lines UTTERANCE RECORDING START END [CHANNEL]; an END of -1 is the recording's end."""
    segments = {}
    for id, (location, rest) in _table(path).items():
        match rest.split():
            case [recording, start, end]:
                channel = None
            case [recording, start, end, ("0" | "1") as channel]:
                channel = int(channel)
            case _:
                raise ValueError(f"{location}: needs UTTERANCE RECORDING START END [CHANNEL]")
        start_seconds = _seconds(location, start)
        to_end = end in ("-1", "-1.0")
        duration_seconds = math.nan if to_end else _seconds(location, end) - start_seconds
        if duration_seconds <= 0:
            raise ValueError(f"{location}: {id} ends at {end} s, not after its start at {start} s")
        segments[id] = Segment(recording, start_seconds, round(duration_seconds, DECIMALS), channel)
    return segments


def _table(path: Path, *, optional: bool = False) -> dict[str, tuple[str, str]]:
    """Read lines `KEY REST`; return (FILE:LINE, REST) by KEY. An optional file may be missing."""
    table: dict[str, tuple[str, str]] = {}
    if optional and not path.is_file():
        return table
    for number, line in numbered_lines(path):
        key, *rest = line.split(maxsplit=1)
        if key in table:
            raise ValueError(f"{path}:{number}: {key} occurs a second time")
        table[key] = (f"{path}:{number}", rest[0].strip() if rest else "")
    return table


def _seconds(location: str, text: str) -> float:
    """Parse a number of seconds. Raises ValueError, naming the location."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise ValueError(f"{location}: {text!r} must be a number of seconds")
    return seconds
