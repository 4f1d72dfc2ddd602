"""Shared parts of the manifest readers: JSON objects, their fields, and relative paths."""

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from asr_jax.text_files import escaped, numbered_lines


def numbered_objects(path: Path) -> Iterator[tuple[str, dict[str, object]]]:
    """Read a file of one JSON object per line; yield FILE:LINE and the object.

    Strings may hold control characters, such as a tab, that JSON would have escaped. Raises
    ValueError, naming file and line, if a line is something else.
    """
    for number, line in numbered_lines(path):
        location = f"{path}:{number}"
        try:
            fields = json.loads(line, strict=False)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{location}: not JSON, {error.msg} at column {error.colno}"
            ) from error
        except (ValueError, RecursionError) as error:  # too many digits or brackets
            raise ValueError(f"{location}: not JSON that can be read") from error
        if not isinstance(fields, dict):
            raise ValueError(f"{location}: needs a JSON object, not {line.strip()[:40]}")
        yield location, fields


def unicode_fault(text: str, location: str) -> str:
    """Return why a text is not Unicode; empty if it is. JSON may escape half a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"transcript is not Unicode: it has {text[error.start]!r}, {location}"
    return ""


def seconds_in(fields: Mapping[str, object], name: str, location: str) -> float:
    """Return a field of seconds; NaN if it is absent or null.

    Raises ValueError, naming the location, if it is not a finite number from 0 on.
    """
    value = fields.get(name)
    if value is None:
        return math.nan
    # An integer may be too large for a float.
    if not isinstance(value, int | float) or not 0 <= value < 2**63:
        raise ValueError(f"{location}: {name} = {value!r} must be a number of seconds")
    return float(value)


def confidence_in(fields: Mapping[str, object], location: str) -> float:
    """Return the field confidence; NaN if it is absent or null.

    Raises ValueError, naming the location, if it is not a number in 0..1.
    """
    value = fields.get("confidence")
    if value is None:
        return math.nan
    if not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"{location}: confidence = {value!r} must be a number from 0 to 1")
    return float(value)


def string_in(fields: Mapping[str, object], name: str) -> str:
    """Return a field as a string; empty if it is absent or null."""
    value = fields.get(name)
    return "" if value is None else escaped(str(value))


def objects_in(fields: Mapping[str, object], name: str, location: str) -> list[dict[str, object]]:
    """Return a field that is a list of objects; empty if it is absent or null."""
    objects = fields.get(name) or []
    if not isinstance(objects, list) or not all(isinstance(item, dict) for item in objects):
        raise ValueError(f"{location}: {name} must be a list of objects")
    return objects


def root_of(path: str, *folders: Path) -> Path | None:
    """Return the folder that a manifest's relative paths start from, judged by one path.

    It is the first of `folders`, such as the manifest's own, the NeMo convention, unless the path
    only exists in the working directory, where the commands of Kaldi and Lhotse start from; None
    if it exists in none of these.
    """
    # Unlike Path.exists, os.path.exists is false for a path that is too long.
    return next((root for root in (*folders, Path()) if os.path.exists(root / path)), None)


def first_line(error: Exception) -> str:
    """Return the start of a library's message, which may have several lines."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
