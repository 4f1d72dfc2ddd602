"""Lhotse Shar: what Lhotse wrote, what is left out, and the errors of damaged shards."""

import gzip
import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

from asr_jax.data.manifest import read_manifest
from asr_jax.data.recordings import read_recording
from asr_jax.data.sources import shar
from asr_jax.types import Skipped, Utterance

SHAR = Path(__file__).parents[1] / "lhotse_shar"
DEV = Path(__file__).parents[3] / "samples/an4/dev"
STEP_16_BITS = 2**-15


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(SHAR, tmp_path / "shar", ignore=shutil.ignore_patterns("*.py"))
    return tmp_path / "shar"


def cuts_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]


def write_cuts(path: Path, cuts: list[dict]) -> None:
    path.write_bytes(gzip.compress("".join(json.dumps(cut) + "\n" for cut in cuts).encode()))


def write_tar(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, contents in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(contents)
            tar.addfile(info, io.BytesIO(contents))


def files_of(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {info.name: tar.extractfile(info).read() for info in tar}


def refuse(folder: Path, named: Path, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        read_manifest(folder)
    assert str(caught.value).startswith(str(named)) and "\n" not in str(caught.value)


def test_what_lhotse_wrote():
    """The utterances are those of the folder that the Shar was made of, up to 16 bits."""
    of_folder = {one.id: one for one in read_manifest(DEV)[0]}
    utterances, skipped = read_manifest(SHAR)
    silent = SHAR / "recording.000001.tar"
    assert skipped == [Skipped("cut-silent", f"a cut without a recording: in {silent}")]
    assert len(utterances) == 4
    for one in utterances:
        expected = of_folder[one.id]
        assert (one.text, one.speaker) == (expected.text, expected.speaker)
        assert one.duration_seconds == pytest.approx(expected.duration_seconds, abs=1e-9)
        assert one.audio.suffix == ".tar" and one.within is not None
        samples, original = (read_recording(u, sample_rate_hz=16_000) for u in (one, expected))
        np.testing.assert_allclose(samples, original, rtol=0, atol=STEP_16_BITS)


def test_recordings_are_read_in_place(folder, monkeypatch):
    """Nothing but the cuts and the manifests of recordings is read to list a Shar."""
    read = []

    def fields(member, file, location):
        read.append(member.size_bytes)
        return original(member, file, location)

    original = shar.member_fields
    monkeypatch.setattr(shar, "member_fields", fields)
    read_manifest(folder)
    assert len(read) == 3 and max(read) < 200


def test_fields_of_different_lengths(folder):
    """A cut whose recording is absent is left out, and so is a recording without a cut."""
    cuts, tar = folder / "cuts.000000.jsonl.gz", folder / "recording.000000.tar"
    whole, files = cuts_of(cuts), files_of(tar)
    first = [whole[0]["id"], whole[0]["supervisions"][0]["id"]]
    write_tar(tar, {name: files[name] for name in files if not name.startswith(first[0])})
    utterances, skipped = read_manifest(folder)
    assert len(utterances) == 3 and first[1] not in {one.id for one in utterances}
    assert skipped[0] == Skipped(first[0], f"a cut without a recording: in {tar}")
    write_tar(tar, files)
    write_cuts(cuts, whole[1:])
    utterances, skipped = read_manifest(folder)
    assert len(utterances) == 3 and first[1] not in {one.id for one in utterances}
    assert skipped[0] == Skipped(first[0], f"a recording without a cut: in {tar}")
    write_cuts(cuts, whole)
    for field in ("target_audio", "note"):
        for path in folder.glob(f"{field}.*"):
            path.unlink()
    assert len(read_manifest(folder)[0]) == 4


def test_one_shard_without_a_number_and_plain_cuts(folder):
    for path in folder.iterdir():
        if ".000000." in path.name:
            path.rename(folder / path.name.replace(".000000", ""))
        else:
            path.unlink()
    (folder / "cuts.jsonl").write_bytes(gzip.decompress((folder / "cuts.jsonl.gz").read_bytes()))
    (folder / "cuts.jsonl.gz").unlink()
    assert len(read_manifest(folder)[0]) == 2


def test_recordings_that_were_added_to_cuts_later(folder):
    """Lhotse takes the manifest in the tar, whatever the cut says."""
    cuts = folder / "cuts.000000.jsonl.gz"
    first, second = cuts_of(cuts)
    del first["recording"]
    second["recording"]["sources"] = [{"type": "file", "channels": [0], "source": "gone.wav"}]
    write_cuts(cuts, [first, second])
    assert read_manifest(folder) == read_manifest_of(SHAR, folder)


def read_manifest_of(folder: Path, elsewhere: Path) -> tuple[list[Utterance], list[Skipped]]:
    """Return what a folder holds as if it were elsewhere."""
    utterances, skipped = read_manifest(folder)
    return (
        [one._replace(audio=elsewhere / one.audio.name) for one in utterances],
        [Skipped(one.id, one.reason.replace(str(folder), str(elsewhere))) for one in skipped],
    )


@pytest.mark.parametrize("id", ["/data/a.wav", "/home/.cache/a", "../a", "./a//b.c", "ä"])
def test_ids_of_cuts_are_any_strings(folder, id):
    """Some are paths, and name the members of the tar."""
    cuts, tar = folder / "cuts.000000.jsonl.gz", folder / "recording.000000.tar"
    first, second = cuts_of(cuts)
    write_cuts(cuts, [first | {"id": id}, second])
    write_tar(tar, {name.replace(first["id"], id): data for name, data in files_of(tar).items()})
    utterances, skipped = read_manifest(folder)
    assert len(utterances) == 4 and len(skipped) == 1


def test_a_recording_that_is_wrong_by_itself_is_left_out(folder):
    tar = folder / "recording.000000.tar"
    files = files_of(tar)
    (name,) = (name for name in files if name.endswith("20008-2-0000.json"))
    for contents, message in ((b"{", "not JSON"), (b"[]", "needs a JSON object")):
        write_tar(tar, files | {name: contents})
        utterances, skipped = read_manifest(folder)
        assert len(utterances) == 3
        assert skipped[0].id == "cut-20008-2-0000"
        assert skipped[0].reason.startswith("recording cannot be read: ")
        assert message in skipped[0].reason


def test_damaged_shards_are_named(folder):
    cuts, tar = folder / "cuts.000001.jsonl.gz", folder / "recording.000001.tar"
    compressed, whole = cuts.read_bytes(), tar.read_bytes()
    cuts.write_bytes(compressed[:-9])
    refuse(folder, cuts, "truncated, the gzip stream")
    cuts.write_bytes(gzip.compress(gzip.decompress(compressed).replace(b"GO", b"\xe9")))
    refuse(folder, cuts, ":2: not UTF-8")
    cuts.write_bytes(compressed)
    for length in (0, 700, 9_000):
        tar.write_bytes(whole[:length])
        refuse(folder, tar, "truncated")
    tar.write_bytes(gzip.compress(whole))
    refuse(folder, tar, "compressed with gzip")
    tar.unlink()
    refuse(folder, cuts, "no recording.000001.tar beside it")
    tar.write_bytes(whole)
    cuts.unlink()
    refuse(folder, tar, "no cuts.000001.jsonl.gz beside it")
    write_cuts(cuts, [])
    assert len(read_manifest(folder)[0]) == 2
    first, second = cuts_of(folder / "cuts.000000.jsonl.gz")
    write_cuts(folder / "cuts.000000.jsonl.gz", [first, second | {"id": first["id"]}])
    refuse(folder, folder / "cuts.000000.jsonl.gz", ":2: a second cut cut-20008-2-0000; ids must")
    write_cuts(folder / "cuts.000000.jsonl.gz", [first, second | {"type": "MultiCut"}])
    refuse(folder, folder / "cuts.000000.jsonl.gz", ":2: a MultiCut, but only MonoCuts")


def test_the_cuts_alone_are_not_enough(folder):
    cuts = folder / "cuts.000000.jsonl.gz"
    with pytest.raises(ValueError, match=f"^{cuts}:1: a source of type shar; pass the folder"):
        read_manifest(cuts)
    for path in folder.glob("recording.*"):
        path.unlink()
    refuse(folder, cuts, "no recording.000000.tar beside it")


def test_other_folders_with_cuts_are_what_they_were(folder):
    """Tar shards and LibriSpeech's layout may have a manifest of cuts beside them."""
    ogg = next(DEV.rglob("*.ogg")).read_bytes()
    for path in folder.iterdir():
        path.unlink()
    write_tar(folder / "x.tar", {"a.ogg": ogg, "a.txt": b"A"})
    write_cuts(folder / "cuts.jsonl.gz", [])
    assert [one.id for one in read_manifest(folder)[0]] == ["a"]
