"""A real SLURM cluster, of one node with two slots: preempted, put back, gone on with, done."""

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

ROOT = Path(__file__).parents[2]
NEEDED = ("slurmctld", "slurmd", "munged", "sbatch", "srun")
SBIN = os.pathsep.join([os.environ["PATH"], "/usr/sbin"])
MISSING = [name for name in NEEDED if shutil.which(name, path=SBIN) is None]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"needs {MISSING}: apt-get install slurm-wlm munge"),
]

# Which of two tones it is: learned in some forty steps.
CONFIG = """
from asr_jax.config import *
config = Config(
    objective=ObjectiveConfig(kind="ctc"),
    data=DataConfig(train="{data}", dev="{data}",
                    bucket_seconds=(1.2,), bucket_labels=(8,), bucket_utterances=(8,)),
    augment=AugmentConfig(frequency_masks=0, time_masks=0),
    tokenizer=TokenizerConfig(kind="char"),
    encoder=EncoderConfig(layers=1, width=16, attention="rotary", heads=2, kernel_frames=3,
                          subsampling="conv1d", subsampling_channels=16, remat="none", dropout=0.0),
    optimizer=OptimizerConfig(peak_learning_rate=1e-2, warmup_steps=5, ema_decay=0.9),
    train=TrainConfig(steps=80, log_every_steps=1, seed=1),
    checkpoint=CheckpointConfig(every_steps=80),
)
"""
# As in conftest.py, but for the number of devices: as many as the mesh of a process asks for.
XLA_FLAGS = os.environ["XLA_FLAGS"].replace("--xla_force_host_platform_device_count=8", "")


def write_tones(folder: Path) -> Path:
    """A manifest of recordings of at most a second, each of a low tone, a, or a high one, b."""
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


def test_a_preempted_job_goes_back_to_the_queue_and_ends_as_if_never_stopped(cluster, tmp_path):
    (tmp_path / "tiny.py").write_text(CONFIG.format(data=write_tones(tmp_path)))
    variables = {
        "CONFIG": str(tmp_path / "tiny.py"),
        "COUNT": "2",
        "PYTHON": sys.executable,
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": XLA_FLAGS,
    }
    said = tmp_path / "job.out"

    def slurm(*command: str) -> str:
        return subprocess.run(
            command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True
        ).stdout

    environment = {**cluster, **variables, "RUN": str(tmp_path / "preempted")}
    options = ("--parsable", f"--output={said}", "--time=10")
    job = slurm("launch/slurm.sbatch", *options).strip()
    metrics = tmp_path / "preempted/metrics.jsonl"
    deadline = time.monotonic() + 600  # of a machine that is busy with other things
    while not metrics.exists() or len(metrics.read_text().splitlines()) < 10:
        assert time.monotonic() < deadline, said.read_text() if said.exists() else "not started"
        time.sleep(0.02)
    # Else a fast machine might be done before; SLURM has it go on when it tells it to end.
    slurm("scancel", "--signal=STOP", job)
    slurm("sbatch", "--partition=high", "--ntasks=2", "--output=/dev/null", "--wrap", "sleep 1")
    while slurm("squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T") not in (
        "COMPLETED\n",
        "FAILED\n",
    ):
        assert time.monotonic() < deadline, said.read_text()
        time.sleep(0.5)
    told = said.read_text()
    assert told.count("stopped by SIGTERM after saving") == 2, told
    assert "resuming from step" in told, told
    shown = slurm("scontrol", "show", "job", job)
    assert "JobState=COMPLETED" in shown and "Restarts=1" in shown, told

    # The same two processes without SLURM, never stopped, with the programs that are compiled.
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
        ours, theirs = (logged(tmp_path / run, name) for run in ("preempted", "whole"))
        assert ours == theirs
    assert len(logged(tmp_path / "whole", "loss")) == 80
    assert logged(tmp_path / "preempted", "dev_wer") == {80: 0.0}
