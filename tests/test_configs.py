"""Config files, their golden copies, and the mistakes that users make in either.

`python tests/test_configs.py --update` (asr_jax installed) rewrites tests/golden/, one JSON file
for each file of configs/. `git diff tests/golden` then shows which experiments a changed default
affects.
"""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from asr_jax.commands.arguments import override
from asr_jax.config import Config, DataConfig, FeaturesConfig, JointConfig, flatten
from asr_jax.config_file import FORMER_NAMES, load_config, write_config
from asr_jax.data.buckets import Buckets
from asr_jax.errors import UsageError

TESTS = Path(__file__).resolve().parent
GOLDEN = TESTS / "golden"
CONFIGS = sorted((TESTS.parent / "configs").glob("*.py"))
UPDATE = "python tests/test_configs.py --update"

by_name = pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)


def golden(path: Path) -> Path:
    return GOLDEN / f"{path.stem}.json"


@by_name
def test_shipped_config_equals_its_golden_copy_from_any_directory(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert golden(path).exists(), f"{path.name} has no golden copy: {UPDATE}"
    config = load_config(path)
    write_config(config, tmp_path / "config.json")
    now = json.loads((tmp_path / "config.json").read_text())
    assert now == json.loads(golden(path).read_text()), f"if this is intended: {UPDATE}"
    assert load_config(golden(path)) == config


def test_no_golden_copy_outlives_its_config():
    assert {path.stem for path in GOLDEN.iterdir()} <= {path.stem for path in CONFIGS}


@by_name
def test_shipped_docstring_names_its_own_command_and_result(path):
    docstring = path.read_text().split('"""')[1]
    assert f"asr-jax train configs/{path.name}" in docstring
    assert "Not run" in docstring or re.search(r"WER.*\d", docstring)


@by_name
def test_shipped_config_leaves_the_shapes_of_batches_to_the_recordings(path):
    data = load_config(path).data
    assert Buckets.of(data) is None and data.buckets == 0
    assert data.max_seconds >= 20


AWKWARD = Config(
    data=DataConfig(
        train="a folder/with ünïcode, commas and 'quotes'",
        bucket_seconds=(0.1, 1e-1 + 0.2),
        bucket_labels=(1, 2),
        bucket_utterances=(8, 8),
        cache_gib=0.0,
    ),
    features=FeaturesConfig(high_hz=-1.5e-05, remove_dc=False),
    joint=JointConfig(chunk_frames=7),
)


@pytest.mark.parametrize("config", [Config(), AWKWARD], ids=["defaults", "awkward"])
def test_config_json_and_back_is_the_identity(config, tmp_path):
    write_config(config, tmp_path / "config.json")
    assert load_config(tmp_path / "config.json") == config


def test_config_json_holds_every_field_sorted_under_its_dotted_name(tmp_path):
    write_config(Config(), tmp_path / "config.json")
    written = json.loads((tmp_path / "config.json").read_text())
    expected = [
        f"{part.name}.{field.name}"
        for part in dataclasses.fields(Config)
        for field in dataclasses.fields(getattr(Config(), part.name))
    ]
    assert list(written) == sorted(expected)
    assert written["encoder.layers"] == Config().encoder.layers


def test_config_json_may_name_some_fields_only(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"encoder.layers": 3, "features.remove_dc": false}')
    expected = {"encoder.layers": 3, "features.remove_dc": False}
    assert flatten(load_config(path)) == flatten(Config()) | expected


@pytest.fixture(params=["config.py", "config.json"])
def config_file(request, tmp_path):
    """A config file, Python or JSON, that sets three blocks and nothing else."""
    path = tmp_path / request.param
    path.write_text(
        '{"encoder.layers": 3}'
        if path.suffix == ".json"
        else "from asr_jax.config import Config, EncoderConfig\n"
        "config = Config(encoder=EncoderConfig(layers=3))\n"
    )
    return path


@pytest.mark.parametrize(
    "overrides, changed",
    [
        ([], {}),
        (["--encoder.layers", "5"], {"encoder.layers": 5}),
        (["--optimizer.peak-learning-rate", "1e-3"], {"optimizer.peak_learning_rate": 1e-3}),
        (["--features.high-hz", "-200"], {"features.high_hz": -200.0}),
        (["--features.no-remove-dc"], {"features.remove_dc": False}),
        (["--joint.chunk-frames", "7"], {"joint.chunk_frames": 7}),
        (["--augment.tempo-range", "0.9", "1.1"], {"augment.tempo_range": (0.9, 1.1)}),
        (
            ["--tokenizer.kind", "bpe", "--train.seed", "1"],
            {"tokenizer.kind": "bpe", "train.seed": 1},
        ),
    ],
)
def test_overrides_change_what_they_name_and_nothing_else(config_file, overrides, changed):
    expected = flatten(Config()) | {"encoder.layers": 3} | changed
    assert flatten(override(load_config(config_file), overrides)) == expected


def test_a_shipped_config_is_found_by_its_name_unless_a_file_has_that_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = load_config(Path("librispeech_960h_l"))
    assert shipped == load_config(golden(Path("librispeech_960h_l.py")))
    assert error_message(Path("librispeach_960h_l")).endswith(
        "no such config file; did you mean librispeech_960h_l?"
    )
    (tmp_path / "quickstart").mkdir()
    write_config(Config(), tmp_path / "quickstart/config.json")
    assert "a run directory; its config is" in error_message(Path("quickstart"))


def error_message(path: Path, overrides: tuple[str, ...] = ()) -> str:
    with pytest.raises(UsageError) as caught:
        override(load_config(path), overrides)
    message = str(caught.value)
    assert "\n" not in message and "Traceback" not in message
    return message


@pytest.mark.parametrize(
    "overrides, words",
    [
        (("--encoder.layres", "3"), ["--encoder.layres", "did you mean --encoder.layers?"]),
        (("--encodr.layers", "3"), ["--encodr.layers", "did you mean --encoder.layers?"]),
        (("--encoder.layers", "many"), ["--encoder.layers", "many"]),
        (("--encoder.layers", "1.5"), ["--encoder.layers", "1.5", "not an integer"]),
        (("--encoder.layers",), ["--encoder.layers"]),
        (("--tokenizer.kind", "word"), ["--tokenizer.kind", "word", "unigram"]),
        (("--encoder.heads", "5"), ["encoder.heads = 5: must divide encoder.width = 144"]),
        (
            ("--data.bucket-seconds=2", "--data.bucket-labels=9")
            + ("--data.bucket-utterances=8", "--train.accumulate=3"),
            ["train.accumulate = 3: must divide every data.bucket_utterances, also 8"],
        ),
        (
            ("--data.bucket-seconds", "2", "3"),
            ["data.bucket_labels = (): needs one positive value for each of the 2"],
        ),
        (
            ("--data.bucket-utterances", "8"),
            ["data.bucket_utterances = (8,): needs data.bucket_seconds; data.batch_seconds alone"],
        ),
        (
            ("--data.bucket-seconds=2", "--data.bucket-labels=9")
            + ("--data.bucket-utterances=8", "--data.buckets=3"),
            ["data.buckets = 3: must be 0 where data.bucket_seconds gives the buckets"],
        ),
        (("--data.batch-seconds", "0"), ["data.batch_seconds = 0.0: must be positive"]),
        (
            ("--encoder.shared-layers", "3"),
            ["encoder.shared_layers = 3: must divide encoder.layers = 16"],
        ),
        (
            ("--encoder.shared-layers", "2", "--encoder.residual-rank", "145"),
            ["encoder.residual_rank = 145: must be at most encoder.width = 144"],
        ),
        (("--encoder.residual-rank", "2"), ["encoder.residual_rank = 2: needs matrices that"]),
        (
            ("--encoder.attention", "rotary", "--encoder.heads", "48"),
            ["encoder.heads = 48: rotary attention needs an even"],
        ),
        (("--encoder.subsampling-factor", "6"), ["--encoder.subsampling-factor", "6"]),
        (("--encoder.context-frames", "9"), ["encoder.context_frames = (9,): needs two numbers"]),
        (
            ("--encoder.context-frames", "9", "9", "--encoder.chunk-ms", "40"),
            ["encoder.context_frames = (9, 9): must be empty where encoder.chunk_ms"],
        ),
        (("--encoder.chunk-ms", "0"), ["encoder.chunk_ms = (0.0,): needs a size other than 0"]),
        (
            ("--encoder.chunk-ms", "640", "100"),
            ["encoder.chunk_ms = 100.0: must be a multiple of the encoder's frame of 40 ms"],
        ),
        (
            ("--encoder.chunk-ms", "120", "--encoder.subsampling-factor", "8"),
            ["encoder.chunk_ms = 120.0: must be a multiple of the encoder's frame of 80 ms"],
        ),
        (("--encoder.chunk-ms", "640"), ["encoder.chunk_ms", "needs features.normalization"]),
        (("--decoding.chunk-ms", "640"), ["decoding.chunk_ms = 640.0: needs an encoder trained"]),
        (
            ("--encoder.convolution-norm", "batch"),
            ["--encoder.convolution-norm", "batch", "affine"],
        ),
        (
            ("--encoder.convolution-norm", "affine", "--encoder.kind", "transformer"),
            ["encoder.convolution_norm = 'affine': needs the convolutions of encoder.kind"],
        ),
        (("--encoder.norm-epsilon", "0"), ["encoder.norm_epsilon = 0.0: must be positive"]),
        (
            ("--predictor.layers", "2"),
            ["predictor.layers = 2: must be 1 unless predictor.kind is 'lstm'"],
        ),
        (
            ("--predictor.kind", "lstm", "--predictor.layers", "0"),
            ["predictor.layers = 0: must be"],
        ),
        (
            ("--encoder.left-context-frames", "70"),
            ["encoder.left_context_frames = 70: needs encoder.chunk_ms"],
        ),
        (("--encoder.left-chunks", "-1"), ["encoder.left_chunks = -1: must not be negative"]),
    ],
)
def test_mistake_on_the_command_line_is_reported_in_one_line(overrides, words, tmp_path):
    path = tmp_path / "config.json"
    path.write_text("{}")
    message = error_message(path, overrides)
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    "text, words",
    [
        ('{"encoder.layres": 3}', ["'encoder.layres'; did you mean encoder.layers?"]),
        ('{"layers": 3}', ["unknown field 'layers'"]),
        ('{"encoder": {"layers": 3}}', ["unknown field 'encoder'"]),
        ('{"encoder.layers": "many"}', ["encoder.layers = 'many': must be a number"]),
        ('{"encoder.layers": 1.5}', ["encoder.layers = 1.5: must be an integer"]),
        ('{"encoder.layers": null}', ["encoder.layers = None: must be a number"]),
        ('{"encoder.layers": true}', ["encoder.layers"]),
        ('{"encoder.layers": [3, 4]}', ["4"]),
        ('{"features.remove_dc": "yes"}', ["yes"]),
        ('{"encoder.heads": 5}', ["encoder.heads = 5: must divide encoder.width = 144"]),
        ("[3]", ["must be an object of fields"]),
        ("encoder.layers: 3", ["not JSON"]),
        ("", ["not JSON"]),
    ],
)
def test_mistake_in_config_json_is_reported_in_one_line_that_names_the_file(tmp_path, text, words):
    path = tmp_path / "config.json"
    path.write_text(text)
    message = error_message(path)
    assert all(word in message for word in [str(path), *words]), message


@pytest.mark.parametrize(
    "line, words",
    [
        ("config = Config(encoder=EncoderConfig(heads=5))", ["encoder.heads = 5: must divide"]),
        ("konfig = Config()", ["must end in `config = Config(...)`"]),
        ("config = EncoderConfig()", ["must end in `config = Config(...)`"]),
        ("config = Config(", ["never closed"]),
        ("import no_such_module", ["no_such_module"]),
    ],
)
def test_mistake_in_a_py_file_is_reported_in_one_line_that_names_the_file(tmp_path, line, words):
    path = tmp_path / "mine.py"
    path.write_text(f"from asr_jax.config import Config, EncoderConfig\n{line}\n")
    message = error_message(path)
    assert all(word in message for word in [str(path), *words]), message


def test_typo_in_a_py_file_is_reported_with_the_nearest_field(tmp_path):
    """Run in a process of its own, as the hook that checks shapes rewords Python's error."""
    imports = "from asr_jax.config import Config, EncoderConfig"
    (tmp_path / "field.py").write_text(
        f"{imports}\nconfig = Config(encoder=EncoderConfig(layres=3))\n"
    )
    (tmp_path / "section.py").write_text(f"{imports}\nconfig = Config(encodr=EncoderConfig())\n")
    script = """
import sys
from pathlib import Path
from asr_jax.config_file import load_config
from asr_jax.errors import UsageError
for name in sys.argv[1:]:
    try:
        load_config(Path(name))
    except UsageError as error:
        print(error)
"""
    paths = [str(tmp_path / "field.py"), str(tmp_path / "section.py")]
    process = subprocess.run(
        [sys.executable, "-c", script, *paths], cwd=TESTS.parent, capture_output=True, text=True
    )
    assert process.stdout.splitlines() == [
        f"{paths[0]}:2: EncoderConfig has no field 'layres'; did you mean layers?",
        f"{paths[1]}:2: Config has no field 'encodr'; did you mean encoder?",
    ], process.stderr


def test_missing_file_is_reported_with_the_nearest_one(tmp_path):
    (tmp_path / "quickstart.py").touch()
    message = error_message(tmp_path / "quikstart.py")
    assert "no such config file" in message
    assert f"did you mean {tmp_path / 'quickstart.py'}?" in message


def test_config_json_of_an_earlier_version_is_rejected_in_one_line(tmp_path):
    path = tmp_path / "config.json"
    new_names = {new: former for former, new in FORMER_NAMES.items()}
    fields = {new_names.get(name, name): value for name, value in flatten(Config()).items()}
    path.write_text(json.dumps(fields))
    assert error_message(path) == (
        f"{path}: augment.room_probability: field of an earlier version of asr_jax, now "
        "augment.impulse_response_probability; runs of that version cannot be read, train again"
    )


def test_config_json_is_data_and_never_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "config.json"
    code = "__import__('pathlib').Path('ran').touch()"
    path.write_text(json.dumps({"data.train": code}))
    assert load_config(path).data.train == code
    path.write_text(json.dumps({"encoder.layers": code}))
    error_message(path)
    path.write_text(code)
    assert "not JSON" in error_message(path)
    assert not (tmp_path / "ran").exists()


def update() -> None:
    """Write a golden copy of every config, and delete copies whose config is gone."""
    for old in GOLDEN.glob("*.json"):
        old.unlink()
    for path in CONFIGS:
        write_config(load_config(path), golden(path))


if __name__ == "__main__":
    if sys.argv[1:] != ["--update"]:
        sys.exit(f"usage: {UPDATE}")
    update()
