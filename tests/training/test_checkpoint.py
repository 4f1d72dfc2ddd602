"""Checkpoints are stored under paths of any name and read back."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from asr_jax.config import CheckpointConfig
from asr_jax.training import checkpoint
from asr_jax.training.state import TrainState

NAMES = (
    "exp[1]",
    "[x]/run",
    "a*b",
    "a?b",
    "**",
    "[!a]",
    "with space",
    "größe 三",
    "a,b:c#d%20{e}$HOME",
)


def state(step: int) -> TrainState:
    counters = ("data_position", "skipped", "skipped_in_a_row", "rollbacks")
    return TrainState(
        step=jnp.int32(step),
        key=jax.random.key(0),
        params={"kernel": jnp.full(3, float(step))},
        averaged={"kernel": jnp.full(3, -float(step))},
        optimizer={},
        smoothed_loss=jnp.float32(step),
        lowest_loss=jnp.float32(step),
        **{name: jnp.int32(0) for name in counters},
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder of checkpoints that the names, taken for patterns, match as well."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for neighbor in ("exp1", "x/run", "axb", "b"):
        save_one(folder / neighbor, CheckpointConfig(), 7)
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_names_are_taken_literally(name, folder):
    run, config = folder / name, CheckpointConfig()
    if name == "with space":
        run, config = folder / "run", CheckpointConfig(directory=str(run))
    for step in (1, 2):
        save_one(run, config, step)
    assert {path.name for path in (folder / name / "checkpoints").iterdir()} == {"1", "2"}
    with checkpoint.open_checkpoints(run, config) as checkpointer:
        restored, warnings = checkpoint.restore(checkpointer, state(0))
    assert restored is not None and int(restored.step) == 2 and warnings == []
    params, _ = checkpoint.load_averaged(run, "average:2", state(0).averaged, config)
    np.testing.assert_array_equal(params["kernel"], np.full(3, -1.5))


def save_one(run: Path, config: CheckpointConfig, step: int) -> None:
    with checkpoint.open_checkpoints(run, config) as checkpointer:
        checkpoint.save(checkpointer, state(step), dev_metric=None, metadata={})  # pyright: ignore
        checkpoint.finish(checkpointer)


@pytest.mark.parametrize("character", "*?[]")
def test_address_with_characters_of_patterns_is_refused(character):
    directory = epath.Path(f"gs://bucket/exp{character}1")
    with pytest.raises(checkpoint.CheckpointError, match=r"must not contain any of \* \? \[ \]"):
        checkpoint._storable(directory, "checkpoint.directory")
    plain = epath.Path("gs://bucket/exp-1")
    assert checkpoint._storable(plain, "checkpoint.directory") is plain
