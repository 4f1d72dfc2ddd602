"""Signals and Ctrl-C: training saves before it exits, and the same command resumes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny import checkpoint_steps, signalled

from asr_jax.commands import evaluate

ROOT = Path(__file__).parents[2]


def test_ctrl_c_saves_a_checkpoint(command, run):
    for step in ("3", "4"):
        shutil.rmtree(run / "checkpoints" / step)
    with signalled(signal.SIGINT, after_step=3):
        outcome = command("train", run / "config.json", "--data.test=", "--train.steps=4")
    assert outcome.status == 128 + signal.SIGINT
    assert outcome.err.splitlines()[-1].startswith("stopped by SIGINT after saving")
    assert "4" in checkpoint_steps(run)
    # After training, signals have their default effect again.
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_ctrl_c_in_another_command_prints_no_traceback(command, trained, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate, "open_run", interrupted)
    outcome = command("evaluate", trained.run, "--data", trained.data)
    assert outcome.status == 128 + signal.SIGINT
    assert outcome.err == "asr-jax evaluate: interrupted\n"


def test_second_signal_exits_at_once(command, run, monkeypatch):
    shutil.rmtree(run / "checkpoints" / "4")
    statuses = []
    monkeypatch.setattr(os, "_exit", statuses.append)
    with signalled(signal.SIGTERM, after_step=4, times=2):
        command("train", run / "config.json", "--data.test=")
    assert statuses == [128 + signal.SIGTERM]


@pytest.mark.slow
def test_stopped_process_that_continues_after_another_took_over_saves_nothing(trained, tmp_path):
    run = tmp_path / "run"
    script = """
import functools, sys
from asr_jax.__main__ import main
from asr_jax.experiment import run_directory
run_directory.held = functools.partial(run_directory.held, watch_seconds=float(sys.argv.pop(1)))
sys.exit(main())
"""

    def start(watch_seconds: float) -> subprocess.Popen:
        arguments = [trained.config, f"--run={run}", f"--data.train={trained.data}"]
        return subprocess.Popen(
            [sys.executable, "-c", script, str(watch_seconds), "train"]
            + [*arguments, "--train.steps=100000"],
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
        )

    def wait_for_a_newer_step(process: subprocess.Popen, step: int) -> int:
        while process.poll() is None:
            steps = [int(path.name) for path in run.glob("checkpoints/*") if path.name.isdigit()]
            if max(steps, default=0) > step:
                return max(steps)
            time.sleep(0.1)
        raise AssertionError(process.communicate())

    stopped = start(1e6)
    step = wait_for_a_newer_step(stopped, 0)
    stopped.send_signal(signal.SIGSTOP)
    other = start(6.0)
    wait_for_a_newer_step(other, step + 3)
    stopped.send_signal(signal.SIGCONT)
    _, err = stopped.communicate()
    assert stopped.returncode == 2
    assert f"process {other.pid}, since " in err.splitlines()[-1]
    assert err.splitlines()[-1].endswith("stopped or hung; it ends without saving")
    other.send_signal(signal.SIGTERM)
    _, err = other.communicate()
    assert other.returncode == 128 + signal.SIGTERM, err
    assert ": it has not renewed its lease for 6 s" in err
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    logged = [line["step"] for line in lines if "loss" in line]
    assert logged == list(range(1, len(logged) + 1))


@pytest.mark.slow
def test_process_that_receives_sigterm_saves_and_resumes(trained, tmp_path):
    run = tmp_path / "run"
    environment = {
        "PYTHONPATH": str(ROOT),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    start = lambda steps: subprocess.Popen(
        [
            *(sys.executable, "-m", "asr_jax", "train", trained.config, "--run", run),
            *(f"--data.train={trained.data}", f"--train.steps={steps}"),
        ],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )
    process = start(100_000)
    while process.poll() is None and not list(run.glob("checkpoints/[0-9]")):
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    assert err.splitlines()[-1].startswith("stopped by SIGTERM after saving")
    saved = max(int(path.name) for path in (run / "checkpoints").iterdir())
    resumed = start(saved + 1)
    _, err = resumed.communicate()
    assert resumed.returncode == 0, err
    assert f"resuming from step {saved} of {saved + 1}" in err
