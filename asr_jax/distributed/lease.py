"""A lease on a folder, so that two starts never train in it at the same time.

The holder's lease is a file in the folder that it changes every few seconds. Another start watches
the file for a while by its own clock: a file that changes belongs to a start that is alive, and any
other lease may be taken over. No clocks of two hosts are compared. The file is created, taken over
and deleted by hard links and renames, which are atomic on shared disks too.
"""

import contextlib
import errno
import functools
import json
import operator
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from asr_jax.distributed.schedulers import scheduled_job
from asr_jax.errors import UsageError

LEASE = "lease.json"
# The holder renews its lease this often; a lease that stays as it is for this long has lapsed.
RENEW_SECONDS, WATCH_SECONDS = 5.0, 60.0
# How often a watched lease is read.
LOOKS = 60
# Errors of os.link where a file system, such as a mounted bucket, has no hard links.
NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.EMLINK)


class Holder(NamedTuple):
    """The process that holds a lease, as its file describes it."""

    host: str
    process: int
    since: str
    """The time of its start, for people only."""
    token: str
    """A random name of this holder."""
    machine: str
    """The running machine and the process namespace; empty where they are unknown."""
    process_start: str
    """The time of the process's start on the machine's own clock, as /proc shows it."""
    job: str
    """The scheduler's job; empty without one."""
    restarts: int
    """How many times the scheduler has restarted the job."""
    renewals: int = 0

    def __str__(self) -> str:
        return f"{self.host}, process {self.process}, since {self.since}"


class _NoHardLinksError(OSError):
    """The file system has no hard links."""


@contextlib.contextmanager
def held(
    folder: Path,
    *,
    name: str,
    renew_seconds: float = RENEW_SECONDS,
    watch_seconds: float = WATCH_SECONDS,
) -> Iterator[Callable[[], None]]:
    """Hold the lease of `folder`, which is called `name` in messages.

    Yields a function that ends this process, with a line, if another start has taken over. A thread
    calls it every `renew_seconds`; code calls it before it writes.

    If there is a lease already, it is taken over at once from a process of this machine that has
    ended and from an earlier start of the same job, and otherwise if it does not change for
    `watch_seconds`. Raises UsageError, which names the holder, as soon as it changes. Without hard
    links there is no lease but a warning.
    """
    lease = _Lease(folder / LEASE, name, watch_seconds=watch_seconds)
    try:
        try:
            lease.acquire(renew_seconds)
            has_lease = True
        except _NoHardLinksError:
            has_lease = False
            _print(
                f"warning: {name}: its file system has no hard links (a mounted bucket?), so that "
                "a second start that trains there at the same time is not noticed"
            )
        if has_lease:
            lease.start_renewing(renew_seconds)
        yield lease.require_held if has_lease else lambda: None
    finally:
        lease.release()


class _Lease:
    """The lease of a folder, which this process holds, or tries to."""

    def __init__(self, path: Path, name: str, *, watch_seconds: float):
        job, status = scheduled_job(), _status(os.getpid())
        self._path, self._name, self._watch_seconds = path, name, watch_seconds
        self._renewed_seconds = 0.0
        self._holder = Holder(
            host=socket.gethostname(),
            process=os.getpid(),
            since=time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
            token=secrets.token_hex(8),
            machine=_machine(),
            process_start=status.start if status else "",
            job=job.id,
            restarts=job.restarts,
        )
        self._lock = threading.Lock()
        self._released = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self, renew_seconds: float) -> None:
        """Create the lease, or take it over; raise UsageError if its holder is alive."""
        took_over = False
        while True:
            seen = _read(self._path)
            if seen is None:
                created = self._create()
                if created and took_over:
                    # A rival that watched the same lease may just be moving this one aside.
                    time.sleep(renew_seconds / 25)
                continue
            holder = _parse(seen)
            if holder and holder.token == self._holder.token:
                return
            over = self._why_over(holder) or self._watch(seen)
            if over and _remove(self._path, functools.partial(operator.eq, seen)):
                took_over = True
                _print(f"{self._name}: taken over from {holder or 'an unknown process'}: {over}")

    def start_renewing(self, renew_seconds: float) -> None:
        def renew() -> None:
            while not self._released.wait(renew_seconds):
                self.require_held()

        self._thread = threading.Thread(target=renew, name="lease", daemon=True)
        self._thread.start()

    def require_held(self) -> None:
        """Renew the lease; end this process if another one has taken it over."""
        # The disk may be back at the next renewal. Until then nothing can be written anyway.
        with self._lock, contextlib.suppress(OSError):
            try:
                with self._path.open("r+b") as file:
                    holder = _parse(file.read())
                    if holder is None or holder.token == self._holder.token:
                        file.seek(0)
                        file.write(self._next_contents())
                        file.truncate()
                        return
            except FileNotFoundError:
                # If there was no time to watch it, a person deleted it, or a rival that was too
                # late has moved it aside and puts it back.
                if _now_seconds() - self._renewed_seconds < self._watch_seconds / 2:
                    self._create()
                    return
                holder = "another start, which has ended"
            _print(
                f"asr-jax train: {self._name}: was taken over by {holder}, while this process was "
                "stopped or hung; it ends without saving"
            )
            os._exit(2)  # The main thread may be compiling, and must write nothing more.

    def release(self) -> None:
        """Delete the lease if this process still holds it."""
        self._released.set()
        if self._thread:
            self._thread.join()
        token = self._holder.token

        def is_own(contents: bytes) -> bool:
            holder = _parse(contents)
            return holder is not None and holder.token == token

        with contextlib.suppress(OSError):
            if is_own(_read(self._path) or b""):
                _remove(self._path, is_own)

    def _why_over(self, holder: Holder | None) -> str:
        """Return why a holder cannot be training any more, "" if it may be."""
        if holder is None:
            return ""
        if holder.machine and holder.machine == self._holder.machine and _has_ended(holder):
            return "that process has ended"
        if holder.job and holder.job == self._holder.job:
            if holder.restarts < self._holder.restarts:
                return f"the scheduler has restarted job {holder.job}"
        return ""

    def _watch(self, seen: bytes) -> str:
        """Return why the watched lease has lapsed, "" if it is gone; raise if it changes."""
        holder = _parse(seen) or "an unknown process"
        _print(
            f"{self._name} is held by {holder}; waiting up to {self._watch_seconds:g} s to see "
            "whether it is alive"
        )
        # Sleeps are counted: a process that was itself stopped has not watched in the meantime.
        for _ in range(LOOKS):
            time.sleep(self._watch_seconds / LOOKS)
            contents = _read(self._path)
            if contents is None:
                return ""
            if contents != seen:
                raise UsageError(
                    f"{self._name}: is held by {_parse(contents) or holder}, which is training "
                    "there; stop it first, or choose another directory"
                )
        return f"it has not renewed its lease for {self._watch_seconds:g} s"

    def _create(self) -> bool:
        """Create the lease unless there is one; return whether it was created."""
        partial = _temporary(self._path)
        try:
            partial.write_bytes(self._next_contents())
            os.link(partial, self._path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno in NO_LINKS and partial.exists():
                raise _NoHardLinksError from error
            raise OSError(error.errno, error.strerror, str(self._path)) from error
        finally:
            with contextlib.suppress(OSError):
                partial.unlink()
        return True

    def _next_contents(self) -> bytes:
        self._renewed_seconds = _now_seconds()
        self._holder = self._holder._replace(renewals=self._holder.renewals + 1)
        return json.dumps(self._holder._asdict(), indent=0).encode()


def _read(path: Path) -> bytes | None:
    """Return the contents of the file, None if there is none."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _parse(contents: bytes) -> Holder | None:
    """Return the holder that the contents of a lease describe, None for anything else."""
    try:
        return Holder(**json.loads(contents))
    except (ValueError, TypeError):
        return None


def _remove(path: Path, is_expected: Callable[[bytes], bool]) -> bool:
    """Delete the file if its contents are as expected; return whether it was deleted."""
    aside = _temporary(path)
    try:
        path.rename(aside)
    except FileNotFoundError:
        return False
    try:
        expected = is_expected(aside.read_bytes())
        if not expected:
            # Another start was faster. Its lease is put back, unless it has noticed the gap.
            with contextlib.suppress(FileExistsError):
                os.link(aside, path)
        return expected
    finally:
        aside.unlink()


def _temporary(path: Path) -> Path:
    return path.with_name(f"{path.stem}-{secrets.token_hex(4)}.tmp")


def _machine() -> str:
    """Return a name of the running kernel and this process's namespace; "" without /proc.

    Process numbers are comparable within it. Containers may share a host name, but not this name.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _has_ended(holder: Holder) -> bool:
    """Return whether a process of this machine has ended; its number may have been used again."""
    if status := _status(holder.process):
        # A killed process stays a zombie until its parent waits for it.
        return status.state in "ZX" or status.start != holder.process_start
    try:
        os.kill(holder.process, 0)
    except OSError as error:
        return isinstance(error, ProcessLookupError)  # /proc may hide those of other users
    return False


class _Status(NamedTuple):
    """The state of a process, and the time of its start in clock ticks since the machine's."""

    state: str
    start: str


def _status(process: int) -> _Status | None:
    """Return what /proc shows of a process, None if it shows nothing."""
    try:
        line = Path(f"/proc/{process}/stat").read_text(encoding="utf-8")
    except OSError:
        return None
    # The second field, the name in parentheses, may contain spaces and parentheses.
    fields = line.rpartition(")")[2].split()
    return _Status(fields[0], fields[19])


def _now_seconds() -> float:
    """Return the time since the machine's start, if possible including the time that it slept."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
