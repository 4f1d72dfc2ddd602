"""Several processes as one program: how they find each other, agree, and fail together.

Each runs the same command; one of them, the first, writes the run directory, which all of them can
read. JAX connects them (jax.distributed), on the CPU through Gloo.
"""

import contextlib
import functools
import hashlib
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec

import jax
import numpy as np
from jax.experimental import multihost_utils

from asr_jax.distributed.rendezvous import rendezvous
from asr_jax.distributed.schedulers import scheduled_hosts, started_together
from asr_jax.errors import user_message

P = ParamSpec("P")

# Until all must have come, and until one that says nothing any more counts as lost.
RENDEZVOUS_SECONDS = 300
SILENCE_SECONDS = 30


@dataclass(frozen=True, kw_only=True)
class Processes:
    """One process, or where several meet; SLURM, Open MPI and Cloud TPUs say it by themselves."""

    coordinator: str = ""
    """HOST:PORT of this machine or another, at which the first process waits for the others."""
    processes: int = 1
    """How many there are, on all hosts."""
    process: int = 0
    """Number of this one, from 0."""

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
def connected_processes(options: Processes, *, verb: str) -> Iterator[int]:
    """Connects this process with the others, before JAX looks for devices; gives their number.

    Raises ValueError where they cannot meet. Later an error of one ends all of them: it says what
    it was and leaves at once, upon which whatever the others wait for fails.
    """
    count = options.processes if options.coordinator else started_together()
    if count > 1:
        _connect(options, count=count, verb=verb)
    try:
        yield count
        if count > 1:
            # Who is done early would give up waiting for those who write reports.
            multihost_utils.sync_global_devices("done")
    except BaseException as error:
        if count == 1 or isinstance(error, SystemExit):
            raise
        said = user_message(error)
        if isinstance(error, jax.errors.JaxRuntimeError):
            said = f"another process was lost ({str(error).splitlines()[0][:200]})"
        if said is None:
            traceback.print_exc()
        else:
            print(f"asr-jax {verb}: {here()}: {said}", file=sys.stderr)
        sys.stderr.flush()
        if (_index() or options.process) == 0:
            # What connects them ends with the first, and JAX then aborts who has not left yet.
            time.sleep(1)
        # Leaving in an orderly way would wait for the others.
        os._exit(2)


def here() -> str:
    """What this process is called in messages."""
    host = socket.gethostname()
    return host if _index() is None else f"process {_index()} of {jax.process_count()} ({host})"


def is_first() -> bool:
    """Whether this process is the one that writes."""
    return jax.process_index() == 0


def all_gather_text(text: str) -> list[str]:
    """The text that each process gives, in their order."""
    if jax.process_count() == 1:
        return [text]
    contents = np.frombuffer(text.encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.array([len(contents)]), tiled=True)
    padded = np.zeros((1, max(1, *lengths)), np.uint8)
    padded[0, : len(contents)] = contents
    rows = multihost_utils.process_allgather(padded, tiled=True)
    return [bytes(row[:length]).decode() for row, length in zip(rows, lengths)]


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
    """Of the package's own files: a version would say nothing of a checkout, or of changed code."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def require_same(facts: Mapping[str, Any]) -> None:
    """Raises ValueError on all processes where a fact is not the same on all."""
    mine = json.dumps({"host": socket.gethostname(), **facts})
    first, *others = map(json.loads, all_gather_text(mine))
    for number, other in enumerate(others, start=1):
        for name in facts:
            if first.get(name) != other.get(name):
                raise ValueError(
                    f"process {number} ({other['host']}) has {name} = {other.get(name)!r}, process "
                    f"0 ({first['host']}) has {first.get(name)!r}: must be the same on all hosts"
                )


def preemption_of_any_process(numbers: tuple[int, ...]) -> Callable[[int], str | None]:
    """A look, at each step, at whether any process was sent one of these signals.

    All processes see it at the same step, on which JAX agrees between them in the background
    (XLA's preemption service, which listens to SIGTERM).
    """
    for number in numbers:
        if number != signal.SIGTERM:
            signal.signal(number, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    reached = multihost_utils.reached_preemption_sync_point
    return lambda step: "SIGTERM" if reached(step) else None


def _index() -> int | None:
    """Number of this process; None where it found no devices, whom JAX asks for it."""
    try:
        return jax.process_index()
    except (RuntimeError, AssertionError):
        return None


def _connect(options: Processes, *, count: int, verb: str) -> None:
    place: dict[str, Any] = {}
    if options.coordinator:
        place = {
            "coordinator_address": options.coordinator,
            "num_processes": options.processes,
            "process_id": options.process,
        }
        rendezvous(
            options.coordinator,
            process=options.process,
            processes=options.processes,
            timeout_seconds=RENDEZVOUS_SECONDS,
        )
    where = f"--coordinator {options.coordinator}" if options.coordinator else scheduled_hosts()

    def give_up() -> None:
        print(
            f"asr-jax {verb}: {socket.gethostname()}: {where}: the {count} processes did not meet "
            f"within {RENDEZVOUS_SECONDS} s; do all run, and may their hosts connect to each "
            "other?",
            file=sys.stderr,
            flush=True,
        )
        os._exit(2)  # initialize cannot be interrupted

    # When JAX's own time is up it aborts the process: ours is up before.
    waiting = threading.Timer(RENDEZVOUS_SECONDS, give_up)
    waiting.daemon = True
    waiting.start()
    try:
        jax.distributed.initialize(
            **place,
            initialization_timeout=RENDEZVOUS_SECONDS + 60,
            heartbeat_timeout_seconds=SILENCE_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"{where}: the {count} processes did not meet: {str(error).splitlines()[0][:300]}"
        ) from error
    finally:
        waiting.cancel()
