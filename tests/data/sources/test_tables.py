"""Tables: the columns, delimiters and quotes of CSV and TSV files, and the errors of bad ones."""

import csv
import gzip
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asr_jax.data.manifest import read_manifest
from asr_jax.types import Utterance

COMMON_VOICE = "client_id path sentence_id sentence up_votes locale segment".split()
SPEECHBRAIN = "ID,duration,wav,start,stop,spk_id,wrd\n"


@pytest.fixture
def folder(tmp_path):
    for name in ("a.wav", "b.wav", "clips/c.mp3", "clips/d.mp3", "wavs/e.wav", "wavs/f.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        soundfile.write(tmp_path / name, 0.1 * np.ones(16_000), 8_000)
    return tmp_path


def write(folder: Path, contents: str | bytes, name: str = "t.csv") -> Path:
    path = folder / name
    path.write_bytes(contents if isinstance(contents, bytes) else contents.encode())
    return path


def texts(table: Path) -> list[str]:
    utterances, skipped = read_manifest(table)
    assert skipped == []
    return [one.text for one in utterances]


def refuse(table: Path, line: int, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        read_manifest(table)
    assert str(caught.value).startswith(f"{table}:{line}: ") and "\n" not in str(caught.value)


def test_common_voice(folder):
    """Its recordings are in clips, and its quotes are characters of the sentences."""
    sentences = ['"Hello," she said.', '"Stop!"', 'An odd " quote', "Größe, Maß; | und"]
    rows = [COMMON_VOICE] + [
        [f"speaker{n}", f"{n}.mp3", "", sentence, "2", "de", ""]
        for n, sentence in enumerate(sentences)
    ]
    for n in range(len(sentences)):
        (folder / f"clips/{n}.mp3").write_bytes((folder / "clips/c.mp3").read_bytes())
    table = write(folder, "".join("\t".join(row) + "\r\n" for row in rows), "train.tsv")
    utterances, skipped = read_manifest(table)
    assert skipped == []
    assert utterances == [
        Utterance(f"{n}.mp3", folder / f"clips/{n}.mp3", sentence, 2.0, f"speaker{n}")
        for n, sentence in enumerate(sentences)
    ]
    gone = "\t".join(["s", "gone.mp3", "", "A", "", "", ""])
    write(folder, table.read_text() + gone, "train.tsv")
    utterances, (skipped,) = read_manifest(table)
    assert len(utterances) == 4
    assert skipped.reason == f"no such file: {folder / 'clips/gone.mp3'}"


def test_speechbrain_gives_segments_in_samples(folder):
    rows = "x,0.5,a.wav,4000,8000,ann,ONE\ny,1.25,a.wav,0,10000,ann,TWO\nz,2.0,b.wav,,,bob,ALL\n"
    utterances, skipped = read_manifest(write(folder, SPEECHBRAIN + rows))
    assert skipped == []
    assert utterances == [
        Utterance("x", folder / "a.wav", "ONE", 0.5, "ann", 0.5),
        Utterance("y", folder / "a.wav", "TWO", 1.25, "ann", 0.0),
        Utterance("z", folder / "b.wav", "ALL", 2.0, "bob"),
    ]
    spaced = "ID, duration, wav, spk_id, wrd\n\nx, 2.0, a.wav, ann, ONE\n"
    assert read_manifest(write(folder, spaced))[0] == [
        Utterance("x", folder / "a.wav", "ONE", 2.0, "ann")
    ]
    refuse(
        write(folder, SPEECHBRAIN + rows + "v,0.7,a.wav,4000,8000,ann,ONE\n"),
        5,
        r"start to stop is 4000, but duration is 0\.7: neither seconds nor samples",
    )


@pytest.mark.parametrize("place", ["$data_root/", "{data_root}/", "${data_folder}/", "$data_root"])
def test_placeholders_of_speechbrain_are_named(folder, place):
    rows = f"x,2.0,a.wav,,,ann,ONE\ny,2.0,{place}b.wav,,,ann,ONE\n"
    refuse(write(folder, SPEECHBRAIN + rows), 3, "placeholder of SpeechBrain")


def test_ljspeech_has_no_header(folder):
    lines = 'e|In 1850, "they" said|In eighteen fifty, "they" said\nf|"Yes|\n'
    expected = [
        Utterance("e", folder / "wavs/e.wav", 'In eighteen fifty, "they" said', 2.0),
        Utterance("f", folder / "wavs/f.wav", '"Yes', 2.0),
    ]
    assert read_manifest(write(folder, lines, "metadata.csv")) == (expected, [])
    (folder / "clips/c.mp3").rename(folder / "wavs/g.mp3")
    assert texts(write(folder, "e|ONE\ng|TWO\n", "metadata.csv")) == ["ONE", "TWO"]
    table = write(folder, lines + "e|A|B|C\n", "metadata.csv")
    refuse(table, 3, "4 fields, but its first line has 3")
    refuse(write(folder, "e|A\nf\n", "metadata.csv"), 2, "1 fields, but its first line has 2")


def test_names_of_columns(folder):
    for audio in "path audio audio_filepath file wav filename file_name".split():
        for text in "text sentence transcription transcript wrd".split():
            header = f"{text.upper()},{audio.title()},other\n"
            for row in ("ONE,a.wav,5\n", f"ONE,{folder / 'a.wav'},\n"):
                (utterance,), _ = read_manifest(write(folder, header + row))
                assert (utterance.audio, utterance.text) == (folder / "a.wav", "ONE")


@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|"])
def test_the_header_names_the_delimiter(folder, delimiter):
    """Whatever the csv module writes is read, except a tab, bar or line end in a TSV's field."""
    every = ["A, B", 'He said "no"', '"Quoted"', '""', "C; D", "", '"Hm," he said', '"']
    for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL):
        for name in ("t.csv", "t.TSV"):
            path = folder / name
            with path.open("w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file, delimiter=delimiter, quoting=quoting)
                writer.writerow(["id", "path", "text", "speaker"])
                writer.writerows([n, "a.wav", text, "ann"] for n, text in enumerate(every))
            assert texts(path) == every


def test_quoted_fields_of_csv_hold_delimiters_and_line_ends(folder):
    table = write(folder, 'id,path,text\n1,a.wav,"A,\r\n\r\n""B"""\n2,"b.wav","C"\n,,\n3,,D\n')
    refuse(table, 7, "needs the path of a recording in its column path")
    table = write(folder, table.read_bytes().removesuffix(b"3,,D\n"))
    assert texts(table) == ['A, "B"', "C"]


def test_segments_speakers_and_channels(folder):
    both = np.stack([np.zeros(16_000), 0.1 * np.ones(16_000)], axis=1)
    soundfile.write(folder / "a.wav", both, 8_000)
    header = "path\tstart\tend\tchannel\tspeaker\ttext\n"
    rows = "a.wav\t0.5\t1.25\t1\tann\tONE\na.wav\t1.5\t\t\tbob\tTWO\nb.wav\t\t1.5\t\t\tTHREE\n"
    utterances, skipped = read_manifest(write(folder, header + rows))
    assert skipped == []
    assert utterances == [
        Utterance("a.wav@0.5+0.75", folder / "a.wav", "ONE", 0.75, "ann", 0.5, channel=1),
        Utterance("a.wav@1.5", folder / "a.wav", "TWO", 0.5, "bob", 1.5),
        Utterance("b.wav", folder / "b.wav", "THREE", 1.5),
    ]
    offsets = "audio_filepath,offset,duration,text\na.wav,0.5,1.25,A\n"
    (utterance,), _ = read_manifest(write(folder, offsets))
    assert (utterance.offset_seconds, utterance.duration_seconds) == (0.5, 1.25)


HEADER = "path,text,duration,start,end,channel\n"


@pytest.mark.parametrize(
    ("contents", "line", "message"),
    [
        ("a.wav,HELLO\nb.wav,THERE\n", 1, "must name the columns.*: a.wav, HELLO$"),
        ("\n\na.wav|HELLO|there, you\n", 3, "must name the columns.*: a.wav, HELLO, there, you$"),
        ("path,words\na.wav,A\n", 1, "transcripts .text, sentence, .*found: path, words$"),
        ("id,text\na,A\n", 1, "recordings .path, audio, .*found: id, text$"),
        ("A" * 200_000, 1, "found: A{200}$"),
        ("path text\na.wav A\n", 1, "found: path text$"),
        ("path,text,Sentence\na.wav,A,B\n", 1, "text and Sentence could both be the text"),
        ("path,text,text\na.wav,A,B\n", 1, "text and text could both be the text"),
        (HEADER + "a.wav,A,,,,\nb.wav,B, C,,,,\n", 3, "7 fields, but the header has 6"),
        (HEADER + "a.wav,A\n", 2, "2 fields, but the header has 6"),
        (HEADER + "a.wav,A,long,,,\n", 2, "duration = 'long' must be a number of seconds"),
        (HEADER + "a.wav,A,nan,,,\n", 2, "duration = nan must be a number of seconds"),
        (HEADER + "a.wav,A,,-1,,\n", 2, "start = -1.0 must be a number of seconds"),
        (HEADER + "a.wav,A,,2,1.5,\n", 2, "ends at 1.5, not after its start at 2"),
        (HEADER + "a.wav,A,,,,left\n", 2, "channel = 'left' must be a number from 0 on"),
        (HEADER + 'a.wav,"A" B,,,,\n', 2, "its quotes"),
        (HEADER + 'a.wav,A,,,,\nb.wav,"B,,,,\n' + "c.wav,C,,,,\n" * 3, 3, "its quotes"),
        (HEADER + 'a.wav,"' + "A" * 200_000 + '",,,,\n', 2, "field larger than"),
    ],
)
def test_a_bad_line_is_named(folder, contents, line, message):
    refuse(write(folder, contents), line, message)


def test_errors_of_a_whole_table(folder):
    def require(table: Path, message: str) -> None:
        with pytest.raises(ValueError, match=message) as caught:
            read_manifest(table)
        assert str(table) in str(caught.value) and "\n" not in str(caught.value)

    require(write(folder, ""), "no transcripts in it")
    require(write(folder, HEADER), "no transcripts in it")
    require(write(folder, HEADER + "a.wav,A,,,,\na.wav,B,,,,\n"), "the id a.wav occurs 2 times")
    require(write(folder, "path,text\ngone.wav,A\n"), "can be read, the first is gone.wav: no such")
    require(write(folder, "path,text\na.wav,größer\n".encode("cp1252")), ":2: not UTF-8 text .byte")
    require(write(folder, "path,text\na.wav,A\n".encode("utf-16")), "UTF-16")
    whole = gzip.compress(b"path,text\na.wav,A\n")
    require(write(folder, whole[:-9], "t.csv.gz"), "truncated, the gzip")
    assert texts(write(folder, whole, "t.CSV.gz")) == ["A"]
    write(folder, whole, "b.tsv.gz")
    require(folder, "no transcripts in it .*; it has tables, pass one of them: b.tsv.gz, t.CSV.gz")


def test_paths_may_start_in_the_working_directory(folder, monkeypatch):
    (folder / "lists").mkdir()
    table = write(folder, "path,text\ngone.wav,A\na.wav,B\n", "lists/t.csv")
    monkeypatch.chdir(folder)
    utterances, skipped = read_manifest(table)
    assert [one.audio for one in utterances] == [Path("a.wav")] and len(skipped) == 1
    header = "client_id,path,sentence\n"
    for path in ("clips/c.mp3", "c.mp3"):
        assert texts(write(folder, f"{header}s,{path},B\n")) == ["B"]
