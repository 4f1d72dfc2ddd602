"""A resumed run ends with the same state as a run that was never stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from asr_jax import __main__
from asr_jax.commands import train
from asr_jax.data.pipeline import Batches, padding_batch
from asr_jax.experiment import tasks
from asr_jax.training.loop import compile_steps

ROOT = Path(__file__).parents[2]
CONFIG = """
from asr_jax.config import *
config = Config(
    data=DataConfig(
        train="samples/an4/dev",
        bucket_seconds=(2.5,), bucket_labels=(64,), bucket_utterances=(8,)),
    augment=AugmentConfig(tempo_range=(0.9, 1.2), join_probability=0.2, frequency_mask_bins=8),
    tokenizer=TokenizerConfig(kind="char"),
    encoder=EncoderConfig(layers=1, width=16, attention="rotary", heads=2, kernel_frames=3,
                          subsampling="conv1d", subsampling_channels=16, layer_drop=0.5,
                          remat="none"),
    predictor=PredictorConfig(embedding_width=8, width=8),
    joint=JointConfig(width=8),
    optimizer=OptimizerConfig(kind="muon"),
    train=TrainConfig(steps=14, log_every_steps=1),
    checkpoint=CheckpointConfig(every_steps=5, keep=2),
)
"""


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    path = tmp_path / "tiny.py"
    path.write_text(CONFIG)
    return path


def saved_state(run: Path, step: int) -> dict:
    with ocp.training.Checkpointer(run / "checkpoints") as checkpointer:
        metadata = checkpointer.metadata(step).metadata
        cpu = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        abstract = jax.tree.map(
            lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=cpu), metadata
        )
        return checkpointer.load(step, abstract)


def assert_same_bits(a: dict, b: dict) -> None:
    bits = lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(bits(x), bits(y)), a, b)


COMPILED = []


def compile_once(*arguments, **options):
    if not COMPILED:
        COMPILED.append(compile_steps(*arguments, **options))
    return COMPILED[0]


def run_training(config: Path, run: Path, monkeypatch, *, stop_after: int | None = None) -> int:
    """Train in this process; after `stop_after` steps, stop as by a signal."""
    calls = iter(range(1, 10**9))
    stopped_by = lambda _: "SIGTERM" if stop_after and next(calls) >= stop_after else None
    monkeypatch.setattr(train, "listen_for_preemption", lambda: stopped_by)
    # The slow test below compiles at every start.
    monkeypatch.setattr(train, "compile_steps", compile_once)
    monkeypatch.setattr(sys, "argv", ["asr-jax", "train", str(config), "--run", str(run)])
    return __main__.main()


def test_resumed_equals_never_stopped_bit_for_bit(config, tmp_path, monkeypatch):
    uninterrupted, stopped = tmp_path / "uninterrupted", tmp_path / "stopped"
    assert run_training(config, uninterrupted, monkeypatch) == 0
    assert run_training(config, stopped, monkeypatch, stop_after=4) == 128 + signal.SIGTERM
    assert run_training(config, stopped, monkeypatch, stop_after=6) == 128 + signal.SIGTERM
    assert run_training(config, stopped, monkeypatch) == 0
    assert_same_bits(saved_state(uninterrupted, 14), saved_state(stopped, 14))

    def losses(run):
        lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        return [(line["step"], line["loss"]) for line in lines if "loss" in line]

    assert losses(uninterrupted) == losses(stopped)
    assert [step for step, _ in losses(uninterrupted)] == list(range(1, 15))


def test_batches_of_which_nothing_can_be_read_have_no_part_in_the_run(
    config, tmp_path, monkeypatch, capsys
):
    """Losses of zero would make the mean of the following steps look like a divergence."""
    real, empty = tasks.training_batches, (0, 1, 6, 13)

    def batches(*arguments, **options):
        given = enumerate(real(*arguments, **options))
        return Batches(
            (
                padding_batch(8, samples=b.samples.shape[1], labels=64) if n in empty else b
                for n, b in given
            ),
            {},
        )

    monkeypatch.setattr(tasks, "training_batches", batches)
    run = tmp_path / "run"
    assert run_training(config, run, monkeypatch) == 0, capsys.readouterr().err
    lines = list(map(json.loads, (run / "metrics.jsonl").read_text().splitlines()))
    assert [line["step"] for line in lines] == list(range(1, 15))
    without = [n for n, line in enumerate(lines) if "loss" not in line]
    assert without == list(empty)
    assert all("grad_norm" not in lines[n] for n in empty)
    assert ["smoothed_loss" in line for line in lines[:3]] == [False, False, True]
    assert lines[2]["smoothed_loss"] == lines[2]["loss"] > 1
    assert lines[6]["smoothed_loss"] == lines[5]["smoothed_loss"]
    assert [line["skipped_in_a_row"] for line in lines] == [0] * 14
    assert lines[13]["skipped"] == 4
    assert "step 14: no utterance of the batch can be trained on" in capsys.readouterr().err
    final = saved_state(run, 14)
    assert (int(final["step"]), int(final["data_position"])) == (14, 14)


def test_diverged_run_returns_to_a_checkpoint_and_continues_with_the_next_data(
    config, tmp_path, monkeypatch, capsys
):
    """Batches 7 to 9 have samples that are not finite; two such steps in a row are a divergence."""
    real = tasks.training_batches
    taken = []

    def batches(*arguments, position, **options):
        taken.append(position)
        numbered = enumerate(real(*arguments, position=position, **options), start=position)
        samples = lambda n, batch: batch.samples * np.nan if 7 <= n <= 9 else batch.samples
        return Batches((batch._replace(samples=samples(n, batch)) for n, batch in numbered), {})

    monkeypatch.setattr(tasks, "training_batches", batches)
    options = "log_every_steps=1, rollbacks=2, max_skipped_in_a_row=2"
    config.write_text(config.read_text().replace("log_every_steps=1", options))
    run = tmp_path / "run"
    assert run_training(config, run, monkeypatch) == 0

    # The divergence is found at the ninth batch. Batch 9 is the first after the rollback.
    assert taken == [0, 9]
    printed = capsys.readouterr().err
    assert "2 steps in a row, up to step 9" in printed and "going back to step 5" in printed
    final = saved_state(run, 14)
    assert (int(final["step"]), int(final["data_position"])) == (14, 18)
    assert (int(final["rollbacks"]), int(final["skipped"])) == (1, 1)
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    rates = {line["step"]: line["learning_rate"] for line in lines if "loss" in line}
    assert sorted(rates) == list(range(1, 15))
    # In the linear warm-up, after 6 and 4 steps that were not skipped.
    np.testing.assert_allclose(rates[8] / rates[5], 0.5 * 6 / 4, rtol=1e-5)


@pytest.mark.slow
def test_killed_at_any_instant_and_resumed_equals_never_killed(config, tmp_path):
    """SIGKILL comes at moments during steps and saves; the last start runs to the end."""
    arguments = ["train", str(config), "--checkpoint.every-steps", "1", "--train.steps", "60"]

    def start(run):
        return subprocess.Popen(
            [sys.executable, "-m", "asr_jax", *arguments, "--run", str(run)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stderr=subprocess.PIPE,
            text=True,
        )

    def step_of(run):
        lines = (run / "metrics.jsonl").read_text().splitlines()
        return json.loads(lines[-1])["step"] if lines else 0

    uninterrupted, killed = tmp_path / "uninterrupted", tmp_path / "killed"
    process = start(uninterrupted)
    _, messages = process.communicate()
    assert process.returncode == 0, messages

    for target, milliseconds in ((5, 0), (20, 23), (35, 61)):
        process = start(killed)
        while process.poll() is None and not (
            (killed / "metrics.jsonl").exists() and step_of(killed) >= target
        ):
            time.sleep(0.002)
        assert process.poll() is None, process.stderr.read()
        time.sleep(milliseconds / 1000)
        process.kill()
        process.communicate()
        assert target <= step_of(killed) < 60

    final = start(killed)
    _, messages = final.communicate()
    assert final.returncode == 0, messages
    assert "resuming from step" in messages
    assert_same_bits(saved_state(uninterrupted, 60), saved_state(killed, 60))
