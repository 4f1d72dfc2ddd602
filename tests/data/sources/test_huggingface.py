"""Hugging Face's datasets: what their own library writes, every way to store it, and bad files."""

import builtins
import io
import shutil
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.fs as fs
import pyarrow.parquet as pq
import pytest

from asr_jax.audio.samples import AudioError
from asr_jax.data.manifest import read_manifest
from asr_jax.data.recordings import read_recording, recording_contents
from asr_jax.data.sources import bucket, parquet
from asr_jax.types import Member, TableRow

STOCK = Path(__file__).parents[1] / "huggingface"
DEV = Path(__file__).parents[3] / "samples/an4/dev"
RECORDINGS = sorted(DEV.rglob("*.ogg"))[:8]
OGG = RECORDINGS[0].read_bytes()
STRUCT = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def cells(recordings=RECORDINGS) -> list[dict]:
    return [{"bytes": path.read_bytes(), "path": path.name} for path in recordings]


def table_of(audio=None, **columns) -> pa.Table:
    """Return a table with a column of recordings, by default those of RECORDINGS."""
    audio = pa.array(cells() if audio is None else audio, STRUCT)
    columns = columns or {"text": [f"TEXT {n}" for n in range(len(audio))]}
    return pa.table({"audio": audio, **columns})


def write(path: Path, table: pa.Table, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, **options)
    return path


def write_stream(path: Path, table: pa.Table, *, rows: int = 3, **options) -> Path:
    with pa.OSFile(str(path), "wb") as file:
        with pa.ipc.new_stream(file, table.schema, **options) as stream:
            stream.write_table(table, max_chunksize=rows)
    return path


def refuse(data: Path, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        read_manifest(data)
    assert "\n" not in str(caught.value)


def reasons(skipped) -> dict[str, str]:
    return {one.id: one.reason.split(": ")[0] for one in skipped}


def samples_of(utterance) -> np.ndarray:
    return read_recording(utterance, sample_rate_hz=16_000)


@pytest.mark.parametrize("name, size", [("hub/train", 4), ("hub/data/test", 2), ("disk/train", 4)])
def test_what_datasets_wrote_equals_the_folder_it_was_made_from(name, size):
    expected = {one.id: one for one in read_manifest(DEV)[0]}
    utterances, skipped = read_manifest(STOCK / name)
    assert (len(utterances), skipped) == (size, [])
    for one in utterances:
        folders = expected[one.id]
        assert one[2:5] == folders[2:5]
        assert isinstance(one.within, Member)
        assert recording_contents(one) == folders.audio.read_bytes()
        np.testing.assert_array_equal(samples_of(one), samples_of(folders))


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "none", "use_dictionary": False},
        {"compression": "none", "use_dictionary": False, "data_page_version": "2.0"},
        {
            "compression": "none",
            "use_dictionary": False,
            "column_encoding": {"audio.bytes": "DELTA_LENGTH_BYTE_ARRAY"},
        },
        {"compression": "none"},
        {"compression": "snappy"},
        {"compression": "zstd", "row_group_size": 3, "data_page_size": 1000},
        {"compression": "gzip", "use_dictionary": False},
    ],
)
@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), STRUCT])
def test_recordings_are_the_same_however_they_are_stored(options, kind, tmp_path):
    is_struct = pa.types.is_struct(kind)
    audio = pa.array([cell if is_struct else cell["bytes"] for cell in cells()], kind)
    if not is_struct and "column_encoding" in options:
        options = options | {"column_encoding": {"audio": "DELTA_LENGTH_BYTE_ARRAY"}}
    table = pa.table({"audio": audio, "text": ["A"] * 8, "id": [f"u{n}" for n in range(8)]})
    utterances, skipped = read_manifest(write(tmp_path / "x.parquet", table, **options))
    assert (len(utterances), skipped) == (8, [])
    for one, path in zip(utterances, RECORDINGS):
        assert recording_contents(one) == path.read_bytes()
        is_in_place = options["compression"] == "none"
        assert isinstance(one.within, Member if is_in_place else TableRow)


def test_equal_recordings_and_nulls_in_a_dictionary(tmp_path):
    audio = [*cells(), None, *cells()[:3], {"bytes": None, "path": ""}, *cells()]
    table = table_of(audio, text=["A"] * len(audio))
    for compression in ("none", "snappy"):
        path = write(tmp_path / "x.parquet", table, compression=compression)
        utterances, skipped = read_manifest(path)
        assert set(reasons(skipped).values()) == {"no recording"}
        assert sorted(one.id for one in skipped) == ["x.parquet:12", "x.parquet:8"]
        for one in utterances:
            row = int(one.id.split(":")[1])
            assert recording_contents(one) == audio[row]["bytes"]


def test_a_row_group_is_read_once_for_neighboring_rows_and_not_for_what_is_in_place(tmp_path):
    compressed = write(tmp_path / "c.parquet", table_of(), row_group_size=4)
    plain = write(tmp_path / "p.parquet", table_of(), compression="none")
    for path, times in ((compressed, 2), (plain, 0)):
        utterances, _ = read_manifest(path)
        read = pq.ParquetFile.read_row_group
        with mock.patch.object(pq.ParquetFile, "read_row_group", autospec=True) as counted:
            counted.side_effect = read
            for one in utterances:
                samples_of(one)
        assert counted.call_count == times


def test_the_first_text_column_that_all_files_have_is_read(tmp_path):
    both = table_of(text=["WRONG"] * 8, sentence=["RIGHT"] * 8)
    write(tmp_path / "a.parquet", both)
    write(tmp_path / "b.parquet", table_of(sentence=["RIGHT"] * 8))
    utterances, skipped = read_manifest(tmp_path)
    assert ({one.text for one in utterances}, skipped) == ({"RIGHT"}, [])
    assert {one.text for one in read_manifest(tmp_path / "a.parquet")[0]} == {"WRONG"}


@pytest.mark.parametrize(
    "name", ["text", "sentence", "transcription", "transcript", "normalized_text"]
)
def test_names_of_text_columns(name, tmp_path):
    texts = pa.array(["É\tB"] * 8).dictionary_encode()
    utterances, _ = read_manifest(write(tmp_path / "x.parquet", table_of(**{name: texts})))
    assert {one.text for one in utterances} == {"É B"}


def test_files_of_different_columns_and_types_are_one_dataset(tmp_path):
    first, second = cells()[:4], cells()[4:]
    write(tmp_path / "a.parquet", table_of(first, text=["A"] * 4, client_id=["ann"] * 4))
    large = pa.array([cell["bytes"] for cell in second], pa.large_binary())
    sentence = pa.array(["B"] * 4, pa.large_string())
    write(
        tmp_path / "b.parquet", pa.table({"speaker": [7] * 4, "sentence": sentence, "audio": large})
    )
    write(tmp_path / "c.parquet", pa.table({"metadata": [1]}))
    utterances, skipped = read_manifest(tmp_path)
    assert [(one.text, one.speaker) for one in utterances] == [("A", "ann")] * 4 + [("B", "7")] * 4
    assert reasons(skipped) == {"c.parquet": "no column audio"}


@pytest.mark.parametrize(
    "columns, expected",
    [
        ({"id": [f"u{n}" for n in range(8)]}, [f"u{n}" for n in range(8)]),
        ({"id": range(8)}, [str(n) for n in range(8)]),
        ({"id": [1] * 8}, [path.stem for path in RECORDINGS]),
        ({"file": [f"/a/b/{n}.flac" for n in range(8)], "id": [1] * 8}, [str(n) for n in range(8)]),
    ],
)
def test_ids_are_the_first_names_that_differ(columns, expected, tmp_path):
    columns = {"text": ["A"] * 8, **{name: list(values) for name, values in columns.items()}}
    utterances, _ = read_manifest(write(tmp_path / "x.parquet", table_of(**columns)))
    assert [one.id for one in utterances] == expected


def test_rows_without_names_are_numbered(tmp_path):
    audio = [cell | {"path": "audio.wav"} for cell in cells()]
    utterances, _ = read_manifest(write(tmp_path / "x.parquet", table_of(audio), row_group_size=3))
    assert [one.id for one in utterances] == [f"x.parquet:{n}" for n in range(8)]
    for one, path in zip(utterances, RECORDINGS):
        assert recording_contents(one) == path.read_bytes()


def test_splits_of_one_folder_are_not_mixed(tmp_path):
    for name in ("train-00000-of-00001", "validation-00000-of-00001"):
        write(tmp_path / f"data/{name}.parquet", table_of())
    for folder in (tmp_path, tmp_path / "data"):
        refuse(folder, "holds several splits, train, validation; name one: ")
        assert len(read_manifest(folder / "train")[0]) == 8
        refuse(folder / "test", "no such folder or manifest")
    for name in ("train.clean-00000-of-00001-6ef3991c06080e14", "train.other-00000-of-00001"):
        write(tmp_path / f"parts/{name}.parquet", table_of())
    refuse(tmp_path / "parts", "holds several splits, train.clean, train.other; name one: ")
    assert len(read_manifest(tmp_path / "parts/train.clean")[0]) == 8
    write(tmp_path / "own/train.parquet", table_of())
    write(tmp_path / "own/my_test_2.parquet", table_of())
    refuse(tmp_path / "own", "holds several splits, test, train; name one: ")
    assert len(read_manifest(tmp_path / "own/test")[0]) == 8
    refuse(STOCK / "disk", "holds several splits, train, test; name one: ")


def test_paths_without_bytes_start_at_the_folder(tmp_path):
    for path in RECORDINGS:
        (tmp_path / "data/clips").mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / "data/clips")
    names = [f"clips/{path.name}" for path in RECORDINGS]
    strings = pa.table({"audio": names, "text": ["A"] * 8})
    structs = table_of([{"bytes": None, "path": name} for name in names])
    missing = table_of([{"bytes": None, "path": n} for n in [*names[:7], "clips/none.ogg"]])
    for number, table in enumerate((strings, structs, missing)):
        # Beside the files, and in the folder above, as in a dataset of Hugging Face's hub.
        data = write(tmp_path / f"{number}/x.parquet", table)
        shutil.copytree(tmp_path / "data/clips", tmp_path / f"{number}/clips")
        utterances, skipped = read_manifest(data)
        assert len(utterances) == (7 if table is missing else 8)
        assert set(reasons(skipped).values()) <= {"no such file"}
        assert [one.id for one in utterances] == [p.stem for p in RECORDINGS[: len(utterances)]]
        samples_of(utterances[0])


@pytest.mark.parametrize("compression", ["none", "snappy"])
def test_a_bad_row_is_skipped_and_the_others_are_read(compression, tmp_path):
    audio = cells()
    audio[1] = audio[1] | {"bytes": b"not a recording"}
    audio[2] = audio[2] | {"bytes": b""}
    audio[3] = audio[3] | {"bytes": OGG[: len(OGG) // 2]}
    text = pa.array([f"{n}".encode() for n in range(8)], pa.binary())
    text = pa.array([*text.to_pylist()[:6], b"caf\xe9", None], pa.binary()).view(pa.string())
    path = write(tmp_path / "x.parquet", table_of(audio, text=text), compression=compression)
    utterances, skipped = read_manifest(path)
    kept = {one.text: one for one in utterances}
    # A truncated recording may only be noticed when it is decoded.
    if "3" in kept:
        with pytest.raises(AudioError):
            samples_of(kept.pop("3"))
    assert kept.keys() == {"0", "4", "5"}
    listed = {one.id: one.reason for one in skipped}
    assert listed[RECORDINGS[2].stem].startswith("the file is empty: ")
    assert listed[RECORDINGS[6].stem].startswith("transcript is not Unicode: ")
    assert listed[RECORDINGS[7].stem] == "no transcript: text is null"
    assert listed.keys() >= {path.stem for path in (RECORDINGS[1], *RECORDINGS[6:])}
    for one in kept.values():
        samples_of(one)


@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
def test_a_damaged_row_group_is_skipped_and_the_others_are_read(compression, tmp_path):
    path = write(tmp_path / "x.parquet", table_of(), row_group_size=2, compression=compression)
    column = pq.read_metadata(path).row_group(1).column(0)
    contents = bytearray(path.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    contents[start : start + 40] = b"\xff" * 40
    path.write_bytes(contents)
    utterances, skipped = read_manifest(path)
    assert [one.id for one in utterances] == [RECORDINGS[n].stem for n in (0, 1, 4, 5, 6, 7)]
    assert reasons(skipped) == dict.fromkeys(("x.parquet:2", "x.parquet:3"), "truncated or damaged")


def test_a_row_group_that_is_damaged_later_is_an_error_of_its_recordings(tmp_path):
    path = write(tmp_path / "x.parquet", table_of(), row_group_size=2)
    utterances, _ = read_manifest(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(AudioError, match="row group 0 cannot be read: ") as caught:
        samples_of(utterances[0])
    assert "\n" not in str(caught.value)


def test_a_truncated_file_is_skipped_and_the_others_are_read(tmp_path):
    for name in "ab":
        write(tmp_path / f"{name}.parquet", table_of())
    path = tmp_path / "b.parquet"
    path.write_bytes(path.read_bytes()[:-50])
    utterances, skipped = read_manifest(tmp_path)
    assert (len(utterances), reasons(skipped)) == (8, {"b.parquet": "truncated or damaged"})
    refuse(path, "b.parquet: truncated or damaged: ")


def test_a_truncated_stream_is_read_up_to_there(tmp_path):
    path = write_stream(tmp_path / "x.arrow", table_of())
    whole = path.read_bytes()
    assert len(read_manifest(path)[0]) == 8
    for missing_bytes in (1, 8, 10, 3000):  # of the end, of all of it, and of the last batch
        path.write_bytes(whole[:-missing_bytes])
        utterances, skipped = read_manifest(path)
        rows = 6 if missing_bytes > 9 else 8
        assert [one.id for one in utterances] == [path.stem for path in RECORDINGS[:rows]]
        assert reasons(skipped) == {f"x.arrow:{rows}": "truncated or damaged"}


def test_damaged_arrow_offsets_are_noticed(tmp_path):
    path = write_stream(tmp_path / "x.arrow", table_of(), rows=8)
    contents = path.read_bytes()
    lengths = [len(recording.read_bytes()) for recording in RECORDINGS]
    ends = np.cumsum([0, *lengths]).astype(np.int32)
    damaged = ends.copy()
    damaged[4] = 2**30
    assert contents.count(ends.tobytes()) == 1
    path.write_bytes(contents.replace(ends.tobytes(), damaged.tobytes()))
    refuse(path, "none of its 1 recordings can be read, the first is x.arrow:0: truncated or dam")


def test_arrow_files_that_are_not_streams_or_are_compressed(tmp_path):
    table, path = table_of(), tmp_path / "x.arrow"
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as out:
        out.write_table(table, max_chunksize=3)
    utterances, _ = read_manifest(path)
    assert [recording_contents(one) for one in utterances] == [p.read_bytes() for p in RECORDINGS]
    write_stream(path, table, options=pa.ipc.IpcWriteOptions(compression="zstd"))
    refuse(path, "stores recordings compressed")


def test_tables_that_cannot_be_used_say_why(tmp_path):
    path = tmp_path / "x.parquet"
    write(path, pa.table({"file": ["a"], "text": ["A"]}))
    refuse(path, r"x.parquet: no column audio: its columns are file \(string\), text \(string\)")
    write(path, table_of(label=[1] * 8))
    refuse(path, r"x.parquet: no column of strings named text, sentence, .*: .*label \(int64\)")
    write(path, table_of(text=[["A"]] * 8))
    refuse(path, "no column of strings named")
    write(path, pa.table({"audio": [[0.5, 0.25]], "text": ["A"]}))
    refuse(path, "its column audio is neither bytes nor a path nor a struct of these: list<")
    write(path, table_of([], text=pa.array([], pa.string())))
    refuse(path, "x.parquet: it has no rows")
    path.write_bytes(b"")
    refuse(path, "x.parquet: truncated or damaged: ")
    write_stream(tmp_path / "x.arrow", table_of([], text=pa.array([], pa.string())))
    refuse(tmp_path / "x.arrow", "x.arrow: it has no rows")


def test_missing_and_damaged_lists_of_save_to_disk(tmp_path):
    folder = shutil.copytree(STOCK / "disk/train", tmp_path / "train")
    (folder / "cache-1234.arrow").write_bytes(b"of a map that datasets has kept")
    assert len(read_manifest(folder)[0]) == 4
    (folder / "data-00000-of-00001.arrow").rename(folder / "other.arrow")
    refuse(folder, "data-00000-of-00001.arrow: truncated or damaged: .*No such file")
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train"]}')
    refuse(tmp_path, "data-00000-of-00001.arrow: truncated or damaged: .*No such file")
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["test"]}')
    refuse(tmp_path, "no .*arrow files in it")
    (folder / "state.json").write_text("{}")
    refuse(folder, "state.json: damaged, needs the field _data_files")


def test_large_compressed_row_groups_are_refused(tmp_path):
    path = write(tmp_path / "x.parquet", table_of())
    with mock.patch.object(parquet, "MOST_COMPRESSED_BYTES", 1000):
        refuse(path, "x.parquet: its row group 0 has .* GiB of compressed audio")
        assert len(read_manifest(write(path, table_of(), compression="none"))[0]) == 8


def test_a_missing_pyarrow_is_named(tmp_path, monkeypatch):
    path = write(tmp_path / "x.parquet", table_of())
    of_builtins = builtins.__import__

    def without_pyarrow(name, *arguments, **options):
        if name.startswith("asr_jax.data.sources.arrow_rows"):
            raise ModuleNotFoundError("No module named 'pyarrow'", name="pyarrow")
        return of_builtins(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without_pyarrow)
    refuse(path, r"x.parquet: .* pyarrow, pip install 'asr_jax\[parquet\]'")


class Connection(io.BytesIO):
    """The bytes of a file, read over a line that is lost after some bytes of all files."""

    def __init__(self, contents: bytes, line: list[int]):
        super().__init__(contents)
        self.line = line

    def read(self, size=-1, /):
        contents = super().read(size)
        self.line[0] -= len(contents)
        if self.line[0] < 0:
            raise OSError("connection lost\nafter some bytes")
        return contents


@pytest.fixture
def speech(tmp_path, monkeypatch) -> Path:
    """The folder on the disk that is the bucket s3://speech."""
    local = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    monkeypatch.setattr(bucket, "_bucket", lambda url: local)
    return tmp_path / "speech"


@pytest.mark.parametrize("compression", ["none", "snappy"])
def test_a_bucket_is_read_like_a_folder(compression, speech):
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"):
        table = table_of(cells()[:4] if "train-00000" in name else cells()[4:])
        path = speech / f"hub/data/{name}.parquet"
        write(path, table, row_group_size=2, compression=compression)
    expected = read_manifest(speech / "hub/train")[0]
    for url in ("s3://speech/hub/train", "s3://speech/hub/data/train"):
        utterances, skipped = read_manifest(url)
        assert ([u.id for u in utterances], skipped) == ([u.id for u in expected], [])
        for one, local in zip(utterances, expected):
            assert (one[2:], one.audio.name) == (local[2:], local.audio.name)
            np.testing.assert_array_equal(samples_of(one), samples_of(local))
    assert len(read_manifest("s3://speech/hub/data/test-00000-of-00001.parquet")[0]) == 4
    with pytest.raises(ValueError, match="s3://speech/hub: holds several splits, test, train;"):
        read_manifest("s3://speech/hub")
    with pytest.raises(ValueError, match="s3://speech/none: no .*arrow files in it"):
        read_manifest("s3://speech/none")
    with pytest.raises(ValueError, match="s3://speech/none.parquet: cannot be read: "):
        read_manifest("s3://speech/none.parquet")


@pytest.mark.parametrize("compression", ["none", "snappy"])
def test_a_lost_connection_stops_the_listing_and_later_is_an_error_of_a_recording(
    compression, speech, monkeypatch
):
    path = write(speech / "x.parquet", table_of(), row_group_size=2, compression=compression)
    contents = path.read_bytes()
    utterances, _ = read_manifest("s3://speech/x.parquet")

    def fail_after(available_bytes: int) -> list[int]:
        line = [available_bytes]
        for module in (bucket, parquet):
            opened = lambda path: pa.PythonFile(Connection(contents, line), mode="r")
            monkeypatch.setattr(module, "open_bucket_file", opened)
        return line

    line = fail_after(10**9)
    assert parquet.parquet_metadata(Path("s3:/speech/x.parquet")).num_row_groups == 4
    footer_bytes = 10**9 - line[0]
    for available_bytes in (footer_bytes - 10, footer_bytes + 10, footer_bytes + 20_000):
        fail_after(available_bytes)
        with pytest.raises(ValueError, match="cannot be read: connection lost$") as caught:
            read_manifest("s3://speech/x.parquet")
        assert str(caught.value).startswith("s3://speech/x.parquet: ")
    parquet._row_group.cache_clear()
    fail_after(100)
    with pytest.raises(AudioError, match="cannot be read: connection lost$"):
        samples_of(utterances[0])
    fail_after(10**9)
    samples_of(utterances[0])
