"""Shared parts of the manifest readers: numbered lines, JSON objects and relative paths."""

import gzip
import json
import math
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Read the lines of a text file, optionally .gz, that are not blank, numbered from 1.

    Raises ValueError, naming the file, if it is not UTF-8 or not gzip, or cannot be read.
    """
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
            yield from ((n, line) for n, line in enumerate(file, start=1) if line.strip())
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text") from error
    except EOFError as error:
        raise ValueError(f"{path}: truncated, the gzip stream has no end") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: not gzip, or corrupt") from error
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or 'cannot be read'}") from error


def numbered_objects(path: Path) -> Iterator[tuple[str, dict[str, object]]]:
    """Read a file of one JSON object per line; yield FILE:LINE and the object.

    Raises ValueError, naming file and line, if a line is something else.
    """
    for number, line in numbered_lines(path):
        location = f"{path}:{number}"
        try:
            fields = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{location}: not JSON, {error.msg} at column {error.colno}"
            ) from error
        except (ValueError, RecursionError) as error:  # too many digits or brackets
            raise ValueError(f"{location}: not JSON that can be read") from error
        if not isinstance(fields, dict):
            raise ValueError(f"{location}: needs a JSON object, not {line.strip()[:40]}")
        yield location, fields


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


def string_in(fields: Mapping[str, object], name: str) -> str:
    """Return a field as a string; empty if it is absent or null."""
    value = fields.get(name)
    return "" if value is None else str(value)


def root_of(path: str, folder: Path) -> Path:
    """Return the folder that a manifest's relative paths start from, judged by one path.

    It is the manifest's own `folder`, the NeMo convention, unless the path only exists in the
    working directory, where the commands of Kaldi and Lhotse start from.
    """
    return Path() if not (folder / path).exists() and Path(path).exists() else folder
