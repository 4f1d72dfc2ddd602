"""The columns of a table of recordings: which ones there must be, and their values."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.types as kinds

from asr_jax.types import Member, TableRow

Place = Member | TableRow | None

AUDIO = "audio"
TEXTS = ("text", "sentence", "transcription", "transcript", "normalized_text")
SPEAKERS = ("speaker_id", "speaker", "client_id")
IDS = ("id", "file", "path")


class Columns(NamedTuple):
    """Names of a table's columns besides `audio`."""

    text: str
    speaker: str | None
    ids: tuple[str, ...]

    @property
    def read(self) -> list[str]:
        """All columns to read, each once."""
        return list(dict.fromkeys([AUDIO, self.text, *filter(None, [self.speaker]), *self.ids]))


def columns_fault(schema: pa.Schema) -> str:
    """Return why a table has no recordings or transcripts; empty if it has both."""
    columns = ", ".join(f"{field.name} ({field.type})" for field in schema)
    if AUDIO not in schema.names:
        return f"no column audio: its columns are {columns}"
    kind = schema.field(AUDIO).type
    if not (_is_part(kind, "bytes") or _is_part(kind, "path")):
        return f"its column audio is neither bytes nor a path nor a struct of these: {kind}"
    if not text_columns(schema):
        return f"no column of strings named {', '.join(TEXTS)}: its columns are {columns}"
    return ""


def text_columns(schema: pa.Schema) -> list[str]:
    """Return the columns that hold transcripts, the preferred one first."""
    named = (name for name in TEXTS if name in schema.names)
    return [name for name in named if _is_string(schema.field(name).type)]


def columns_of(schema: pa.Schema, preferred_texts: Sequence[str]) -> Columns:
    """Return the columns to read; the text is a preferred one if the table has one."""
    texts = text_columns(schema)
    return Columns(
        text=next((name for name in preferred_texts if name in texts), texts[0]),
        speaker=next((name for name in SPEAKERS if name in schema.names), None),
        ids=tuple(name for name in IDS if name in schema.names),
    )


def stored_part(kind: pa.DataType, part: str) -> str | None:
    """Return the dotted name of the column of `bytes` or `path`; None if there is none."""
    if not _is_part(kind, part):
        return None
    return f"{AUDIO}.{part}" if kinds.is_struct(kind) else AUDIO


def audio_part(audio: pa.Array, part: str) -> pa.Array | None:
    """Return the `bytes` or `path` of recordings, a value per row; None if there are none."""
    if not _is_part(audio.type, part):
        return None
    if not kinds.is_struct(audio.type):
        return audio
    # Unlike audio.field, it is null where the struct is.
    return audio.flatten()[audio.type.get_field_index(part)]


def buffers_of(contents: pa.Array) -> list[pa.Buffer | None]:
    """Return each value, as a range of the array's own memory unless the array is of views.

    Raises ArrowInvalid for offsets outside of the memory, which a damaged file may have.
    """
    contents.validate(full=True)
    if kinds.is_binary_view(contents.type):
        return [value.as_buffer() for value in contents]  # copies
    dtype = np.int64 if kinds.is_large_binary(contents.type) else np.int32
    _, offsets, data = contents.buffers()
    if offsets is None or data is None:  # of an array without values
        return [None if value is None else pa.py_buffer(value) for value in contents.to_pylist()]
    ends = np.frombuffer(offsets, dtype)[contents.offset :].tolist()
    ranges = zip(contents.is_valid().to_pylist(), ends, ends[1:])
    return [data.slice(start, end - start) if valid else None for valid, start, end in ranges]


def strings(column: pa.Array) -> list[str | None]:
    """Return a column's values as strings; bytes that are not UTF-8 become half surrogates.

    Raises ArrowInvalid for offsets outside of the memory, which a damaged file may have.
    """
    if kinds.is_dictionary(column.type):
        column.validate(full=True)
        column = column.dictionary_decode()
    if _is_string(column.type):
        encoded = column.cast(pa.large_binary())
        encoded.validate(full=True)
        encoded = encoded.to_pylist()
        return [None if e is None else e.decode(errors="surrogateescape") for e in encoded]
    return [None if value is None else str(value) for value in column.to_pylist()]


def _is_part(kind: pa.DataType, part: str) -> bool:
    """Return whether a type is the `bytes` or the `path` of recordings, or a struct with it."""
    if kinds.is_struct(kind):
        index = kind.get_field_index(part)
        return index >= 0 and _is_part(kind.field(index).type, part)
    return _is_binary(kind) if part == "bytes" else _is_string(kind)


def _is_binary(kind: pa.DataType) -> bool:
    return kinds.is_binary(kind) or kinds.is_large_binary(kind) or kinds.is_binary_view(kind)


def _is_string(kind: pa.DataType) -> bool:
    if kinds.is_dictionary(kind):
        return _is_string(kind.value_type)
    return kinds.is_string(kind) or kinds.is_large_string(kind) or kinds.is_string_view(kind)
