"""Tar shards: what is read from their members, and the errors of bad shards."""

import io
import os
import tarfile
from pathlib import Path

import pytest

from asr_jax.data.manifest import read_manifest

DEV = Path(__file__).parents[3] / "samples/an4/dev"
OGG = next(DEV.rglob("*.ogg")).read_bytes()
WHOLE = {"a.ogg": OGG, "a.txt": b" ONE  TWO\n", "d/b.OGG": OGG, "d/b.json": b'{"text": "B"}'}


def write(path: Path, files: dict[str, bytes], **odd: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, contents in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(contents)
            tar.addfile(info, io.BytesIO(contents))
        for info in odd.values():
            tar.addfile(info)
    return path


def refuse(data: Path | str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        read_manifest(data)
    assert "\n" not in str(caught.value)


def test_names_texts_and_durations(tmp_path):
    shard = write(tmp_path / "x.tar", WHOLE)
    utterances, skipped = read_manifest(shard)
    assert [(one.id, one.text, one.speaker) for one in utterances] == [
        ("a", "ONE TWO", ""),
        ("d/b", "B", ""),
    ]
    assert skipped == [] and utterances[0].duration_seconds > 0.1
    assert utterances[0].place.startswith(f"{shard} from byte ")


def test_recordings_without_text_and_texts_without_recording_are_skipped(tmp_path):
    files = {"c.ogg": OGG, "e.txt": b"E", "noise.ogg": b"not a recording", "noise.txt": b"N"}
    utterances, skipped = read_manifest(write(tmp_path / "x.tar", WHOLE | files))
    assert len(utterances) == 2
    reasons = {one.id: one.reason.split(": ")[0] for one in skipped}
    assert reasons.pop("noise") and reasons == {
        "c": "no transcript next to it",
        "e": "no recording next to it",
    }


@pytest.mark.parametrize("name", ["../out.ogg", "/etc/out.ogg", "d/../../out.ogg"])
def test_a_member_that_leaves_the_folder_is_named(tmp_path, name):
    refuse(write(tmp_path / "x.tar", WHOLE | {name: OGG}), f"x.tar: its member {name} leaves")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_a_member_that_is_not_a_file_is_named(tmp_path, kind):
    link = tarfile.TarInfo("link.ogg")
    link.type, link.linkname = kind, "a.ogg"
    shard = write(tmp_path / "x.tar", WHOLE, link=link)
    refuse(shard, "x.tar: its member link.ogg is not a plain file")


@pytest.mark.parametrize("compression", ["gz", "bz2", "xz"])
def test_a_compressed_shard_is_named(tmp_path, compression):
    for name in (f"x.tar.{compression}", "y.tar"):
        with tarfile.open(tmp_path / name, f"w:{compression}") as tar:
            tar.addfile(tarfile.TarInfo("a.txt"))
        refuse(tmp_path / name, f"{name}: compressed with .*decompress it")
    write(tmp_path / "y.tar", WHOLE)
    refuse(tmp_path, f"x.tar.{compression}: compressed")


def test_a_truncated_shard_is_named(tmp_path):
    shard = write(tmp_path / "x.tar", WHOLE)
    with tarfile.open(shard) as tar:
        members = tar.getmembers()
    whole = shard.read_bytes()
    within_header = members[2].offset + 100
    within_contents = members[2].offset_data + 1000
    between = members[2].offset
    for length in (within_header, within_contents, between, 100, 0):
        shard.write_bytes(whole[:length])
        refuse(shard, "x.tar: truncated")
    shard.write_bytes(whole[:between] + os.urandom(512) + whole[between + 512 :])
    refuse(shard, f"x.tar: truncated or damaged after byte {between}")


def test_damaged_shards_wrong_ranges_and_wrong_transcripts_are_named(tmp_path):
    (tmp_path / "text.tar").write_text("no tar " * 200)
    refuse(tmp_path / "text.tar", "text.tar: truncated, or not a tar")
    refuse(tmp_path / "none.tar", "none.tar: No such file")
    write(tmp_path / "s_0.tar", WHOLE)
    refuse(f"{tmp_path}/s_{{0..1}}.tar", r"\{0..1\}.tar: no such shard: .*s_1.tar")
    refuse(f"{tmp_path}/s_{{1..0}}.tar", "must increase")
    write(tmp_path / "s_1.tar", WHOLE)
    refuse(f"{tmp_path}/s_{{0..1}}.tar", "the id a occurs 2 times")
    for contents, message in [
        (b'{"text": 1}', "a.json: needs the field text, a string"),
        (b"{", "a.json: not JSON"),
        (b"[]", "a.json: needs a JSON object"),
        (b'{"text": "A", "duration": "1"}', "a.json: duration = '1' must be a number"),
    ]:
        refuse(write(tmp_path / "j.tar", {"a.ogg": OGG, "a.json": contents}), message)
    refuse(write(tmp_path / "l.tar", {"a.ogg": OGG, "a.txt": b"\xe9"}), "a.txt: not UTF-8")
