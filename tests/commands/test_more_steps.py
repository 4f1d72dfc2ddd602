"""Runs that resume with another train.steps: the learning rate, and what is said about it."""

import json
import shutil
from pathlib import Path

import pytest

from asr_jax.commands.arguments import override
from asr_jax.config_file import load_config
from asr_jax.experiment.resumed_schedule import Schedule, resumed_schedule


def logged(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def rates(run: Path) -> dict[int, float]:
    return {line["step"]: line["learning_rate"] for line in logged(run) if "loss" in line}


FINAL_RATE = 1e-6 * 0.01  # optimizer.peak_learning_rate and final_learning_rate_ratio


@pytest.mark.slow
def test_more_steps_continue_at_the_last_rate_and_a_later_resume_knows(command, trained, run):
    first = rates(run)
    arguments = (*trained.arguments[:3], run, *trained.arguments[4:6], "--data.test=")
    outcome = command(*arguments, "--train.steps=6")
    assert outcome.status == 0, outcome.err
    [line] = [line for line in outcome.err.splitlines() if line.startswith("train.steps is ")]
    assert line == (
        "train.steps is 6 instead of 4: the learning rate keeps its decay until step 4 and is now "
        "1e-08; --optimizer.decay-steps N makes it decay until step N"
    )
    assert {"step": 4, "train_steps": 6, "decay_steps": 4} in logged(run)
    assert rates(run) == first | {5: pytest.approx(FINAL_RATE), 6: pytest.approx(FINAL_RATE)}
    assert load_config(run / "config.json").optimizer.decay_steps == 4
    # The same command, and one that takes its fields from config.json, change nothing more.
    for again in (arguments, ("train", run / "config.json", "--data.test=")):
        shutil.rmtree(run / "checkpoints" / "6")
        outcome = command(*again, "--train.steps=6")
        assert outcome.status == 0 and "train.steps is" not in outcome.err
        assert rates(run)[6] == pytest.approx(FINAL_RATE)
    assert [line for line in logged(run) if "decay_steps" in line] == [
        {"step": 4, "train_steps": 6, "decay_steps": 4}
    ]


def schedule_of(run: Path, *options: str) -> Schedule:
    return resumed_schedule(override(load_config(run / "config.json"), list(options)), run)


def test_a_new_decay_may_be_given(trained):
    changed = schedule_of(trained.run, "--train.steps=5", "--optimizer.decay-steps=1001")
    assert changed.figures == {"train_steps": 5, "decay_steps": 1001}
    # In a warm-up of 1000 steps.
    assert changed.note == (
        "train.steps is 5 instead of 4: the learning rate decays until step 1001 instead of 4, and "
        "is now 4e-09 instead of 1e-08"
    )
    only = schedule_of(trained.run, "--optimizer.decay-steps=1001")
    assert only.note == changed.note.partition(": ")[2]
    assert only.figures == {"train_steps": 4, "decay_steps": 1001}


@pytest.mark.parametrize("options", [(), ("--optimizer.decay-steps=4",)])
def test_nothing_is_said_about_a_schedule_that_stays(options, trained):
    schedule = schedule_of(trained.run, *options)
    assert (schedule.note, schedule.figures) == ("", {})


def test_before_its_first_step_a_run_may_have_any_schedule(trained, tmp_path):
    config = override(load_config(trained.config), ["--train.steps=3"])
    assert resumed_schedule(config, tmp_path) == (config, "", {})
    # A run with --init-from has a checkpoint of step 0.
    (tmp_path / "checkpoints").mkdir()
    shutil.copytree(trained.run / "checkpoints" / "4", tmp_path / "checkpoints" / "0")
    assert resumed_schedule(config, tmp_path) == (config, "", {})


def test_fewer_steps_than_were_taken_change_no_file(error, trained, run):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    arguments = (*trained.arguments[:3], run, *trained.arguments[4:])
    for steps in (1, 3):
        assert error(*arguments, f"--train.steps={steps}") == (
            f"train.steps = {steps}: must be at least 4, the number of steps that the run {run} "
            "has taken"
        )
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_config_that_was_edited_is_kept_when_the_run_cannot_resume(error, run):
    path = run / "config.json"
    edited = json.loads(path.read_text()) | {"train.seed": 7, "train.log_every_steps": 3}
    path.write_text(json.dumps(edited))
    assert "train.seed is 0, not 7" in error("train", path, "--data.test=")
    assert json.loads(path.read_text()) == edited
    # An edited number of steps is found as well, because checkpoints know theirs.
    path.write_text(json.dumps(edited | {"train.seed": 0, "train.steps": 2}))
    assert error("train", path, "--data.test=").startswith("train.steps = 2: must be at least 4")
