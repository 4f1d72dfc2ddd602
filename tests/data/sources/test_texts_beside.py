"""Folders of recordings, each with a text file of the same name beside it."""

from pathlib import Path

import pytest
from tiny import write_tone

from asr_jax.data.manifest import read_manifest


def write(folder: Path, texts: dict[str, bytes]) -> Path:
    for name, contents in texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(contents)
    return folder


def test_each_recording_has_the_text_beside_it(tmp_path):
    for name in ("b.wav", "ann/1/a.WAV", "ann/1/cafe\u0301.flac", ".hidden.wav"):
        write_tone(tmp_path / name, 0.5)
    texts = {
        "ann/1/a.TXT": b"\xef\xbb\xbf one\r\n two \n",
        "ann/1/caf\u00e9.txt": b"",
        "b.txt": b"B",
    }
    utterances, skipped = read_manifest(write(tmp_path, texts))
    assert skipped == []
    assert [(one.id, one.text, one.duration_seconds) for one in utterances] == [
        ("ann/1/a", "one two", 0.5),
        ("ann/1/caf\u00e9", "", 0.5),
        ("b", "B", 0.5),
    ]


def test_what_lacks_its_pair_is_listed(tmp_path):
    for name in ("a.wav", "b.wav", "c/a.wav", "d.wav"):
        write_tone(tmp_path / name, 0.5)
    write(tmp_path, {"a.txt": b"A", "b.txt": b"\xff\xfe", "notes.txt": b"N", "broken.txt": b"C"})
    write(tmp_path, {"broken.wav": b"not a recording"})
    utterances, skipped = read_manifest(tmp_path)
    assert [one.id for one in utterances] == ["a"]
    reasons = {one.id: one.reason.partition(": ")[0] for one in skipped}
    assert "cannot be read" in reasons.pop("b") and reasons.pop("broken")
    assert reasons == {
        "c/a": "no text file beside it",
        "d": "no text file beside it",
        "notes": "no recording beside it",
    }


def test_a_folder_without_pairs_names_its_manifests(tmp_path):
    write_tone(tmp_path / "a.wav", 0.5)
    write(tmp_path, {"README.txt": b"x", "train.jsonl": b"", "dev.json.gz": b""})
    with pytest.raises(ValueError, match=r"pass one of them: dev.json.gz, train.jsonl$"):
        read_manifest(tmp_path)
