"""A job on a real SLURM cluster of one node: preempted, requeued, resumed, completed."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from tiny import tiny_config

from asr_jax.config_file import write_config

ROOT = Path(__file__).parents[2]
NEEDED = ("slurmctld", "slurmd", "munged", "sbatch", "srun")
SBIN = os.pathsep.join([os.environ["PATH"], "/usr/sbin"])
MISSING = [name for name in NEEDED if shutil.which(name, path=SBIN) is None]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"needs {MISSING}: apt-get install slurm-wlm munge"),
]

# The flags of conftest.py without its number of devices, as each process has what its mesh needs.
XLA_FLAGS = os.environ["XLA_FLAGS"].replace("--xla_force_host_platform_device_count=8", "")


def write_tones(folder: Path) -> Path:
    """Write recordings of at most a second, each of a low tone, a, or a high one, b."""
    random = np.random.default_rng(0)
    lines = []
    for number in range(32):
        text, hertz = (("a", 300), ("b", 2500))[number % 2]
        seconds = np.arange(0, random.uniform(0.5, 1), 1 / 16_000)
        path = folder / f"{number}.wav"
        soundfile.write(path, 0.3 * np.sin(2 * np.pi * hertz * seconds), 16_000)
        lines.append(json.dumps({"audio_filepath": str(path), "text": text}))
    (folder / "tones.jsonl").write_text("\n".join(lines))
    return folder / "tones.jsonl"


@pytest.fixture
def cluster(tmp_path):
    """The environment in which SLURM's commands reach the cluster."""
    folder = tmp_path / "slurm"
    environment = {**os.environ, "PATH": SBIN, "SLURM_CONF": str(folder / "slurm.conf")}
    with subprocess.Popen(
        [Path(__file__).with_name("slurm_cluster.sh"), folder],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as running:
        assert running.stdin and running.stdout
        try:
            assert running.stdout.readline() == "ready\n"
            yield environment
        finally:
            running.stdin.close()
            running.wait(timeout=60)


def logged(run: Path, name: str) -> dict[int, float]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line[name] for line in lines if name in line}


def test_preempted_job_is_requeued_and_ends_as_if_never_stopped(cluster, tmp_path):
    tones = str(write_tones(tmp_path))
    # Which of two tones it is, learned in about forty steps.
    config = tiny_config(
        objective={"kind": "ctc"},
        data={"train": tones, "dev": tones, "bucket_seconds": (1.2,), "bucket_labels": (8,)},
        augment={"frequency_masks": 0, "time_masks": 0},
        encoder={"attention": "rotary", "dropout": 0.0},
        optimizer={"peak_learning_rate": 1e-2, "warmup_steps": 5, "ema_decay": 0.9},
        train={"steps": 80, "log_every_steps": 1, "seed": 1},
        checkpoint={"every_steps": 80},
    )
    write_config(config, tmp_path / "tiny.json")
    variables = {
        "CONFIG": str(tmp_path / "tiny.json"),
        "COUNT": "2",
        "PYTHON": sys.executable,
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": XLA_FLAGS,
    }
    output = tmp_path / "job.out"

    def slurm(*command: str) -> str:
        return subprocess.run(
            command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True
        ).stdout

    environment = {**cluster, **variables, "RUN": str(tmp_path / "preempted")}
    options = ("--parsable", f"--output={output}", "--time=10")
    job = slurm("launch/slurm.sbatch", *options).strip()
    metrics = tmp_path / "preempted/metrics.jsonl"
    deadline = time.monotonic() + 600  # for a busy machine
    while not metrics.exists() or len(metrics.read_text().splitlines()) < 10:
        assert time.monotonic() < deadline, output.read_text() if output.exists() else "not started"
        time.sleep(0.02)
    # Suspended, as a fast machine might finish first. SLURM resumes a job when it ends it.
    slurm("scancel", "--signal=STOP", job)
    slurm("sbatch", "--partition=high", "--ntasks=2", "--output=/dev/null", "--wrap", "sleep 1")
    while slurm("squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T") not in (
        "COMPLETED\n",
        "FAILED\n",
    ):
        assert time.monotonic() < deadline, output.read_text()
        time.sleep(0.5)
    log = output.read_text()
    assert log.count("stopped by SIGTERM after saving") == 2, log
    assert "resuming from step" in log, log
    shown = slurm("scontrol", "show", "job", job)
    assert "JobState=COMPLETED" in shown and "Restarts=1" in shown, log

    # Two such processes without SLURM, never stopped, with the programs that are compiled already.
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        environment = {
            **environment,
            "RUN": str(tmp_path / "whole"),
            "PORT": str(probe.getsockname()[1]),
            "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "preempted/compiled"),
        }
    slurm("launch/local.sh")
    for name in ("loss", "dev_wer"):
        resumed, expected = (logged(tmp_path / run, name) for run in ("preempted", "whole"))
        assert resumed == expected
    assert len(logged(tmp_path / "whole", "loss")) == 80
    assert logged(tmp_path / "preempted", "dev_wer") == {80: 0.0}
