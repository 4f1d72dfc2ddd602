"""Run directories and checkpoints that a command cannot use, and saves that fail."""

import asyncio
import contextlib
import errno
import functools
import os
import resource
import shutil
import socket
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from orbax.checkpoint import v1 as ocp
from tiny import checkpoint_steps, write_manifest

from asr_jax.commands import train
from asr_jax.config_file import load_config
from asr_jax.distributed.lease import LEASE, held
from asr_jax.experiment import run_directory
from asr_jax.text import Tokenizer
from asr_jax.training import checkpoint

ROOT = Path(__file__).parents[2]


# Run directories.


def test_run_directory_of_another_config_is_rejected_unchanged(error, trained, run):
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    options = ["--run", run, *trained.arguments[4:], "--encoder.layers", "2", "--train.seed", "7"]
    assert error("train", trained.config, *options) == (
        f"--run {run}: holds another run, whose encoder.layers is 1, not 2 "
        "(and 1 more fields differ); choose another directory"
    )
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before


def test_directory_with_other_files_is_rejected(error, trained, tmp_path):
    (tmp_path / "thesis.tex").touch()
    assert error("train", trained.config, "--run", tmp_path) == (
        f"--run {tmp_path}: holds other files and no config.json; choose another"
    )


def test_files_of_a_start_without_a_checkpoint_are_replaced(
    command, trained, tmp_path, monkeypatch
):
    """A start that ended before its first checkpoint binds the next start to nothing."""
    run, data = tmp_path / "run", tmp_path / "data.jsonl"
    recordings = {f"{trained.data.parent}/{n}.flac": "eno" for n in range(4)}
    write_manifest(data, recordings)
    text = data.read_text()
    begin = ("train", trained.config, "--run", run, f"--data.train={data}")
    model = trained.run / "tokenizer.model"

    def interrupted(*_, **__):
        raise OSError("stopped")

    def start(place: object, name: str, *options: object) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(place, name, interrupted)
            assert command(*begin, *options).err.endswith("asr-jax train: stopped\n")

    start(checkpoint, "require_room", "--train.seed=7")
    # The second start ends after the record of its source is written.
    data.write_text(text.replace("eno", "six Q", 1))
    start(checkpoint, "save", "--tokenizer.model", model, "--init-from", trained.run)
    assert (run / "init_from.json").exists()
    assert "Q" in (run / "skipped.jsonl").read_text()
    assert Tokenizer.load(run / "tokenizer.model").model == model.read_bytes()
    assert load_config(run / "config.json").train.seed == 0
    # The third ends after its state was made.
    data.write_text(text.replace("eno", "six", 1))
    start(train, "train", "--tokenizer.model", model, "--train.seed=3")
    assert not (run / "init_from.json").exists()
    assert (run / "skipped.jsonl").read_text() == ""
    assert load_config(run / "config.json").train.seed == 3
    assert not checkpoint_steps(run)


def test_run_without_checkpoints_is_rejected(error, trained, run):
    shutil.rmtree(run / "checkpoints")
    assert error("evaluate", run, "--data", trained.data) == f"{run}: holds no checkpoints yet"
    (run / "checkpoints").mkdir()
    assert error("transcribe", run, trained.data.parent / "0.flac") == (
        f"{run}: holds no checkpoints yet"
    )
    (run / "tokenizer.model").unlink()
    assert error("evaluate", run, "--data", trained.data) == (
        f"{run / 'tokenizer.model'}: No such file or directory"
    )


# Checkpoints.


def cut_short(checkpoint: Path) -> None:
    for path in checkpoint.rglob("*"):
        if path.is_file() and path.stat().st_size > 1000:
            os.truncate(path, path.stat().st_size // 2)


def test_truncated_checkpoint_is_set_aside(command, trained, run):
    cut_short(run / "checkpoints" / "4")
    outcome = command("train", run / "config.json", "--data.test=")
    assert outcome.status == 0, outcome.err
    assert "warning: checkpoint 4 cannot be read (" in outcome.err
    assert f"and was moved to {run / 'unreadable'}" in outcome.err
    assert "resuming from step 3 of 4" in outcome.err
    assert (run / "unreadable" / "4").is_dir()
    assert checkpoint_steps(run) == {"2", "3", "4"}
    # A second truncated checkpoint of the same step does not replace the first.
    cut_short(run / "checkpoints" / "4")
    assert command("train", run / "config.json", "--data.test=").status == 0
    assert {path.name for path in (run / "unreadable").iterdir()} == {"4", "4-2"}


def test_run_whose_checkpoints_are_all_unreadable_does_not_start_over(error, trained, run):
    before = (run / "metrics.jsonl").read_text()
    for step in ("2", "3", "4"):
        cut_short(run / "checkpoints" / step)
    message = error("train", run / "config.json")
    assert message.startswith(
        f"{run / 'checkpoints'}: none of its checkpoints [2, 3, 4] can be read, 4: "
    )
    assert message.endswith("they are left in place, choose another run directory to start over")
    assert checkpoint_steps(run) == {"2", "3", "4"}
    assert (run / "metrics.jsonl").read_text() == before
    message = error("evaluate", run, "--data", trained.data, "--checkpoint", "last")
    assert message.startswith(f"{run / 'checkpoints' / '4'} cannot be read: ")


def test_remains_of_a_killed_save_are_deleted(command, run):
    (run / "checkpoints" / "4").rename(run / "checkpoints" / "4.orbax-checkpoint-tmp")
    outcome = command("train", run / "config.json", "--data.test=")
    assert outcome.status == 0, outcome.err
    assert "resuming from step 3 of 4" in outcome.err
    assert checkpoint_steps(run) == {"2", "3", "4"}


@contextlib.contextmanager
def files_limited_to(size_bytes: int):
    """Fail writes beyond this size, as on a full disk; Python ignores the accompanying signal."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_failed_save_ends_the_run_and_keeps_earlier_checkpoints(command, error, run, monkeypatch):
    shutil.rmtree(run / "checkpoints" / "4")

    abandoned = []

    def on_a_full_disk(self, step, *_, **__):
        abandoned.append(asyncio.sleep(0))
        (run / "checkpoints" / f"{step}.orbax-checkpoint-tmp").mkdir()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(ocp.training.Checkpointer, "save_async", on_a_full_disk)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    assert error("train", run / "config.json", "--data.test=") == (
        f"{run / 'checkpoints'}: a checkpoint could not be written "
        "([Errno 28] No space left on device); earlier ones are kept"
    )
    with warnings.catch_warnings(record=True) as warned:
        abandoned.clear()
    assert not warned  # about coroutines that were never awaited
    monkeypatch.undo()
    outcome = command("train", run / "config.json", "--data.test=")
    assert outcome.status == 0, outcome.err
    assert "resuming from step 3 of 4" in outcome.err
    assert checkpoint_steps(run) == {"2", "3", "4"}


@pytest.mark.slow
def test_full_disk_during_a_save_keeps_earlier_checkpoints(command, run):
    """Run in a process of its own: Orbax's abandoned writers print errors until it ends."""
    shutil.rmtree(run / "checkpoints" / "4")
    script = """
import resource, sys
from asr_jax.__main__ import main
from asr_jax.training import checkpoint
save = checkpoint.save
def save_on_a_full_disk(*arguments, **options):
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, resource.RLIM_INFINITY))
    save(*arguments, **options)
checkpoint.save = save_on_a_full_disk
sys.exit(main())
"""
    arguments = ["train", str(run / "config.json"), "--data.test="]
    process = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 2
    *notes, last = process.stderr.splitlines()
    assert last.startswith(f"asr-jax train: {run / 'checkpoints'}: a checkpoint could not be ")
    assert last.endswith("); earlier ones are kept")
    assert not any(line.startswith(("Traceback", "ERROR", " ")) for line in notes), notes

    outcome = command(*arguments)
    assert outcome.status == 0, outcome.err
    assert "resuming from step 3 of 4" in outcome.err
    assert checkpoint_steps(run) == {"2", "3", "4"}


def test_full_disk_at_the_start_keeps_the_config(error, run):
    before = (run / "config.json").read_text()
    with files_limited_to(100):
        message = error("train", run / "config.json", "--data.test=")
    assert message.endswith("File too large")
    assert (run / "config.json").read_text() == before


def test_second_start_names_the_first_and_changes_no_file(error, trained, run, monkeypatch):
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    patient = functools.partial(held, watch_seconds=10.0)
    monkeypatch.setattr(run_directory, "held", patient)
    # Another checkpoint.keep, which the start would write to config.json.
    start = ("train", run / "config.json", "--data.test=", "--checkpoint.keep=1")
    with held(run, name="", renew_seconds=0.05):
        message = error(*start)
        assert message.startswith(f"--run {run}: is held by {socket.gethostname()}, process ")
        assert (run / LEASE).exists()
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before
    # Two runs that store their checkpoints in one folder would mix them.
    other = run.parent / "other"
    start = (*trained.arguments[:2], "--run", other, *trained.arguments[4:])
    with held(run, name="", renew_seconds=0.05):
        message = error(*start, f"--checkpoint.directory={run}")
        assert message.startswith(f"checkpoint.directory = {run}: is held by ")
    assert not any(other.iterdir())
