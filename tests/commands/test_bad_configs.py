"""Mistakes in config files: one line on stderr that names the file, and exit status 2."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import checkpoint_steps

ROOT = Path(__file__).parents[2]


def test_missing_config_is_reported_with_the_nearest_one(error, trained):
    misspelt = trained.config.with_name("tinny.py")
    assert error("train", misspelt) == (
        f"{misspelt}: no such config file; did you mean {trained.config}?"
    )


IMPORTS = "from asr_jax.config import Config, EncoderConfig, OptimizerConfig, TrainConfig"
MISTAKES = {
    "config = Config(encoder=EncoderConfig(layer=3))": (
        ":2: EncoderConfig has no field 'layer'; did you mean layers?"
    ),
    "config = Config(encodr=EncoderConfig())": (
        ":2: Config has no field 'encodr'; did you mean encoder?"
    ),
    "config = Config(encoder=3)": ": encoder = 3: must be EncoderConfig(...)",
    "config = Config(encoder=EncoderConfig(layers=2.5))": (
        ": encoder.layers = 2.5: must be an integer"
    ),
    "config = Config(train=TrainConfig(compute_dtype='half'))": (
        ": train.compute_dtype = 'half': must be one of 'float32', 'bfloat16'"
    ),
    "config = Config(optimizer=OptimizerConfig(clip_norm='1'))": (
        ": optimizer.clip_norm = '1': must be a number"
    ),
    "config = Config(encoder=EncoderConfig(heads=5))": (
        ":2: encoder.heads = 5: must divide encoder.width = 144"
    ),
    "config = Config(": ":2: '(' was never closed",
    "import nonsense": ":2: No module named 'nonsense'",
    "conf = Config()": ": must end in `config = Config(...)`",
}


@pytest.fixture(scope="module")
def mistake_messages(tmp_path_factory) -> list[str]:
    """The error for each of MISTAKES, from a process that does not check annotations."""
    folder = tmp_path_factory.mktemp("configs")
    for n, line in enumerate(MISTAKES):
        (folder / f"{n}.py").write_text(f"{IMPORTS}\n{line}\n")
    script = (
        "from pathlib import Path\n"
        "from asr_jax.config_file import load_config\n"
        "from asr_jax.errors import UsageError\n"
        f"for n in range({len(MISTAKES)}):\n"
        "    try: load_config(Path(f'{n}.py'))\n"
        "    except UsageError as error: print(error)"
    )
    process = subprocess.run(
        [sys.executable, "-c", script],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout.splitlines()


@pytest.mark.parametrize("n", range(len(MISTAKES)), ids=list(MISTAKES))
def test_mistake_in_a_config_file_is_reported_with_its_line(mistake_messages, n):
    assert mistake_messages[n] == f"{n}.py{list(MISTAKES.values())[n]}"


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("encoder.layer", 3, "unknown field 'encoder.layer'; did you mean encoder.layers?"),
        ("encoder.layers", "2", "encoder.layers = '2': must be a number"),
        ("encoder.layers", True, "encoder.layers = True: must be a number"),
        ("encoder.layers", None, "encoder.layers = None: must be a number"),
        ("encoder.layers", 1.5, "encoder.layers = 1.5: must be an integer"),
        ("features.remove_dc", "no", "features.remove_dc = 'no': must be true or false"),
        ("joint.chunk_frames", "all", "joint.chunk_frames = 'all': must be a number or null"),
        (
            "optimizer.peak_learning_rate",
            10**400,
            "optimizer.peak_learning_rate: an integer of 401 digits is too large",
        ),
        ("data.train", ["a", "b"], "data.train = ['a', 'b']: must be a string"),
        ("data.bucket_seconds", 2, "data.bucket_seconds = 2: must be a list"),
        ("encoder.heads", 3, "encoder.heads = 3: must divide encoder.width = 16"),
        (
            "encoder.subsampling_factor",
            8.0,
            "encoder.subsampling_factor = 8.0: must be one of 4, 8",
        ),
        (
            "features.window_ms",
            float("nan"),
            "features.window_ms = nan: must be at least features.hop_ms",
        ),
        ("data.bucket_seconds", [1, "2"], "data.bucket_seconds[1] = '2': must be a number"),
        ("augment.tempo_range", [1], "augment.tempo_range = [1]: must be a list of 2"),
        (
            "objective.kind",
            "ctx",
            "objective.kind = 'ctx': must be one of 'transducer', 'tdt', 'hat', "
            "'ctc', 'attention', 'language_model'",
        ),
        (
            "augment.rooms",
            "",
            "augment.rooms: field of an earlier version of asr_jax, now "
            "augment.impulse_responses; runs of that version cannot be read, train again",
        ),
    ],
)
def test_invalid_field_in_config_json_is_reported(error, run, field, value, message):
    path = run / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    assert error("train", path) == f"{path}: {message}"


def test_config_json_is_never_executed(error, trained, run, tmp_path):
    path, executed = run / "config.json", tmp_path / "executed"
    code = f"__import__('pathlib').Path({str(executed)!r}).touch()"
    fields = json.loads(path.read_text())
    path.write_text(json.dumps(fields | {"encoder.layers": code}))
    assert error("train", path) == f"{path}: encoder.layers = {code!r}: must be a number"
    path.write_text(json.dumps(fields | {"data.train": "--help"}))
    assert error("train", path) == "--help: no such folder or manifest"
    path.write_text(code)
    assert error("evaluate", run, "--data", trained.data).startswith(f"{path}: not JSON: ")
    path.write_text("[1]")
    assert error("train", path).startswith(f"{path}: must be an object of fields")
    assert not executed.exists()


def test_changed_seed_is_rejected_as_another_run(error, run):
    """The parameters would fit, but the batches that follow would be another run's."""
    path = run / "config.json"
    path.write_text(path.read_text().replace('"train.seed": 0,', '"train.seed": 1,'))
    assert error("train", path) == (
        f"--run {run}: holds another run, whose train.seed is 0, not 1; choose another directory"
    )


def test_run_directory_in_place_of_its_config_is_rejected(error, run):
    assert error("train", run) == f"{run}: a run directory; its config is {run / 'config.json'}"


def test_config_of_another_model_than_the_checkpoint_is_rejected(error, trained, run):
    path = run / "config.json"
    path.write_text(path.read_text().replace('"encoder.layers": 1,', '"encoder.layers": 2,'))
    for arguments in (("train", path), ("evaluate", run, "--data", trained.data)):
        message = error(*arguments)
        assert message.startswith(f"{run / 'checkpoints'}/")
        assert "does not fit the config's model: encoder/blocks/" in message
    assert checkpoint_steps(run) == {"2", "3", "4"}
