"""Tables of recordings, CSV and TSV: Common Voice's, SpeechBrain's, LJSpeech's and similar ones."""

import csv
import math
import re
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path, PurePath
from typing import NamedTuple

from asr_jax.data.sources.file_names import file_id, is_recording, recordings_by_id
from asr_jax.data.sources.lines import confidence_in, root_of, seconds_in
from asr_jax.text_files import numbered_lines, one_line, transcript
from asr_jax.types import Utterance

DELIMITERS = ",\t;|"
# Columns by what they hold; names are compared in lower case.
NAMES = {
    "path": "path audio audio_filepath audio_path file filename file_name file_path filepath wav "
    "wav_path wav_filename".split(),
    "text": "text sentence transcription transcript wrd".split(),
    "id": "id utterance_id utt_id".split(),
    "speaker": "speaker speaker_id spk_id client_id".split(),
    "duration": ["duration"],
    "start": "start offset start_time".split(),
    "stop": "stop end end_time".split(),
    "channel": ["channel"],
    "confidence": ["confidence"],
}
# SpeechBrain replaces these by a folder that its command line names.
PLACEHOLDER = re.compile(r"\$\w+|\$?\{\w+\}")
# From start to stop in seconds is the duration; in samples, the duration times one of these rates.
RATES_HZ = (8_000, 11_025, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 96_000)
LEAST_SAMPLES_PER_SECOND = 100
# Durations are rounded to hundredths.
TOLERANCE_SECONDS = 0.01
# Rounds off the errors of differences of seconds; finer than any sample.
DECIMALS = 9


class _Header(NamedTuple):
    """The first line of a table: the names of all columns, and which of them are of use."""

    delimiter: str
    names: list[str]
    columns: dict[str, int]
    """Index of a column by what it holds, a key of NAMES."""
    is_quoted: bool
    """True for quotes as in RFC 4180, false if quotes are characters like any other."""


def is_table_name(name: str) -> bool:
    """Return whether a file's name is that of a table."""
    return re.search(r"\.(csv|tsv)(\.gz)?$", name.lower()) is not None


def table_utterances(table: Path) -> Iterator[Utterance]:
    """Read a table with a header, or LJSpeech's metadata.csv, one utterance per row.

    Columns are found by NAMES: a path and a text are needed; an id (by default the path, followed
    by the segment), speaker, duration (NaN if absent), start, stop, channel and confidence are
    optional. Paths are absolute, or relative to `root_of`; those of Common Voice may start in the
    folder `clips`.
    Raises ValueError, naming file and line, for a header without a path and a text, and for rows
    with another number of fields or a value that is not a number.
    """
    lines = numbered_lines(table)
    number, first = next(lines, (0, ""))
    if not first:
        return
    header = _header(first)
    if not {"path", "text"} <= header.columns.keys():
        if _is_ljspeech(table, first):
            yield from _ljspeech_utterances(table, chain([(number, first)], lines))
            return
        raise ValueError(f"{table}:{number}: {_missing(header)}")
    _check_unique(header, f"{table}:{number}")
    clips = table.parent / "clips"
    is_common_voice = "client_id" in map(str.lower, header.names) and clips.is_dir()
    base = clips if is_common_voice else table.parent
    root: Path | None = None
    for number, fields in _rows(table, lines, header):
        location = f"{table}:{number}"
        row = {kind: fields[column].strip() for kind, column in header.columns.items()}
        path = row["path"]
        if not path:
            name = header.names[header.columns["path"]]
            raise ValueError(f"{location}: needs the path of a recording in its column {name}")
        if matched := PLACEHOLDER.match(path):
            raise ValueError(
                f"{location}: {path} starts with a placeholder of SpeechBrain; replace "
                f"{matched[0]} by the folder of the recordings"
            )
        root = root or root_of(path, base) or root_of(path, table.parent)
        offset, duration = _segment(row, header, location)
        yield Utterance(
            id=row.get("id") or _segment_id(path, offset, duration),
            audio=(root or base) / path,
            text=transcript(row["text"]),
            duration_seconds=duration,
            speaker=row.get("speaker", ""),
            offset_seconds=offset,
            channel=_channel(row, location),
            confidence=_confidence(row, location),
        )


def _header(line: str) -> _Header:
    """Return the header in a line, split where it has a path and a text, or most fields."""
    headers = []
    line = line.replace("\r", " ")[: csv.field_size_limit()]
    for delimiter in DELIMITERS:
        (fields,) = csv.reader([line], delimiter=delimiter)
        names = [field.strip() for field in fields]
        columns = {}
        for kind, accepted in NAMES.items():
            found = [n for n, name in enumerate(names) if name.lower() in accepted]
            if found:
                columns[kind] = found[0]
        is_quoted = delimiter in ",;" or line.lstrip().startswith('"')
        headers.append(_Header(delimiter, names, columns, is_quoted))
    return max(headers, key=lambda h: ({"path", "text"} <= h.columns.keys(), len(h.names)))


def _missing(header: _Header) -> str:
    """Return what a first line lacks to be a header."""
    lacking = [
        f"{meaning} ({', '.join(NAMES[kind])})"
        for kind, meaning in (("path", "recordings"), ("text", "transcripts"))
        if kind not in header.columns
    ]
    return (
        f"the first line of a table must name the columns; it lacks that of "
        f"{' and that of '.join(lacking)}; found: {one_line(', '.join(header.names)[:200])}"
    )


def _check_unique(header: _Header, location: str) -> None:
    """Raise ValueError if several columns could be the same thing."""
    for kind, accepted in NAMES.items():
        found = [name for name in header.names if name.lower() in accepted]
        if len(found) > 1:
            raise ValueError(
                f"{location}: its columns {' and '.join(found)} could both be the {kind}; rename "
                "all but one"
            )


def _rows(
    table: Path, lines: Iterator[tuple[int, str]], header: _Header
) -> Iterator[tuple[int, list[str]]]:
    """Read the rows after the header that are not blank, with the numbers of their first lines."""
    numbers: list[int] = []

    def text() -> Iterator[str]:
        for number, line in lines:
            numbers.append(number)
            # A quoted field may hold the end of a line; any other separator is white space.
            yield line.replace("\r", " ") + "\n"

    quoting = csv.QUOTE_MINIMAL if header.is_quoted else csv.QUOTE_NONE
    reader = csv.reader(
        text(), delimiter=header.delimiter, quoting=quoting, skipinitialspace=True, strict=True
    )
    while True:
        numbers.clear()
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise ValueError(
                f"{table}:{numbers[0]}: its quotes or its length are wrong: {error}; a field with "
                'quotes is enclosed in quotes, and each of its own is doubled: "so ""to say"""'
            ) from error
        if fields is None:
            return
        if len(fields) != len(header.names):
            raise ValueError(
                f"{table}:{numbers[0]}: {len(fields)} fields, but the header has "
                f"{len(header.names)}, separated by {header.delimiter!r}"
            )
        if any(map(str.strip, fields)):
            yield numbers[0], fields if header.is_quoted else list(map(_unquoted, fields))


def _unquoted(field: str) -> str:
    """Return a field of a table without quotes, but undo those that a CSV writer adds to quotes.

    Common Voice writes "Stop!" as it is, and pandas as three quotes, Stop! and three quotes.
    """
    inner = field[1:-1]
    if field[:1] == field[-1:] == '"' and '""' in inner and '"' not in inner.replace('""', ""):
        return inner.replace('""', '"')
    return field


def _segment(row: dict[str, str], header: _Header, location: str) -> tuple[float, float]:
    """Return the offset and the duration in seconds; NaN extends to the end of the recording."""

    def number(kind: str) -> float:
        text = row.get(kind)
        if not text:
            return math.nan
        try:
            value = float(text)
        except ValueError:
            value = text
        name = header.names[header.columns[kind]]
        return seconds_in({name: value}, name, location)

    start, stop, duration = number("start"), number("stop"), number("duration")
    start = 0.0 if math.isnan(start) else start
    if math.isnan(stop):
        return start, duration
    length = stop - start
    if length <= 0:
        raise ValueError(f"{location}: ends at {stop:g}, not after its start at {start:g}")
    if math.isnan(duration) or length < LEAST_SAMPLES_PER_SECOND * duration:
        return start, round(length, DECIMALS)
    rate_hz = min(RATES_HZ, key=lambda rate_hz: abs(length / rate_hz - duration))
    if abs(length / rate_hz - duration) > TOLERANCE_SECONDS:
        raise ValueError(
            f"{location}: from start to stop is {length:g}, but duration is {duration:g}: neither "
            "seconds nor samples at a usual rate"
        )
    return start / rate_hz, length / rate_hz


def _segment_id(path: str, offset: float, duration: float) -> str:
    if offset == 0:
        return path
    return f"{path}@{offset:.9g}" + ("" if math.isnan(duration) else f"+{duration:.9g}")


def _channel(row: dict[str, str], location: str) -> int | None:
    channel = row.get("channel")
    if not channel:
        return None
    if not re.fullmatch(r"[0-9]{1,3}", channel):
        raise ValueError(f"{location}: channel = {channel!r} must be a number from 0 on")
    return int(channel)


def _confidence(row: dict[str, str], location: str) -> float:
    text = row.get("confidence")
    try:
        return confidence_in({"confidence": float(text) if text else None}, location)
    except ValueError as error:
        raise ValueError(
            f"{location}: confidence = {text!r} must be a number from 0 to 1"
        ) from error


def _is_ljspeech(table: Path, line: str) -> bool:
    """Return whether the first line of a table without a header is LJSpeech's."""
    id, *texts = line.split("|")
    is_id = len(texts) in (1, 2) and not is_recording(PurePath(id))
    return is_id and (table.parent / "wavs").is_dir()


def _ljspeech_utterances(table: Path, lines: Iterable[tuple[int, str]]) -> Iterator[Utterance]:
    """Read lines ID|TEXT|NORMALIZED or ID|TEXT, whose recordings are wavs/ID.wav.

    A recording may have another suffix. The normalized text, in which numbers are words, is taken
    if there is one.
    """
    wavs = table.parent / "wavs"
    recordings = recordings_by_id(wavs.iterdir())
    expected = 0
    for number, line in lines:
        id, *texts = line.split("|")
        expected = expected or len(texts)
        if len(texts) != expected:
            raise ValueError(
                f"{table}:{number}: {len(texts) + 1} fields, but its first line has {expected + 1}"
            )
        id = id.strip()
        yield Utterance(
            id=id,
            audio=recordings.get(file_id(id), wavs / f"{id}.wav"),
            text=transcript(texts[-1]) or transcript(texts[0]),
            duration_seconds=math.nan,
        )
