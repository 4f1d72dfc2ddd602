"""Recordings give equal utterances and samples, whichever supported form lists them."""

import csv
import gzip
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from asr_jax.data.manifest import read_manifest
from asr_jax.data.recordings import read_recording
from asr_jax.types import Utterance

DEV = Path(__file__).parents[2] / "samples/an4/dev"
RATE_HZ = 16_000


def samples_of(utterance: Utterance) -> np.ndarray:
    return read_recording(utterance, sample_rate_hz=RATE_HZ)


@pytest.fixture(scope="module")
def listed():
    """Utterances of several speakers, read from their folder, with their samples."""
    everything, skipped = read_manifest(DEV)
    assert skipped == []
    utterances = [one for one in everything if one.id.endswith(("1", "4"))][:12]
    assert len({one.speaker for one in utterances}) >= 2
    return [(one, samples_of(one)) for one in utterances]


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, contents in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(contents)
            tar.addfile(info, io.BytesIO(contents))
    return path


def jsonl(folder, listed):
    lines = [
        {
            "audio_filepath": str(one.audio),
            "duration": one.duration_seconds,
            "text": one.text,
            "speaker": one.speaker,
            "id": one.id,
        }
        for one, _ in listed
    ]
    path = folder / "manifest.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def jsonl_of_shards(folder, listed):
    """Write shards in the layout of NeMo's converter, with one member for each speaker."""
    lines = []
    for shard, (name, contents, segment_starts) in enumerate(joined(listed)):
        write_tar(folder / f"audio_{shard}.tar", {f"{name}.wav": contents})
        for n, (one, start) in enumerate(segment_starts):
            ending = f"-sub{n}" if n else ""
            fields = {"audio_filepath": f"{name}{ending}.wav", "shard_id": shard, "text": one.text}
            fields |= {"offset": start, "duration": one.duration_seconds, "speaker": one.speaker}
            lines.append(fields | {"id": one.id})
    (folder / "sharded_manifests").mkdir()
    path = folder / "sharded_manifests" / "manifest.json"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def joined(listed):
    """Yield each speaker, a WAV file of all their speech, and [(utterance, its start in s)]."""
    for speaker in sorted({one.speaker for one, _ in listed}):
        pieces, segment_starts, start = [], [], 0
        for one, samples in listed:
            if one.speaker == speaker:
                # The silence before each utterance belongs to none.
                pieces += [np.zeros(777, np.float32), samples]
                segment_starts.append((one, (start + 777) / RATE_HZ))
                start += 777 + len(samples)
        file = io.BytesIO()
        soundfile.write(file, np.concatenate(pieces), RATE_HZ, format="WAV", subtype="FLOAT")
        yield speaker, file.getvalue(), segment_starts


def write_table(path: Path, header: list[str], rows: list[list[object]], **form) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, **form).writerows([header, *rows])
    return path


def common_voice(folder, listed):
    """Write a TSV as Common Voice does, with the ids as names in clips."""
    (folder / "clips").mkdir()
    for one, _ in listed:
        (folder / "clips" / one.id).symlink_to(one.audio.absolute())
    header = ["client_id", "path", "sentence_id", "sentence", "up_votes", "segment"]
    rows = [[one.speaker, one.id, "", one.text, 2, ""] for one, _ in listed]
    return write_table(folder / "train.tsv", header, rows, delimiter="\t")


def csv_of_segments(folder, listed):
    """Write a CSV as SpeechBrain does, with starts and stops in samples."""
    header = ["ID", "duration", "wav", "start", "stop", "spk_id", "wrd"]
    rows: list[list[object]] = []
    for name, contents, segment_starts in joined(listed):
        (folder / f"{name}.wav").write_bytes(contents)
        for one, start in segment_starts:
            bounds = [round(at * RATE_HZ) for at in (start, start + one.duration_seconds)]
            seconds = round(one.duration_seconds, 2)
            rows.append([one.id, seconds, f"{name}.wav", *bounds, one.speaker, one.text])
    return write_table(folder / "train.csv", header, rows)


def recording_of(path: Path, duration: float, channels: list[int]) -> dict:
    return {
        "id": path.stem,
        "sources": [{"type": "file", "channels": channels, "source": str(path)}],
        "sampling_rate": RATE_HZ,
        "num_samples": round(duration * RATE_HZ),
        "duration": duration,
        "channel_ids": channels,
        "transforms": [{"name": "Resample", "kwargs": {}}],
    }


def cut_of(recording: dict, supervisions: list[dict], start: float) -> dict:
    return {
        "id": f"{recording['id']}-0",
        "start": start,
        "duration": recording["duration"] - start,
        "channel": recording["channel_ids"][-1],
        "supervisions": supervisions,
        "recording": recording,
        "type": "MonoCut",
    }


def supervision_of(one: Utterance, start: float) -> dict:
    fields = {"start": start, "duration": one.duration_seconds}
    return {"id": one.id, "text": one.text, "speaker": one.speaker, "language": "English"} | fields


def lhotse(folder, listed):
    cuts = [
        cut_of(recording_of(one.audio, one.duration_seconds, [0]), [supervision_of(one, 0.0)], 0.0)
        for one, _ in listed
    ]
    path = folder / "cuts.jsonl.gz"
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(cut) + "\n" for cut in cuts)
    return path


def lhotse_of_long_recordings(folder, listed):
    """Write cuts of the second channel with several supervisions, which start inside recordings."""
    cuts = []
    for name, contents, segment_starts in joined(listed):
        mono, _ = soundfile.read(io.BytesIO(contents), dtype="float32")
        both = np.stack([np.full_like(mono, 0.5), mono], axis=1)
        soundfile.write(folder / f"{name}.wav", both, RATE_HZ, subtype="FLOAT")
        recording = recording_of(Path(f"{name}.wav"), len(mono) / RATE_HZ, [0, 1])
        supervisions = [supervision_of(one, start - 0.01) for one, start in segment_starts]
        cuts.append(cut_of(recording, supervisions, 0.01))
    path = folder / "cuts.jsonl"
    path.write_text("".join(json.dumps(cut) + "\n" for cut in cuts))
    return path


def lhotse_shar(folder, listed):
    """Write shards as Lhotse does, with a cut of each speaker, its manifest and its recording."""
    for number, (name, contents, segment_starts) in enumerate(joined(listed)):
        seconds = soundfile.info(io.BytesIO(contents)).duration
        recording = recording_of(Path(name), seconds, [1])
        recording["sources"] = [{"type": "shar", "channels": [1], "source": ""}]
        supervisions = [supervision_of(one, start) for one, start in segment_starts]
        cut = cut_of(recording, supervisions, 0.0) | {"id": f"cuts.of/{name}"}
        files = {f"cuts.of/{name}.original": contents}
        files[f"cuts.of/{name}.json"] = json.dumps(recording).encode()
        write_tar(folder / f"recording.{number:06}.tar", files)
        with gzip.open(folder / f"cuts.{number:06}.jsonl.gz", "wt", encoding="utf-8") as file:
            file.write(json.dumps(cut) + "\n")
    return folder


def write_lines(path: Path, lines) -> None:
    path.write_text("".join(f"{line}\n" for line in lines))


def kaldi(folder, listed):
    write_lines(folder / "wav.scp", (f"{one.id} {one.audio}" for one, _ in listed))
    write_lines(folder / "text", (f"{one.id} {one.text}" for one, _ in listed))
    write_lines(folder / "utt2spk", (f"{one.id} {one.speaker}" for one, _ in listed))
    write_lines(folder / "utt2dur", (f"{one.id} {one.duration_seconds}" for one, _ in listed))
    return folder


def kaldi_of_segments(folder, listed):
    kaldi(folder, listed)
    scp, segments = [], []
    for name, contents, segment_starts in joined(listed):
        (folder / f"{name}.wav").write_bytes(contents)
        scp.append(f"{name} {name}.wav")
        segments += [
            f"{u.id} {name} {at} {at + u.duration_seconds}" for u, at in segment_starts[:-1]
        ]
        segments.append(f"{segment_starts[-1][0].id} {name} {segment_starts[-1][1]} -1")
    write_lines(folder / "wav.scp", scp)
    write_lines(folder / "segments", segments)
    return folder


def tar_files(listed) -> dict[str, bytes]:
    files = {}
    for one, _ in listed:
        fields = {"text": one.text, "speaker": one.speaker}
        files[f"./{one.id}.json"] = json.dumps(fields).encode()
        files[f"./{one.id}.ogg"] = one.audio.read_bytes()
        files[f"./{one.id}.cls"] = b"7"
    return files


def tar(folder, listed):
    return write_tar(folder / "all.tar", tar_files(listed))


def tar_folder(folder, listed):
    for number, part in enumerate((listed[:5], listed[5:10], listed[10:])):
        write_tar(folder / f"shards_{number + 8:03d}.tar", tar_files(part))
    return folder


def tar_range(folder, listed):
    return tar_folder(folder, listed) / "shards_{008..010}.tar"


def rows_of(listed) -> list[dict]:
    return [
        {
            "id": one.id,
            "audio": {"bytes": one.audio.read_bytes(), "path": one.audio.name},
            "text": one.text,
            "speaker": one.speaker,
        }
        for one, _ in listed
    ]


def parquet_folder(folder, listed):
    for number, part in enumerate((listed[:5], listed[5:])):
        table = pa.Table.from_pylist(rows_of(part))
        pq.write_table(table, folder / f"train-{number:05d}-of-00002.parquet", row_group_size=2)
    return folder


def arrow(folder, listed):
    table = pa.Table.from_pylist(rows_of(listed))
    with (
        pa.OSFile(str(folder / "x.arrow"), "wb") as file,
        pa.ipc.new_stream(file, table.schema) as out,
    ):
        out.write_table(table, max_chunksize=5)
    return folder / "x.arrow"


@pytest.mark.parametrize(
    "write",
    [
        jsonl,
        jsonl_of_shards,
        common_voice,
        csv_of_segments,
        lhotse,
        lhotse_of_long_recordings,
        lhotse_shar,
        kaldi,
        kaldi_of_segments,
        tar,
        tar_folder,
        tar_range,
        parquet_folder,
        arrow,
    ],
)
def test_all_forms_list_the_same_utterances(write, tmp_path, listed):
    utterances, skipped = read_manifest(write(tmp_path, listed))
    assert skipped == []
    assert [one.id for one in utterances] == [one.id for one, _ in listed]
    for one, (expected, samples) in zip(utterances, listed):
        assert (one.text, one.speaker) == (expected.text, expected.speaker)
        assert abs(one.duration_seconds - expected.duration_seconds) < 0.5 / RATE_HZ
        np.testing.assert_array_equal(samples_of(one), samples)


def test_examples_of_the_documentation_name_the_same_segment(tmp_path):
    """The examples of docs/data.md, in the files that it names."""
    document = (Path(__file__).parents[2] / "docs/data.md").read_text(encoding="utf-8")

    def example(heading: str) -> str:
        after = document.split(f"## {heading}\n\n")[1]
        return "\n".join(line[4:] for line in after.split("\n\n")[0].splitlines())

    (tmp_path / "audio").mkdir()
    noise = np.random.default_rng(0).uniform(-0.1, 0.1, 60 * RATE_HZ)
    soundfile.write(tmp_path / "audio/talk.flac", noise, RATE_HZ)
    (tmp_path / "train.jsonl").write_text(example("JSONL manifest"))
    (tmp_path / "train.csv").write_text(example("Tables"))
    (tmp_path / "cuts.jsonl").write_text(example("Lhotse cuts").replace("\n", " "))
    (tmp_path / "kaldi").mkdir()
    for line in example("Kaldi data directory").splitlines():
        name, contents = line.split(maxsplit=1)
        (tmp_path / "kaldi" / name).write_text(contents.replace("audio/", "../audio/") + "\n")
    names = ("train.jsonl", "train.csv", "cuts.jsonl", "kaldi")
    read = [read_manifest(tmp_path / name) for name in names]
    for (utterance,), skipped in read:
        assert skipped == []
        assert (utterance.text, utterance.speaker) == ("good morning", "ann")
        expected = samples_of(read[0][0][0])
        np.testing.assert_array_equal(samples_of(utterance), expected)
        assert len(expected) == 3.2 * RATE_HZ
