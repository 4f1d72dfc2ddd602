"""Text files of other programs: marks, line ends and encodings, through every reader of text."""

import gzip
import json
import tarfile
import unicodedata
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asr_jax.data.manifest import read_manifest
from asr_jax.data.sources.librispeech_archives import read_archive
from asr_jax.data.texts import read_texts
from asr_jax.decoding.hotwords import read_hotwords
from asr_jax.decoding.ngram import load_language_model, read_arpa
from asr_jax.scoring.comparison import read_baseline
from asr_jax.text import Tokenizer
from asr_jax.text_files import decoded, numbered_lines, transcript
from asr_jax.types import Utterance

MARK = b"\xef\xbb\xbf"
# White space that some programs take for the end of a line.
SEPARATORS = "\r \x0b \x0c \x1c \x1d \x1e \x85 \u2028 \u2029".split(" ")
DECOMPOSED, COMPOSED = "gro\u0308\u00dfer", "gr\u00f6\u00dfer"


def write_audio(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        soundfile.write(folder / f"{name}.wav", np.zeros(4800), 16_000)


def folder(path: Path, lines: dict[str, bytes], end: bytes) -> list[tuple[str, str]]:
    write_audio(path, *lines)
    parts = [id.encode() + b"\t" + text for id, text in lines.items()]
    (path / "all.trans.txt").write_bytes(MARK + end.join([*parts, b""]))
    return [(one.id, one.text) for one in read_manifest(path)[0]]


def kaldi(path: Path, lines: dict[str, bytes], end: bytes) -> list[tuple[str, str]]:
    write_audio(path, *lines)
    scp = [f"{id} {id}.wav".encode() for id in lines]
    parts = [id.encode() + b" " + text for id, text in lines.items()]
    (path / "wav.scp").write_bytes(MARK + end.join([*scp, b""]))
    (path / "text").write_bytes(MARK + end.join([*parts, b""]))
    return [(one.id, one.text) for one in read_manifest(path)[0]]


def jsonl(path: Path, lines: dict[str, bytes], end: bytes) -> list[tuple[str, str]]:
    write_audio(path, *lines)
    entry = b'{"audio_filepath": "%s.wav", "id": "%s", "text": "%s"}'
    parts = [MARK + entry % (id.encode(), id.encode(), text) for id, text in lines.items()]
    (path / "m.jsonl").write_bytes(end.join(parts))
    return [(one.id, one.text) for one in read_manifest(path / "m.jsonl")[0]]


def csv_table(path: Path, lines: dict[str, bytes], end: bytes) -> list[tuple[str, str]]:
    write_audio(path, *lines)
    rows = [MARK + b"wav,id,text"]
    rows += [id.encode() + b".wav," + id.encode() + b"," + text for id, text in lines.items()]
    (path / "m.csv").write_bytes(end.join([*rows, b""]))
    return [(one.id, one.text) for one in read_manifest(path / "m.csv")[0]]


def tsv_table(path: Path, lines: dict[str, bytes], end: bytes) -> list[tuple[str, str]]:
    write_audio(path, *lines)
    rows = [MARK + b"text\twav"]
    rows += [text.replace(b"\t", b" ") + f"\t{id}.wav".encode() for id, text in lines.items()]
    (path / "m.tsv").write_bytes(end.join(rows))
    return [(one.id.removesuffix(".wav"), one.text) for one in read_manifest(path / "m.tsv")[0]]


def cuts(path: Path, lines: dict[str, bytes], end: bytes) -> list[tuple[str, str]]:
    write_audio(path, *lines)
    parts = []
    for id, text in lines.items():
        recording = {"sources": [{"type": "file", "channels": [0], "source": f"{id}.wav"}]}
        supervision = {"id": id, "start": 0, "duration": 0.3, "text": "TEXT"}
        cut = {"start": 0, "duration": 0.3, "recording": recording, "supervisions": [supervision]}
        parts.append(json.dumps(cut).encode().replace(b"TEXT", text))
    (path / "cuts.jsonl.GZ").write_bytes(gzip.compress(MARK + end.join([*parts, b""])))
    return [(one.id, one.text) for one in read_manifest(path / "cuts.jsonl.GZ")[0]]


def tar(path: Path, lines: dict[str, bytes], end: bytes) -> list[tuple[str, str]]:
    write_audio(path, *lines)
    with tarfile.open(path / "x.tar", "w") as shard:
        for id, text in lines.items():
            shard.add(path / f"{id}.wav", f"{id}.wav")
            info = tarfile.TarInfo(f"{id}.txt")
            info.size = len(MARK + text + end)
            shard.addfile(info, BytesIO(MARK + text + end))
    return [(one.id, one.text) for one in read_manifest(path / "x.tar")[0]]


def text_files(path: Path, lines: dict[str, bytes], end: bytes) -> list[tuple[str, str]]:
    write_audio(path, *lines)
    fields = [{"audio_filepath": f"{id}.wav", "text_filepath": f"{id}.txt"} for id in lines]
    (path / "m.jsonl").write_text("\n".join(map(json.dumps, fields)))
    for id, text in lines.items():
        (path / f"{id}.txt").write_bytes(MARK + text + end)
    return [(one.audio.stem, one.text) for one in read_manifest(path / "m.jsonl")[0]]


def archive(path: Path, lines: dict[str, bytes], end: bytes) -> list[tuple[str, str]]:
    path.mkdir(parents=True)
    members = {f"S/C/{id}.flac": b"flac" for id in lines}
    parts = [id.encode() + b"\t" + text for id, text in lines.items()]
    members["S/C/S-C.trans.txt"] = MARK + end.join([*parts, b""])
    with tarfile.open(path / "x.tar.gz", "w:gz") as file:
        for name, contents in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(contents)
            file.addfile(info, BytesIO(contents))
    return [(one.id, one.text) for one in read_archive(path / "x.tar.gz")]


def texts(path: Path, lines: dict[str, bytes], end: bytes) -> list[tuple[str, str]]:
    path.mkdir(parents=True)
    (path / "a.TXT").write_bytes(MARK + end.join([*lines.values(), b""]))
    utterances = read_texts(path / "a.TXT")[0]
    assert [one.id for one in utterances] == [f"a.TXT:{n + 1}" for n in range(len(lines))]
    return [(id, one.text) for id, one in zip(lines, utterances, strict=True)]


def hotwords(path: Path, lines: dict[str, bytes], end: bytes) -> list[tuple[str, str]]:
    path.mkdir(parents=True)
    (path / "hot.txt").write_bytes(MARK + end.join([*lines.values(), b""]))
    return list(zip(lines, read_hotwords(path / "hot.txt", boost=1.0), strict=True))


def evaluations(path: Path, lines: dict[str, bytes], end: bytes) -> list[tuple[str, str]]:
    path.mkdir(parents=True)
    entry = b'{"id": "%s", "reference": "%s", "hypothesis": "%s"}'
    parts = [entry % (id.encode(), text, text) for id, text in lines.items()]
    (path / "hypotheses.jsonl").write_bytes(MARK + end.join([*parts, b""]))
    listed = [
        Utterance(id, path, transcript(text.decode(errors="replace")), 1.0)
        for id, text in lines.items()
    ]
    return list(read_baseline(path, listed, str).hypotheses.items())


TABLES = [csv_table, tsv_table]
READERS = [folder, kaldi, jsonl, cuts, tar, text_files, archive, texts, hotwords, evaluations]
READERS += TABLES


@pytest.mark.parametrize("end", [b"\n", b"\r\n"], ids=["lf", "crlf"])
@pytest.mark.parametrize("read", READERS)
def test_every_reader_takes_marks_line_ends_and_any_white_space_within_a_line(read, end, tmp_path):
    lines = {"a": b"FIRST", "b": f"  {DECOMPOSED}\t ONE ".encode(), "z": b"LAST\r"}
    lines["m"] = MARK + b"MARK " + MARK + b"ED"
    expected = [("a", "FIRST"), ("b", f"{COMPOSED} ONE"), ("z", "LAST"), ("m", "MARK ED")]
    for n, separator in enumerate(SEPARATORS):
        lines[f"s{n}"] = f"A{n}{separator}B".encode()
        expected.append((f"s{n}", f"A{n} B"))
    assert sorted(read(tmp_path / "data", lines, end)) == sorted(expected)


@pytest.mark.parametrize("read", READERS)
def test_every_reader_names_a_file_in_another_encoding(read, tmp_path):
    """Recordings with transcripts in files of their own are left out for that reason, singly."""
    lines = {"a": b"FIRST", "b": "größer".encode("cp1252")}
    if read in (tar, text_files):
        assert read(tmp_path / "data", lines, b"\n") == [("a", "FIRST")]
        with pytest.raises(ValueError, match=r"b\.txt: not UTF-8 text \(byte 0xf6"):
            read(tmp_path / "none", {"b": lines["b"]}, b"\n")
        return
    place = "S-C.trans.txt: " if read is archive else ":3: " if read in TABLES else ":2: "
    with pytest.raises(ValueError, match=f"{place}not UTF-8 text .*0xf6 at .*convert the file"):
        read(tmp_path / "data", lines, b"\n")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"])
def test_wide_encodings_are_named(encoding, tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("ONE\nTWO\n".encode(encoding))
    with pytest.raises(ValueError, match=f"^{path}: not UTF-8 text but UTF-16 or UTF-32; convert"):
        list(numbered_lines(path))
    with pytest.raises(ValueError, match="^name: not UTF-8 text but UTF-16 or UTF-32"):
        decoded(path.read_bytes(), "name")


def test_lines_that_end_in_a_carriage_return_alone_are_refused(tmp_path):
    path = tmp_path / "a.txt"
    for contents in (b"ONE\rTWO\r", b"ONE\rTWO"):
        path.write_bytes(contents)
        with pytest.raises(ValueError, match=f"^{path}: its lines end in a carriage return alone"):
            list(numbered_lines(path))
    path.write_bytes(b"ONE\r")
    assert list(numbered_lines(path)) == [(1, "ONE")]


def test_numbers_count_blank_lines_and_marks_between_joined_files_are_dropped(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(MARK + b"\n\r\n \t\nONE\n" + MARK + b"TWO\n" + MARK)
    assert list(numbered_lines(path)) == [(4, "ONE"), (5, "TWO")]


def test_transcripts_have_one_form():
    assert transcript(" A\0B\u3000\u00a0 C\0\0") == "A B C"
    assert transcript("\u212b\uac00") == transcript("A\u030a\u1100\u1161") == "\u00c5\uac00"
    assert transcript("\ufb01 \u00bd \uff21") == "\ufb01 \u00bd \uff21", "no NFKC"


def test_language_models_read_marks_and_both_forms_of_letters(tmp_path):
    tokenizer = Tokenizer.train(["añb"], kind="char", vocabulary_size=0, path=tmp_path / "t.model")
    plain = "\\data\\\nngram 1=4\n\n\\1-grams:\n-1\t</s>\n-1\ta\n-2\tñ\n-3\tb\n\n\\end\\\n"
    expected = None
    for contents in (
        plain.encode(),
        MARK + plain.encode(),
        plain.replace("\n", "\r\n").encode(),
        unicodedata.normalize("NFD", plain).encode(),
    ):
        (tmp_path / "lm.arpa").write_bytes(contents)
        ngrams = read_arpa(tmp_path / "lm.arpa", tokenizer.pieces)
        expected = expected or ngrams
        assert ngrams == expected
    warnings = []
    text = unicodedata.normalize("NFD", "añ b\r\nb a\r\n").encode()
    (tmp_path / "lm.txt").write_bytes(MARK + text)
    load_language_model(tmp_path / "lm.txt", tokenizer, order=2, weight=1.0, warn=warnings.append)
    assert warnings == []
