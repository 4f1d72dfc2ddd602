"""Names of recordings in folders and archives, and files there that belong to no dataset."""

import io
import tarfile
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asr_jax.data.augment import read_untranscribed
from asr_jax.data.manifest import read_manifest
from asr_jax.data.sources.file_names import AUDIO_SUFFIXES
from asr_jax.data.sources.librispeech_archives import read_archive
from asr_jax.types import Skipped, Utterance

NOISE = np.random.default_rng(0).uniform(-0.1, 0.1, 8000)
# AppleDouble and other files that macOS and Windows leave; none is text or audio.
LEFTOVER = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X\xff\xfe"
LEFTOVERS = [
    "._{}",
    ".{}",
    "__MACOSX/._{}",
    "__MACOSX/d/{}",
    "d/.hidden/{}",
    "d/._{}",
    ".DS_Store",
    "Thumbs.db",
    "desktop.ini",
]


def encoded(suffix: str) -> bytes:
    file = io.BytesIO()
    names = {".oga": "OGG", ".opus": "OGG", ".aif": "AIFF", ".sph": "NIST"}
    form = names.get(suffix.lower(), suffix[1:].upper())
    subtype = "OPUS" if suffix.lower() == ".opus" else None
    soundfile.write(file, NOISE, 16_000, format=form, subtype=subtype)
    return file.getvalue()


def write_folder(folder: Path, files: dict[str, bytes]) -> Path:
    for name, contents in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(contents)
    return folder


def write_tar(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, contents in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(contents)
            tar.addfile(info, io.BytesIO(contents))
    return path


def leftovers(*names: str) -> dict[str, bytes]:
    return {where.format(name): LEFTOVER for where in LEFTOVERS for name in names}


def listed(data: Path) -> tuple[list[Utterance], list[Skipped]]:
    if data.suffix == ".gz":
        items = list(read_archive(data))
        found = [item for item in items if isinstance(item, Utterance)]
        return found, [item for item in items if isinstance(item, Skipped)]
    return read_manifest(data)


def folder(path: Path, texts: dict[str, str], more: dict[str, bytes]) -> Path:
    lines = "".join(f"{Path(name).stem} {text}\n" for name, text in texts.items())
    files = {name: encoded(Path(name).suffix) for name in texts}
    return write_folder(
        path / "data", {**more, **files, "d/d.trans.TXT": b"", "a.trans.txt": lines.encode()}
    )


def tar(path: Path, texts: dict[str, str], more: dict[str, bytes]) -> Path:
    files = dict(more)
    for name, text in texts.items():
        files |= {name: encoded(Path(name).suffix), f"{Path(name).stem}.Txt": text.encode()}
    return write_tar(path / "x.tar", files)


def archive(path: Path, texts: dict[str, str], more: dict[str, bytes]) -> Path:
    lines = "".join(f"{Path(name).stem} {text}\n" for name, text in texts.items())
    files = {name: encoded(Path(name).suffix) for name in texts}
    return write_tar(path / "x.tar.gz", {**more, **files, "a.trans.txt": lines.encode()}, "w:gz")


@pytest.mark.parametrize("write", [folder, tar, archive])
def test_leftovers_are_no_recordings_and_no_transcripts(write, tmp_path):
    more = leftovers("a.flac", "a.trans.txt", "a.txt", "a.json", "b.wav")
    utterances, skipped = listed(write(tmp_path, {"a.flac": "ONE"}, more))
    assert [(one.id, one.text) for one in utterances] == [("a", "ONE")]
    assert skipped == []


@pytest.mark.parametrize("write", [folder, tar])
def test_recordings_have_any_documented_format_and_case(write, tmp_path):
    suffixes = [*AUDIO_SUFFIXES, *(suffix.upper() for suffix in AUDIO_SUFFIXES), ".Mp3"]
    texts = {f"{n:02}{suffix}": f"TEXT {n}" for n, suffix in enumerate(suffixes)}
    utterances, skipped = listed(write(tmp_path, texts, {}))
    assert [one.text for one in utterances] == list(texts.values())
    assert skipped == []
    assert [one.duration_seconds for one in utterances] == pytest.approx(
        [0.5] * len(suffixes), abs=0.1
    )


def test_of_several_formats_the_lossless_one_is_taken(tmp_path):
    formats = {f"a{suffix}": encoded(suffix) for suffix in AUDIO_SUFFIXES}
    ((utterance,), _) = read_manifest(
        write_folder(tmp_path / "folder", formats | {"a.trans.txt": b"a ONE"})
    )
    assert utterance.audio.name == "a.flac"
    shard = write_tar(tmp_path / "x.tar", formats | {"a.txt": b"ONE"})
    ((utterance,), _) = read_manifest(shard)
    with shard.open("rb") as file:
        file.seek(utterance.within.offset_bytes)
        assert file.read(4) == b"fLaC"


def test_accents_of_a_name_may_be_characters_of_their_own(tmp_path):
    names = {f"{unicodedata.normalize('NFD', 'größe')}.flac": encoded(".flac")}
    utterances, skipped = read_manifest(
        write_folder(tmp_path, names | {"a.trans.txt": "größe ONE".encode()})
    )
    assert [one.id for one in utterances] == ["größe"] and skipped == []


def test_folders_of_noise_hold_all_formats_and_leftovers(tmp_path):
    files = {f"d/{n}{s}": encoded(s) for n, s in enumerate((*AUDIO_SUFFIXES, ".MP3"))}
    write_folder(tmp_path, files | leftovers("0.flac", "9.mp3"))
    recordings, skipped = read_untranscribed(str(tmp_path), "augment.noise")
    assert sorted(one.id for one in recordings) == sorted(f"augment.noise:{f}" for f in files)
    assert skipped == []


def test_leftovers_of_shards_are_no_shards(tmp_path):
    files = {"a.flac": encoded(".flac"), "a.txt": b"ONE"}
    write_tar(tmp_path / "shards/x_0.tar", files)
    write_folder(tmp_path / "shards", leftovers("x_0.tar"))
    (tmp_path / "shards" / "folder.tar").mkdir()
    utterances, skipped = read_manifest(tmp_path / "shards")
    assert [one.id for one in utterances] == ["a"] and skipped == []
