"""`asr-jax segment` writes a manifest that training reads, and rejects what it cannot cut."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from tiny import TINY

from asr_jax.audio.samples import Unread
from asr_jax.commands import segment
from asr_jax.data.manifest import read_transcribed
from asr_jax.data.recordings import read_recording
from asr_jax.inference.segmentation import Segmentation, SegmentedUtterance

RATE_HZ = 16_000


class Opened:
    """A recognizer of which only these are read."""

    tokenizer = None
    config = TINY


@pytest.fixture(scope="module")
def long_recording(tmp_path_factory) -> Path:
    """Tones with pauses between."""
    path = tmp_path_factory.mktemp("long") / "tones.wav"
    n = np.arange(RATE_HZ)
    parts = [np.zeros(RATE_HZ)]
    for k in range(4):
        parts += [0.3 * np.sin(2 * np.pi * (200 + 150 * k) / RATE_HZ * n), np.zeros(RATE_HZ)]
    soundfile.write(path, np.concatenate(parts), RATE_HZ)
    return path


@pytest.fixture(scope="module")
def text(trained, command, long_recording) -> Path:
    """The text that the model, which says random things, recognizes, over several lines."""
    spoken = command("transcribe", trained.run, long_recording).out.split("\t")[1]
    path = long_recording.with_name("rough.txt")
    path.write_text("\n\n".join(spoken.split()) + "\n", encoding="utf-8")
    return path


@pytest.mark.slow
def test_manifest_is_read_by_training(trained, command, long_recording, text, tmp_path):
    out = tmp_path / "cut" / "long.jsonl"
    outcome = command("segment", trained.run, long_recording, "--text", text, "--output", out)
    assert outcome.status == 0, outcome.err
    lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    written = text.read_text(encoding="utf-8").split()
    assert lines and set(" ".join(line["text"] for line in lines).split()) <= set(written)
    end = 0.0
    for line in lines:
        assert list(line) == ["audio_filepath", "offset", "duration", "text", "confidence"]
        assert end <= line["offset"] + 1e-6 and 0 <= line["confidence"] <= 1
        end = line["offset"] + line["duration"]
    assert end <= 9.0
    utterances, skipped = read_transcribed(str(out), "--data")
    assert len(utterances) == len(lines) and not skipped
    source, _ = soundfile.read(long_recording, dtype="float32")
    for utterance in utterances:
        first = round(utterance.offset_seconds * RATE_HZ)
        samples = read_recording(utterance, sample_rate_hz=RATE_HZ)
        np.testing.assert_array_equal(samples, source[first : first + len(samples)])
        assert abs(len(samples) - utterance.duration_seconds * RATE_HZ) <= 1
    assert [path.name for path in out.parent.iterdir()] == ["long.jsonl"]
    assert f"{len(lines)} utterances" in outcome.out


NO_WORDS = "the model recognizes no words in it"
ANOTHER = "the text is not of this recording"


@pytest.mark.slow
@pytest.mark.parametrize(
    "options, refusal",
    [
        (("--objective.kind=tdt",), ""),
        (("--objective.kind=ctc", "--objective.ctc-weight=1"), ""),
        (("--features.normalization=none", "--encoder.chunk-ms", "0", "160"), ""),
        (("--features.sample-rate-hz=8000",), ""),
        # Untrained, half of its probability is that of the blank.
        (("--objective.kind=hat",), NO_WORDS),
        # transcribe prints what the decoder says, and segment compares what the CTC head does.
        (("--objective.kind=attention",), ANOTHER),
    ],
)
def test_models_of_every_kind_cut_recordings(
    trained, command, long_recording, tmp_path, options, refusal
):
    run, text, out = tmp_path / "run", tmp_path / "text.txt", tmp_path / "out.jsonl"
    data = [f"--data.{part}={trained.data}" for part in ("train", "dev", "test")]
    outcome = command("train", trained.config, "--run", run, *data, *options)
    assert outcome.status == 0, outcome.err
    spoken = command("transcribe", run, long_recording).out.split("\t")[1]
    text.write_text("one two three" if refusal else spoken, encoding="utf-8")
    outcome = command("segment", run, long_recording, "--text", text, "--output", out)
    assert outcome.status == (2 if refusal else 0) and refusal in outcome.err, outcome.err
    assert out.exists() == (not refusal)


@pytest.mark.parametrize(
    "unread, status, message",
    [
        ([], 0, ""),
        ([(2, 3)], 0, "1 s not read, 0:00:02 to 0:00:03: damaged"),
        ([(2, 3), (5, 7)], 0, "3 s not read, 0:00:02 to 0:00:03, and 1 other parts: damaged"),
        ([(8, 9)], 1, "read up to 0:00:08: damaged"),
        ([(9, 9)], 1, "read up to 0:00:09: damaged"),
        ([(2, 3), (5, 9)], 1, "5 s not read, 0:00:02 to 0:00:03, and 1 other parts: damaged; read"),
    ],
)
def test_what_cannot_be_read_is_said_in_one_line(
    trained, command, long_recording, tmp_path, monkeypatch, unread, status, message
):
    parts = [Unread(float(start), float(end), "damaged") for start, end in unread]
    found = Segmentation([SegmentedUtterance(0.5, 1.0, "one", 1.0)], 1, 1, 9.0, parts)
    monkeypatch.setattr(segment, "segment_recording", lambda *_, **__: found)
    monkeypatch.setattr(segment, "open_run", lambda *_: None)
    monkeypatch.setattr(segment, "with_alignable_search", lambda _: Opened())
    monkeypatch.setattr(segment, "read_words", lambda *_: [])
    text, out = tmp_path / "text.txt", tmp_path / "out.jsonl"
    text.write_text("one", encoding="utf-8")
    outcome = command("segment", trained.run, long_recording, "--text", text, "--output", out)
    assert outcome.status == status and "1 utterances" in outcome.out
    assert outcome.err.startswith(f"asr-jax segment: {long_recording}: {message}" * bool(message))
    assert outcome.err.count("\n") == bool(message)
    assert len(out.read_text(encoding="utf-8").splitlines()) == 1


BAD_TEXTS = {
    "": "has no words",
    " \n--- ...\n": "has no words",
    "привет мир": "of its 9 letters and digits the model spells only 0",
}


@pytest.mark.parametrize("contents, reason", BAD_TEXTS.items())
def test_text_that_the_model_cannot_spell_is_rejected(
    trained, error, long_recording, tmp_path, contents, reason
):
    text = tmp_path / "text.txt"
    text.write_text(contents, encoding="utf-8")
    out = tmp_path / "out.jsonl"
    message = error("segment", trained.run, long_recording, "--text", text, "--output", out)
    assert message.startswith(f"--text {text}: ") and reason in message
    assert not out.exists()


@pytest.mark.parametrize(
    "options, reason",
    [
        (("--min-confidence", "1.5"), "--min-confidence 1.5: must lie in 0..1"),
        (("--max-seconds", "0"), "--max-seconds 0: must be at least 1"),
        (("--pause-seconds", "0"), "--pause-seconds 0: must lie in 0.1..60"),
    ],
)
def test_bad_options_are_rejected(trained, error, long_recording, tmp_path, options, reason):
    given = ("--text", tmp_path / "none.txt", "--output", tmp_path / "out.jsonl")
    assert error("segment", trained.run, long_recording, *given, *options) == reason


def test_inputs_are_not_overwritten(trained, error, long_recording, text):
    message = error("segment", trained.run, long_recording, "--text", text, "--output", text)
    assert message == f"--output {text}: is --text; choose another name"


def test_missing_files_are_named(trained, error, long_recording, text, tmp_path):
    out = ("--output", tmp_path / "out.jsonl")
    missing = tmp_path / "none"
    assert str(missing) in error("segment", trained.run, missing, "--text", text, *out)
    assert str(missing) in error("segment", trained.run, long_recording, "--text", missing, *out)
