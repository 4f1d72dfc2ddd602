"""Fetching large files over connections that break."""

import hashlib
import time
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path

from rich.progress import Progress, TaskID

ATTEMPTS = 8
PATIENCE_SECONDS = 60.0
CHUNK_BYTES = 2**20


def download(
    address: str, path: Path, *, size_bytes: int, sha256: str, progress: Progress, wait_seconds=2.0
) -> None:
    """Fetches `address` into `path`, which appears when it is whole and has the checksum.

    What arrived before a connection broke is kept in PATH.part, also from one start to the next,
    and the rest asked for. A file that is not what it should be is fetched once more from the
    beginning. Raises ValueError when it cannot be had, OSError for a full disk.
    """
    if path.exists():
        return
    partial = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    task = progress.add_task(path.name, total=size_bytes)
    problem, spoiled = "", 0
    for attempt in range(ATTEMPTS):
        if attempt:
            progress.console.print(f"{address}: {problem}; trying again", markup=False)
            time.sleep(wait_seconds * attempt)
        try:
            _fetch_rest(address, partial, progress, task)
        except (urllib.error.URLError, HTTPException, TimeoutError, ConnectionError) as error:
            problem = str(getattr(error, "reason", error))
            continue
        except OSError as error:  # of a full disk, which does not say where
            raise OSError(error.errno, error.strerror, str(partial)) from error
        arrived = partial.stat().st_size
        if arrived < size_bytes:
            problem = f"the connection ended after {arrived} of {size_bytes} bytes"
            continue
        if arrived == size_bytes and _sha256(partial) == sha256:
            partial.rename(path)
            return
        partial.unlink()
        problem, spoiled = "what arrived has another checksum", spoiled + 1
        if spoiled == 2:
            break
    raise ValueError(f"{address}: {problem}; given up after {attempt + 1} attempts")


def _fetch_rest(address: str, partial: Path, progress: Progress, task: TaskID) -> None:
    have = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(address, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=PATIENCE_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # there is no more than what is here
            return
        raise
    with response:
        # A server that knows no ranges begins anew.
        begins_anew = response.status != 206
        progress.update(task, completed=0 if begins_anew else have)
        with partial.open("wb" if begins_anew else "ab") as file:
            while chunk := response.read(CHUNK_BYTES):
                file.write(chunk)
                progress.advance(task, len(chunk))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
