"""Arrow files of record batches, which are mapped into memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from asr_jax.data.sources.audio_column import AUDIO, Place, audio_part, buffers_of
from asr_jax.types import Member

FILE_MAGIC = b"ARROW1"
END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"


def arrow_schema(path: Path) -> pa.Schema:
    """Read the columns of a file. Raises ArrowException, OSError or ValueError."""
    with _opened(path) as (_, reader):
        return reader.schema


def arrow_batches(path: Path, columns: list[str]) -> Iterator[tuple[pa.RecordBatch, list[Place]]]:
    """Read columns batch by batch, with the place of each row's recording in the file.

    Only the columns besides `audio` are read from the disk. Raises ArrowException, OSError or
    ValueError for a file that is damaged, truncated or compressed.
    """
    with _opened(path) as (stored, reader):
        is_stream = isinstance(reader, pa.RecordBatchStreamReader)
        numbers = [] if is_stream else range(reader.num_record_batches)
        for batch in reader if is_stream else map(reader.get_batch, numbers):
            yield batch.select(columns), _places(batch.column(AUDIO), stored)
        # A stream that ends between two batches is read without an error.
        if is_stream and END_OF_STREAM not in bytes(stored[-len(END_OF_STREAM) :]):
            raise ValueError("the stream has no end")


@contextmanager
def _opened(path: Path) -> Iterator[tuple[pa.Buffer, pa.RecordBatchStreamReader]]:
    """Open a file; yield all of its bytes, mapped into memory, and its reader."""
    with pa.memory_map(str(path)) as mapped:
        stored = mapped.read_buffer()
        is_file = bytes(stored[: len(FILE_MAGIC)]) == FILE_MAGIC
        yield stored, pa.ipc.open_file(stored) if is_file else pa.ipc.open_stream(stored)


def _places(audio: pa.Array, stored: pa.Buffer) -> list[Place]:
    """Return where the recordings are in the stored bytes; None where there is none."""
    contents = audio_part(audio, "bytes")
    if contents is None:
        return [None] * len(audio)
    places: list[Place] = []
    for value in buffers_of(contents):
        offset = value.address - stored.address if value else 0
        if not 0 <= offset <= stored.size - (value.size if value else 0):
            raise ValueError("it stores recordings compressed or as views; write them as they are")
        places.append(Member(offset, value.size) if value is not None else None)
    return places
