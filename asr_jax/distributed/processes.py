"""Several processes as one program: how they connect, agree, and fail together.

Each process runs the same command. The first one writes the run directory, which all of them can
read. JAX connects them (jax.distributed), on the CPU through Gloo.
"""

import contextlib
import functools
import hashlib
import json
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, ParamSpec

import jax
import numpy as np
from jax.experimental import multihost_utils

from asr_jax.distributed.rendezvous import rendezvous
from asr_jax.distributed.schedulers import scheduled_hosts, started_together
from asr_jax.errors import user_message

P = ParamSpec("P")

# All processes must connect within this time.
RENDEZVOUS_SECONDS = 300
# A process that sends no heartbeat for this long counts as lost.
HEARTBEAT_SECONDS = 30


@dataclass(frozen=True, kw_only=True)
class Processes:
    """How several processes connect; SLURM, Open MPI and Cloud TPUs set it by themselves."""

    coordinator: str = ""
    """HOST:PORT at which process 0 listens, and to which the others connect."""
    processes: int = 1
    """Total number of processes on all hosts."""
    process: int = 0
    """Number of this process, from 0."""

    def __post_init__(self) -> None:
        host, _, port = self.coordinator.rpartition(":")
        if self.coordinator and not (host and port.isdigit() and 0 < int(port) < 2**16):
            raise ValueError(f"--coordinator {self.coordinator}: must be HOST:PORT")
        if self.processes > 1 and not self.coordinator:
            raise ValueError(f"--processes {self.processes}: needs --coordinator HOST:PORT")
        if not 0 <= self.process < self.processes:
            raise ValueError(
                f"--process {self.process}: must lie in 0..{self.processes - 1}, "
                f"as --processes is {self.processes}"
            )


@contextlib.contextmanager
def connected_processes(options: Processes, *, command: str) -> Iterator[int]:
    """Connect this process with the others, before JAX looks for devices; yield the count.

    Raises ValueError if they cannot connect. After that, an error in one process ends all of them:
    that process reports it and exits at once, and whatever the others wait for then fails.
    """
    count = options.processes if options.coordinator else started_together()
    if count > 1:
        _connect(options, count=count, command=command)
    try:
        yield count
        if count > 1:
            # A process that is done early would give up waiting for those that write reports.
            multihost_utils.sync_global_devices("done")
    except BaseException as error:
        if count == 1 or isinstance(error, SystemExit):
            raise
        _report(error, command=command)
        if (_process_index() or options.process) == 0:
            # The connection ends with process 0, and JAX then aborts processes that still run.
            time.sleep(1)
        # An orderly exit would wait for the other processes.
        os._exit(2)


def is_first() -> bool:
    """Return whether this process is the one that writes."""
    return jax.process_index() == 0


def all_gather_text(text: str) -> list[str]:
    """Return the texts of all processes, in the order of their numbers."""
    if jax.process_count() == 1:
        return [text]
    # The name of a file may hold bytes that are not UTF-8.
    contents = np.frombuffer(text.encode(errors="surrogatepass"), np.uint8)
    lengths = multihost_utils.process_allgather(np.array([len(contents)]), tiled=True)
    padded = np.zeros((1, max(1, *lengths)), np.uint8)
    padded[0, : len(contents)] = contents
    rows = multihost_utils.process_allgather(padded, tiled=True)
    received = (bytes(row[:length]) for row, length in zip(rows, lengths))
    return [contents.decode(errors="surrogatepass") for contents in received]


def first_process(work: Callable[P, object]) -> Callable[P, None]:
    """Decorate a function that only the first process runs, while the others wait for its end.

    An error that it raises on the first process is raised on all processes.
    """

    @functools.wraps(work)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        problem = ""
        if is_first():
            try:
                work(*args, **kwargs)
            except Exception as error:
                if jax.process_count() == 1 or user_message(error) is None:
                    raise
                problem = str(user_message(error))
        problem = all_gather_text(problem)[0]
        if problem:
            raise ValueError(problem)

    return run


def code_fingerprint() -> str:
    """Return a digest of the package's files: a version does not distinguish edited checkouts."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def require_same(facts: Mapping[str, object]) -> None:
    """Raise ValueError on all processes where a fact differs between them."""
    mine = json.dumps({"host": socket.gethostname(), **facts})
    first, *others = map(json.loads, all_gather_text(mine))
    for number, other in enumerate(others, start=1):
        for name in facts:
            if first.get(name) != other.get(name):
                raise ValueError(
                    f"process {number} ({other['host']}) has {name} = {other.get(name)!r}, process "
                    f"0 ({first['host']}) has {first.get(name)!r}: must be the same on all hosts"
                )


def _process_index() -> int | None:
    """Return the number of this process, or None where JAX found no devices to ask for it."""
    try:
        return jax.process_index()
    except (RuntimeError, AssertionError):
        return None


def _report(error: BaseException, *, command: str) -> None:
    """Print why this process stops: a line, or the traceback of a bug."""
    message = user_message(error)
    if isinstance(error, jax.errors.JaxRuntimeError):
        message = f"another process was lost ({str(error).splitlines()[0][:200]})"
    if message is None:
        traceback.print_exc()
    else:
        host, index = socket.gethostname(), _process_index()
        sender = host if index is None else f"process {index} of {jax.process_count()} ({host})"
        print(f"asr-jax {command}: {sender}: {message}", file=sys.stderr)
    sys.stderr.flush()


def _connect(options: Processes, *, count: int, command: str) -> None:
    address = number = index = None
    if options.coordinator:
        address, number, index = options.coordinator, options.processes, options.process
        rendezvous(address, process=index, processes=number, timeout_seconds=RENDEZVOUS_SECONDS)
    source = f"--coordinator {address}" if address else scheduled_hosts()
    problem = f"{source}: the {count} processes did not connect"
    # JAX aborts the process at its own timeout. This one comes first and prints a line.
    timer = threading.Timer(RENDEZVOUS_SECONDS, _give_up, (f"asr-jax {command}", problem))
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(
            address,
            number,
            index,
            initialization_timeout=RENDEZVOUS_SECONDS + 60,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{problem}: {str(error).splitlines()[0][:300]}") from error
    finally:
        timer.cancel()


def _give_up(program: str, problem: str) -> NoReturn:
    print(
        f"{program}: {socket.gethostname()}: {problem} within {RENDEZVOUS_SECONDS} s (are all of "
        "them running, and can their hosts reach each other?)",
        file=sys.stderr,
        flush=True,
    )
    os._exit(2)  # jax.distributed.initialize cannot be interrupted
