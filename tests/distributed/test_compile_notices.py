"""XLA's notices of slow compilation go to a log; everything else reaches standard error."""

import importlib
import inspect
import io
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from asr_jax.distributed import compile_notices
from asr_jax.distributed.compile_notices import copy_without_notices

ROOT = Path(__file__).parents[2]
ROW = b"*" * 32 + b"\n"
SLOW = (
    b"[Compiling module jit_train_step] Very slow compile? If you want to file a bug, run with "
    b"envvar XLA_FLAGS=--xla_dump_to=/tmp/foo and attach the results.\n"
)
HEAD = b"E0000 00:00:1751.5 99 slow_operation_alarm.cc:73] "
FIRST = HEAD + b"\n" + ROW + SLOW + ROW
LAST = HEAD + b"The operation took 2m16.8s\n\n" + ROW + SLOW + ROW
OLD = b"2025-01-01 00:00:00.1: E external/xla/xla/service/slow_operation_alarm.cc:65] \n"


def copied(text: bytes, log: Path) -> bytes:
    terminal = io.BytesIO()
    copy_without_notices(io.BytesIO(text), terminal, log)
    return terminal.getvalue()


@pytest.mark.parametrize("notice", [FIRST, LAST, FIRST + LAST, OLD + ROW + SLOW + ROW])
def test_notices_become_lines(notice, tmp_path):
    log = tmp_path / "xla.log"
    got = copied(b"before\n" + notice + b"after, without end", log)
    assert log.read_bytes() == notice
    told = {
        True: f"still compiling jit_train_step (XLA's notice is in {log})\n",
        False: f"compiled jit_train_step in 2m16.8s (XLA's notice is in {log})\n",
    }
    states = [b"took" not in part for part in notice.split(b"slow_operation")[1:]]
    assert got.decode() == "before\n" + "".join(map(told.get, states)) + "after, without end"


def test_other_lines_are_copied_as_they_are(tmp_path):
    text = b"".join(
        [
            *(b"\n", ROW, b"* a list\n", b"\xff\xfe\n", b"E0000 00:00:1.5 9 other.cc:1] failed\n"),
            *(SLOW, b"Traceback (most recent call last):\n", b"no end of line"),
        ]
    )
    assert copied(text, tmp_path / "xla.log") == text
    assert not (tmp_path / "xla.log").exists()
    # A notice that another message cuts short.
    got = copied(HEAD + b"\n" + ROW + b"Fatal: check failed\n" + ROW, tmp_path / "xla.log")
    assert got.endswith(b"Fatal: check failed\n" + ROW) and b"slow_operation" not in got


def test_log_that_cannot_be_written_loses_only_the_notice(tmp_path):
    log = tmp_path / "missing" / "xla.log"
    assert copied(FIRST + b"after\n", log) == b"still compiling jit_train_step\nafter\n"


SCRIPT = """
import os, sys, time, warnings
from pathlib import Path
from asr_jax.distributed.compile_notices import logged_compile_notices

log, notice, end = Path(sys.argv[1]), Path(sys.argv[2]).read_bytes(), sys.argv[3]
before = os.fstat(2).st_ino
with logged_compile_notices(log, after_seconds=0):
    while os.fstat(2).st_ino == before:
        time.sleep(0.01)
    print("progress", file=sys.stderr)
    os.write(2, b"a message of C++\\n" + notice)
    warnings.warn("a warning of Python")
    if end == "crash":
        os.write(2, b"Check failed: x\\n")
        os.abort()
    if end == "error":
        raise ValueError("a bug")
os.write(2, b"afterwards\\n")
print("the end", file=sys.stderr)
"""


@pytest.mark.parametrize(
    "end, said", [("", "the end"), ("crash", "Check failed: x"), ("error", "a bug")]
)
def test_command_keeps_the_rest_of_its_standard_error(end, said, tmp_path):
    notice, log = tmp_path / "notice", tmp_path / "xla.log"
    notice.write_bytes(FIRST)
    # Ends when the filter does, which outlives a crash for a moment.
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(log), str(notice), end],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert (done.returncode == 0) == (end == "")
    for line in ("progress\n", "a message of C++\n", "a warning of Python", said):
        assert line in done.stderr
    assert f"still compiling jit_train_step (XLA's notice is in {log})\n" in done.stderr
    assert "***" not in done.stderr and log.read_bytes() == FIRST
    assert end or "afterwards\n" in done.stderr


KEPT = """
import logging, os, sys
from asr_jax.distributed.compile_notices import logged_compile_notices

before = os.fstat(2)
try:
    with logged_compile_notices():
        logging.getLogger().addHandler(logging.StreamHandler())
        sys.stderr.write("x")
        raise KeyboardInterrupt
except KeyboardInterrupt:
    assert os.path.samestat(os.fstat(2), before) and sys.stderr.fileno() == 2
logging.warning("afterwards")
print("the end")
"""


@pytest.mark.parametrize("is_read", [True, False])
def test_stream_that_a_handler_keeps_stays_open_and_a_closed_pipe_hides_no_error(is_read):
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as read, os.fdopen(writer, "wb") as written:
        if not is_read:
            read.close()
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", KEPT],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=written,
        )
        written.close()
        assert done.stdout == b"the end\n"
        assert not is_read or read.read() == b"xafterwards\n"


def test_filter_that_cannot_start_changes_nothing(monkeypatch, capfd, tmp_path):
    monkeypatch.setattr(compile_notices, "_is_descriptor_2", lambda _: True)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "missing"))
    with compile_notices.logged_compile_notices(after_seconds=0.0):
        while any(isinstance(thread, threading.Timer) for thread in threading.enumerate()):
            time.sleep(0.01)
        os.write(2, b"a message of C++\n")
    assert capfd.readouterr().err == "a message of C++\n"


@pytest.mark.parametrize("command", ["train", "evaluate", "transcribe", "fit", "export"])
def test_every_command_that_compiles_logs_the_notices(command):
    module = importlib.import_module(f"asr_jax.commands.{command}")
    path = Path(inspect.getfile(inspect.unwrap(module.run)))
    assert "logged_compile_notices(" in path.read_text()
