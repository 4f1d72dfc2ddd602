"""Parquet files, read by row groups; recordings that are stored as they are have a place."""

import functools
import io
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from asr_jax.data.sources.audio_column import AUDIO, Place, audio_part, buffers_of, stored_part
from asr_jax.data.sources.bucket import open_bucket_file, read_bucket_range
from asr_jax.data.sources.file_names import bucket_url
from asr_jax.types import Member, TableRow

ROWS_AT_ONCE = 32
BUFFER_BYTES = 2**20
# What may be between two recordings of an uncompressed column: the header of a page.
BETWEEN_BYTES = 2**16
START_BYTES = 64
# Row groups that are kept in memory. Datasets' own have a hundred rows, about 20 MB.
ROW_GROUPS_KEPT = 4
MOST_COMPRESSED_BYTES = 2**30


def parquet_metadata(path: Path) -> pq.FileMetaData:
    """Read the end of a file. Raises ArrowException, OSError or ValueError."""
    with _opened(path, None) as file:
        return file.metadata


def compressed_audio_bytes(metadata: pq.FileMetaData, group: int) -> int:
    """Return the size of a row group's recordings, all of which are read for one; else 0."""
    chunk = _chunk(metadata, group)
    if chunk is None or chunk.compression == "UNCOMPRESSED":
        return 0
    return chunk.total_uncompressed_size


def large_group_fault(metadata: pq.FileMetaData) -> str:
    """Return why single recordings of a file cannot be read in reasonable time; else empty."""
    for group in range(metadata.num_row_groups):
        if (size := compressed_audio_bytes(metadata, group)) > MOST_COMPRESSED_BYTES:
            return (
                f"its row group {group} has {size / 2**30:.1f} GiB of compressed audio, all of "
                "which is read for a single recording; write the file again with row_group_size "
                "100, or without compression of audio as datasets' to_parquet does"
            )
    return ""


def parquet_batches(
    path: Path, columns: list[str], *, metadata: pq.FileMetaData, group: int
) -> Iterator[tuple[pa.RecordBatch, list[Place]]]:
    """Read columns of a row group, some rows at once, with the place of each row's recording.

    The place is that of the recording's bytes in the file, if they are stored as they are.
    Raises ArrowException, OSError or ValueError if the row group is damaged.
    """
    chunk = _chunk(metadata, group)
    position = None
    if chunk and chunk.compression == "UNCOMPRESSED":
        position = chunk.dictionary_page_offset or chunk.data_page_offset
    row = 0
    with _opened(path, metadata) as file, _stored(path, position, chunk) as stored:
        for batch in file.iter_batches(ROWS_AT_ONCE, [group], columns, use_threads=False):
            places: list[Place] = []
            contents = audio_part(batch.column(AUDIO), "bytes")
            for value in [None] * len(batch) if contents is None else buffers_of(contents):
                if value is None:
                    places.append(None)
                elif position is None or (start := _position(stored, position, value)) is None:
                    position = None
                    places.append(TableRow(group, row))
                else:
                    position = start + value.size
                    places.append(Member(start, value.size))
                row += 1
            yield batch, places


def read_row(path: Path, row: TableRow) -> bytes:
    """Read the recording of a row. Raises ArrowException, OSError, ValueError or IndexError."""
    time_ns = 0 if bucket_url(path) else path.stat().st_mtime_ns
    values = _row_group(path, time_ns, row.row_group)()
    contents = values[row.row].as_py()
    if contents is None:
        raise ValueError(f"its row {row.row} is null")
    return contents


@functools.lru_cache(maxsize=ROW_GROUPS_KEPT)
def _row_group(path: Path, time_ns: int, group: int) -> Callable[[], pa.ChunkedArray]:
    """Return a function that returns the recordings of a row group, which one thread reads."""
    reading = threading.Lock()

    @functools.cache
    def read() -> pa.ChunkedArray:
        with _opened(path, None) as file:
            part = stored_part(file.schema_arrow.field(AUDIO).type, "bytes")
            audio = file.read_row_group(group, columns=[part], use_threads=False).column(AUDIO)
        parts = [audio_part(chunk, "bytes") for chunk in audio.chunks]
        return pa.chunked_array([part for part in parts if part is not None])

    def read_once() -> pa.ChunkedArray:
        with reading:
            return read()

    return read_once


def _opened(path: Path, metadata: pq.FileMetaData | None) -> pq.ParquetFile:
    """Open a file; read ahead only a buffer, or a row group if it is in a bucket."""
    is_remote = bool(bucket_url(path))
    return pq.ParquetFile(
        open_bucket_file(path) if is_remote else path,
        metadata=metadata,
        pre_buffer=is_remote,
        buffer_size=BUFFER_BYTES,
        page_checksum_verification=True,
    )


@contextmanager
def _stored(
    path: Path, start: int | None, chunk: pq.ColumnChunkMetaData | None
) -> Iterator[tuple[io.BufferedIOBase, int]]:
    """Open the bytes of a file from some position on, which is also returned.

    Of a file in a bucket, these are the bytes of one chunk, read in one request.
    """
    if not bucket_url(path):
        with path.open("rb") as file:
            yield file, 0
    elif start is None or chunk is None:
        yield io.BytesIO(), 0
    else:
        yield io.BytesIO(read_bucket_range(path, start, chunk.total_compressed_size)), start


def _chunk(metadata: pq.FileMetaData, group: int) -> pq.ColumnChunkMetaData | None:
    """Return the part of a row group that holds the bytes of recordings, if there is one."""
    columns = (metadata.row_group(group).column(n) for n in range(metadata.num_columns))
    names = f"{AUDIO}.bytes", AUDIO
    return next((column for column in columns if column.path_in_schema in names), None)


def _position(stored: tuple[io.BufferedIOBase, int], start: int, value: pa.Buffer) -> int | None:
    """Return where a file has these bytes, at or shortly after `start`; None if it does not."""
    file, first = stored
    file.seek(start - first)
    nearby, contents = file.read(BETWEEN_BYTES + value.size), value.to_pybytes()
    at = nearby.find(contents[:START_BYTES])
    while at >= 0 and nearby[at : at + len(contents)] != contents:
        at = nearby.find(contents[:START_BYTES], at + 1)
    return start + at if at >= 0 else None
