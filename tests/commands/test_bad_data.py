"""Datasets that are rejected, and recordings that are left out, counted and listed."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from tiny import RATE_HZ, checkpoint_steps, write_manifest, write_tone

from asr_jax.data.pipeline import Batches, training_batches
from asr_jax.experiment import tasks
from asr_jax.text import Tokenizer


def skipped(run: Path) -> dict[str, str]:
    lines = map(json.loads, (run / "skipped.jsonl").read_text().splitlines())
    return {entry["id"]: entry["reason"] for entry in lines}


# Datasets.


def test_datasets_that_cannot_be_trained_on_are_rejected(error, trained, tmp_path):
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
    # Mistakes in data.dev and data.test are reported before the first step, not after the last.
    good = trained.data
    assert start(train=good, dev=empty).startswith(f"{empty}: no transcripts in it")
    assert start(train=good, dev=silent) == f"data.dev = {silent}: all transcripts are empty"
    assert start(train=good, test=empty).startswith(f"{empty}: no transcripts in it")
    assert start(train=good, test=silent) == f"data.test = {silent}: all transcripts are empty"
    assert error("evaluate", trained.run, "--data", silent) == (
        f"--data = {silent}: all transcripts are empty"
    )
    # None of these attempts makes the directory unusable, or leaves its tokenizer to the next one.
    other = write_manifest(tmp_path / "other.jsonl", {"1.flac": "xyz"})
    assert start(train=other, test=empty).startswith(f"{empty}: no transcripts in it")
    assert not (run / "tokenizer.model").exists()
    assert Tokenizer.load(run / "tokenizer.tmp").unknown_characters("xyz one") == "eno"


# Recordings.


@pytest.fixture(scope="module")
def mixed(command, trained, tmp_path_factory):
    """A run that resumes on a dataset with every kind of bad recording, and its outcome."""
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
    with_nan = np.where(np.arange(len(tone)) == 99, np.nan, tone)
    soundfile.write(folder / "not finite.wav", with_nan, RATE_HZ, subtype="FLOAT")
    (folder / "corrupt.wav").write_bytes(b"no header at all")
    (folder / "empty.wav").touch()
    # The header is complete, so only reading it to the end shows that the rest is missing.
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
    reasons = {id.removesuffix(".wav"): reason for id, reason in skipped(run).items()}
    assert reasons.pop("corrupt").endswith(f": {folder / 'corrupt.wav'}")
    assert reasons.pop("truncated").endswith(f": {folder / 'truncated.wav'}")
    assert reasons == {
        "missing": f"no such file: {folder / 'missing.wav'}",
        "empty": f"the file is empty: {folder / 'empty.wav'}",
        "no text": "empty transcript",
        "too long": "longer than the last bucket's 1 s: 1.5 s",
        "too short": "shorter than 0.1 s: 0.05 s",
        "too many": "more labels than the last bucket's 16: 18",
        "unknown": "characters that the tokenizer lacks: bqu",
        "not finite": f"samples that are not finite: {folder / 'not finite.wav'}",
        "more labels than frames": (
            "too short for its text in the CTC loss, trained without it: needs 13 frames, has 7"
        ),
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
    # The transducer is trained on it.
    kind = "too short for its text in the CTC loss, trained without it"
    assert f"1 utterances, {kind} {listed}" in lines
    # Discovered during training, and reported at once.
    broken = run.parent / "not finite.wav"
    assert f"left out: {broken.name}, samples that are not finite: {broken} {listed}" in lines


def test_data_that_moved_changes_no_batch(command, trained, run, tmp_path):
    """In a manifest without ids, the paths are the ids: relative ones, and then absolute ones."""
    lines = [json.loads(line) for line in trained.data.read_text().splitlines()]
    moved = shutil.copytree(trained.data.parent, tmp_path / "moved")
    texts = {str(moved / line["audio_filepath"]): line["text"] for line in lines}
    data = write_manifest(moved / "absolute.jsonl", texts)
    resume = ("train", run / "config.json", "--data.test=", f"--data.dev={data}")
    outcome = command(*resume, f"--data.train={data}")
    assert outcome.status == 0, outcome.err
    assert "resuming from step 4 of 4" in outcome.err
    assert "warning" not in outcome.err
    # A recording less is another corpus.
    write_manifest(data, dict(list(texts.items())[1:]))
    outcome = command(*resume, f"--data.train={data}")
    assert "warning: the utterances of data.train are not those" in outcome.err


def test_skipped_recordings_survive_a_restart(command, mixed, tmp_path):
    run = shutil.copytree(mixed[0], tmp_path / "run")
    with (run / "skipped.jsonl").open("a") as file:
        file.write('{"id": "half-writ')
    before = skipped(mixed[0])
    shutil.rmtree(run / "checkpoints" / "4")
    assert command("train", run / "config.json").status == 0
    assert skipped(run) == before
    assert len((run / "skipped.jsonl").read_text().splitlines()) == len(before)


def test_training_continues_on_the_good_recordings(mixed):
    """The transducer loss of 13 labels on 7 frames is finite, and CTC skips the utterance."""
    run, _ = mixed
    metrics = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    (line,) = [m for m in metrics if "loss" in m]
    assert line["step"] == 4
    assert np.isfinite(line["grad_norm"]) and line["skipped"] == 0


@pytest.mark.slow
def test_steps_that_are_never_finite_end_the_run_at_its_last_good_checkpoint(
    command, error, trained, tmp_path, monkeypatch
):
    class Poisoned(Batches):
        def __next__(self):
            batch = super().__next__()
            return batch._replace(samples=np.full_like(batch.samples, np.inf))

    def poisoned(*arguments, **options):
        batches = training_batches(*arguments, **options)
        return Poisoned(batches, batches._failures)

    monkeypatch.setattr(tasks, "training_batches", poisoned)
    options = ["--run", tmp_path / "run", *trained.arguments[4:], "--train.max-skipped-in-a-row=2"]
    message = error("train", trained.config, *options)
    start = "2 steps in a row, up to step 2, had a loss or gradient that is not finite; "
    assert message.startswith(f"{start}the last one's utterances are ")
    assert sorted(message.partition("utterances are ")[2].split(", ")) == [
        f"{n}.flac" for n in range(6)
    ]
    assert checkpoint_steps(tmp_path / "run") == {"1"}
    # The saved checkpoint is still good, and the run resumes from it.
    monkeypatch.setattr(tasks, "training_batches", training_batches)
    outcome = command("train", trained.config, *options)
    assert outcome.status == 0, outcome.err
    assert "resuming from step 1 of 4" in outcome.err
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [m["skipped"] for m in map(json.loads, lines) if "loss" in m] == [1] * 4


def test_run_ends_when_no_recording_can_be_read_any_more(error, mixed, tmp_path):
    """Batches of padding alone train nothing, for example when a disk is unmounted."""
    run = shutil.copytree(mixed[0], tmp_path / "run")
    shutil.rmtree(run / "checkpoints" / "4")
    gone = tmp_path / "gone.wav"
    data = write_manifest(tmp_path / "data.jsonl", {str(gone): "one"})
    soundfile.write(gone, np.full(8000, np.nan, np.float32), RATE_HZ, subtype="FLOAT")
    fields = json.loads((run / "config.json").read_text())
    fields |= {"data.train": str(data), "data.dev": "", "train.max_skipped_in_a_row": 1}
    (run / "config.json").write_text(json.dumps(fields))
    assert error("train", run / "config.json") == (
        f"data.train = {data}: 1 batches in a row had no recording that can be read, most recently "
        f"{gone}: samples that are not finite: {gone}"
    )


def test_evaluate_lists_recordings_that_it_cannot_read(command, trained, mixed, tmp_path):
    folder = mixed[0].parent
    names = ("good", "not finite", "missing", "too long", "too short")
    data = write_manifest(tmp_path / "d.jsonl", {f"{folder / n}.wav": "one" for n in names})
    outcome = command("evaluate", trained.run, "--data", data, "--output", tmp_path / "out")
    assert outcome.status == 0, outcome.err
    missing, broken = folder / "missing.wav", folder / "not finite.wav"
    assert outcome.err.splitlines() == [
        f"{missing}: not recognized: no such file: {missing}",
        f"{broken}: not recognized: samples that are not finite: {broken}",
    ]
    # The length limits of training do not apply to evaluation.
    assert json.loads((tmp_path / "out" / "wer.json").read_text())["utterances"] == 3


def test_transcribe_continues_after_a_bad_recording(command, trained, mixed):
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


def test_recordings_that_are_not_whole_are_neither_scored_nor_transcribed(
    command, trained, mixed, tmp_path
):
    tone, _ = soundfile.read(mixed[0].parent / "good.wav", dtype="float32")
    for name, format in {
        "wav": {"format": "WAV"},
        "ogg": {"format": "OGG"},
        "opus": {"format": "OGG", "subtype": "OPUS"},
        "mp3": {"format": "MP3"},
        "flac": {"format": "FLAC"},
        "whole": {"format": "WAV"},
        "half": {"format": "WAV"},
    }.items():
        samples = tone[: len(tone) // 2] if name == "half" else tone
        soundfile.write(tmp_path / name, samples, RATE_HZ, **format)
        if name not in ("whole", "half"):
            contents = (tmp_path / name).read_bytes()
            (tmp_path / name).write_bytes(contents[: len(contents) * 2 // 3])
    names = ["wav", "ogg", "opus", "mp3", "flac", "half", "whole"]
    (tmp_path / "d.jsonl").write_text(
        "\n".join(
            json.dumps({"audio_filepath": name, "text": "one", "duration": 0.5}) for name in names
        )
    )
    outcome = command("evaluate", trained.run, "--data", tmp_path / "d.jsonl", "--output", tmp_path)
    assert outcome.status == 0, outcome.err
    problems = dict(line.split(": not recognized: ") for line in outcome.err.splitlines())
    assert problems.keys() == {*names} - {"whole"}
    assert problems.pop("half").startswith("shorter than its manifest says: 4000 samples")
    assert all(problem.startswith("truncated") for problem in problems.values()), problems
    assert json.loads((tmp_path / "wer.json").read_text())["utterances"] == 1

    outcome = command("transcribe", trained.run, *(tmp_path / name for name in names))
    assert outcome.status == 1
    transcribed = [line.split("\t")[0] for line in outcome.out.splitlines()]
    assert transcribed == [str(tmp_path / name) for name in ("half", "whole")]
    assert sum("truncated" in line for line in outcome.err.splitlines()) == 5


def test_samples_at_the_scale_of_16_bits_are_said_once(command, trained, mixed, tmp_path):
    tone, _ = soundfile.read(mixed[0].parent / "good.wav", dtype="float32")
    paths = [tmp_path / "0.wav", tmp_path / "1.wav"]
    for path in paths:
        soundfile.write(path, 32_768 * tone, RATE_HZ, subtype="FLOAT")
    outcome = command("transcribe", trained.run, *paths)
    assert outcome.status == 0 and len(outcome.out.splitlines()) == 2
    (line,) = outcome.err.splitlines()
    assert line.startswith(f"warning: {tmp_path}/") and "beyond 64 times full scale" in line


def test_dev_without_a_reference_word_that_was_recognized_is_no_perfect_result(
    error, trained, run, tmp_path
):
    """The recording with a transcript turns out to be unreadable."""
    write_tone(tmp_path / "silent.wav", 0.5)
    soundfile.write(tmp_path / "broken.wav", np.full(8000, np.nan), 16_000, subtype="FLOAT")
    dev = write_manifest(tmp_path / "dev.jsonl", {"silent.wav": "", "broken.wav": "one"})
    shutil.rmtree(run / "checkpoints" / "4")
    message = error("train", run / "config.json", f"--data.dev={dev}", "--data.test=")
    assert message == f"data.dev = {dev}: none of its recordings with a transcript can be read"
