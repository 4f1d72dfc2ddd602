"""Kaldi data directories: which files are optional, and the errors of bad lines."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from asr_jax.data.manifest import read_manifest

GOOD = {
    "wav.scp": "u1 u1.wav\nu2 u2.wav\n",
    "text": "u1 ONE  TWO\nu2\n",
    "utt2spk": "u1 ann\n",
}


@pytest.fixture
def folder(tmp_path):
    for name, contents in GOOD.items():
        (tmp_path / name).write_text(contents)
    for name in ("u1", "u2"):
        soundfile.write(tmp_path / f"{name}.wav", np.zeros(16_000), 16_000)
    return tmp_path


def refuse(folder: Path, name: str, contents: str, message: str) -> None:
    before = (folder / name).read_text() if (folder / name).is_file() else None
    (folder / name).write_text(contents)
    with pytest.raises(ValueError, match=message) as caught:
        read_manifest(folder)
    assert str(caught.value).startswith(f"{folder / name}:") and "\n" not in str(caught.value)
    (folder / name).unlink() if before is None else (folder / name).write_text(before)


def test_speakers_and_durations_are_optional(folder):
    utterances, skipped = read_manifest(folder)
    assert skipped == []
    assert [(u.id, u.text, u.speaker, u.duration_seconds) for u in utterances] == [
        ("u1", "ONE TWO", "ann", 1.0),
        ("u2", "", "", 1.0),
    ]
    (folder / "utt2dur").write_text("u1 0.5\n")
    assert [u.duration_seconds for u in read_manifest(folder)[0]] == [0.5, 1.0]


def test_recordings_without_text_and_texts_without_recording_are_skipped(folder):
    (folder / "text").write_text("u1 A\nu3 C\n")
    utterances, skipped = read_manifest(folder)
    assert [one.id for one in utterances] == ["u1"]
    assert {one.id: one.reason.split(": ")[0] for one in skipped} == {
        "u2": "no line in text",
        "u3": "no line in wav.scp",
    }
    (folder / "segments").write_text("u1 u1 0.1 0.2 0\nu2 u1 0 1\nu3 u9 0 1\n")
    utterances, skipped = read_manifest(folder)
    assert [(u.id, u.offset_seconds, u.channel) for u in utterances] == [("u1", 0.1, 0)]
    assert utterances[0].duration_seconds == pytest.approx(0.1, abs=1e-9)
    assert {one.id: one.reason for one in skipped} == {
        "u2": f"no line in text: {folder / 'text'}",
        "u3": "its recording has no line in wav.scp: u9",
    }


def test_paths_that_no_file_can_have_leave_out_their_recording(folder, monkeypatch):
    (folder / "data").mkdir()
    for name in ("text", "wav.scp"):
        (folder / name).rename(folder / "data" / name)
    lines = f"u0 {'n' * 300}.wav\nu3 a\0.wav\n" + GOOD["wav.scp"]
    (folder / "data/wav.scp").write_text(lines)
    (folder / "data/text").write_text("u0 A\nu3 B\n" + GOOD["text"])
    monkeypatch.chdir(folder)  # where the paths that exist start
    utterances, skipped = read_manifest(folder / "data")
    assert [one.id for one in utterances] == ["u1", "u2"]
    assert [one.id for one in skipped] == ["u0", "u3"]


def test_no_command_is_run(folder):
    command = f"u1 touch {folder}/ran; cat u1.wav |\n"
    refuse(folder, "wav.scp", command, r":1: u1 is a command .* to a file, and its path here")
    assert not (folder / "ran").exists()


@pytest.mark.parametrize(
    ("name", "contents", "message"),
    [
        ("wav.scp", "u1 u1.wav\nu2 raw.ark:17\n", ":2: u2 needs the path .*, not raw.ark:17"),
        ("wav.scp", "\nu1\n", ":2: u1 needs the path"),
        ("wav.scp", "u1 u1.wav\nu1 u2.wav\n", ":2: u1 occurs a second time"),
        ("text", "u1 A\nu2 B\nu1 C\n", ":3: u1 occurs a second time"),
        ("utt2dur", "u1 soon\n", ":1: 'soon' must be a number of seconds"),
        ("utt2dur", "u1 nan\n", ":1: 'nan' must be a number of seconds"),
        ("segments", "u1 u1 0.5\n", ":1: needs UTTERANCE RECORDING START END"),
        ("segments", "u1 u1 0.5 0.5\n", ":1: u1 ends at 0.5 s, not after its start"),
        ("segments", "u1 u1 -1 0.5\n", ":1: '-1' must be a number of seconds"),
    ],
)
def test_a_bad_line_is_named(folder, name, contents, message):
    refuse(folder, name, contents, message)


def test_a_missing_text_file_is_an_error(folder):
    (folder / "text").unlink()
    with pytest.raises(ValueError, match="text: No such file"):
        read_manifest(folder)
