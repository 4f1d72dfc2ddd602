"""Runs whose batch shapes follow from their recordings, and keep them when the data change."""

import json
import shutil

import pytest
from tiny import checkpoint_steps, write_manifest, write_tone

from asr_jax.capacity.bucket_memory import BucketFit
from asr_jax.commands import fit
from asr_jax.commands.arguments import override
from asr_jax.config_file import load_config

STATED = "bucket_seconds=(1.0,), bucket_labels=(16,), bucket_utterances=(8,)"


@pytest.fixture(scope="session")
def chosen_config(trained, tmp_path_factory):
    """The config of the trained run, without its buckets."""
    text = trained.config.read_text()
    assert STATED in text
    path = tmp_path_factory.mktemp("chosen") / "tiny.py"
    path.write_text(text.replace(STATED, "batch_seconds=4.0, max_seconds=2.0"))
    return path


def table_of(err: str) -> list[str]:
    lines = err.splitlines()
    first = next(n for n, line in enumerate(lines) if line.startswith("batches of "))
    return lines[first : first + 3]


@pytest.mark.slow
def test_a_resumed_run_keeps_its_shapes_whatever_the_data_became(command, chosen_config, tmp_path):
    recordings = {}
    for n, text in enumerate(["one", "two three", "four", "five", "six", "seven"]):
        recordings[f"{n}.flac"] = text
        write_tone(tmp_path / f"{n}.flac", 0.4 + 0.05 * n)
    write_tone(tmp_path / "long.flac", 2.1)
    data = write_manifest(tmp_path / "data.jsonl", recordings | {"long.flac": "long"})
    arguments = ("train", chosen_config, "--run", tmp_path / "run", "--data.train", data)
    outcome = command(*arguments)
    assert outcome.status == 0, outcome.err
    assert "left out: 1 utterances, longer than data.max_seconds, 2 s" in outcome.err
    table = table_of(outcome.err)
    assert table[0].startswith("batches of 1 shape, ")
    # The longest recording at the slowest speed; at least a row for every device.
    assert table[2].split()[:4] == [f"{0.65 / 0.9:.2f}", "s", "9", "8"]
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert config["data.bucket_seconds"] == []

    write_tone(tmp_path / "longer.flac", 1.5)
    write_manifest(data, recordings | {"longer.flac": "nine"})
    outcome = command(*arguments, "--train.steps=6")
    assert outcome.status == 0, outcome.err
    assert table_of(outcome.err)[2].split()[:4] == table[2].split()[:4]
    assert "left out: 1 utterances, longer than the last bucket's 0.722222 s" in outcome.err
    assert "6" in checkpoint_steps(tmp_path / "run")


@pytest.mark.slow
def test_a_run_with_stated_buckets_resumes_with_a_config_that_states_none(
    command, trained, chosen_config, run
):
    shutil.rmtree(run / "checkpoints/4")
    arguments = ("train", chosen_config, "--run", run, *trained.arguments[4:6], "--data.test=")
    outcome = command(*arguments)
    assert outcome.status == 0, outcome.err
    assert "resuming from step 3 of 4" in outcome.err
    assert table_of(outcome.err)[2].split()[:4] == ["1.00", "s", "16", "8"]
    # It also resumes from its new config.json, and as before.
    for again in (("train", run / "config.json"), arguments):
        shutil.rmtree(run / "checkpoints/4")
        outcome = command(*again)
        assert outcome.status == 0 and "1.00 s       16" in outcome.err, outcome.err


def test_other_batches_are_another_run(error, chosen_config, trained, run):
    arguments = (*trained.arguments[:3], run, *trained.arguments[4:])
    message = error(*arguments, "--data.bucket-utterances=16")
    assert "holds another run, whose data.bucket_utterances is (8,), not (16,)" in message


def test_max_seconds_below_the_shortest_is_one_line(error, chosen_config, trained, tmp_path):
    message = error(
        *("train", chosen_config, "--run", tmp_path / "run", *trained.arguments[4:]),
        "--data.max-seconds=0.2",
    )
    assert message == (
        f"data.train = {trained.data}: none of its 6 utterances can be trained on, the first is "
        f"0.flac: longer than data.max_seconds, 0.2 s: 0.4 s"
    )


def test_fit_looks_at_the_recordings_that_exist(chosen_config, trained, capsys):
    config = load_config(chosen_config)
    buckets_at, vocabulary_size = fit._buckets(config, 1)
    assert buckets_at(40.0).seconds == (2.0,) and buckets_at(40.0).utterances == (16,)
    assert "data.train: not found; assuming recordings of data.max_seconds = 2 s" in (
        capsys.readouterr().err
    )
    there = override(config, ["--data.train", str(trained.data)])
    buckets_at, vocabulary_size = fit._buckets(there, 1)
    assert buckets_at(40.0).seconds == (pytest.approx(0.65 / 0.9),)
    assert vocabulary_size < 30 and not capsys.readouterr().err


def test_the_largest_batch_is_one_number_that_no_bucket_exceeds(chosen_config, trained):
    config = override(load_config(chosen_config), ["--data.train", str(trained.data)])
    buckets_at, _ = fit._buckets(config, 1)

    zeros = dict.fromkeys(BucketFit._fields, 0) | {"collectives": {}, "fits": True}
    longest = buckets_at(4.0).seconds[-1]
    for rows in (1, 2, 4, 16):
        largest = BucketFit(**zeros | {"seconds": longest, "utterances": rows})
        found = fit._largest_batch_seconds([largest], buckets_at)
        assert buckets_at(float(found)).utterances[-1] <= rows


@pytest.mark.slow
def test_fit_answers_with_a_number_of_seconds(command, chosen_config, trained):
    options = ("--data.train", trained.data, "--largest")
    outcome = command("fit", chosen_config, *options)
    assert outcome.status == 0, outcome.err
    assert "The largest batch that fits: --data.batch-seconds " in outcome.out
