"""Manifests: what is read from folders and JSON lines, and the errors of bad ones."""

import json
import re
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asr_jax.data import manifest
from asr_jax.data.manifest import read_manifest
from asr_jax.data.recording_checks import checked_entry
from asr_jax.data.sources.prepared import write_prepared
from asr_jax.types import Skipped, Utterance

AN4 = Path(__file__).parents[2] / "samples" / "an4"


def write_tone(path: Path, seconds: float, sample_rate_hz: int = 8000) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    n = np.arange(round(seconds * sample_rate_hz))
    opus = {"format": "OGG", "subtype": "OPUS"} if path.suffix in (".ogg", ".opus") else {}
    soundfile.write(path, 0.3 * np.sin(0.1 * n), sample_rate_hz, **opus)


def write_folder(folder: Path, transcripts: dict[str, str], name: str = "7-1") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"{id} {text}\n" for id, text in transcripts.items()]
    (folder / f"{name}.trans.txt").write_text("".join(lines), encoding="utf-8")
    return folder


def write_jsonl(path: Path, *entries: dict) -> Path:
    path.write_text("".join(json.dumps(entry) + "\n\n" for entry in entries), encoding="utf-8")
    return path


def test_folder_in_librispeech_layout(tmp_path):
    chapter = write_folder(
        tmp_path / "train" / "7" / "1", {"7-1-0001": "  TWO\u3000 WORDS ", "7-1-0000": "größer"}
    )
    write_tone(chapter / "7-1-0001.flac", 0.5)
    write_tone(chapter / "7-1-0000.opus", 1.25)
    flat = write_folder(tmp_path / "extra", {"a": "", "b": "HERE"}, name="all")
    write_tone(flat / "a.wav", 2.0)
    write_tone(flat / "b.ogg", 0.25)
    write_folder(flat, {"c": "THERE"}, name="more")
    write_tone(flat / "c.flac", 0.25)
    write_tone(flat / "unlisted.wav", 0.25)
    # Links to a folder that is listed already, to a parent, and to a folder elsewhere.
    (tmp_path / "extra" / "again").symlink_to(tmp_path / "train")
    (tmp_path / "extra" / "round").symlink_to(tmp_path)
    elsewhere = write_folder(tmp_path.with_name(f"{tmp_path.name}-disk"), {"z": "FAR"}, name="all")
    write_tone(elsewhere / "z.wav", 0.25)
    (tmp_path / "link").symlink_to(elsewhere)

    utterances, skipped = read_manifest(str(tmp_path))
    assert skipped == [Skipped("unlisted", f"no line in a *.trans.txt: {flat / 'unlisted.wav'}")]
    assert utterances == [
        Utterance("7-1-0000", chapter / "7-1-0000.opus", "größer", 1.25, "7"),
        Utterance("7-1-0001", chapter / "7-1-0001.flac", "TWO WORDS", 0.5, "7"),
        Utterance("a", flat / "a.wav", "", 2.0, ""),
        Utterance("b", flat / "b.ogg", "HERE", 0.25, ""),
        Utterance("c", flat / "c.flac", "THERE", 0.25, ""),
        Utterance("z", tmp_path / "link" / "z.wav", "FAR", 0.25, ""),
    ]


def test_jsonl_with_offsets(tmp_path):
    write_tone(tmp_path / "audio" / "long.wav", 4.0)
    long = str(tmp_path / "audio" / "long.wav")
    listing = write_jsonl(
        tmp_path / "manifest.jsonl",
        {"audio_filepath": "audio/long.wav", "text": "A  B", "offset": 1.5, "duration": 0.5},
        {"audio_filepath": "audio/long.wav", "text": "REST", "offset": 3, "duration": None},
        {"audio_filepath": long, "text": "ALL", "id": 0, "speaker": 0, "lang": "en"},
    )
    audio = tmp_path / "audio" / "long.wav"
    utterances, skipped = read_manifest(listing)
    assert skipped == []
    assert utterances == [
        Utterance("0", audio, "ALL", 4.0, "0"),
        Utterance("audio/long.wav@1.5+0.5", audio, "A B", 0.5, "", 1.5),
        Utterance("audio/long.wav@3", audio, "REST", 1.0, "", 3.0),
    ]


def test_text_may_be_in_a_file(tmp_path):
    write_tone(tmp_path / "a.wav", 0.5)
    (tmp_path / "a.txt").write_text("ONE\nTWO\n")
    entry = {"audio_filepath": "a.wav", "text_filepath": "a.txt"}
    utterances, _ = read_manifest(write_jsonl(tmp_path / "manifest.jsonl", entry))
    assert utterances[0].text == "ONE TWO"
    (tmp_path / "a.txt").unlink()
    missing = "manifest.jsonl:1: text_filepath = a.txt: No such file or directory"
    with pytest.raises(ValueError, match=f"transcript cannot be read: .*{missing}"):
        read_manifest(tmp_path / "manifest.jsonl")


def test_shards_of_a_manifest(tmp_path):
    with tarfile.open(tmp_path / "audio_0.tar", "w") as tar:
        write_tone(tmp_path / "a.wav", 0.5)
        tar.add(tmp_path / "a.wav", arcname="a.wav")
    entries = [
        {"audio_filepath": name, "text": "A", "duration": 0.5, "shard_id": 0}
        for name in ("a.wav", "gone.wav")
    ]
    utterances, skipped = read_manifest(write_jsonl(tmp_path / "manifest.jsonl", *entries))
    assert [one.id for one in utterances] == ["a.wav"]
    reason = f"no such member of its shard: gone.wav in {tmp_path / 'audio_0.tar'}"
    assert skipped == [Skipped("gone.wav", reason)]
    for number, message in ((1, "shard_id = 1, but audio_1.tar is neither"), ("0", "an integer")):
        write_jsonl(tmp_path / "manifest.jsonl", entries[0], entries[1] | {"shard_id": number})
        with pytest.raises(ValueError, match=f"manifest.jsonl:3: .*{message}"):
            read_manifest(tmp_path / "manifest.jsonl")


def test_with_durations_only_the_first_files_are_checked(tmp_path, monkeypatch):
    monkeypatch.setattr(manifest, "FILES_LOOKED_FOR", 2)

    def read(*found: str) -> tuple[list[str], list[str]]:
        entries = [
            {"audio_filepath": f"{name}.wav", "text": "A", "duration": 0.5} for name in "abcd"
        ]
        for name in "abcd":
            (tmp_path / f"{name}.wav").unlink(missing_ok=True)
        for name in found:
            (tmp_path / f"{name}.wav").touch()
        utterances, skipped = read_manifest(write_jsonl(tmp_path / "manifest.jsonl", *entries))
        return [one.id[0] for one in utterances], [one.id[0] for one in skipped]

    assert read("b") == (["b", "c", "d"], ["a"])
    assert read("c") == (["c"], ["a", "b", "d"]), "if none of the first exist, all are checked"
    with pytest.raises(
        ValueError, match="none of its 4 recordings can be read, the first is a.wav"
    ):
        read()


def test_bad_recordings_are_skipped_with_countable_reasons(tmp_path):
    chapter = write_folder(tmp_path / "7" / "1", {f"7-1-{n}": "A" for n in range(4)})
    write_tone(chapter / "7-1-0.WAV", 0.5)
    (chapter / "7-1-3.flac").write_bytes(b"not a recording")
    utterances, skipped = read_manifest(tmp_path)
    assert [utterance.id for utterance in utterances] == ["7-1-0"]
    assert [one.id for one in skipped] == ["7-1-1", "7-1-2", "7-1-3"]
    reasons = Counter(one.reason.split(": ")[0] for one in skipped)
    assert reasons.pop("no such file") == 2 and len(reasons) == 1

    listing = write_jsonl(
        tmp_path / "manifest.jsonl",
        {"audio_filepath": "7/1/7-1-0.WAV", "text": "A"},
        {"audio_filepath": "7/1/7-1-0.WAV", "text": "A", "offset": 0.5},
        {"audio_filepath": "gone.wav", "text": "A", "duration": 3.0},
    )
    utterances, skipped = read_manifest(listing)
    assert len(utterances) == 1
    assert sorted(one.reason.split(": ")[0] for one in skipped) == [
        "no such file",
        "offset beyond the end",
    ]


def test_errors_of_a_whole_dataset_are_one_line(tmp_path):
    def require(data: Path, message: str) -> None:
        with pytest.raises(ValueError, match=message) as caught:
            read_manifest(data)
        assert str(data) in str(caught.value) and "\n" not in str(caught.value)

    require(tmp_path / "none", "no such folder or manifest")
    (tmp_path / "empty").mkdir()
    require(tmp_path / "empty", "no transcripts in it")
    require(write_jsonl(tmp_path / "empty.jsonl"), "no transcripts in it")
    write_folder(tmp_path / "mute" / "7" / "1", {"7-1-0": "A"})
    require(tmp_path / "mute", "none of its 1 recordings can be read, the first is 7-1-0: no such")
    write_folder(tmp_path / "twice" / "7" / "1", {"7-1-0": "A"})
    write_folder(tmp_path / "twice" / "7" / "2", {"7-1-0": "A"}, name="7-2")
    require(tmp_path / "twice", "the id 7-1-0 occurs 2 times")
    (tmp_path / "latin.jsonl").write_bytes('{"text": "gr\u00f6\u00dfer"}'.encode("latin-1"))
    require(tmp_path / "latin.jsonl", "not UTF-8")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"audio_filepath": "a.wav", "text": "A"', "not JSON, .* column"),
        ('["a.wav", "A"]', "needs a JSON object"),
        ('{"text": "A"}', "needs the field audio_filepath, a string"),
        ('{"audio_filepath": "a.wav", "text": 5}', "needs the field text, a string"),
        ('{"audio_filepath": "a.wav", "text": "A", "duration": "1"}', "duration = '1' must be"),
        ('{"audio_filepath": "a.wav", "text": "A", "duration": NaN}', "duration = nan must be"),
        ('{"audio_filepath": "a.wav", "text": "A", "offset": -1}', "offset = -1 must be"),
        (f'{{"audio_filepath": "a.wav", "text": "A", "duration": 1{"0" * 400}}}', "must be a numb"),
        (f'{{"audio_filepath": "a.wav", "text": "A", "duration": {"1" * 5000}}}', "not JSON that"),
        ("[" * 200_000, "not JSON that can be read"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    listing = tmp_path / "manifest.jsonl"
    listing.write_text('\n{"audio_filepath": "a.wav", "text": "A", "duration": 1}\n' + line)
    with pytest.raises(ValueError, match=message) as caught:
        read_manifest(listing)
    assert str(caught.value).startswith(f"{listing}:3: ") and "\n" not in str(caught.value)


def test_a_line_that_is_wrong_by_itself_is_left_out(tmp_path):
    """Half of a surrogate pair, names that no file can have, and text files that cannot be read."""
    write_tone(tmp_path / "a.wav", 0.5)
    (tmp_path / "latin.txt").write_bytes("gr\u00f6\u00dfer".encode("latin-1"))
    of_file = "transcript cannot be read: {}:{}: text_filepath = {}: "
    wrong = [
        ({"audio_filepath": "a.wav", "text": "A \ud800"}, "transcript is not Unicode: it has"),
        ({"audio_filepath": "n" * 256 + ".wav"}, "File name too long: "),
        ({"audio_filepath": "n/" * 2048 + "a.wav"}, "File name too long: "),
        ({"audio_filepath": "n" * 256 + ".wav", "duration": 1}, "no such file: "),
        ({"audio_filepath": "a.wav\0"}, "no such file: "),
        ({"audio_filepath": "a.wav\0", "duration": 1}, "no such file: "),
        ({"audio_filepath": str(tmp_path)}, "no such file: "),
        ({"audio_filepath": str(tmp_path), "duration": 1}, "no such file: "),
        ({"text": None, "text_filepath": "none.txt"}, of_file + "No such file"),
        ({"text": None, "text_filepath": "n" * 256}, of_file + "File name too long"),
        ({"text": None, "text_filepath": "a\0"}, of_file + "embedded null"),
        ({"text": None, "text_filepath": "."}, of_file + "Is a directory"),
        ({"text": None, "text_filepath": "latin.txt"}, of_file + "latin.txt: not UTF-8 text (byte"),
    ]
    good = {"audio_filepath": "a.wav", "text": "A"}
    entries = [good | fields | {"id": f"{n:02}"} for n, (fields, _) in enumerate(wrong)]
    # The wrong line is first, so that no path of it decides where relative paths start.
    listing = write_jsonl(tmp_path / "m.jsonl", *entries, good | {"id": "good"})
    utterances, skipped = read_manifest(listing)
    assert [one.id for one in utterances] == ["good"]
    reasons = {one.id: one.reason for one in skipped}
    for n, (fields, reason) in enumerate(wrong):
        expected = reason.format(listing, 2 * n + 1, fields.get("text_filepath"))
        assert reasons[f"{n:02}"].startswith(expected), fields
    assert reasons["00"].endswith(f"{listing}:1")


def test_the_first_path_that_exists_decides_where_paths_start(tmp_path, monkeypatch):
    write_tone(tmp_path / "audio/a.wav", 0.5)
    (tmp_path / "lists").mkdir()
    entries = [{"audio_filepath": f"audio/{name}.wav", "text": "A"} for name in ("gone", "a")]
    listing = write_jsonl(tmp_path / "lists/m.jsonl", *entries)
    monkeypatch.chdir(tmp_path)
    utterances, skipped = read_manifest(listing)
    assert [one.audio for one in utterances] == [Path("audio/a.wav")]
    assert [one.id for one in skipped] == ["audio/gone.wav"]


def test_sample_corpus_matches_its_readme():
    utterances, skipped = read_manifest(AN4 / "dev")
    assert (len(utterances), skipped) == (77, [])
    assert len({utterance.speaker for utterance in utterances}) == 6
    assert sum(len(utterance.text.split()) for utterance in utterances) == 449
    minutes = sum(utterance.duration_seconds for utterance in utterances) / 60
    assert minutes == pytest.approx(3.0, abs=0.05)
    assert utterances == sorted(utterances, key=lambda utterance: utterance.id)


def test_a_confidence_is_read_and_kept(tmp_path):
    for n in range(3):
        write_tone(tmp_path / f"{n}.wav", 0.5)
    lines = [{"audio_filepath": f"{n}.wav", "text": "A", "duration": 0.5} for n in range(3)]
    path = write_jsonl(
        tmp_path / "a.jsonl",
        lines[0] | {"confidence": 0.25},
        lines[1] | {"confidence": None},
        lines[2] | {"confidence": 1},
    )
    expected = [0.25, np.nan, 1.0]
    utterances, _ = read_manifest(path)
    np.testing.assert_equal([u.confidence for u in utterances], expected)
    table = tmp_path / "a.csv"
    table.write_text("path,text,Confidence\n0.wav,A,0.25\n1.wav,A,\n2.wav,A,1\n")
    np.testing.assert_equal([u.confidence for u in read_manifest(table)[0]], expected)
    checked = [checked_entry(u, min_seconds=0.0, max_seconds=9.0) for u in utterances]
    entries = [one[0] for one in checked if not isinstance(one, Skipped)]
    write_prepared(tmp_path / "prepared", entries)
    prepared, _ = read_manifest(tmp_path / "prepared")
    np.testing.assert_equal([u.confidence for u in prepared], expected)

    for value in (1.5, -0.1, "high", [0.5]):
        write_jsonl(path, lines[0] | {"confidence": value})
        message = re.escape(f"{path}:1: confidence = {value!r} must be a number from 0 to 1")
        with pytest.raises(ValueError, match=message):
            read_manifest(path)
    for value in ("1.5", "high", "nan"):
        table.write_text(f"path,text,confidence\n0.wav,A,{value}\n")
        message = re.escape(f"{table}:2: confidence = {value!r} must be a number from 0 to 1")
        with pytest.raises(ValueError, match=message):
            read_manifest(table)
