"""prepare: LibriSpeech's archives and any other dataset become a prepared dataset."""

import hashlib
import http.server
import io
import itertools
import json
import math
import re
import resource
import shutil
import sys
import tarfile
import threading
import xml.etree.ElementTree
from pathlib import Path

import numpy as np
import pytest
import soundfile
from rich.progress import Progress

from asr_jax.audio.samples import as_flac
from asr_jax.commands.prepare import command as prepare
from asr_jax.commands.prepare import download as downloading
from asr_jax.commands.prepare.download import download
from asr_jax.config import AugmentConfig, DataConfig
from asr_jax.data.buckets import Buckets
from asr_jax.data.corpus import Corpus
from asr_jax.data.epochs import Epochs
from asr_jax.data.manifest import read_manifest, require_exists
from asr_jax.data.pipeline import training_batches, training_plan
from asr_jax.data.recordings import read_recording
from asr_jax.data.sources.librispeech_archives import Archive
from asr_jax.text import Tokenizer

DEV = Path(__file__).parents[2] / "samples/an4/dev"
STOCK = Path(__file__).parents[1] / "data/stock_librispeech"


def add(archive: tarfile.TarFile, name: str, contents: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(contents)
    archive.addfile(member, io.BytesIO(contents))


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """dev-clean.tar.gz in LibriSpeech's layout, and the same unpacked."""
    folder = tmp_path_factory.mktemp("published")
    with tarfile.open(folder / "dev-clean.tar.gz", "w:gz") as archive:
        add(archive, "LibriSpeech/SPEAKERS.TXT", b";ID |SEX| SUBSET\n")
        add(archive, "LibriSpeech/CHAPTERS.TXT", b";ID\n")
        for transcripts in sorted(DEV.rglob("*.trans.txt")):
            speaker, chapter = transcripts.parent.parts[-2:]
            where = f"LibriSpeech/dev-clean/{speaker}/{chapter}"
            add(archive, f"{where}/{transcripts.name}", transcripts.read_bytes())
            for recording in sorted(transcripts.parent.glob("*.ogg")):
                flac, _ = as_flac(recording)
                add(archive, f"{where}/{recording.stem}.flac", flac)
    with tarfile.open(folder / "dev-clean.tar.gz") as archive:
        archive.extractall(folder / "unpacked", filter="data")
    return folder


@pytest.fixture(scope="module")
def prepared(published, tmp_path_factory, command):
    out = tmp_path_factory.mktemp("prepared")
    arguments = ("librispeech", out, "--parts", "dev-clean", "--archives", published)
    return out / "dev-clean", command("prepare", *arguments), arguments


def test_prepared_dataset_lists_the_recordings_of_the_archive(prepared, published, command):
    out, outcome, arguments = prepared
    assert outcome.status == 0, outcome.err
    assert f"{out}: 77 recordings, 0.05 hours" in outcome.out and "####" in outcome.out
    ours, skipped = read_manifest(out)
    theirs, _ = read_manifest(published / "unpacked/LibriSpeech/dev-clean")
    assert not skipped and len(ours) == 77
    for a, b in zip(ours, theirs, strict=True):
        assert (a.id, a.text, a.speaker, a.duration_seconds) == (
            *(b.id, b.text, b.speaker, b.duration_seconds),
        )
    again = command("prepare", *arguments)
    assert again.status == 0 and "prepared already" in again.err
    assert [path.name for path in out.parent.iterdir()] == ["dev-clean"]


def test_a_batch_of_a_prepared_dataset_is_that_of_the_folder_bit_for_bit(prepared, published):
    def batch(data):
        utterances, _ = read_manifest(data)
        labels = [np.arange(1, len(u.text) % 7 + 2, dtype=np.int32) for u in utterances]
        config = DataConfig(read_threads=4)
        corpus = Corpus(utterances, labels)
        buckets = Buckets((8.0,), (64,), (16,))
        epochs = Epochs(training_plan(corpus, buckets=buckets, augment=AugmentConfig(), seed=3))
        return next(training_batches(corpus, epochs, data=config, sample_rate_hz=16_000))

    for ours, theirs in zip(
        batch(prepared[0]), batch(published / "unpacked/LibriSpeech/dev-clean"), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    assert "tensorflow" not in sys.modules


def test_tensorflow_datasets_reads_it_too(prepared):
    import tensorflow_datasets as tfds

    source = tfds.builder_from_directory(prepared[0]).as_data_source(split="part")
    ours, _ = read_manifest(prepared[0])
    assert len(source) == len(ours)
    example = source[5]
    utterance = next(u for u in ours if u.id == example["id"].decode())
    assert example["text"].decode() == utterance.text
    samples, _ = soundfile.read(io.BytesIO(example["audio"]), dtype="float32")
    np.testing.assert_array_equal(samples, read_recording(utterance, sample_rate_hz=16_000))


def test_unusable_recordings_are_dropped_and_listed(tmp_path, command):
    seconds = lambda s: np.sin(np.arange(round(16_000 * s)) / 10).astype(np.float32) / 2
    recordings = {
        "good": seconds(1),
        "silent": np.zeros(16_000, np.float32),
        "brief": seconds(0.02),
        "nan": np.full(16_000, np.nan, np.float32),
        "odd": seconds(1),
        "mute": seconds(1),
    }
    texts = {"odd": "a\ufffdb", "mute": " "}
    for name, samples in recordings.items():
        soundfile.write(tmp_path / f"{name}.wav", samples, 16_000, subtype="FLOAT")
    (tmp_path / "broken.flac").write_bytes(b"fLaC" + bytes(100))
    soundfile.write(tmp_path / "nine.wav", np.stack(9 * [seconds(1)], axis=1), 16_000)
    soundfile.write(tmp_path / "one.wav", seconds(1)[:1], 48_000)
    # Set all 36 bits of the number of samples.
    soundfile.write(tmp_path / "endless.flac", seconds(1), 16_000)
    flac = bytearray((tmp_path / "endless.flac").read_bytes())
    flac[21] |= 0x0F
    flac[22:26] = b"\xff" * 4
    (tmp_path / "endless.flac").write_bytes(flac)
    noise = np.random.default_rng(0).normal(size=32_000) / 10
    soundfile.write(tmp_path / "cut.flac", noise, 16_000)
    cut = tmp_path / "cut.flac"
    cut.write_bytes(cut.read_bytes()[:30_000])
    lines = [
        {"audio_filepath": path.name, "text": texts.get(path.stem, "one"), "duration": 1.0}
        | ({"offset": 0.5, "duration": 1.0, "id": "cut"} if path.stem == "cut" else {})
        for path in sorted(tmp_path.iterdir())
    ]
    lines.append(
        {"audio_filepath": "good.wav", "text": "half", "offset": 0.25, "duration": 0.5, "id": "h"}
    )
    manifest = tmp_path / "data.jsonl"
    manifest.write_text("\n".join(map(json.dumps, lines)))
    out = tmp_path / "out"
    outcome = command("prepare", manifest, out)
    assert outcome.status == 0, outcome.err
    utterances, _ = read_manifest(out)
    assert {u.id: u.duration_seconds for u in utterances} == {"good.wav": 1.0, "h": 0.5}
    stretch = next(u for u in utterances if u.id == "h")
    np.testing.assert_allclose(
        read_recording(stretch, sample_rate_hz=16_000),
        recordings["good"][4000:12_000],
        atol=2**-22,
    )
    dropped = map(json.loads, (out / "dropped.jsonl").read_text().splitlines())
    reasons = {Path(one["id"]).stem: one["reason"] for one in dropped}
    assert reasons["silent"] == "silent"
    assert reasons["brief"].startswith("shorter than 0.1 s: 0.02 s")
    assert reasons["nan"] == "samples that are not finite"
    assert reasons["odd"].startswith("odd characters: ")
    assert reasons["mute"] == "empty transcript"
    assert reasons["nine"] == "FLAC cannot hold it: 9 channels at 16000 Hz"
    assert reasons["one"] == "no samples at 16000 Hz, 1 at its own rate"
    assert reasons["endless"] == f"damaged, its header states {2**36 - 1} samples"
    odd_ones = {"nine", "one", "endless"}
    assert set(reasons) == {"silent", "brief", "nan", "odd", "mute", "broken", "cut"} | odd_ones
    assert "dropped: 1 recordings, silent (listed in" in outcome.out


def test_recordings_that_a_config_cannot_train_on_are_listed(prepared, tmp_path, command):
    out, _, arguments = prepared
    run = tmp_path / "run"
    run.mkdir()
    config = {
        "tokenizer.kind": "char",
        "objective.kind": "ctc",
        "encoder.subsampling_factor": 8,
        "data.bucket_seconds": [4.5],
        "data.bucket_labels": [100],
        "data.bucket_utterances": [1],
    }

    def unfit(name: str) -> tuple[str, dict[str, str]]:
        (run / "config.json").write_text(json.dumps(config | {"tokenizer.kind": name}))
        outcome = command("prepare", *arguments, "--config", run / "config.json")
        assert outcome.status == 0, outcome.err
        lines = (out / "unfit.jsonl").read_text().splitlines()
        return outcome.out, {one["id"]: one["reason"] for one in map(json.loads, lines)}

    utterances, _ = read_manifest(out)
    expected = {}
    for one in utterances:
        frames = math.ceil(round(100 * one.duration_seconds) / 8)
        needed = len(one.text) + sum(a == b for a, b in itertools.pairwise(one.text))
        if one.duration_seconds > 4.5:
            expected[one.id] = f"longer than the last bucket's 4.5 s: {one.duration_seconds:.4g} s"
        elif needed > frames:
            reason = f"too short for its text in the CTC loss: needs {needed} frames, has {frames}"
            expected[one.id] = reason
    printed, listed = unfit("char")
    assert listed == expected and len({reason[:3] for reason in expected.values()}) == 2
    number = sum(reason.startswith("too short") for reason in expected.values())
    assert (
        f"config.json would leave out: {number} recordings, too short for its text in the CTC loss "
        f"(listed in {out / 'unfit.jsonl'})"
    ) in printed
    (out / "unfit.jsonl").write_text("")
    printed, listed = unfit("unigram")
    assert listed == {} and "because its unigram tokenizer is yet to be trained" in printed
    texts = [one.text for one in utterances]
    Tokenizer.train(texts, kind="char", vocabulary_size=0, path=run / "tokenizer.model")
    assert unfit("unigram")[1] == expected


def test_the_picture_of_durations_counts_every_recording(prepared):
    out, outcome, _ = prepared
    seconds = [one.duration_seconds for one in read_manifest(out)[0]]
    root = xml.etree.ElementTree.parse(out / "durations.svg").getroot()
    bars = [title.text for title in root.iter("{http://www.w3.org/2000/svg}title")]
    counted = 0
    for bar in bars:
        low, high, count = map(float, re.findall(r"[\d.]+", bar))
        assert count == sum(low - 1e-6 <= s < high - 1e-6 for s in seconds)
        counted += count
    assert counted == len(seconds)
    printed = re.findall(r"^ .* s +(\d+) #*$", outcome.out, re.MULTILINE)
    assert sum(map(int, printed)) == len(seconds)


def test_damaged_prepared_datasets_are_named(prepared, tmp_path):
    def copy(name):
        return Path(shutil.copytree(prepared[0], tmp_path / name))

    truncated = copy("truncated")
    (shard,) = truncated.glob("*.array_record-*")
    shard.write_bytes(shard.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=rf"{shard.name}: \d+ bytes, .* says \d+ bytes; prepare"):
        read_manifest(truncated)
    shard.unlink()
    with pytest.raises(ValueError, match=f"{shard.name}: missing, .* says"):
        read_manifest(truncated)

    disagrees = copy("disagrees")
    index = json.loads((disagrees / "index.json").read_text())
    index["id"][3], index["id"][4] = index["id"][4], index["id"][3]
    (disagrees / "index.json").write_text(json.dumps(index))
    utterances, _ = read_manifest(disagrees)
    with pytest.raises(ValueError, match=f"record 3 is {index['id'][4]}, not {index['id'][3]} as"):
        read_recording(next(u for u in utterances if u.id == index["id"][3]), sample_rate_hz=16_000)
    index["text"].pop()
    (disagrees / "index.json").write_text(json.dumps(index))
    damaged = r"index.json: damaged \(76 entries of text, 77 recordings\); prepare the data again"
    with pytest.raises(ValueError, match=damaged):
        read_manifest(disagrees)
    (disagrees / "index.json").unlink()
    with pytest.raises(ValueError, match="what asr-jax prepare wrote, whose index.json is missing"):
        read_manifest(disagrees)
    (disagrees / "dataset_info.json").write_text("{")
    with pytest.raises(ValueError, match="dataset_info.json: damaged$"):
        read_manifest(disagrees)


def test_damaged_archives_and_wrong_parts_are_named(published, tmp_path, error):
    where = ("--parts", "dev-clean", "--archives", tmp_path)
    contents = (published / "dev-clean.tar.gz").read_bytes()
    (tmp_path / "dev-clean.tar.gz").write_bytes(contents[: len(contents) // 2])
    assert "dev-clean.tar.gz: damaged (" in error("prepare", "librispeech", tmp_path / "a", *where)
    with tarfile.open(tmp_path / "dev-clean.tar.gz", "w:gz") as archive:
        add(archive, "LibriSpeech/../../evil.flac", b"x")
    message = error("prepare", "librispeech", tmp_path / "b", *where)
    assert "dev-clean.tar.gz: its member LibriSpeech/../../evil.flac leads out of its" in message
    assert not (tmp_path / "a/dev-clean").exists() and not list((tmp_path / "a").glob(".*"))
    message = error("prepare", "librispeech", tmp_path / "c", "--parts", "dev-dirty")
    assert message.startswith("--parts dev-dirty: must be one of dev-clean, ")
    assert "exists and is not empty" in error("prepare", DEV, tmp_path)


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, error):
    """A limit on the size of files stands for the full disk: write() fails in the same way."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        message = error("prepare", DEV, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert message.startswith(f"{tmp_path / 'out'}: cannot be written (")
    assert "File too large" in message
    assert not list(tmp_path.iterdir())


class Server(http.server.BaseHTTPRequestHandler):
    contents = bytes(range(256)) * 4000
    requested_ranges: list[str | None] = []
    faults: list[str] = []

    def do_GET(self):
        wanted = self.headers.get("Range")
        self.requested_ranges.append(wanted)
        fault = self.faults.pop(0) if self.faults else ""
        if fault == "error":
            self.send_error(503)
            return
        start = int(wanted[6:-1]) if wanted and fault != "no ranges" else 0
        body = self.contents[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if fault == "breaks":
            body = body[: len(body) // 3]
        self.wfile.write(bytes(len(body)) if fault == "wrong" else body)
        self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as running:
        Server.requested_ranges, Server.faults = [], []
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}/file"
        running.shutdown()


def fetch(address, path):
    digest = hashlib.sha256(Server.contents).hexdigest()
    with Progress(disable=True) as progress:
        download(
            address,
            path,
            size_bytes=len(Server.contents),
            sha256=digest,
            progress=progress,
            wait_seconds=0.0,
        )


@pytest.mark.parametrize(
    "faults, requests",
    [
        ([], 1),
        (["breaks", "breaks"], 3),
        (["error", "breaks", "no ranges"], 3),
        (["wrong"], 2),
    ],
)
def test_a_broken_download_resumes_or_starts_again(server, tmp_path, faults, requests):
    Server.faults = list(faults)
    fetch(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == Server.contents
    assert len(Server.requested_ranges) == requests
    if faults == ["breaks", "breaks"]:
        assert [a is not None for a in Server.requested_ranges] == [False, True, True]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_download_resumes_where_an_earlier_start_was_stopped(server, tmp_path):
    (tmp_path / "file.part").write_bytes(Server.contents[:1000])
    fetch(server, tmp_path / "file")
    assert Server.requested_ranges == ["bytes=1000-"]
    assert (tmp_path / "file").read_bytes() == Server.contents


def test_a_hopeless_download_is_an_error(server, tmp_path, monkeypatch):
    Server.faults = ["wrong", "wrong"]
    with pytest.raises(ValueError, match="the wrong checksum; gave up after 2 attempts"):
        fetch(server, tmp_path / "file")
    monkeypatch.setattr(downloading, "ATTEMPTS", 2)
    Server.faults = ["error", "error"]
    with pytest.raises(ValueError, match="503: Service Unavailable; gave up after 2|Service Unav"):
        fetch(server, tmp_path / "file")
    assert not (tmp_path / "file").exists()


def test_librispeech_is_downloaded_from_a_mirror(server, published, tmp_path, monkeypatch, command):
    contents = (published / "dev-clean.tar.gz").read_bytes()
    monkeypatch.setattr(Server, "contents", contents)
    known = Archive(len(contents), hashlib.sha256(contents).hexdigest())
    monkeypatch.setitem(prepare.ARCHIVES, "dev-clean", known)
    out = tmp_path / "out"
    arguments = ("--parts", "dev-clean", "--address", server.removesuffix("/file"))
    assert command("prepare", "librispeech", out, *arguments).status == 0
    assert len(read_manifest(out / "dev-clean")[0]) == 77
    assert (out / "archives/dev-clean.tar.gz").read_bytes() == contents


@pytest.mark.parametrize(
    "options, message",
    [
        (["--max-seconds=nan"], "--min-seconds 0.1 --max-seconds nan: needs 0 <= shortest <= long"),
        (["--min-seconds=nan"], "--min-seconds nan --max-seconds inf: needs 0 <= shortest <= long"),
        ([], "OUT = .: must name a folder to create"),
    ],
)
def test_invalid_options_are_rejected(error, tmp_path, options, message):
    assert error("prepare", tmp_path, ".", *options).startswith(message)


@pytest.mark.parametrize("config", ["default", "lazy_decode"])
def test_reads_datasets_of_the_stock_builder(tmp_path, config):
    """tests/data/stock_librispeech/make.py documents how they were made."""
    where = STOCK / config
    held = json.loads((STOCK / "recordings.json").read_text())
    texts = {
        id: text
        for listing in DEV.rglob("*.trans.txt")
        for id, _, text in (line.partition(" ") for line in listing.read_text().splitlines())
    }
    for split, recordings in held.items():
        require_exists(where / split)
        utterances, skipped = read_manifest(where / split)
        ids = [Path(name).stem for name in recordings]
        assert [u.id for u in utterances] == ids and not skipped
        for utterance, name in zip(utterances, recordings, strict=True):
            assert utterance.text == texts[utterance.id]
            assert utterance.speaker == name.partition("/")[0]
            expected = soundfile.read(DEV / name, dtype="float32")[0]
            found = read_recording(utterance, sample_rate_hz=16_000)
            # The stored samples were decoded from Opus on another machine and rounded to 16 bits.
            np.testing.assert_allclose(found, expected, rtol=0, atol=2**-14)
            assert utterance.duration_seconds == len(expected) / 16_000
            other = utterance._replace(audio=Path(str(utterance.audio).replace(config, "default")))
            np.testing.assert_array_equal(found, read_recording(other, sample_rate_hz=16_000))

    with pytest.raises(ValueError, match="no split train; .* has dev_clean, dev_other, test_clean"):
        read_manifest(where / "train")
    with pytest.raises(ValueError, match="dev_other.*-of-00001: missing, though dataset_info.json"):
        read_manifest(where)
    whole = Path(shutil.copytree(where, tmp_path / "whole"))
    info = json.loads((whole / "dataset_info.json").read_text())
    info["splits"] = [split for split in info["splits"] if split["name"] in held]
    (whole / "dataset_info.json").write_text(json.dumps(info))
    assert len(read_manifest(whole)[0]) == sum(map(len, held.values())) == 3
    (shard,) = whole.glob("*dev_clean.array_record*")
    damaged = Path(shutil.copytree(whole, tmp_path / "damaged")) / shard.name
    contents = shard.read_bytes()
    damaged.write_bytes(contents[:64] + b"\xff" * 50 + contents[114:])
    utterances, skipped = read_manifest(damaged.parent)
    assert [left_out.id for left_out in skipped] == [f"{shard.name}:0"]
    assert len(utterances) == 2 and skipped[0].reason.startswith("record cannot be read: ")
    assert "tensorflow" not in sys.modules
