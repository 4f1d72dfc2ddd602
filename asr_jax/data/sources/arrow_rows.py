"""Rows of Parquet and Arrow files as utterances."""

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from asr_jax.audio.samples import AudioError, audio_duration_seconds
from asr_jax.data.sources.arrow import arrow_batches, arrow_schema
from asr_jax.data.sources.audio_column import (
    AUDIO,
    IDS,
    Columns,
    Place,
    audio_part,
    columns_fault,
    columns_of,
    strings,
    text_columns,
)
from asr_jax.data.sources.file_names import bucket_url
from asr_jax.data.sources.lines import first_line, root_of, unicode_fault
from asr_jax.data.sources.parquet import (
    compressed_audio_bytes,
    large_group_fault,
    parquet_batches,
    parquet_metadata,
)
from asr_jax.text_files import escaped, transcript
from asr_jax.types import Skipped, TableRow, Utterance

MOST_THREADS = 8
# Row groups that are read at the same time have at most this size together, unless one is larger.
MEMORY_BYTES = 2**28
# All that pyarrow raises for a damaged file.
DAMAGED = (pa.ArrowException, OSError, ValueError)

ReadBatches = Callable[[], Iterator[tuple[pa.RecordBatch, list[Place]]]]


class Row(NamedTuple):
    """A row as an utterance that has no id yet."""

    location: str
    """FILE:ROW."""
    names: tuple[str, ...]
    """Its `id` and the names of its `file`, `path` and recording; none if it is damaged."""
    listed: Utterance | Skipped


class File(NamedTuple):
    """A file whose columns are known; an Arrow file has no other metadata."""

    path: Path
    schema: pa.Schema
    metadata: pq.FileMetaData | None


class Part(NamedTuple):
    """Rows of a file that one thread reads in order: a row group, or all of an Arrow file."""

    path: Path
    columns: Columns
    first_row: int
    rows: int | None
    """The number of rows; None if it is only known when they have been read."""
    memory_bytes: int
    """The memory that the recordings take if all must be read at once."""
    read: ReadBatches


def read_tables(paths: Sequence[Path], folder: Path) -> list[Row]:
    """Read the rows of all files in order.

    A file that cannot be read is one skipped row, as is the rest of an Arrow file that is damaged;
    each row of a damaged row group is skipped. Relative paths of recordings start at `folder`, the
    folder of the file, or the working directory.

    Raises ValueError if no file can be read, if a bucket cannot be read, if there is no row, and
    for a file whose recordings cannot be read in random order.
    """
    files: list[File] = []
    rows: list[Row] = []
    for path in paths:
        try:
            file = _opened(path)
            fault = columns_fault(file.schema)
        except DAMAGED as error:
            _stop_if_remote(path, error)
            file, fault = None, f"truncated or damaged: {first_line(error)}"
        if file and not fault:
            files.append(file)
        elif len(paths) == 1:
            raise ValueError(f"{bucket_url(path) or path}: {fault}")
        else:
            rows.append(Row(path.name, (), Skipped("", fault)))
    texts = [text_columns(file.schema) for file in files]
    common = [name for name in texts[0] if all(name in names for names in texts)] if texts else []
    parts = [part for file in files for part in _parts(file, columns_of(file.schema, common))]
    largest_bytes = max((part.memory_bytes for part in parts), default=0)
    threads = max(1, min(MOST_THREADS, MEMORY_BYTES // max(1, largest_bytes)))
    with ThreadPoolExecutor(threads) as pool:
        for listed in pool.map(partial(_rows, folder=folder), parts):
            rows += listed
    if not rows:
        raise ValueError(f"{bucket_url(paths[0]) or paths[0]}: it has no rows")
    return rows


def _opened(path: Path) -> File:
    if path.suffix.lower() != ".parquet":
        if bucket_url(path):
            raise ValueError("Arrow files are not read from buckets; write Parquet files")
        return File(path, arrow_schema(path), None)
    metadata = parquet_metadata(path)
    return File(path, metadata.schema.to_arrow_schema(), metadata)


def _parts(file: File, columns: Columns) -> Iterator[Part]:
    path, metadata = file.path, file.metadata
    if metadata is None:
        yield Part(path, columns, 0, None, 0, partial(arrow_batches, path, columns.read))
        return
    if fault := large_group_fault(metadata):
        raise ValueError(f"{bucket_url(path) or path}: {fault}")
    first = 0
    for group in range(metadata.num_row_groups):
        read = partial(parquet_batches, path, columns.read, metadata=metadata, group=group)
        number = metadata.row_group(group).num_rows
        memory_bytes = compressed_audio_bytes(metadata, group)
        yield Part(path, columns, first, number, memory_bytes, read)
        first += number


def _rows(part: Part, folder: Path) -> list[Row]:
    """Read the rows of a part; those that cannot be read are skipped."""
    rows: list[Row] = []
    try:
        for batch, places in part.read():
            rows += _batch_rows(
                part, batch, places, first=part.first_row + len(rows), folder=folder
            )
    except DAMAGED as error:
        _stop_if_remote(part.path, error)
        reason = f"truncated or damaged: {first_line(error)}"
        end = len(rows) + 1 if part.rows is None else part.rows
        for row in range(part.first_row + len(rows), part.first_row + end):
            rows.append(Row(_location(part, row), (), Skipped("", reason)))
    return rows


def _stop_if_remote(path: Path, error: Exception) -> None:
    """Raise ValueError if a file of a bucket could not be read, perhaps only this time."""
    if isinstance(error, OSError) and (url := bucket_url(path)):
        raise ValueError(f"{url}: cannot be read: {first_line(error)}") from error


def _location(part: Part, row: int) -> str:
    return f"{part.path.name}:{row}"


def _batch_rows(
    part: Part, batch: pa.RecordBatch, places: Sequence[Place], *, first: int, folder: Path
) -> Iterator[Row]:
    """Yield the rows of a batch, the first of which has the number `first` in the file."""
    columns = part.columns
    unknown = [None] * len(batch)
    contents = audio_part(batch.column(AUDIO), "bytes")
    recording_paths = audio_part(batch.column(AUDIO), "path")
    paths = unknown if recording_paths is None else strings(recording_paths)
    texts = strings(batch.column(columns.text))
    speakers = strings(batch.column(columns.speaker)) if columns.speaker else unknown
    ids = {n: strings(batch.column(n)) if n in columns.ids else unknown for n in IDS}
    alone = [path for path, place in zip(paths, places) if path and place is None]
    root = next(filter(None, (root_of(path, folder, part.path.parent) for path in alone)), folder)
    for n, (path, place, text) in enumerate(zip(paths, places, texts)):
        location = _location(part, first + n)
        files = ids["file"][n], ids["path"][n], path
        if not path and place is None:
            fault = "no recording: neither bytes nor a path"
        elif text is None:
            fault = f"no transcript: {columns.text} is null"
        else:
            fault = unicode_fault(text, location)
        utterance = Utterance(
            id="",
            audio=root / path if path and place is None else part.path,
            text=transcript(text or ""),
            duration_seconds=math.nan,
            speaker=escaped(speakers[n] or ""),
            within=place,
        )
        is_slow_to_read = isinstance(place, TableRow) or bucket_url(part.path)
        if is_slow_to_read and contents is not None and place is not None and not fault:
            listed = _measured(utterance, contents[n].as_py())
        else:
            listed = Skipped("", fault) if fault else utterance
        names = ids["id"][n] or "", *(PurePosixPath(file or "").stem for file in files)
        yield Row(location, names, listed)


def _measured(utterance: Utterance, contents: bytes) -> Utterance | Skipped:
    """Return the utterance with the duration that its recording's header states."""
    try:
        seconds = audio_duration_seconds(utterance.audio, contents=contents)
    except AudioError as error:
        return Skipped("", f"{error.reason}: {utterance.place}")
    return utterance._replace(duration_seconds=seconds)
