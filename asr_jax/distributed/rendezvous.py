"""A check that all processes of a run arrive, before JAX connects them.

JAX ends a process with a long stack trace when another process is missing or has the same number.
So the other processes first connect to process 0, on the port where JAX listens afterwards.
"""

import json
import os
import socket
import sys
import time
from dataclasses import dataclass
from typing import NamedTuple, TextIO

# Report the wait after this long.
PATIENCE_SECONDS = 10


class Hello(NamedTuple):
    """The line of JSON in which a process introduces itself."""

    process: int
    processes: int
    host: str


def rendezvous(coordinator: str, *, process: int, processes: int, timeout_seconds: float) -> None:
    """Return when all processes have arrived, or raise the same ValueError on those that have.

    The error names a port that is in use or that nobody answers, different values of `processes`,
    a duplicate number, or the processes that did not arrive within the timeout.
    """
    host, _, port = coordinator.rpartition(":")
    address = host.strip("[]"), int(port)  # the brackets of IPv6
    hello = Hello(process, processes, socket.gethostname())
    if process == 0:
        problem = _receive_others(address, hello, timeout_seconds)
    else:
        problem = _report_to_first(address, hello, timeout_seconds)
    if problem:
        raise ValueError(f"--coordinator {coordinator}: {problem}")


@dataclass
class _Arrivals:
    """The processes that have arrived at process 0, and an open line to each caller."""

    hellos: dict[int, Hello]
    lines: list[TextIO]


class _TimeLimit:
    """A time limit; when the wait becomes long, it is reported once."""

    def __init__(self, timeout_seconds: float):
        self._begin = time.monotonic()
        self._timeout_seconds = timeout_seconds
        self._reported = False

    def is_over(self, waiting_for: str) -> bool:
        passed_seconds = time.monotonic() - self._begin
        if not self._reported and passed_seconds > PATIENCE_SECONDS:
            print(f"waiting for {waiting_for}", file=sys.stderr, flush=True)
            self._reported = True
        return passed_seconds > self._timeout_seconds


def _receive_others(address: tuple[str, int], first: Hello, timeout_seconds: float) -> str:
    """Wait for the other processes; report what is wrong to them and return it, else ""."""
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    try:
        server = socket.create_server(("", address[1]), family=family, dualstack_ipv6=dual)
    except OSError as error:
        return os.strerror(error.errno or 0)
    arrivals = _Arrivals({0: first}, [])
    with server:
        server.settimeout(0.1)
        problem = _accept_all(server, arrivals, _name(address), timeout_seconds)
    for line in arrivals.lines:
        try:
            print(json.dumps({"problem": problem}), file=line, flush=True)
            line.close()
        except OSError:
            continue
    return problem


def _accept_all(
    server: socket.socket, arrivals: _Arrivals, address: str, timeout_seconds: float
) -> str:
    """Fill `arrivals` until all processes are there; return what is wrong, else ""."""
    hellos, limit = arrivals.hellos, _TimeLimit(timeout_seconds)
    processes = hellos[0].processes
    while len(hellos) < processes:
        missing = f"{_process_list(set(range(processes)) - hellos.keys())} of {processes}"
        if limit.is_over(f"{missing} to connect to {address}"):
            arrived = ", ".join(f"{n} ({hellos[n].host})" for n in sorted(hellos)[:8])
            return (
                f"{missing} did not connect within {timeout_seconds:g} s; the first that did: "
                f"{arrived}"
            )
        try:
            connection, _ = server.accept()
            connection.settimeout(5)
            line = connection.makefile("rw")
            connection.close()  # the line keeps it open
            arrivals.lines.append(line)
            hello = Hello(**json.loads(line.readline(1000)))
        except (OSError, ValueError, TypeError):
            continue  # not one of our processes
        if problem := _mismatch(hello, hellos):
            return problem
        hellos[hello.process] = hello
    return ""


def _mismatch(hello: Hello, hellos: dict[int, Hello]) -> str:
    """Return how a process contradicts those that arrived before it, else ""."""
    first, duplicate = hellos[0], hellos.get(hello.process)
    if hello.processes != first.processes:
        return (
            f"process {hello.process} ({hello.host}) has --processes {hello.processes}, process "
            f"0 ({first.host}) has {first.processes}: must be the same on all hosts"
        )
    if duplicate:
        return (
            f"--process {hello.process} was given twice, on {duplicate.host} and {hello.host}: "
            "each must have its own number"
        )
    return ""


def _report_to_first(address: tuple[str, int], hello: Hello, timeout_seconds: float) -> str:
    """Report to process 0, and return what it found to be wrong, else ""."""
    limit = _TimeLimit(timeout_seconds)
    while True:
        try:
            connection = socket.create_connection(address, timeout=5)
            break
        except OSError as error:
            reason = error.strerror or str(error)
        if limit.is_over(f"process 0 to answer at {_name(address)} ({reason})"):
            return (
                f"not reached within {timeout_seconds:g} s ({reason}): is process 0 running there, "
                "and can this host connect to it?"
            )
        time.sleep(0.1)
    try:
        # Process 0 may have started later than this one, and waits as long.
        connection.settimeout(timeout_seconds + 10)
        with connection, connection.makefile("rw") as line:
            print(json.dumps(hello._asdict()), file=line, flush=True)
            return json.loads(line.readline())["problem"]
    except (OSError, ValueError, TypeError, KeyError):
        return (
            "process 0 closed the connection: more processes than --processes, a duplicate "
            "--process, or another service on this port"
        )


def _process_list(numbers: set[int]) -> str:
    names = ", ".join(map(str, sorted(numbers)[:8]))
    more = f" and {len(numbers) - 8} more" if len(numbers) > 8 else ""
    return f"process{'es' if len(numbers) > 1 else ''} {names}{more}"


def _name(address: tuple[str, int]) -> str:
    return f"{address[0]}:{address[1]}"
