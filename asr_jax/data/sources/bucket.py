"""Files in buckets, whose URLs are held as paths (`file_names.bucket_url`).

Credentials, region and endpoint are those of the environment, such as AWS_ENDPOINT_URL.
"""

import functools
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as fs

from asr_jax.data.sources.file_names import bucket_url
from asr_jax.data.sources.lines import first_line


def bucket_files(folder: Path) -> list[Path]:
    """Return the files directly in a folder; none if there is no such folder.

    Raises ValueError if the bucket cannot be read.
    """
    try:
        filesystem, name = _filesystem(folder)
        listed = filesystem.get_file_info(fs.FileSelector(name, allow_not_found=True))
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(f"{bucket_url(folder)}: cannot be read: {first_line(error)}") from error
    return [folder / info.base_name for info in listed if info.is_file]


def open_bucket_file(path: Path) -> pa.NativeFile:
    """Open a file for reading at any place. Raises OSError, ValueError or ImportError."""
    filesystem, name = _filesystem(path)
    return filesystem.open_input_file(name)


def read_bucket_range(path: Path, offset_bytes: int, size_bytes: int) -> bytes:
    """Read a part of a file in one request. Raises OSError, or ValueError if the file is short."""
    with open_bucket_file(path) as file:
        contents = file.read_at(size_bytes, offset_bytes)
    if len(contents) < size_bytes:
        raise ValueError(f"truncated: {len(contents)} of {size_bytes} bytes")
    return contents


def _filesystem(path: Path) -> tuple[fs.FileSystem, str]:
    """Return the file system of a path and the name of the file in it."""
    scheme, _, name = bucket_url(path).partition("://")
    return _bucket(f"{scheme}://{name.partition('/')[0]}"), name


@functools.lru_cache
def _bucket(url: str) -> fs.FileSystem:
    """Return the file system of a bucket, whose region is looked up once."""
    return fs.FileSystem.from_uri(url)[0]
