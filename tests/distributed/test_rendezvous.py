"""The rendezvous of processes at an address, with threads in their place as it needs no JAX."""

import contextlib
import re
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from asr_jax.distributed.rendezvous import rendezvous

HOST = re.escape(socket.gethostname())


@pytest.fixture
def coordinator() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def outcomes(
    coordinator: str, *options: tuple[int, int], timeout_seconds: float = 20.0
) -> list[str]:
    """Return the error of each (--process, --processes), empty where all processes met."""

    def outcome(option: tuple[int, int]) -> str:
        process, processes = option
        try:
            rendezvous(
                coordinator,
                process=process,
                processes=processes,
                timeout_seconds=timeout_seconds,
            )
        except ValueError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(len(options)) as pool:
        return list(pool.map(outcome, options))


def assert_all_match(messages: list[str], pattern: str) -> None:
    for message in messages:
        assert re.fullmatch(pattern, message), messages


def test_all_processes_arrive_and_the_port_is_free_again(coordinator):
    for _ in range(2):
        assert outcomes(coordinator, (2, 3), (0, 3), (1, 3)) == [""] * 3


def test_missing_processes_are_named_on_all_that_arrived(coordinator):
    assert_all_match(
        outcomes(coordinator, (2, 4), (0, 4), timeout_seconds=0.3),
        f"--coordinator {coordinator}: processes 1, 3 of 4 did not connect within 0.3 s; the "
        rf"first that did: 0 \({HOST}\), 2 \({HOST}\)",
    )


def test_different_counts_are_named_on_all(coordinator):
    assert_all_match(
        outcomes(coordinator, (0, 2), (2, 3)),
        rf"--coordinator {coordinator}: process 2 \({HOST}\) has --processes 3, process 0 "
        rf"\({HOST}\) has 2: must be the same on all hosts",
    )


def test_duplicate_numbers_are_named_on_all(coordinator):
    assert_all_match(
        outcomes(coordinator, (0, 3), (1, 3), (1, 3)),
        f"--coordinator {coordinator}: --process 1 was given twice, on {HOST} and {HOST}: each "
        "must have its own number",
    )


def test_port_in_use_is_reported(coordinator):
    host, _, port = coordinator.rpartition(":")
    with socket.create_server((host, int(port))):
        assert outcomes(coordinator, (0, 2)) == [
            f"--coordinator {coordinator}: Address already in use"
        ]


@pytest.mark.parametrize(
    "host, reason",
    [("127.0.0.1", "Connection refused"), ("no-such-host.invalid", ".*")],
)
def test_unreachable_address_is_reported(coordinator, host, reason):
    address = coordinator.replace("127.0.0.1", host)
    assert_all_match(
        outcomes(address, (1, 2), timeout_seconds=0.3),
        rf"--coordinator {address}: not reached within 0.3 s \({reason}\): is process 0 running "
        "there, and can this host connect to it\\?",
    )


def test_other_clients_are_not_counted_as_processes(coordinator):
    host, _, port = coordinator.rpartition(":")
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(outcomes, coordinator, (0, 2))
        for sent in (b"GET / HTTP/1.1\r\n\r\n", b"", b"[1]\n", b'{"process": 1}\n'):
            while True:
                with contextlib.suppress(ConnectionRefusedError):
                    with socket.create_connection((host, int(port))) as call:
                        call.sendall(sent)
                        break
        assert outcomes(coordinator, (1, 2)) == first.result() == [""]


def test_other_service_in_place_of_process_0_is_reported(coordinator):
    host, _, port = coordinator.rpartition(":")
    with socket.create_server((host, int(port))) as service:

        def answer():
            connection, _ = service.accept()
            with connection:
                connection.sendall(b"SSH-2.0\n")

        answering = threading.Thread(target=answer)
        answering.start()
        messages = outcomes(coordinator, (1, 2))
        answering.join()
    assert messages == [
        f"--coordinator {coordinator}: process 0 closed the connection: more processes than "
        "--processes, a duplicate --process, or another service on this port"
    ]


def test_long_wait_is_reported_once(coordinator, monkeypatch, capsys):
    monkeypatch.setattr("asr_jax.distributed.rendezvous.PATIENCE_SECONDS", 0)
    outcomes(coordinator, (0, 12), timeout_seconds=0.3)
    assert capsys.readouterr().err == (
        "waiting for processes 1, 2, 3, 4, 5, 6, 7, 8 and 3 more of 12 to connect to "
        f"{coordinator}\n"
    )
