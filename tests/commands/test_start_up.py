"""Errors that keep a run from starting on another machine are immediate and one line."""

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from asr_jax.config import CheckpointConfig, MeshConfig
from asr_jax.distributed.devices import prepare_devices
from asr_jax.errors import name_full_disk, user_message
from asr_jax.training import checkpoint
from asr_jax.training.checkpoint import CheckpointError, require_room, require_writable


@pytest.mark.parametrize(
    "error, reason",
    [
        (RuntimeError("Unable to initialize backend 'tpu'\nlong"), "Unable to initialize backend"),
        (AssertionError(), "JAX has no package for it"),
    ],
)
def test_missing_accelerator_is_named(monkeypatch, error, reason):
    def devices():
        raise error

    monkeypatch.setattr(jax, "devices", devices)
    monkeypatch.setenv("JAX_PLATFORMS", "tpu")
    # With this flag, which tests set, prepare_devices does not change JAX's devices.
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
    with pytest.raises(ValueError, match=rf"^JAX_PLATFORMS=tpu: no accelerator found \({reason}"):
        prepare_devices(MeshConfig())


def test_checkpoint_directory_without_write_permission_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    directory = tmp_path / "file/run"
    with pytest.raises(
        CheckpointError, match=rf"^{directory}/checkpoints: cannot be written to \("
    ):
        require_writable(tmp_path / "run", CheckpointConfig(directory=str(directory)))
    require_writable(tmp_path / "run", CheckpointConfig(directory=str(tmp_path / "other")))
    assert not any((tmp_path / "other").iterdir())


@pytest.mark.parametrize(
    "error, message",
    [
        (OSError("Forbidden: b/bucket\nyou may not do that"), "Forbidden: b/bucket"),
        (ModuleNotFoundError("No module named 'gcsfs'"), "needs a package, pip install gcsfs for"),
    ],
)
def test_unreachable_bucket_is_named(error, message, tmp_path, monkeypatch):
    class Bucket(type(tmp_path)):
        def exists(self):
            raise error

    monkeypatch.setattr(checkpoint.epath, "Path", lambda _: Bucket(tmp_path))
    with pytest.raises(CheckpointError, match=f"^checkpoint.directory = 'gs://b/r': {message}"):
        require_writable(tmp_path, CheckpointConfig(directory="gs://b/r"))


def test_full_disk_is_named_with_the_path(tmp_path):
    full = Path("/dev/full")
    with pytest.raises(OSError) as caught, name_full_disk(tmp_path / "run"):
        full.write_text("labels")
    assert user_message(caught.value) == f"{tmp_path}/run: No space left on device"


def test_disk_without_room_for_a_checkpoint_is_reported_before_compiling(tmp_path, monkeypatch):
    state = {"weights": np.zeros((1000, 1000), np.float32), "step": np.int32(0)}
    usage = shutil.disk_usage(tmp_path)._replace(free=3 * 10**6)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    rule = f"^{tmp_path}: the disk has 3.0 MB left, a checkpoint takes up to 4.0 MB"
    with pytest.raises(CheckpointError, match=rule):
        require_room(tmp_path, CheckpointConfig(), state)
    require_room(tmp_path, CheckpointConfig(directory="gs://bucket/run"), state)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=4 * 10**6 + 4))
    require_room(tmp_path, CheckpointConfig(), state)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(total=0, free=0))
    require_room(tmp_path, CheckpointConfig(), state)
