"""train, evaluate and transcribe from end to end: their output and the files of a run."""

import contextlib
import io
import json
import math
import re
import shutil
import signal
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import soundfile
from tiny import write_manifest, write_tone

from asr_jax.commands import transcribe
from asr_jax.commands.evaluate import default_output
from asr_jax.commands.transcribe_manifest import write_manifest as write_recognized
from asr_jax.config import Config, ObjectiveConfig, flatten
from asr_jax.data.manifest import read_manifest
from asr_jax.decoding import captions
from asr_jax.inference.label_posteriors import require_lattice
from asr_jax.scoring.wer import count_word_errors, total
from asr_jax.training.metrics_log import MetricsLog
from asr_jax.types import Transcript, Utterance, Word


def metrics(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def hypotheses(output: Path) -> dict[str, dict]:
    lines = (output / "hypotheses.jsonl").read_text(encoding="utf-8").splitlines()
    return {entry["id"]: entry for entry in map(json.loads, lines)}


def transcripts(data: Path) -> dict[str, str]:
    lines = map(json.loads, data.read_text().splitlines())
    return {entry["audio_filepath"]: entry["text"] for entry in lines}


def test_sigterm_saves_and_the_command_resumes(trained):
    stopped = trained.until_stopped
    assert stopped.status == 128 + signal.SIGTERM
    assert "SIGTERM: saving a checkpoint before exiting" in stopped.err
    assert stopped.err.splitlines()[-1] == (
        "stopped by SIGTERM after saving; run the same command to resume"
    )
    assert "evaluation" not in trained.files_when_stopped
    assert trained.to_the_end.status == 0
    assert "resuming from step 3 of 4" in trained.to_the_end.err


def test_run_directory(trained):
    run = trained.run
    assert {path.name for path in run.iterdir()} == {
        *("config.json", "tokenizer.model", "checkpoints", "metrics.jsonl", "skipped.jsonl"),
        *("tensorboard", "evaluation", "compiled", "labels.npz", "epochs.json"),
    }
    config = json.loads((run / "config.json").read_text())
    assert list(config) == sorted(flatten(Config()))
    assert config["encoder.layers"] == 1
    assert config["data.train"] == str(trained.data)
    # The newest three, and the best by dev WER, which was measured at steps 2 and 4.
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"2", "3", "4"}
    assert list((run / "tensorboard").glob("events.*"))
    assert (run / "skipped.jsonl").read_text() == ""


def test_metrics_have_one_line_for_every_step(trained):
    lines = metrics(trained.run)
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4]
    for line in steps:
        for name in ("loss", "ctc_loss", "grad_norm", "audio_seconds_per_second"):
            assert np.isfinite(line[name]) and line[name] > 0, (name, line)
        assert line["skipped"] == 0
    assert [line["step"] for line in lines if "dev_wer" in line] == [2, 4]


def test_training_ends_with_the_evaluation_that_evaluate_makes(trained, command, tmp_path):
    (at_the_end,) = (trained.run / "evaluation").iterdir()
    assert (at_the_end / "report.html").is_file()
    outcome = command("evaluate", trained.run, "--data", trained.data, "--output", tmp_path)
    assert outcome.status == 0, outcome.err
    before, now = (json.loads((p / "wer.json").read_text()) for p in (at_the_end, tmp_path))
    assert now["wer"] == before["wer"] == metrics(trained.run)[-1]["dev_wer"]
    assert now["utterances"] == 6
    assert now["reference_words"] == 9
    assert hypotheses(at_the_end) == hypotheses(tmp_path)
    assert f"WER on {trained.data}: {now['wer']:.1f} %" in outcome.out


def test_compare_with_a_run_and_with_evaluations(trained, command, error, tmp_path):
    """Every dataset is compared by itself; the default dataset is data.test."""
    other = shutil.copytree(trained.run, tmp_path / "other")
    out = tmp_path / "out"
    itself = default_output(trained.run, str(trained.data))
    compared = command("evaluate", trained.run, "--output", out, "--compare", other)
    assert compared.status == 0, compared.err
    assert compared.out.count("WER on ") == 2 and "  matched pairs: p = 1, may be" in compared.out
    figures = json.loads((out / "wer.json").read_text())
    assert figures["comparison"] == {
        "with": str(other / "evaluation" / itself.name),
        "utterances": 6,
        "wer": figures["wer"],
        "other_wer": figures["wer"],
        "difference": 0.0,
        "difference_95_percent_interval": [0.0, 0.0],
        "p_value": 1.0,
        "better": 0,
        "worse": 0,
        "only_here": [],
        "only_there": [],
    }

    # The first baseline is correct, lacks an utterance and has another one; the second is equal.
    more = tmp_path / "more" / "data.jsonl"
    more.parent.mkdir()
    more.write_text(trained.data.read_text().replace('th": "', f'th": "{trained.data.parent}/'))
    names = [f"{path.parent.name}-data" for path in (trained.data, more)]
    first, second = (tmp_path / "baselines" / name / "hypotheses.jsonl" for name in names)
    for path in (first, second):
        path.parent.mkdir(parents=True)
    entries = list(hypotheses(out).values())
    correct = [entry | {"hypothesis": entry["reference"]} for entry in entries[1:]]
    correct.append({"id": "elsewhere", "reference": "a", "hypothesis": "b"})
    first.write_text("".join(json.dumps(entry) + "\n" for entry in correct))
    prefixed = [entry | {"id": f"{trained.data.parent}/{entry['id']}"} for entry in entries]
    second.write_text("".join(json.dumps(entry) + "\n" for entry in prefixed))
    both = ("evaluate", trained.run, "--data", trained.data, more, "--output", tmp_path / "new")
    assert command(*both, "--compare", tmp_path / "baselines").status == 0
    of_first, of_second = (
        json.loads((tmp_path / "new" / name / "wer.json").read_text())["comparison"]
        for name in names
    )
    assert (of_first["other_wer"], of_first["utterances"], of_first["worse"]) == (0, 5, 5)
    assert (of_first["only_here"], of_first["only_there"]) == ([entries[0]["id"]], ["elsewhere"])
    assert (of_second["difference"], of_second["utterances"]) == (0, 6)

    compare = ("evaluate", trained.run, "--output", out, "--compare", first.parent)
    first.write_text(json.dumps(entries[0] | {"reference": "zero"}))
    assert error(*compare) == (
        f"{first}:1: reference 'zero' of {entries[0]['id']} must be 'one', as in --data; compare "
        "with an evaluation of that dataset"
    )
    for broken in ('{"id": 3}', json.dumps(entries[0] | {"hypothesis": None})):
        first.write_text(broken)
        assert error(*compare).startswith(
            f"{first}:1: must be an object with strings id, reference"
        )
    first.write_bytes(b"\xff")
    assert error(*compare).startswith(f"{first}:1: not UTF-8 text (byte 0xff at position 1); ")
    first.write_text("")
    assert error(*compare) == f"{first}: contains none of the utterances of --data"
    for path in (trained.run, itself):
        message = error("evaluate", trained.run, "--compare", path)
        assert message.endswith(f"would overwrite {itself}; pass --output")
    assert error("evaluate", trained.run, "--compare", more).startswith(f"--compare {more}: must")
    message = error("evaluate", trained.run, "--data", trained.data, trained.data)
    assert message == f"--data: two datasets would be written to {itself.resolve()}"


@pytest.mark.slow
def test_a_long_recording_is_transcribed_in_windows(trained, command, error, tmp_path):
    """This model emits a label at every frame, so that no words are merged across windows."""
    long, first = (write_tone(tmp_path / f"{n}.flac", float(n)) for n in (20, 6))
    outcome = command("transcribe", trained.run, long, first, "--window-seconds", 6)
    long_text, first_text = (line.split("\t")[1] for line in outcome.out.splitlines())
    before_merging = len(first_text) // 6
    assert before_merging > 10
    assert long_text[:before_merging] == first_text[:before_merging]
    assert len(long_text) == pytest.approx(20 / 6 * len(first_text), rel=0.2)
    several = ("--decoder=beam", "--nbest=2", "--window-seconds=6")
    message = error("transcribe", trained.run, first, long, *several)
    assert message.startswith(f"--nbest 2: {long} is recognized in windows, which are merged")


@pytest.mark.slow
def test_the_report_has_label_posteriors(trained, command, error, tmp_path):
    outcome = command("evaluate", trained.run, "--lattices", 2, "--output", tmp_path)
    assert outcome.status == 0, outcome.err
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    rows = json.loads(re.search(r'id="rows">(.*?)</script>', page)[1])
    shown = [row for row in rows if "lattice" in row]
    assert len(shown) == 2
    for row in shown:
        text = "".join(label[0] for label in row["lattice"]).replace("\u2581", " ").strip()
        assert text == transcripts(trained.data)[row["id"]]
        for _, start, frame, percents in row["lattice"]:
            # Values below 1 % at the ends are omitted, and percents are rounded.
            assert sum(percents) == pytest.approx(100, abs=0.5 * len(percents) + 5)
            assert 0 <= start and start + frame * len(percents) <= 1000 * row["seconds"] + frame
    assert "must not be negative" in error("evaluate", trained.run, "--lattices=-1")
    with pytest.raises(ValueError, match="^--lattices: a model of objective 'ctc' has none$"):
        require_lattice(Config(objective=ObjectiveConfig(kind="ctc", ctc_weight=0.0)))


def test_references_may_have_non_ascii_characters(trained):
    (output,) = (trained.run / "evaluation").iterdir()
    entries = hypotheses(output)
    assert {id: entry["reference"] for id, entry in entries.items()} == transcripts(trained.data)
    assert "größer" in (output / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("which, steps", [("last", "4"), ("3", "3"), ("average:2", "3, 4")])
def test_evaluate_a_checkpoint(trained, command, tmp_path, which, steps):
    evaluated = command(
        *("evaluate", trained.run, "--data", trained.data),
        *("--checkpoint", which, "--output", tmp_path),
    )
    assert evaluated.status == 0, evaluated.err
    assert f"{which} ({steps})" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_transcribe_prints_the_hypotheses_of_evaluate(trained, command):
    (output,) = (trained.run / "evaluation").iterdir()
    expected = {id: entry["hypothesis"] for id, entry in hypotheses(output).items()}
    assert len(set(expected.values())) > 1, "without text nothing is compared"
    paths = {id: trained.data.parent / id for id in expected}

    together = command("transcribe", trained.run, *paths.values())
    assert together.status == 0, together.err
    assert together.out.splitlines() == [f"{paths[id]}\t{text}" for id, text in expected.items()]

    alone = command("transcribe", trained.run, paths["3.flac"], "--json")
    assert json.loads(alone.out) == {
        "audio_filepath": str(paths["3.flac"]),
        "duration": 0.55,
        "text": expected["3.flac"],
    }


def test_a_manifest_of_recognized_texts_is_a_dataset(trained, command, error, tmp_path):
    paths = sorted(trained.data.parent.glob("*.flac"))
    timed = command("transcribe", trained.run, *paths, "--json", "--timestamps")
    expected = {}
    for line in timed.out.splitlines():
        fields = json.loads(line)
        confidences = [word["confidence"] for word in fields["words"]]
        confidence = sum(confidences) / len(confidences)
        expected[fields["audio_filepath"]] = fields["text"], round(confidence, 4)
    manifest = tmp_path / "new" / "recognized.jsonl"
    outcome = command("transcribe", trained.run, *paths, "--manifest", manifest)
    assert (outcome.status, outcome.err) == (0, "")
    assert outcome.out == f"{manifest}: 6 utterances, 0.00 hours\n"
    utterances, skipped = read_manifest(manifest)
    assert {str(u.audio): (u.text, u.confidence) for u in utterances} == expected and not skipped
    assert [u.duration_seconds for u in utterances] == pytest.approx(
        [0.4 + 0.05 * n for n in range(6)]
    )
    arguments = ("transcribe", trained.run, *paths, "--manifest", manifest)
    assert [path.name for path in manifest.parent.iterdir()] == [manifest.name]

    assert error(*arguments, "--json") == (
        f"--manifest {manifest}: has its own form, without --json"
    )
    assert error(*arguments, "--min-confidence", 1.5) == "--min-confidence 1.5: must be in 0..1"
    assert (
        error(*arguments[:-2], "--min-confidence=0.5") == "--min-confidence 0.5: needs --manifest"
    )
    message = error("transcribe", trained.run, "-", "--manifest", manifest)
    assert message == f"--manifest {manifest}: needs files to name, not -"
    message = error(*arguments[:-1], tmp_path)
    assert message.startswith(f"--manifest {tmp_path}: a folder; name a file")


def test_doubtful_and_silent_recordings_are_left_out_of_a_manifest(tmp_path):
    def words(*confidences: float) -> tuple[Word, ...]:
        return tuple(Word("A", n + 0.2, n + 0.8, c) for n, c in enumerate(confidences))

    recordings = [
        (
            Utterance(str(n), Path(f"{n}.flac"), "", 3.0 if n < 4 else 9.0),
            Transcript("", found, 0.0),
        )
        for n, found in enumerate(
            [words(0.9, 0.7), words(0.9, 0.69), words(), words(0.8), words(*6 * [0.9])]
        )
    ]
    path = tmp_path / "a.jsonl"
    summary = write_recognized(path, recordings, max_seconds=4.0, min_confidence=0.8)
    assert summary == f"{path}: 4 utterances, 0.00 hours; left out: 1 without words, 1 below " + (
        "confidence 0.8"
    )
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    here = str(Path().absolute())
    assert [tuple(line.values()) for line in lines] == [
        (f"{here}/0.flac", 0.0, 3.0, "A A", 0.8),
        (f"{here}/3.flac", 0.0, 3.0, "A", 0.8),
        (f"{here}/4.flac", 0.0, 3.0, "A A A", 0.9),
        (f"{here}/4.flac", 3.0, 3.3, "A A A", 0.9),
    ]


def test_transcribe_reads_folders_and_pipes(trained, command, error, tmp_path, monkeypatch):
    flacs = sorted(trained.data.parent.glob("*.flac"))
    for number, flac in enumerate(flacs):
        copy = tmp_path / "calls" / str(number % 2) / flac.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(flac.read_bytes())
    copies = sorted((tmp_path / "calls").rglob("*.flac"))
    expected = command("transcribe", trained.run, *copies).out
    folder = tmp_path / "calls"
    assert command("transcribe", trained.run, folder, copies[0], folder).out == expected
    first, *rest = expected.splitlines()
    assert command("transcribe", trained.run, *copies[:1], folder / "1").out.count("\n") == 4

    contents = copies[0].read_bytes()
    for name in ("-", "/dev/stdin"):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(contents)))
        outcome = command("transcribe", trained.run, name, *copies[1:])
        assert outcome.out.splitlines() == [first.replace(str(copies[0]), name), *rest]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\1\2\3\4" * 99)))
    outcome = command("transcribe", trained.run, "-")
    message = "-: Format not recognised; if another program plays it, convert it to FLAC or WAV"
    assert (outcome.status, outcome.err) == (1, f"asr-jax transcribe: {message}\n")

    (tmp_path / "empty").mkdir()
    message = error("transcribe", trained.run, tmp_path / "empty", copies[0])
    assert message.startswith(f"{tmp_path / 'empty'}: a folder without recordings (")
    doubled = tmp_path / "calls" / "0" / copies[-1].name
    doubled.write_bytes(contents)
    message = error("transcribe", trained.run, folder, "--output", tmp_path / "out")
    assert message == f"--output {tmp_path / 'out'}: 2 recordings are named {doubled.stem}"


def test_silence_and_noise_have_bounded_labels_and_count_as_insertions(trained, command, tmp_path):
    """Recordings without speech have a bounded number of labels a frame; every word is an error."""
    seconds, rate_hz = 0.5, 16_000
    noise = np.random.default_rng(0).normal(size=round(seconds * rate_hz))
    spoken = list(transcripts(trained.data).items())[:4]
    recordings = {str(trained.data.parent / name): text for name, text in spoken}
    for name, samples in (("silence", 0 * noise), ("noise", 0.1 * noise)):
        soundfile.write(tmp_path / f"{name}.wav", samples, rate_hz)
        recordings[str(tmp_path / f"{name}.wav")] = ""
    listing, output = write_manifest(tmp_path / "data.jsonl", recordings), tmp_path / "out"
    outcome = command("evaluate", trained.run, "--data", listing, "--output", output)
    assert outcome.status == 0, outcome.err
    entries, figures = hypotheses(output), json.loads((output / "wer.json").read_text())
    frames = math.ceil(seconds / 0.04)
    for name in ("silence", "noise"):
        entry = entries[str(tmp_path / f"{name}.wav")]
        assert entry["reference"] == ""
        # A label of this model is a character.
        assert len(entry["hypothesis"]) <= 5 * frames
        ends = [word["end_seconds"] for word in entry["words"]]
        assert max(ends, default=0) <= frames * 0.04 + 1e-6
    pairs = [(entry["reference"], entry["hypothesis"]) for entry in entries.values()]
    assert any(hypothesis and not reference for reference, hypothesis in pairs)
    counts = total(count_word_errors(*pair) for pair in pairs)
    assert figures["insertions"] == counts.insertions
    assert (figures["utterances"], figures["reference_words"]) == (6, counts.reference_words)


def test_timestamps_are_equal_in_every_format(trained, command, error, tmp_path):
    (output,) = (trained.run / "evaluation").iterdir()
    path = trained.data.parent / "3.flac"
    expected = hypotheses(output)["3.flac"]
    assert [w["text"] for w in expected["words"]] == expected["hypothesis"].split() != []
    starts = [word["start_seconds"] for word in expected["words"]]
    assert starts == sorted(starts) and starts[-1] < 0.55
    assert all(0 <= word["confidence"] <= 1 for word in expected["words"])

    out = command("transcribe", trained.run, path, "--timestamps", "--json").out
    assert json.loads(out)["words"] == expected["words"]
    words = [Word(**word) for word in expected["words"]]
    vtt = command("transcribe", trained.run, path, "--format=vtt", "--output", tmp_path / "new")
    assert vtt.out == "" and (tmp_path / "new/3.vtt").read_text() == captions.vtt(words)

    other = trained.data.parent / "2.flac"
    assert "one recording" in error("transcribe", trained.run, path, other, "--format=srt")
    assert "needs --format text" in error("transcribe", trained.run, path, "--format=srt", "--json")
    namesake = shutil.copy(path, tmp_path)
    message = error("transcribe", trained.run, path, namesake, "--output", tmp_path)
    assert message == f"--output {tmp_path}: 2 recordings are named 3"
    message = error("transcribe", trained.run, path, "--nbest", 3)
    assert message.startswith("--nbest 3: must not exceed the beam size, 1; pass --decoder beam")
    message = error("transcribe", trained.run, path, "--nbest=3", "--format=srt")
    assert message == "--nbest: needs plain text or --json"


def test_formats_of_transcribe():
    words = (Word("a", 0.08, 0.2, 0.5), Word("b", 1.0, 1.04, 0.25))
    texts = ["a b", "a", "a b", "b", "c"]
    ranked = [Transcript(text, words, float(-n)) for n, text in enumerate(texts)]
    recording = Utterance("0", Path("x/y.wav"), "", 2.0)

    def printed(**options):
        options = transcribe.Options(run=Path("r"), audio=(recording.audio,), **options)
        return transcribe.as_text(recording, ranked, options)

    assert printed() == "x/y.wav\ta b\n"
    assert printed(timestamps=True) == (
        "x/y.wav\t0.080\t0.200\ta\t0.5000\nx/y.wav\t1.000\t1.040\tb\t0.2500\n"
    )
    # The third hypothesis spells the text of the first with other labels.
    assert printed(nbest=3) == "x/y.wav\t0.0000\ta b\nx/y.wav\t-1.0000\ta\nx/y.wav\t-3.0000\tb\n"
    entry = json.loads(printed(nbest=2, json=True))
    assert entry.pop("nbest") == [{"score": 0.0, "text": "a b"}, {"score": -1.0, "text": "a"}]
    assert entry == {"audio_filepath": "x/y.wav", "duration": 2.0, "text": "a b"}
    forms = {
        "ctm": captions.ctm(words, "y"),
        "srt": captions.srt(words),
        "vtt": captions.vtt(words),
    }
    assert {form: printed(format=form) for form in forms} == forms


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tdt", "hat", "ctc", "attention"])
def test_every_objective_works_with_all_commands(trained, command, tmp_path, kind):
    options = [f"--objective.kind={kind}", f"--data.train={trained.data}"]
    options += [f"--data.test={trained.data}", "--decoder.layers=1", "--decoder.width=16"]
    options += ["--optimizer.peak-learning-rate=0.01"]
    if kind == "attention":
        options += ["--decoding.beam=2", "--decoding.ctc-weight=0.3"]
    outcome = command("train", trained.config, "--run", tmp_path / "run", *options)
    assert outcome.status == 0, outcome.err
    (output,) = (tmp_path / "run/evaluation").iterdir()
    expected = {id: entry["hypothesis"] for id, entry in hypotheses(output).items()}
    paths = {id: trained.data.parent / id for id in expected}
    outcome = command("transcribe", tmp_path / "run", *paths.values())
    assert outcome.out.splitlines() == [f"{paths[id]}\t{text}" for id, text in expected.items()]


def test_a_finished_run_stays_unchanged(trained, command, tmp_path):
    run = shutil.copytree(trained.run, tmp_path / "run")
    before = metrics(run)
    outcome = command("train", run / "config.json", "--data.test=")
    assert outcome.status == 0, outcome.err
    assert metrics(run) == before
    assert json.loads((run / "config.json").read_text())["data.test"] == ""


def test_help_names_every_command(command):
    outcome = command("--help")
    assert outcome.status == 0
    assert all(f"asr-jax {verb} " in outcome.out for verb in ("train", "evaluate", "transcribe"))


@pytest.mark.slow
def test_checkpoints_may_be_in_another_folder(trained, command, error, tmp_path):
    elsewhere, run = tmp_path / "shared/folder", tmp_path / "run"
    where = ["--run", run, f"--data.train={trained.data}", "--train.steps", 4]
    directory = f"--checkpoint.directory={elsewhere}"
    assert command("train", trained.config, *where, directory).status == 0
    assert not (run / "checkpoints").exists()
    assert {path.name for path in (elsewhere / "checkpoints").iterdir()} == {"2", "3", "4"}
    scored = command("evaluate", run, "--data", trained.data, "--checkpoint", "last")
    assert scored.status == 0 and scored.out.startswith("WER on ")
    message = error("train", trained.config, *where)
    assert "checkpoint.directory is" in message
    message = error(
        "train",
        trained.config,
        *where[2:],
        "--run",
        tmp_path / "new",
        "--checkpoint.directory=gopher://bucket",
    )
    assert message.startswith("checkpoint.directory = 'gopher://bucket': must be a folder")


def test_figures_go_to_weights_and_biases_if_requested(tmp_path, monkeypatch, error, trained):
    config = (trained.config, f"--data.train={trained.data}", "--train.wandb-project=speech")
    message = error("train", *config, "--run", tmp_path / "run")
    assert message == "train.wandb_project = 'speech': needs the package wandb, pip install wandb"

    logged, started = [], []

    class Run:
        def log(self, figures, *, step):
            logged.append((step, figures))

        def finish(self):
            logged.append("finished")

    wandb = types.ModuleType("wandb")
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setattr(wandb, "init", lambda **kw: started.append(kw) or Run(), raising=False)
    for start in (0, 3):
        with contextlib.closing(MetricsLog(tmp_path, start=start, project="speech")) as log:
            log.write(start + 1, {"loss": 1.5})
    assert logged == [(1, {"loss": 1.5}), "finished", (4, {"loss": 1.5}), "finished"]
    assert started[0] == started[1] and started[0]["project"] == "speech"
