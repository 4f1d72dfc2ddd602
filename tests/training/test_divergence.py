"""When a run has diverged, and to which checkpoint it returns."""

from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asr_jax.config import CheckpointConfig, Config, TrainConfig
from asr_jax.training import checkpoint
from asr_jax.training.loop import (
    NEGLIGIBLE_LOSS,
    Session,
    TrainingDiverged,
    Unread,
    check_health,
    examiner,
)
from asr_jax.training.progress import ProgressDisplay
from asr_jax.training.state import TrainState
from asr_jax.training.step import Metrics

CONFIG = Config(train=TrainConfig(divergence_factor=3.0))
PROGRESS = ProgressDisplay(steps=10, start=0)


def examine(mean: float, lowest: float) -> float:
    metrics: Any = Metrics(**dict.fromkeys(Metrics._fields, np.float32(0)))
    metrics = metrics._replace(
        smoothed_loss=np.float32(mean),
        lowest_loss=np.float32(lowest),
        data_position=np.int32(12),
        audio_seconds=np.float32(7),
    )
    unread = Unread(10, metrics, np.array([0]))
    return check_health(unread, config=CONFIG, utterance_ids=["a"], progress=PROGRESS)


def test_mean_loss_far_above_its_lowest_value_is_a_divergence():
    assert examine(2.9, 1.0) == examine(1.0, 1.0) == 7
    # Memorized data has losses near zero, of which even a large multiple is negligible.
    assert examine(2.9 * NEGLIGIBLE_LOSS, 1e-4) == 7
    with pytest.raises(
        TrainingDiverged, match=r"3.1 at step 10, .*divergence_factor = 3 .* 1$"
    ) as e:
        examine(3.1, 1.0)
    assert (e.value.step, e.value.data_position) == (10, 12)


def test_steps_without_an_utterance_are_reported_and_end_the_run_when_there_are_many(capsys):
    metrics: Any = Metrics(**dict.fromkeys(Metrics._fields, np.float32(0)))
    config = Config(train=TrainConfig(max_skipped_in_a_row=3))
    session = mock.create_autospec(Session, instance=True)
    session.configure_mock(config=config, utterance_ids=["a"], progress=PROGRESS)
    examine = examiner(session)

    def take(step: int, *, idle: bool, in_a_row: int = 0) -> None:
        counted = metrics._replace(idle=np.bool_(idle), skipped_in_a_row=np.int32(in_a_row))
        examine(Unread(step, counted, np.array([0])))

    # Two in a row, with a sequence of steps that are not finite around them.
    for step, idle in enumerate([True, True, False, True, True], start=1):
        take(step, idle=idle, in_a_row=1)
    assert "step 5: no utterance of the batch can be trained on" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"^3 steps in a row, up to step 6, had no utterance to "):
        take(6, idle=True)


def state(step: int, mean: float, lowest: float) -> TrainState:
    return TrainState(
        step=jnp.int32(step),
        data_position=jnp.int32(step),
        key=jax.random.key(0),
        params={"kernel": jnp.full(3, float(step))},
        averaged={"kernel": jnp.zeros(3)},
        optimizer={},
        skipped=jnp.int32(0),
        skipped_in_a_row=jnp.int32(0),
        smoothed_loss=jnp.float32(mean),
        lowest_loss=jnp.float32(lowest),
        rollbacks=jnp.int32(0),
    )


@pytest.mark.parametrize(
    "means, expected", [((3.0, 1.0, 1.2, 2.0, 4.0), 3), ((3.0, 2.0, 1.0), 3), ((9.0,), None)]
)
def test_roll_back_restores_the_newest_checkpoint_before_the_rise(tmp_path, means, expected):
    with checkpoint.open_checkpoints(tmp_path, CheckpointConfig(keep=9)) as checkpointer:
        for step, mean in enumerate(means, start=1):
            lowest = min((*means[:step], 2.5))
            checkpoint.save(checkpointer, state(step, mean, lowest), dev_metric=None, metadata={})
        restored, note = checkpoint.roll_back(checkpointer, state(0, 0, 0))
        left = sorted(c.step for c in checkpointer.checkpoints)
    if expected is None:
        assert restored is None and left == [1]
        return
    assert restored is not None and int(restored.step) == expected
    np.testing.assert_array_equal(restored.params["kernel"], np.full(3, float(expected)))
    newer = list(range(expected + 1, len(means) + 1))
    assert left == list(range(1, expected + 1))
    moved = tmp_path / "diverged"
    assert sorted(int(p.name) for p in moved.glob("*")) == newer
    assert str(expected) in note and (str(moved) in note) == bool(newer)
