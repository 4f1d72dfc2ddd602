"""Downloads of large files over connections that break."""

import hashlib
import time
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path

from rich.progress import Progress, TaskID

ATTEMPTS = 8
TIMEOUT_SECONDS = 60.0
CHUNK_BYTES = 2**20


def download(
    address: str,
    path: Path,
    *,
    size_bytes: int,
    sha256: str,
    progress: Progress,
    wait_seconds: float = 2.0,
) -> None:
    """Download `address` to `path`, which appears once it is complete and has the checksum.

    Data that arrived before a connection broke is kept in PATH.part, also between starts, and only
    the rest is requested. A file with a wrong checksum is downloaded once more from the beginning.
    Raises ValueError if the download fails, OSError for a full disk.
    """
    if path.exists():
        return
    partial = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    task = progress.add_task(path.name, total=size_bytes)
    problem, wrong_checksums = "", 0
    for attempt in range(ATTEMPTS):
        if attempt:
            progress.console.print(f"{address}: {problem}; trying again", markup=False)
            time.sleep(wait_seconds * attempt)
        try:
            _download_rest(address, partial, progress, task)
        except (urllib.error.URLError, HTTPException, TimeoutError, ConnectionError) as error:
            problem = str(getattr(error, "reason", error))
            continue
        except OSError as error:  # a full disk's error does not name the file
            raise OSError(error.errno, error.strerror, str(partial)) from error
        arrived = partial.stat().st_size
        if arrived < size_bytes:
            problem = f"the connection ended after {arrived} of {size_bytes} bytes"
            continue
        if arrived == size_bytes and _sha256(partial) == sha256:
            partial.rename(path)
            return
        partial.unlink()
        problem, wrong_checksums = "the file has the wrong checksum", wrong_checksums + 1
        if wrong_checksums == 2:
            break
    raise ValueError(f"{address}: {problem}; gave up after {attempt + 1} attempts")


def _download_rest(address: str, partial: Path, progress: Progress, task: TaskID) -> None:
    """Append the bytes that `partial` lacks."""
    arrived = partial.stat().st_size if partial.exists() else 0
    headers = {"Range": f"bytes={arrived}-"} if arrived else {}
    request = urllib.request.Request(address, headers=headers)
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # all bytes have arrived already
            return
        raise
    with response:
        # A server without support for ranges sends the whole file.
        is_whole = response.status != 206
        progress.update(task, completed=0 if is_whole else arrived)
        with partial.open("wb" if is_whole else "ab") as file:
            while chunk := response.read(CHUNK_BYTES):
                file.write(chunk)
                progress.advance(task, len(chunk))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
