"""Transcripts as people write them: capitals, punctuation and any script, through the commands."""

import json
import re
import subprocess
import sys

import pytest
from tiny import write_manifest, write_tone

from asr_jax.scoring.wer import word_error_rate
from asr_jax.text import Tokenizer


@pytest.mark.slow
def test_a_run_keeps_its_normalization_wherever_its_tokenizer_is_used(trained, command, tmp_path):
    """In lower case the texts have the characters of the shared run, whose step is compiled."""
    lines = map(json.loads, trained.data.read_text().splitlines())
    spoken = {str(trained.data.parent / x["audio_filepath"]): x["text"] for x in lines}
    written = {audio: "".join(map(capital, text)) for audio, text in spoken.items()}
    assert "NAÏVE FIVE" in written.values() and "GRÖßER" in written.values()
    data = write_manifest(tmp_path / "data.jsonl", written)
    where = [f"--data.{part}={data}" for part in ("train", "dev", "test")]
    options = ("--tokenizer.kind", "auto", "--tokenizer.normalization", "lowercase")
    run = tmp_path / "run"
    outcome = command("train", trained.config, "--run", run, *options, *where)
    assert outcome.status == 0, outcome.err
    assert f"{run / 'tokenizer.model'}: folds text (lowercase)" in outcome.err
    kept = json.loads((run / "config.json").read_text())
    assert (kept["tokenizer.kind"], kept["tokenizer.normalization"]) == ("char", "lowercase")
    tokenizer = Tokenizer.load(run / "tokenizer.model")
    assert [*map(tokenizer.normalize, written.values())] == [*spoken.values()]
    # The labels, and so the loss, are those of the transcripts in lower case.
    losses = [
        json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])["loss"]
        for folder in (run, trained.run)
    ]
    assert losses[0] == losses[1]
    (evaluation,) = (run / "evaluation").iterdir()
    facts = json.loads((evaluation / "wer.json").read_text())["facts"]
    assert facts["references folded by the tokenizer"] == "lowercase"
    assert "references with characters that the model cannot write" not in facts

    other = command("train", trained.config, "--run", run, *options[:3], "nfkc", *where)
    assert other.status and "tokenizer.normalization is 'lowercase', not 'nfkc'" in other.err


def capital(character: str) -> str:
    """Return a capital letter if it has the given one as its lower case."""
    upper = character.upper()
    return upper if upper.lower() == character and len(upper) == 1 else character


@pytest.mark.slow
def test_characters_count_first_in_a_script_without_spaces(trained, command, tmp_path):
    """The run has as many characters as the shared one, whose step is compiled."""
    labels = Tokenizer.load(trained.run / "tokenizer.model").vocabulary_size
    text = "".join(chr(0x4E00 + n) for n in range(labels - 4)) + "。"  # and blank, unknown, space
    audio = [trained.data.parent / f"{n}.flac" for n in range(6)]
    step = len(text) // 6 + 1
    written = {str(path): text[n * step :][:step] for n, path in enumerate(audio)}
    data = write_manifest(tmp_path / "data.jsonl", written)
    where = [f"--data.{part}={data}" for part in ("train", "dev", "test")]
    run = tmp_path / "run"
    outcome = command("train", trained.config, "--run", run, *where)
    assert outcome.status == 0, outcome.err
    assert re.search(r"step 4: CER on dev [\d.]+ %, WER on dev [\d.]+ %", outcome.err)
    assert re.search(rf"CER on {data}: [\d.]+ % \(.* of {len(text)} characters in 6 ", outcome.out)
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    measured = {line["step"]: line["dev_cer"] for line in metrics if "dev_cer" in line}
    assert measured.keys() == {2, 4}
    (folder,) = (run / "evaluation").iterdir()
    figures = json.loads((folder / "wer.json").read_text())
    assert figures["metric"] == "cer"
    best = min(measured, key=lambda step: (measured[step], step))
    assert figures["facts"]["checkpoint"] == f"best ({best})"
    assert figures["cer"] == pytest.approx(measured[best])
    card = command("export", run, tmp_path / "out", "--format", "params")
    assert card.status == 0, card.err
    written_card = (tmp_path / "out" / "README.md").read_text()
    assert "(CER)" in written_card and "CER % (export)" in written_card
    rates = re.search(r"transcripts are the run's; CER ([\d.]+) %, the run's ([\d.]+) %", card.out)
    assert rates and float(rates[1]) == float(rates[2]) == pytest.approx(figures["cer"], abs=0.005)


DIGITS = {
    "Latin": ["Zero.", "One, two?", "“Three!”", "Don’t: four"],
    "Devanagari": ["शून्य।", "एक दो", "तीन", "पाँच, छह"],
    "Arabic": ["صِفْر؟", "وَاحِد، اِثْنَان", "ثَلَاثَة", "أَرْبَعَة"],
    "Chinese": ["零。", "一二", "三，", "四五六"],
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "script, normalization", [*((script, "none") for script in DIGITS), ("Latin", "lowercase")]
)
def test_a_corpus_in_any_script_goes_from_training_to_export(
    trained, tmp_path, script, normalization
):
    """Whatever little the model learns, its figures are those of what it writes."""
    texts, data = DIGITS[script], tmp_path / "data.jsonl"
    audio = [write_tone(tmp_path / f"{n}.wav", 0.9, pitch_hz=250 * 2**n) for n in range(4)]
    write_manifest(data, dict(zip(map(str, audio), texts)))
    run, out = tmp_path / "run", tmp_path / "model"
    where = [f"--data.{part}={data}" for part in ("train", "dev", "test")]
    options = [f"--tokenizer.normalization={normalization}"]
    run_command("train", trained.config, "--run", run, *where, *options)
    tokenizer = Tokenizer.load(run / "tokenizer.model")
    references = [tokenizer.normalize(text) for text in texts]
    assert references == [text.lower() if normalization == "lowercase" else text for text in texts]
    assert tokenizer.characters == {*"".join(references), " "}
    assert (run / "skipped.jsonl").read_text() == ""
    (folder,) = (run / "evaluation").iterdir()
    lines = (folder / "hypotheses.jsonl").read_text(encoding="utf-8").splitlines()
    entries = [json.loads(line) for line in lines]
    assert [entry["reference"] for entry in entries] == texts
    written = [entry["hypothesis"] for entry in entries]
    # After a few steps, a model may still write the unknown piece.
    assert set("".join(written)) <= tokenizer.characters | {"\u2047"} and any(written)
    figures = json.loads((folder / "wer.json").read_text())
    assert figures["metric"] == ("cer" if script == "Chinese" else "wer")
    assert figures["wer"] == pytest.approx(100 * word_error_rate(references, written))
    run_command("export", run, out, "--format", "params")
    for model in (run, out):
        printed = run_command("transcribe", model, "--json", *audio)
        assert [json.loads(line)["text"] for line in printed.splitlines()] == written


def run_command(*arguments: object) -> str:
    """Run `asr-jax ARGUMENTS ...` in a process of its own; return what it prints."""
    command = [sys.executable, "-m", "asr_jax", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout
