"""Names with any bytes, and output that cannot be written: no traceback, and no work is lost."""

import io
import json
import os
import re
import shutil
import tarfile
from pathlib import Path

import pytest
from tiny import write_tone

from asr_jax.data.manifest import read_manifest
from asr_jax.inference import recognizer

# Names of files, and the ids that they become.
NAMES = {
    b"plain": "plain",
    b"caf\xe9": r"caf\udce9",
    "größer".encode(): "größer",
    "三\U0001f600".encode(): "三\U0001f600",
    b"a\tb": "a\tb",
    b"a\nb": "a\nb",
    b"a\\b": r"a\b",
    "a\u2028b\u0085c".encode(): "a\u2028b\u0085c",
}


@pytest.fixture(scope="module")
def shard(tmp_path_factory) -> Path:
    """A tar whose members have these names."""
    folder = tmp_path_factory.mktemp("names")
    contents = write_tone(folder / "tone.flac", 0.4).read_bytes()
    with tarfile.open(folder / "odd.tar", "w", encoding="utf-8") as tar:
        for name in NAMES:
            for member, data in ((".flac", contents), (".json", b'{"text": "one", "speaker": 7}')):
                info = tarfile.TarInfo(os.fsdecode(name) + member)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return folder / "odd.tar"


def test_datasets_keep_recordings_of_any_name(command, trained, shard, tmp_path):
    utterances, skipped = read_manifest(shard)
    assert sorted(one.id for one in utterances) == sorted(NAMES.values()) and skipped == []

    evaluated = command("evaluate", trained.run, "--data", shard, "--output", tmp_path / "tar")
    assert evaluated.status == 0, evaluated.err
    # Programs that split lines at any separator read the file too.
    lines = (tmp_path / "tar/hypotheses.jsonl").read_text(encoding="utf-8").splitlines()
    assert sorted(json.loads(line)["id"] for line in lines) == sorted(NAMES.values())
    page = (tmp_path / "tar/report.html").read_text(encoding="utf-8")
    rows = json.loads(re.search(r'id="rows">(.*?)</script>', page, re.DOTALL)[1])
    assert sorted(row["id"] for row in rows) == sorted(NAMES.values())

    prepared = command("prepare", shard, tmp_path / "prepared")
    assert prepared.status == 0, prepared.err
    stored, _ = read_manifest(tmp_path / "prepared")
    assert [one.id for one in stored] == [one.id for one in utterances]
    again = ("evaluate", trained.run, "--data", tmp_path / "prepared", "--output", tmp_path / "b")
    compared = command(*again, "--compare", tmp_path / "tar", encoding="ascii")
    assert compared.status == 0, compared.err
    figures = json.loads((tmp_path / "b/wer.json").read_text())["comparison"]
    assert (figures["utterances"], figures["only_here"]) == (len(NAMES), [])
    assert figures["difference"] == 0


def test_surrogates_in_a_manifest_name_files_and_speakers(command, trained, tmp_path):
    """Python writes a name that is not UTF-8 into JSON as halves of surrogate pairs."""
    write_tone(tmp_path / "a.flac", 0.4)
    entry = {"audio_filepath": "a.flac", "text": "one", "speaker": "\ud800", "id": "caf\udce9"}
    gone = {"audio_filepath": "none\udce9.flac", "text": "one"}
    lines = [json.dumps(entry), json.dumps(gone), json.dumps(gone | {"text": "\ud800", "id": 3})]
    (tmp_path / "m.jsonl").write_text("\n".join(lines))
    outcome = command(
        "evaluate", trained.run, "--data", tmp_path / "m.jsonl", "--output", tmp_path / "out"
    )
    assert outcome.status == 0, outcome.err
    (line,) = (tmp_path / "out/hypotheses.jsonl").read_text().splitlines()
    assert json.loads(line)["id"] == r"caf\udce9"
    problems = outcome.err.encode(errors="backslashreplace").decode().splitlines()
    assert problems == [
        rf"3: not recognized: transcript is not Unicode: it has '\ud800', {tmp_path}/m.jsonl:3",
        rf"none\udce9.flac: not recognized: no such file: {tmp_path}/none\udce9.flac",
    ]
    prepared = command("prepare", tmp_path / "m.jsonl", tmp_path / "prepared")
    assert prepared.status == 0, prepared.err
    assert len((tmp_path / "prepared/dropped.jsonl").read_text().splitlines()) == 2


@pytest.fixture
def recordings(trained, tmp_path) -> list[Path]:
    names = ["größer", "三", "a\tb", "a\nb", "a\\b", "a\u2028b", "caf\udce9"]
    return [shutil.copy(trained.data.parent / "0.flac", tmp_path / f"{n}.flac") for n in names]


FIELDS = ["größer", "三", r"a\tb", r"a\nb", r"a\\b", r"a\u2028b", r"caf\udce9"]


def test_transcribe_prints_a_line_for_every_name(command, trained, recordings, tmp_path):
    texts = ("transcribe", trained.run, *recordings)
    outcome = command(*texts)
    assert outcome.status == 0, outcome.err
    lines = [line.split("\t") for line in outcome.out.splitlines()]
    assert [name for name, _ in lines] == [f"{tmp_path}/{field}.flac" for field in FIELDS]
    timed = command(*texts, "--timestamps")
    assert {line.count("\t") for line in timed.out.splitlines()} == {4}


def test_transcribe_prints_names_and_words_that_its_output_cannot_encode(
    command, trained, recordings, tmp_path
):
    outcome = command("transcribe", trained.run, *recordings, "--json", encoding="ascii")
    assert outcome.status == 0, outcome.err
    written = [json.loads(line)["audio_filepath"] for line in outcome.out.splitlines()]
    assert written == list(map(str, recordings))
    plain = command("transcribe", trained.run, *recordings, encoding="latin-1")
    assert plain.status == 0, plain.err
    assert [line.split("\t")[0] for line in plain.out.splitlines()] == [
        f"{tmp_path}/{field}.flac" for field in ["größer", r"\u4e09", *FIELDS[2:]]
    ]


def test_messages_are_one_line_whatever_the_name(command, error, trained, tmp_path):
    outcome = command("transcribe", trained.run, tmp_path / "a\nb.flac")
    assert outcome.err == rf"asr-jax transcribe: {tmp_path}/a\nb.flac: no such file" + "\n"
    assert error("transcribe", trained.run, "a/x_y", "b/x y", "--format=ctm") == (
        "--format ctm: 2 recordings are named x_y"
    )
    assert error("evaluate", trained.run, "--data", tmp_path / "a\nb") == (
        rf"{tmp_path}/a\nb: no such folder or manifest"
    )


def test_output_that_cannot_be_written_is_reported_before_any_work(
    error, trained, tmp_path, monkeypatch
):
    def used(*arguments, **options):
        raise AssertionError("a recording was recognized")

    monkeypatch.setattr(recognizer, "evaluation_batches", used)
    (tmp_path / "file").write_text("")
    (tmp_path / "there/wer.json").mkdir(parents=True)
    for output, message in (
        (tmp_path / "file/out", f"{tmp_path}/file/out: Not a directory"),
        (tmp_path / ("n" * 256), f"{tmp_path / ('n' * 256)}: File name too long"),
        (tmp_path / "there", f"{tmp_path}/there/wer.json: Is a directory"),
    ):
        assert error("evaluate", trained.run, "--output", output) == message
        if output.name != "there":
            recording = trained.data.parent / "0.flac"
            assert error("transcribe", trained.run, recording, "--output", output) == message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "there"]


@pytest.mark.parametrize(
    "start",
    ["train {config} --run {out}", "prepare {data} {out}", "export {run} {out} --format params"],
)
def test_folders_that_libraries_cannot_name_are_refused(error, trained, tmp_path, start):
    out = tmp_path / "caf\udce9"
    words = {"config": trained.config, "data": trained.data, "run": trained.run, "out": out}
    message = error(*(word.format(**words) for word in start.split()))
    assert message.endswith(r"/caf\udce9: its path is not UTF-8; choose another folder")
