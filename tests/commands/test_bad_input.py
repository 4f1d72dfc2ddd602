"""What a user can get wrong is one line and exit status 2, or is left out, counted and listed."""

import asyncio
import contextlib
import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile
from orbax.checkpoint import v1 as ocp
from tiny import write_manifest, write_tone

from asr_jax.commands import evaluate
from asr_jax.data.pipeline import Batches, training_batches
from asr_jax.experiment import tasks
from asr_jax.text import Tokenizer

ROOT = Path(__file__).parents[2]
RATE_HZ = 16_000


@pytest.fixture
def run(trained, tmp_path) -> Path:
    """A copy of the trained run."""
    return shutil.copytree(trained.run, tmp_path / "run")


def steps(run: Path) -> set[str]:
    return {path.name for path in (run / "checkpoints").iterdir()}


def skipped(run: Path) -> dict[str, str]:
    lines = map(json.loads, (run / "skipped.jsonl").read_text().splitlines())
    return {entry["id"]: entry["reason"] for entry in lines}


# The command line.


def test_a_verb_that_is_none(command):
    outcome = command("trian", "x")
    assert outcome.status == 2
    assert outcome.err == "asr-jax: no verb 'trian'; did you mean train?\n"


@pytest.mark.parametrize(
    "options, message",
    [
        ("--encoder.layer 3", "unknown option --encoder.layer; did you mean --encoder.layers?"),
        (
            "--optimizer.peak-learnin-rate 1 --encoder.layer 3",
            "unknown option --optimizer.peak-learnin-rate; "
            "did you mean --optimizer.peak-learning-rate?",
        ),
        ("--zebra 3", "unknown option --zebra"),
        ("stray", "unknown option stray"),
        ("--encoder.layers three", "--encoder.layers: 'three' is not an integer"),
        ("--encoder.layers 1.5", "--encoder.layers: '1.5' is not an integer"),
        ("--encoder.dropout little", "--encoder.dropout: 'little' is not a number"),
        ("--encoder.layers", "--encoder.layers: needs a value"),
        (
            "--encoder.subsampling conv3d",
            "--encoder.subsampling: 'conv3d' is not one of 'conv2d', 'conv1d'",
        ),
        ("--encoder.heads 3", "encoder.heads = 3: must divide encoder.width = 16"),
        ("--encoder.width 0", "encoder.width = 0: must be positive"),
        ("--encoder.dropout 0.999", "encoder.dropout = 0.999: must lie in 0..0.99"),
        ("--predictor.dropout -0.1", "predictor.dropout = -0.1: must lie in 0..0.99"),
        ("--predictor.context 0", "predictor.context = 0: must be positive"),
        ("--joint.chunk-frames 0", "joint.chunk_frames = 0: must be positive"),
        ("--objective.ctc-weight -1", "objective.ctc_weight = -1.0: must be finite, >= 0"),
        ("--objective.sigma nan", "objective.sigma = nan: must be finite, >= 0"),
        (
            "--objective.durations 1 2",
            "objective.durations = (1, 2): must begin with 0 and 1, so that any labels fit any "
            "frames, and increase",
        ),
        (
            "--decoding.head ctc --objective.ctc-weight 0",
            "decoding.head = 'ctc': objective.kind = 'transducer' has no CTC head: "
            "objective.ctc_weight is 0",
        ),
        ("--objective.label-smoothing 1", "objective.label_smoothing = 1.0: must lie in 0..1, bel"),
        ("--decoder.heads 3", "decoder.heads = 3: decoder.width / decoder.heads must be an even"),
        ("--decoding.ctc-weight 1", "decoding.ctc_weight = 1.0: must lie in 0..1, below 1"),
        (
            "--decoding.ctc-weight 0.5",
            "decoding.ctc_weight = 0.5: needs objective.kind = 'attention' and a CTC head",
        ),
        ("--encoder.layer-drop 1.5", "encoder.layer_drop = 1.5: must lie in 0..1"),
        (
            "--objective.consistency-weight 0.1 --objective.ctc-weight 0",
            "objective.consistency_weight = 0.1: needs a CTC head: objective.kind = 'ctc', or",
        ),
        (
            "--objective.intermediate-ctc-weight 0.1 --objective.ctc-weight 0.3 --encoder.layers 1",
            "objective.intermediate_ctc_weight = 0.1: needs an encoder with a block before",
        ),
        ("--augment.time-masks -1", "augment.time_masks = -1: must not be negative"),
        ("--features.hop-ms 0.05", "features.hop_ms = 0.05: must be at least a sample at 16000 Hz"),
        ("--optimizer.clip-norm 0", "optimizer.clip_norm = 0.0: must be positive"),
        ("--optimizer.ema-decay 2", "optimizer.ema_decay = 2.0: must lie in 0..1, below 1"),
        ("--optimizer.peak-learning-rate nan", "optimizer.peak_learning_rate = nan: must be posi"),
        ("--mesh.fsdp 0", "mesh.fsdp = 0: must be positive"),
        ("--mesh.data -2", "mesh.data = -2: must be positive, or -1"),
        ("--train.steps 0", "train.steps = 0: must be positive"),
        ("--train.seed -1", "train.seed = -1: must not be negative"),
        ("--train.max-skipped-in-a-row 0", "train.max_skipped_in_a_row = 0: must be positive"),
        ("--checkpoint.every-steps 0", "checkpoint.every_steps = 0: must be positive"),
        ("--checkpoint.keep 0", "checkpoint.keep = 0: must be positive"),
        ("--data.cache-gib inf", "data.cache_gib = inf: must be finite, >= 0"),
        (
            "--decoding.max-symbols-per-frame 0",
            "decoding.max_symbols_per_frame = 0: must be positive",
        ),
        (
            "--train.accumulate 3",
            "train.accumulate = 3: must divide every data.bucket_utterances, also 8",
        ),
        ("--data.bucket-seconds 3 2", "data.bucket_seconds = (3.0, 2.0): must be positive and"),
        (
            "--data.bucket-utterances 12",
            "data.bucket_utterances = 12: must be a multiple of mesh.data x mesh.fsdp x "
            "train.accumulate = 8 x 1 x 1",
        ),
        (
            "--mesh.data 3",
            "mesh.data x mesh.fsdp x mesh.model = 3 x 1 x 1: must be the number of devices, 8",
        ),
    ],
)
def test_options_of_train(error, trained, tmp_path, options, message):
    found = error("train", trained.config, "--run", tmp_path / "run", *options.split())
    assert found.startswith(message)
    assert not (tmp_path / "run").exists()


def test_a_long_value_is_not_broken_in_the_message(error, trained, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    value = "/".join(["a rather long name"] * 10)
    found = error("train", trained.config, "--run", tmp_path, "--encoder.layers", value)
    assert found == f"--encoder.layers: {value!r} is not an integer"
    assert os.environ["COLUMNS"] == "40"


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("train", "CONFIG must come first: a file of configs/, or a run's config.json"),
        ("train --run x", "CONFIG must come first: a file of configs/, or a run's config.json"),
        ("evaluate", "RUN is required"),
        ("evaluate RUN --dat x", "unknown option --dat; did you mean --data?"),
        (
            "evaluate RUN --data x --decoder bean",
            "--decoder: 'bean' is not one of 'run', 'greedy', 'beam'",
        ),
        ("evaluate RUN --data DATA --decoder beam --beam 0", "--beam 0: must be positive"),
        ("evaluate RUN --data DATA --beam 8", "--beam 8: is of --decoder beam"),
        ("evaluate RUN --data nowhere", "nowhere: no such folder or manifest"),
        ("evaluate RUN --data DATA nowhere", "nowhere: no such folder or manifest"),
        ("evaluate RUN --data=", "--data: must not be empty"),
        (
            "evaluate RUN --data DATA --output DATA",
            "--output DATA: must be a folder, it is a file",
        ),
        ("evaluate nowhere", "nowhere: not a run directory, it has no config.json"),
        (
            "evaluate RUN --data DATA --chunk-ms inf",
            "decoding.chunk_ms = inf: must be a multiple of the encoder's frame of 40 ms",
        ),
        (
            "evaluate RUN --data DATA --language-model-weight 0.5",
            "--language-model-weight 0.5: needs --language-model",
        ),
        ("transcribe RUN x --hotword-boost 2", "--hotword-boost 2.0: needs --hotwords"),
        (
            "transcribe RUN x --stream --window-seconds 8",
            "--window-seconds 8.0: --stream has no windows",
        ),
        ("transcribe RUN a/x b/x --format ctm", "--format ctm: 2 recordings are named x"),
        ("transcribe RUN x --output DATA", "--output DATA: must be a folder, it is a file"),
        ("evaluate nowhere --data DATA", "nowhere: not a run directory, it has no config.json"),
        (
            "evaluate RUN --data DATA --checkpoint newest",
            "--checkpoint newest: must be best, last, average:1..3 or one of [2, 3, 4]",
        ),
        (
            "evaluate RUN --data DATA --checkpoint average:9",
            "--checkpoint average:9: must be best, last, average:1..3 or one of [2, 3, 4]",
        ),
        ("transcribe", "RUN is required"),
        ("transcribe RUN", "AUDIO: name at least one recording"),
        ("transcribe RUN --chekpoint x", "unknown option --chekpoint; did you mean --checkpoint?"),
    ],
)
def test_arguments_of_the_other_commands(error, trained, arguments, message):
    named = {"RUN": trained.run, "DATA": trained.data}
    found = error(*(named.get(word, word) for word in arguments.split()))
    assert found == message.replace("DATA", str(trained.data))


# Config files.


def test_a_config_that_is_not_there(error, trained):
    near = trained.config.with_name("tinny.py")
    found = error("train", near)
    assert found == f"{near}: no such config file; did you mean {trained.config}?"


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
def complaints(tmp_path_factory) -> list[str]:
    """About a config file with each of the mistakes, of a process that checks no annotations."""
    folder = tmp_path_factory.mktemp("configs")
    for n, line in enumerate(MISTAKES):
        (folder / f"{n}.py").write_text(f"from asr_jax.config import *\n{line}\n")
    load_all = (
        "import pathlib; from asr_jax.config_file import *\n"
        f"for n in range({len(MISTAKES)}):\n"
        "    try: load_config(pathlib.Path(f'{n}.py'))\n"
        "    except UsageError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", load_all],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("n", range(len(MISTAKES)), ids=list(MISTAKES))
def test_mistakes_in_a_config_file(complaints, n):
    assert complaints[n] == f"{n}.py{list(MISTAKES.values())[n]}"


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
        ("data.train", ["a", "b"], "data.train = ['a', 'b']: must be a string"),
        ("data.bucket_seconds", 2, "data.bucket_seconds = 2: must be a list"),
        ("encoder.heads", 3, "encoder.heads = 3: must divide encoder.width = 16"),
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
            "augment.rooms is a field of an earlier version of asr_jax, now "
            "augment.impulse_responses: runs of that version cannot be read; train again",
        ),
    ],
)
def test_an_edited_config_json(error, run, field, value, message):
    path = run / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    assert error("train", path) == f"{path}: {message}"


def test_an_edited_config_json_is_never_executed(error, trained, run, tmp_path):
    path, trace = run / "config.json", tmp_path / "executed"
    code = f"__import__('pathlib').Path({str(trace)!r}).touch()"
    fields = json.loads(path.read_text())
    path.write_text(json.dumps(fields | {"encoder.layers": code}))
    assert error("train", path) == f"{path}: encoder.layers = {code!r}: must be a number"
    path.write_text(json.dumps(fields | {"data.train": "--help"}))
    assert error("train", path) == "--help: no such folder or manifest"
    path.write_text(code)
    assert error("evaluate", run, "--data", trained.data).startswith(f"{path}: not JSON: ")
    path.write_text("[1]")
    assert error("train", path).startswith(f"{path}: must be an object of fields")
    assert not trace.exists()


def test_an_edited_seed_is_another_run(error, run):
    """The parameters would fit; the batches from here on would be another run's."""
    path = run / "config.json"
    path.write_text(path.read_text().replace('"train.seed": 0,', '"train.seed": 1,'))
    assert error("train", path) == (
        f"--run {run}: holds another run, whose train.seed is 0, not 1; choose another directory"
    )


def test_a_run_directory_in_place_of_its_config(error, run):
    assert error("train", run) == f"{run}: a run directory; its config is {run / 'config.json'}"


def test_another_model_than_the_checkpoint(error, trained, run):
    path = run / "config.json"
    path.write_text(path.read_text().replace('"encoder.layers": 1,', '"encoder.layers": 2,'))
    for arguments in (("train", path), ("evaluate", run, "--data", trained.data)):
        found = error(*arguments)
        assert found.startswith(f"{run / 'checkpoints'}/")
        assert "is of another model than the config's: encoder/blocks/" in found
    assert steps(run) == {"2", "3", "4"}


# Run directories.


def test_a_run_directory_of_another_config(error, trained, run):
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    options = ["--run", run, *trained.arguments[4:], "--encoder.layers", "2", "--train.seed", "7"]
    assert error("train", trained.config, *options) == (
        f"--run {run}: holds another run, whose encoder.layers is 1, not 2 "
        "(and 1 more fields differ); choose another directory"
    )
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before


def test_a_directory_that_holds_other_things(error, trained, tmp_path):
    (tmp_path / "thesis.tex").touch()
    assert error("train", trained.config, "--run", tmp_path) == (
        f"--run {tmp_path}: holds other files and no config.json; choose another"
    )


def test_a_run_without_checkpoints(error, trained, run):
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


# Data as a whole.


def test_data_that_cannot_be_trained_on(error, trained, tmp_path):
    run, empty = tmp_path / "run", tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "0.wav").write_bytes(b"RIFF and no more")
    broken = write_manifest(tmp_path / "broken.jsonl", {"0.wav": "one"})
    write_tone(tmp_path / "1.flac", 0.4)
    silent = write_manifest(tmp_path / "silent.jsonl", {"1.flac": " "})
    start = lambda **data: error(
        "train", trained.config, "--run", run, *(f"--data.{k}={v}" for k, v in data.items())
    )
    assert start() == "data.train is empty: it must name a folder or a manifest"
    assert start(train=tmp_path / "no") == f"{tmp_path / 'no'}: no such folder or manifest"
    assert start(train=empty).startswith(f"{empty}: no transcripts in it")
    assert start(train=broken).startswith(f"{broken}: none of its 1 recordings can be read, ")
    assert start(train=silent) == "transcripts: all are empty, nothing to train a tokenizer on"
    # What is wrong with the other two is known before the first step, not after the last.
    good = trained.data
    assert start(train=good, dev=empty).startswith(f"{empty}: no transcripts in it")
    assert start(train=good, dev=silent) == f"data.dev = {silent}: all transcripts are empty"
    assert start(train=good, test=empty).startswith(f"{empty}: no transcripts in it")
    assert start(train=good, test=silent) == f"data.test = {silent}: all transcripts are empty"
    assert error("evaluate", trained.run, "--data", silent) == (
        f"--data = {silent}: all transcripts are empty"
    )
    # None of these starts has made the directory unusable, or left its tokenizer for the next.
    other = write_manifest(tmp_path / "other.jsonl", {"1.flac": "xyz"})
    assert start(train=other, test=empty).startswith(f"{empty}: no transcripts in it")
    assert not (run / "tokenizer.model").exists()
    assert Tokenizer.load(run / "tokenizer.tmp").unknown_characters("xyz one") == "eno"


# Recordings, one by one.


@pytest.fixture(scope="module")
def mixed(command, trained, tmp_path_factory):
    """A run that goes on with data among which is every bad recording, and what it said."""
    folder = tmp_path_factory.mktemp("mixed")
    run = shutil.copytree(trained.run, folder / "run")
    texts = dict.fromkeys(["good", "another good", "stereo", "slow rate"], "one")
    texts |= {"missing": "six", "corrupt": "six", "empty": "six", "no text": " "}
    texts |= {"too long": "six", "too short": "six", "too many": "one" * 6, "unknown": "bquix"}
    texts |= {"not finite": "six", "truncated": "six", "more labels than frames": "zwei drei six"}
    seconds = {"too long": 1.5, "too short": 0.05, "more labels than frames": 0.25}
    for name in texts.keys() - {"missing", "corrupt", "empty", "truncated"}:
        write_tone(folder / f"{name}.wav", seconds.get(name, 0.5))
    tone, _ = soundfile.read(folder / "good.wav", dtype="float32")
    soundfile.write(folder / "stereo.wav", np.stack([tone, tone], axis=1), RATE_HZ)
    soundfile.write(folder / "slow rate.wav", tone[::2], RATE_HZ // 2)
    holed = np.where(np.arange(len(tone)) == 99, np.nan, tone)
    soundfile.write(folder / "not finite.wav", holed, RATE_HZ, subtype="FLOAT")
    (folder / "corrupt.wav").write_bytes(b"no header at all")
    (folder / "empty.wav").touch()
    # Its header is whole, so only reading it to the end shows that the rest is missing.
    flac = write_tone(folder / "whole.flac", 0.5).read_bytes()
    (folder / "truncated.wav").write_bytes(flac[: len(flac) // 2])

    data = write_manifest(folder / "data.jsonl", {f"{name}.wav": t for name, t in texts.items()})
    config = run / "config.json"
    fields = json.loads(config.read_text()) | {"data.train": str(data), "data.test": ""}
    config.write_text(json.dumps(fields))
    shutil.rmtree(run / "checkpoints" / "4")
    (run / "metrics.jsonl").unlink()
    return run, command("train", config)


def test_bad_recordings_are_listed_with_their_reason(mixed):
    run, outcome = mixed
    assert outcome.status == 0, outcome.err
    folder = run.parent
    found = {id.removesuffix(".wav"): reason for id, reason in skipped(run).items()}
    assert found.pop("corrupt").endswith(f": {folder / 'corrupt.wav'}")
    assert found.pop("truncated").endswith(f": {folder / 'truncated.wav'}")
    assert found == {
        "missing": f"no such file: {folder / 'missing.wav'}",
        "empty": f"the file is empty: {folder / 'empty.wav'}",
        "no text": "empty transcript",
        "too long": "longer than the last bucket's 1 s: 1.5 s",
        "too short": "shorter than 0.1 s: 0.05 s",
        "too many": "more labels than the last bucket's 16: 18",
        "unknown": "characters that the tokenizer lacks: bqu",
        "not finite": f"samples that are not finite: {folder / 'not finite.wav'}",
        "more labels than frames": "too short for its text in the CTC loss: needs 13 frames, has 7",
    }


def test_bad_recordings_are_counted(mixed):
    run, outcome = mixed
    lines = outcome.err.splitlines()
    assert "warning: the utterances of data.train are not those that this run was trained on" in (
        outcome.err
    )
    listed = f"(listed in {run / 'skipped.jsonl'})"
    assert f"left out: 1 utterances, empty transcript {listed}" in lines
    assert f"left out: 1 utterances, characters that the tokenizer lacks {listed}" in lines
    # Found out while training, and said at once.
    broken = run.parent / "not finite.wav"
    assert f"left out: {broken.name}, samples that are not finite: {broken} {listed}" in lines


def test_a_restart_forgets_no_recording(command, mixed, tmp_path):
    run = shutil.copytree(mixed[0], tmp_path / "run")
    with (run / "skipped.jsonl").open("a") as file:
        file.write('{"id": "half-writ')
    before = skipped(mixed[0])
    shutil.rmtree(run / "checkpoints" / "4")
    assert command("train", run / "config.json").status == 0
    assert skipped(run) == before
    assert len((run / "skipped.jsonl").read_text().splitlines()) == len(before)


def test_the_others_are_trained_on(mixed):
    """The objective is finite with more labels than frames: 13 labels, 7 frames; CTC skips it."""
    run, _ = mixed
    metrics = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    (line,) = [m for m in metrics if "loss" in m]
    assert line["step"] == 4
    assert np.isfinite(line["grad_norm"]) and line["skipped"] == 0


@pytest.mark.slow
def test_steps_that_are_never_finite(command, error, trained, tmp_path, monkeypatch):
    class Poisoned(Batches):
        def __next__(self):
            batch = super().__next__()
            return batch._replace(samples=np.full_like(batch.samples, np.inf))

    def poisoned(*arguments, **options):
        batches = training_batches(*arguments, **options)
        return Poisoned(batches, batches._failures)

    monkeypatch.setattr(tasks, "training_batches", poisoned)
    options = ["--run", tmp_path / "run", *trained.arguments[4:], "--train.max-skipped-in-a-row=2"]
    found = error("train", trained.config, *options)
    start = "2 steps in a row, up to step 2, had a loss or gradient that is not finite; "
    assert found.startswith(f"{start}the last one's utterances are ")
    assert sorted(found.partition("utterances are ")[2].split(", ")) == [
        f"{n}.flac" for n in range(6)
    ]
    assert steps(tmp_path / "run") == {"1"}
    # What was saved is as good as before, and the run goes on from it.
    monkeypatch.setattr(tasks, "training_batches", training_batches)
    outcome = command("train", trained.config, *options)
    assert outcome.status == 0, outcome.err
    assert "going on from step 1 of 4" in outcome.err
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [m["skipped"] for m in map(json.loads, lines) if "loss" in m] == [1] * 4


def test_nothing_that_can_be_read_any_more(error, mixed, tmp_path):
    """As when a disk goes away: padding alone is no training."""
    run = shutil.copytree(mixed[0], tmp_path / "run")
    shutil.rmtree(run / "checkpoints" / "4")
    gone = tmp_path / "gone.wav"
    data = write_manifest(tmp_path / "data.jsonl", {str(gone): "one"})
    soundfile.write(gone, np.full(8000, np.nan, np.float32), RATE_HZ, subtype="FLOAT")
    fields = json.loads((run / "config.json").read_text())
    fields |= {"data.train": str(data), "data.dev": "", "train.max_skipped_in_a_row": 1}
    (run / "config.json").write_text(json.dumps(fields))
    assert error("train", run / "config.json") == (
        f"data.train = {data}: 1 batches in a row had no recording that can be read, of late "
        f"{gone}: samples that are not finite: {gone}"
    )


def test_evaluate_lists_what_it_cannot_read(command, trained, mixed, tmp_path):
    folder = mixed[0].parent
    names = ("good", "not finite", "missing", "too long", "too short")
    data = write_manifest(tmp_path / "d.jsonl", {f"{folder / n}.wav": "one" for n in names})
    outcome = command("evaluate", trained.run, "--data", data, "--output", tmp_path / "out")
    assert outcome.status == 0, outcome.err
    missing, broken = folder / "missing.wav", folder / "not finite.wav"
    assert outcome.err.splitlines() == [
        f"{missing}: not recognised: no such file: {missing}",
        f"{broken}: not recognised: samples that are not finite: {broken}",
    ]
    # Longer than the last bucket, or shorter than one trains on, is no reason here.
    assert json.loads((tmp_path / "out" / "wer.json").read_text())["utterances"] == 3


def test_transcribe_goes_on_after_a_bad_recording(command, trained, mixed):
    folder = mixed[0].parent
    path = lambda name: folder / f"{name}.wav"
    names = ("good", "missing", "stereo", "corrupt", "not finite", "slow rate", "empty")
    outcome = command("transcribe", trained.run, *map(path, names))
    assert outcome.status == 1
    texts = dict(line.split("\t") for line in outcome.out.splitlines())
    assert list(texts) == [str(path(name)) for name in ("good", "stereo", "slow rate")]
    assert texts[str(path("stereo"))] == texts[str(path("good"))]
    problems = outcome.err.splitlines()
    assert f"asr-jax transcribe: {path('missing')}: no such file" in problems
    assert f"asr-jax transcribe: {path('empty')}: the file is empty" in problems
    assert f"asr-jax transcribe: samples that are not finite: {path('not finite')}" in problems
    assert len(problems) == 4


# Checkpoints.


def cut_short(checkpoint: Path) -> None:
    for path in checkpoint.rglob("*"):
        if path.is_file() and path.stat().st_size > 1000:
            os.truncate(path, path.stat().st_size // 2)


def test_a_half_written_checkpoint_is_set_aside(command, trained, run):
    cut_short(run / "checkpoints" / "4")
    outcome = command("train", run / "config.json", "--data.test=")
    assert outcome.status == 0, outcome.err
    assert "warning: checkpoint 4 cannot be read (" in outcome.err
    assert f"and was moved to {run / 'unreadable'}" in outcome.err
    assert "going on from step 3 of 4" in outcome.err
    assert (run / "unreadable" / "4").is_dir()
    assert steps(run) == {"2", "3", "4"}
    # A second one of the same step does not replace the first.
    cut_short(run / "checkpoints" / "4")
    assert command("train", run / "config.json", "--data.test=").status == 0
    assert {path.name for path in (run / "unreadable").iterdir()} == {"4", "4-2"}


def test_no_checkpoint_that_can_be_read_is_no_reason_to_start_anew(error, trained, run):
    before = (run / "metrics.jsonl").read_text()
    for step in ("2", "3", "4"):
        cut_short(run / "checkpoints" / step)
    found = error("train", run / "config.json")
    assert found.startswith(
        f"{run / 'checkpoints'}: none of its checkpoints [2, 3, 4] can be read, 4: "
    )
    assert found.endswith("they are left as they are, choose another run directory to start anew")
    assert steps(run) == {"2", "3", "4"}
    assert (run / "metrics.jsonl").read_text() == before
    found = error("evaluate", run, "--data", trained.data, "--checkpoint", "last")
    assert found.startswith(f"{run / 'checkpoints' / '4'} cannot be read: ")


def test_what_a_killed_save_leaves_is_cleared_away(command, run):
    (run / "checkpoints" / "4").rename(run / "checkpoints" / "4.orbax-checkpoint-tmp")
    outcome = command("train", run / "config.json", "--data.test=")
    assert outcome.status == 0, outcome.err
    assert "going on from step 3 of 4" in outcome.err
    assert steps(run) == {"2", "3", "4"}


@contextlib.contextmanager
def files_limited_to(size_bytes: int):
    """Writing beyond it fails, as on a full disk; Python ignores the signal that comes with it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_save_that_fails(command, error, run, monkeypatch):
    shutil.rmtree(run / "checkpoints" / "4")

    begun = []

    def on_a_full_disk(self, step, *_, **__):
        begun.append(asyncio.sleep(0))
        (run / "checkpoints" / f"{step}.orbax-checkpoint-tmp").mkdir()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(ocp.training.Checkpointer, "save_async", on_a_full_disk)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    assert error("train", run / "config.json", "--data.test=") == (
        f"{run / 'checkpoints'}: a checkpoint could not be written "
        "([Errno 28] No space left on device); earlier ones are kept"
    )
    with warnings.catch_warnings(record=True) as warned:
        begun.clear()
    assert not warned  # of what was abandoned
    monkeypatch.undo()
    outcome = command("train", run / "config.json", "--data.test=")
    assert outcome.status == 0, outcome.err
    assert "going on from step 3 of 4" in outcome.err
    assert steps(run) == {"2", "3", "4"}


@pytest.mark.slow
def test_a_full_disk_during_a_save(command, run):
    """In a process of its own: Orbax's writers, abandoned, complain until it ends."""
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
    ended = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 2
    *notes, last = ended.stderr.splitlines()
    assert last.startswith(f"asr-jax train: {run / 'checkpoints'}: a checkpoint could not be ")
    assert last.endswith("); earlier ones are kept")
    assert not any(line.startswith(("Traceback", "ERROR", " ")) for line in notes), notes

    outcome = command(*arguments)
    assert outcome.status == 0, outcome.err
    assert "going on from step 3 of 4" in outcome.err
    assert steps(run) == {"2", "3", "4"}


def test_a_full_disk_at_the_start_keeps_the_config(error, run):
    before = (run / "config.json").read_text()
    with files_limited_to(100):
        found = error("train", run / "config.json", "--data.test=")
    assert found.endswith("File too large")
    assert (run / "config.json").read_text() == before


# Being interrupted.


def test_ctrl_c_saves(command, run, signalled):
    for step in ("3", "4"):
        shutil.rmtree(run / "checkpoints" / step)
    with signalled(signal.SIGINT, after_step=3):
        outcome = command("train", run / "config.json", "--data.test=", "--train.steps=4")
    assert outcome.status == 128 + signal.SIGINT
    assert outcome.err.splitlines()[-1].startswith("stopped by SIGINT; saved.")
    assert "4" in steps(run)
    # After training, signals mean again what they mean to any program.
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_ctrl_c_elsewhere_is_no_traceback(command, trained, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate, "open_run", interrupted)
    outcome = command("evaluate", trained.run, "--data", trained.data)
    assert outcome.status == 128 + signal.SIGINT
    assert outcome.err == "asr-jax evaluate: interrupted\n"


def test_asked_twice_it_leaves_at_once(command, run, signalled, monkeypatch):
    shutil.rmtree(run / "checkpoints" / "4")
    left = []
    monkeypatch.setattr(os, "_exit", left.append)
    with signalled(signal.SIGTERM, after_step=4, times=2):
        command("train", run / "config.json", "--data.test=")
    assert left == [128 + signal.SIGTERM]


@pytest.mark.slow
def test_a_process_that_is_told_to_stop(trained, tmp_path):
    run = tmp_path / "run"
    environment = {
        "PYTHONPATH": str(ROOT),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    start = lambda steps: subprocess.Popen(
        [
            *(sys.executable, "-m", "asr_jax", "train", trained.config, "--run", run),
            *(f"--data.train={trained.data}", f"--train.steps={steps}"),
        ],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )
    process = start(100_000)
    while process.poll() is None and not list(run.glob("checkpoints/[0-9]")):
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    assert err.splitlines()[-1].startswith("stopped by SIGTERM; saved.")
    saved = max(int(path.name) for path in (run / "checkpoints").iterdir())
    resumed = start(saved + 1)
    _, err = resumed.communicate()
    assert resumed.returncode == 0, err
    assert f"going on from step {saved} of {saved + 1}" in err
