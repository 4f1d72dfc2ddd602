"""What readers of manifests share: numbered lines, JSON objects, where relative paths begin."""

import gzip
import json
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text file, NAME.gz too, that are not blank, numbered from 1.

    Raises ValueError, naming the file, for what is not UTF-8, not gzip or cannot be read.
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


def numbered_objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The JSON objects of a file that has one per line, each with its place, FILE:LINE.

    Raises ValueError, naming the place.
    """
    for number, line in numbered_lines(path):
        where = f"{path}:{number}"
        try:
            fields = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where}: not JSON, {error.msg} at column {error.colno}") from error
        except (ValueError, RecursionError) as error:  # numbers or brackets without end
            raise ValueError(f"{where}: not JSON that can be read") from error
        if not isinstance(fields, dict):
            raise ValueError(f"{where}: needs a JSON object, not {line.strip()[:40]}")
        yield where, fields


def seconds_in(fields: dict[str, Any], name: str, where: str) -> float:
    """The field as seconds, NaN where it is absent or, as some writers put it, null.

    Raises ValueError for what is no finite number from 0 on.
    """
    value = fields.get(name)
    if value is None:
        return math.nan
    # Whole numbers may be too large for a float.
    if not isinstance(value, int | float) or not 0 <= value < 2**63:
        raise ValueError(f"{where}: {name} = {value!r} must be a number of seconds")
    return float(value)


def root_of(path: str, folder: Path) -> Path:
    """Where the relative paths of a manifest begin, judged by one of them.

    That is the manifest's `folder`, as NeMo has it, unless nothing lies there but something does
    in the working directory, whence the commands of Kaldi and Lhotse count.
    """
    return Path() if not (folder / path).exists() and Path(path).exists() else folder
