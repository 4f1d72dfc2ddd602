"""Processes that were told where to meet find out whether all came, before JAX connects them.

JAX ends a process with pages of its own stack when another is missing, or has the same number. So
the others call the first process beforehand, on the port where JAX listens afterwards.
"""

import json
import os
import socket
import sys
import time
from typing import NamedTuple, TextIO

# Until who waits says so.
PATIENCE_SECONDS = 10


class Hello(NamedTuple):
    """What a process says of itself, in a line of JSON."""

    process: int
    processes: int
    host: str


def rendezvous(coordinator: str, *, process: int, processes: int, timeout_seconds: float) -> None:
    """Returns on all processes, or raises the same ValueError on all that came.

    That is where the port is taken or nobody answers there, where they were not told of the same
    number of processes, where two have the same, and where one did not come within the timeout.
    """
    host, _, port = coordinator.rpartition(":")
    address = host.strip("[]"), int(port)  # of IPv6
    mine = Hello(process, processes, socket.gethostname())
    problem = (_call_first if process else _receive_others)(address, mine, timeout_seconds)
    if problem:
        raise ValueError(f"--coordinator {coordinator}: {problem}")


def _receive_others(address: tuple[str, int], mine: Hello, timeout_seconds: float) -> str:
    """What is wrong with those who came, which they are told; empty where nothing is."""
    dual = socket.has_dualstack_ipv6()
    try:
        server = socket.create_server(
            ("", address[1]),
            family=socket.AF_INET6 if dual else socket.AF_INET,
            dualstack_ipv6=dual,
        )
    except OSError as error:
        return os.strerror(error.errno or 0)
    came, lines, problem = {0: mine}, list[TextIO](), ""
    waiting = _Waiting(timeout_seconds)
    with server:
        server.settimeout(0.1)
        while not problem and len(came) < mine.processes:
            missing = f"{_listed(set(range(mine.processes)) - came.keys())} of {mine.processes}"
            if waiting.is_over(f"{missing} to call {_at(address)}"):
                here = ", ".join(f"{n} ({came[n].host})" for n in sorted(came)[:8])
                problem = (
                    f"{missing} did not come within {timeout_seconds:g} s; of those who came the "
                    f"first are {here}"
                )
                break
            try:
                call, _ = server.accept()
                call.settimeout(5)
                lines.append(call.makefile("rw"))
                call.close()  # the line keeps it open
                hello = Hello(**json.loads(lines[-1].readline(1000)))
            except (OSError, ValueError, TypeError):
                continue  # nobody of ours
            problem = _mismatch(hello, came)
            came[hello.process] = hello
    for line in lines:
        try:
            print(json.dumps({"problem": problem}), file=line, flush=True)
            line.close()
        except OSError:
            continue
    return problem


def _mismatch(hello: Hello, came: dict[int, Hello]) -> str:
    first, same = came[0], came.get(hello.process)
    if hello.processes != first.processes:
        return (
            f"process {hello.process} ({hello.host}) has --processes {hello.processes}, process "
            f"0 ({first.host}) has {first.processes}: must be the same on all hosts"
        )
    if same:
        return (
            f"--process {hello.process} was given twice, on {same.host} and {hello.host}: each "
            "must have its own number"
        )
    return ""


def _call_first(address: tuple[str, int], mine: Hello, timeout_seconds: float) -> str:
    """What the first process found to be wrong; empty where all have come."""
    waiting = _Waiting(timeout_seconds)
    while True:
        try:
            call = socket.create_connection(address, timeout=5)
            break
        except OSError as error:
            reason = error.strerror or str(error)
        if waiting.is_over(f"process 0 to answer at {_at(address)} ({reason})"):
            return (
                f"not reached within {timeout_seconds:g} s ({reason}); does process 0 run there, "
                "and may this host connect to it?"
            )
        time.sleep(0.1)
    try:
        # It may have come later than this one, and waits as long.
        call.settimeout(timeout_seconds + 10)
        with call, call.makefile("rw") as line:
            print(json.dumps(mine._asdict()), file=line, flush=True)
            return json.loads(line.readline())["problem"]
    except (OSError, ValueError, TypeError, KeyError):
        return (
            "process 0 has left or gone on with others (are there more than --processes says, or "
            "two of one number?), or it is something else that listens there"
        )


class _Waiting:
    """Time that passes, of which is told once when it gets long."""

    def __init__(self, timeout_seconds: float):
        self._begin = time.monotonic()
        self._timeout_seconds = timeout_seconds
        self._silent = True

    def is_over(self, waiting_for: str) -> bool:
        passed_seconds = time.monotonic() - self._begin
        if self._silent and passed_seconds > PATIENCE_SECONDS:
            print(f"waiting for {waiting_for}", file=sys.stderr, flush=True)
            self._silent = False
        return passed_seconds > self._timeout_seconds


def _listed(numbers: set[int]) -> str:
    more = f" and {len(numbers) - 8} more" if len(numbers) > 8 else ""
    named = ", ".join(map(str, sorted(numbers)[:8]))
    return f"process{'es' if len(numbers) > 1 else ''} {named}{more}"


def _at(address: tuple[str, int]) -> str:
    return f"{address[0]}:{address[1]}"
