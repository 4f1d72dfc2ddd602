"""Several starts in one folder: exactly one trains, and a killed one stands in no one's way."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from asr_jax.distributed import lease
from asr_jax.distributed.lease import LEASE, held
from asr_jax.errors import UsageError

ROOT = Path(__file__).parents[2]
# Prints "holds" while it holds the lease, until its standard input ends.
PROGRAM = """
import sys
from pathlib import Path
from asr_jax.distributed.lease import held
seconds = {"renew_seconds": 0.05, "watch_seconds": float(sys.argv[2])}
try:
    with held(Path(sys.argv[1]), name="--run R", **seconds):
        print("holds", flush=True)
        sys.stdin.read()
except ValueError as error:
    sys.exit(str(error))
"""
# Longer than a test may take: a start that watches would not end.
EVER = 1e6


def start(folder: Path, *, watch_seconds: float, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder), str(watch_seconds)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
    )


def holding(process: subprocess.Popen) -> subprocess.Popen:
    """Return the process once it holds the lease."""
    assert process.stdout and process.stdout.readline() == "holds\n", process.communicate()
    return process


def kill(process: subprocess.Popen) -> None:
    process.kill()
    process.communicate()


def described(folder: Path) -> dict:
    return json.loads((folder / LEASE).read_text())


def describe(folder: Path, **fields: object) -> None:
    (folder / LEASE).write_text(json.dumps(described(folder) | fields))


def acquire(folder: Path, *, watch_seconds: float) -> None:
    with held(folder, name="--run R", renew_seconds=0.05, watch_seconds=watch_seconds):
        assert described(folder)["process"] == os.getpid()


@pytest.fixture
def killed(tmp_path) -> Path:
    """A folder with the lease of a process that was killed."""
    kill(holding(start(tmp_path, watch_seconds=EVER)))
    return tmp_path


def test_lease_is_released_at_every_ordinary_end(tmp_path):
    for error in (None, ValueError, KeyboardInterrupt, SystemExit):
        try:
            with held(tmp_path, name="--run R"):
                assert os.listdir(tmp_path) == [LEASE]
                if error:
                    raise error
        except BaseException as raised:
            assert type(raised) is error
        assert os.listdir(tmp_path) == []


def test_second_start_names_the_holder_and_changes_no_file(tmp_path, capsys):
    with held(tmp_path, name="--run R", renew_seconds=0.05):
        since = described(tmp_path)["since"]
        with pytest.raises(UsageError) as error:
            acquire(tmp_path, watch_seconds=10.0)
        assert os.listdir(tmp_path) == [LEASE]
    holder = f"{os.uname().nodename}, process {os.getpid()}, since {since}"
    assert str(error.value) == (
        f"--run R: is held by {holder}, which is training there; stop it first, or choose another "
        "directory"
    )
    assert capsys.readouterr().err == (
        f"--run R is held by {holder}; waiting up to 10 s to see whether it is alive\n"
    )


@pytest.mark.parametrize("remains", [False, True])
def test_of_several_starts_at_once_exactly_one_trains(tmp_path, remains):
    if remains:
        kill(holding(start(tmp_path, watch_seconds=EVER)))
    started = [start(tmp_path, watch_seconds=10.0) for _ in range(6)]
    # The others end, as they see that the lease changes. Closing its input ends the holder.
    while sum(process.poll() is None for process in started) > 1:
        time.sleep(0.02)
    [holder] = [process for process in started if process.returncode is None]
    for process in started:
        out, err = process.communicate()
        if process is holder:
            assert (process.returncode, out) == (0, "holds\n"), err
        else:
            assert f"is held by {os.uname().nodename}, process {holder.pid}, since" in err
            assert (process.returncode, out) == (1, ""), err
    assert os.listdir(tmp_path) == []


def test_lease_of_a_process_that_has_ended_is_taken_over_at_once(killed, capsys):
    acquire(killed, watch_seconds=EVER)
    err = capsys.readouterr().err
    assert err.startswith("--run R: taken over from ") and err.endswith("that process has ended\n")
    assert os.listdir(killed) == []


def test_killed_process_that_nobody_waits_for_has_ended(tmp_path):
    process = holding(start(tmp_path, watch_seconds=EVER))
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # It stays a zombie.
    acquire(tmp_path, watch_seconds=EVER)
    process.communicate()


def test_process_number_that_another_process_has_now_is_no_sign_of_life(killed):
    describe(killed, process=os.getpid())
    acquire(killed, watch_seconds=EVER)


@pytest.mark.parametrize("fields", [{"machine": "another"}, {"machine": ""}])
def test_lease_of_another_machine_is_watched_before_it_is_taken_over(killed, capsys, fields):
    """Also that of another container, which may have the same host name and process numbers."""
    describe(killed, **fields)
    acquire(killed, watch_seconds=0.1)
    waiting, taken = capsys.readouterr().err.splitlines()
    assert waiting.endswith("; waiting up to 0.1 s to see whether it is alive")
    assert taken.endswith(": it has not renewed its lease for 0.1 s")


def test_start_that_watches_continues_at_once_when_the_holder_releases(tmp_path):
    release = threading.Event()

    def hold_for_a_while(holds: threading.Event) -> None:
        with held(tmp_path, name="--run R", renew_seconds=EVER):
            holds.set()
            release.wait()

    holds = threading.Event()
    other = threading.Thread(target=hold_for_a_while, args=(holds,))
    other.start()
    holds.wait()
    threading.Timer(0.1, release.set).start()
    acquire(tmp_path, watch_seconds=10.0)
    other.join()


def test_stopped_process_lapses_and_ends_when_it_continues(tmp_path):
    stopped = holding(start(tmp_path, watch_seconds=EVER))
    stopped.send_signal(signal.SIGSTOP)
    with held(tmp_path, name="--run R", watch_seconds=0.3):
        stopped.send_signal(signal.SIGCONT)
        # Its input stays open, so that it can end for no other reason.
        assert stopped.wait() == 2
        _, err = stopped.communicate()
        assert err.startswith(f"asr-jax train: --run R: was taken over by {os.uname().nodename}, ")
        assert f"process {os.getpid()}, since " in err and err.count("\n") == 1
        assert described(tmp_path)["process"] == os.getpid()
    assert os.listdir(tmp_path) == []


def test_stopped_process_ends_even_if_the_start_that_took_over_has_ended(tmp_path):
    stopped = holding(start(tmp_path, watch_seconds=0.2))
    stopped.send_signal(signal.SIGSTOP)
    acquire(tmp_path, watch_seconds=0.3)
    stopped.send_signal(signal.SIGCONT)
    assert stopped.wait() == 2
    _, err = stopped.communicate()
    assert ": was taken over by another start, which has ended, while" in err
    assert os.listdir(tmp_path) == []


def test_deleted_lease_is_written_again(tmp_path):
    with held(tmp_path, name="--run R", renew_seconds=EVER) as require_held:
        (tmp_path / LEASE).unlink()
        require_held()
        assert described(tmp_path)["renewals"] == 2


def test_damaged_lease_is_taken_over_after_a_while(tmp_path, capsys):
    (tmp_path / LEASE).write_text("{")
    acquire(tmp_path, watch_seconds=0.1)
    assert "--run R: taken over from an unknown process: " in capsys.readouterr().err


def test_restarted_job_takes_over_its_own_lease_at_once(tmp_path, monkeypatch, capsys):
    slurm = {"SLURM_JOB_ID": "12", "SLURM_CLUSTER_NAME": "c"}
    with holding(start(tmp_path, watch_seconds=EVER, **slurm)) as earlier:
        describe(tmp_path, machine="another")
        for name, value in slurm.items():
            monkeypatch.setenv(name, value)
        # Two starts in one allocation are rivals.
        with pytest.raises(UsageError, match="is held by"):
            acquire(tmp_path, watch_seconds=10.0)
        monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
        acquire(tmp_path, watch_seconds=EVER)
        assert "the scheduler has restarted job c:12" in capsys.readouterr().err
        earlier.kill()


def test_without_hard_links_there_is_a_warning_and_no_lease(tmp_path, monkeypatch, capsys):
    def link(*_):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", link)
    with held(tmp_path, name="--run R") as require_held:
        require_held()
        assert os.listdir(tmp_path) == []
    assert capsys.readouterr().err.startswith("warning: --run R: its file system has no hard links")


def test_disk_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    def link(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(lease.os, "link", link)
    with pytest.raises(OSError) as error:
        acquire(tmp_path, watch_seconds=EVER)
    assert error.value.filename == str(tmp_path / LEASE)
    assert os.listdir(tmp_path) == []
