"""Run directories whose paths hold characters of patterns, spaces, or other scripts."""

import gc
import shutil

import pytest
from tiny import checkpoint_steps

from asr_jax.training import checkpoint


def test_run_of_any_name_trains_resumes_and_is_used(command, trained, run, tmp_path):
    (tmp_path / "[x]").mkdir()
    run = run.rename(tmp_path / "[x]" / "a*b? 三")
    for step in ("3", "4"):
        shutil.rmtree(run / "checkpoints" / step)
    outcome = command("train", run / "config.json", "--data.test=")
    assert outcome.status == 0, outcome.err
    assert "resuming from step 2 of 4" in outcome.err
    assert checkpoint_steps(run) == {"2", "3", "4"}
    outcome = command("evaluate", run, "--data", trained.data, "--checkpoint=average:2")
    assert outcome.status == 0, outcome.err
    assert (run / "evaluation").is_dir()

    tuned = tmp_path / "tuned [1]"
    outcome = command(
        *trained.arguments[:2], "--run", tuned, *trained.arguments[4:], "--init-from", run
    )
    assert outcome.status == 0, outcome.err
    assert checkpoint_steps(tuned) == {"2", "3", "4"}


def test_path_that_checkpoints_cannot_have_is_refused_before_training(
    error, trained, run, tmp_path
):
    other = tmp_path / "back\\slash"
    arguments = (*trained.arguments[:2], "--run", other, *trained.arguments[4:])
    assert error(*arguments) == (
        f"run directory {other}: the path of checkpoints must be UTF-8 and contain no backslash, "
        f"and is {str(other / 'checkpoints')!r}"
    )
    assert list(other.iterdir()) == []
    run.rename(other / "moved")
    assert error("evaluate", other / "moved", "--data", trained.data).startswith("run directory ")


# Orbax abandons the save that is under way when the run ends, and leaves open what it holds.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_first_checkpoint_that_cannot_be_read_back_ends_the_run(
    error, trained, tmp_path, monkeypatch
):
    run = tmp_path / "exp[1]"
    monkeypatch.setattr(checkpoint._LiteralPath, "glob", lambda *_: iter(()))
    arguments = ("train", trained.config, "--run", run, *trained.arguments[4:])
    # The first save is on disk before the second begins, at the latest.
    assert error(*arguments) == (
        f"{run / 'checkpoints/1'}: was written, but cannot be read back (it lists no arrays); "
        "choose another directory for the run or for checkpoint.directory"
    )
    gc.collect()  # now, not in a later test, where what is open would be an error
