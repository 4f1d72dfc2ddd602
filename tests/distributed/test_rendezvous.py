"""Processes that meet at an address: threads in their place, since nothing of JAX takes part."""

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
    coordinator: str, *places: tuple[int, int], timeout_seconds: float = 20.0
) -> list[str]:
    """What each process, (its number, how many it was told of), complains of; empty: they met."""

    def outcome(place: tuple[int, int]) -> str:
        try:
            rendezvous(
                coordinator,
                process=place[0],
                processes=place[1],
                timeout_seconds=timeout_seconds,
            )
        except ValueError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(len(places)) as pool:
        return list(pool.map(outcome, places))


def assert_all_say(said: list[str], pattern: str) -> None:
    for one in said:
        assert re.fullmatch(pattern, one), said


def test_all_come_and_the_port_is_free_again(coordinator):
    for _ in range(2):
        assert outcomes(coordinator, (2, 3), (0, 3), (1, 3)) == [""] * 3


def test_who_has_not_come_is_named_on_all(coordinator):
    said = outcomes(coordinator, (2, 4), (0, 4), timeout_seconds=0.3)
    assert_all_say(
        said,
        f"--coordinator {coordinator}: processes 1, 3 of 4 did not come within 0.3 s; of those "
        rf"who came the first are 0 \({HOST}\), 2 \({HOST}\)",
    )


def test_other_counts_are_named_on_all(coordinator):
    assert_all_say(
        outcomes(coordinator, (0, 2), (2, 3)),
        rf"--coordinator {coordinator}: process 2 \({HOST}\) has --processes 3, process 0 "
        rf"\({HOST}\) has 2: must be the same on all hosts",
    )


def test_numbers_given_twice_are_named_on_all(coordinator):
    assert_all_say(
        outcomes(coordinator, (0, 3), (1, 3), (1, 3)),
        f"--coordinator {coordinator}: --process 1 was given twice, on {HOST} and {HOST}: each "
        "must have its own number",
    )


def test_a_port_in_use_is_told(coordinator):
    host, _, port = coordinator.rpartition(":")
    with socket.create_server((host, int(port))):
        assert outcomes(coordinator, (0, 2)) == [
            f"--coordinator {coordinator}: Address already in use"
        ]


@pytest.mark.parametrize(
    "place, reason",
    [("127.0.0.1", "Connection refused"), ("no-such-host.invalid", ".*")],
)
def test_an_address_that_is_not_reached_is_told(coordinator, place, reason):
    place = coordinator.replace("127.0.0.1", place)
    assert_all_say(
        outcomes(place, (1, 2), timeout_seconds=0.3),
        rf"--coordinator {place}: not reached within 0.3 s \({reason}\); does process 0 run "
        "there, and may this host connect to it\\?",
    )


def test_strangers_are_not_counted(coordinator):
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


def test_a_first_process_that_is_a_stranger_is_told(coordinator):
    host, _, port = coordinator.rpartition(":")
    with socket.create_server((host, int(port))) as other:

        def answer():
            call, _ = other.accept()
            with call:
                call.sendall(b"SSH-2.0\n")

        answering = threading.Thread(target=answer)
        answering.start()
        said = outcomes(coordinator, (1, 2))
        answering.join()
    assert said == [
        f"--coordinator {coordinator}: process 0 has left or gone on with others (are there more "
        "than --processes says, or two of one number?), or it is something else that listens there"
    ]


def test_long_waiting_is_told_once(coordinator, monkeypatch, capsys):
    monkeypatch.setattr("asr_jax.distributed.rendezvous.PATIENCE_SECONDS", 0)
    outcomes(coordinator, (0, 12), timeout_seconds=0.3)
    assert capsys.readouterr().err == (
        f"waiting for processes 1, 2, 3, 4, 5, 6, 7, 8 and 3 more of 12 to call {coordinator}\n"
    )
