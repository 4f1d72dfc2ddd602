"""CPU seconds to read manifests, and segments of long recordings: python benchmarks/listings.py

Manifests of 281,241 utterances, the number in LibriSpeech's training parts, with random transcripts
of 35 words and with durations: a JSONL manifest, Lhotse cuts and a Kaldi data directory. A tar
shard of 20,000 utterances. Parquet and Arrow files of 1000 recordings of ten seconds, in FLAC: to
list them, and to read one of them, in random order, as from many row groups that are not in memory,
and in their own order. Then ten seconds of an hour of noise at 16 kHz in each format, including
opening the file.
"""

import io
import json
import random
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

from asr_jax.audio.samples import read_audio
from asr_jax.data.manifest import FILES_LOOKED_FOR, read_manifest
from asr_jax.data.recordings import read_recording
from asr_jax.data.sources import parquet

UTTERANCES, SHARD_UTTERANCES, TABLE_UTTERANCES = 281_241, 20_000, 1000
RATE_HZ, HOUR_SECONDS = 16_000, 3600
FORMATS = {
    "wav": {},
    "flac": {},
    "ogg": {"format": "OGG", "subtype": "VORBIS"},
    "opus": {"format": "OGG", "subtype": "OPUS"},
    "mp3": {"format": "MP3", "subtype": "MPEG_LAYER_III"},
}


def synthetic_utterances() -> list[tuple[str, str, float, str]]:
    """Return (id, path, seconds, transcript), sorted by id."""
    draw = random.Random(0)
    words = "SPEECH IS A LONG STORY THAT PEOPLE TELL EACH OTHER".split()
    listed = []
    for n in range(UTTERANCES):
        speaker, chapter = f"{n // 3000:04d}", f"{n // 50:06d}"
        id = f"{speaker}-{chapter}-{n % 50:04d}"
        seconds, text = round(draw.uniform(1, 16), 3), " ".join(draw.choices(words, k=35))
        listed.append((id, f"audio/{speaker}/{chapter}/{id}.flac", seconds, text))
    return listed


def write_listings(folder: Path) -> list[Path]:
    """Write the three manifests, and the recordings that reading them checks for."""
    jsonl, cuts = folder / "manifest.jsonl", folder / "cuts.jsonl"
    lines = {name: [] for name in (jsonl, cuts, folder / "wav.scp", folder / "text")}
    lines |= {folder / "utt2dur": []}
    for n, (id, path, seconds, text) in enumerate(synthetic_utterances()):
        if n < FILES_LOOKED_FOR:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).touch()
        stretch = {"start": 0, "duration": seconds, "channel": 0}
        recording = {
            "id": id,
            "sources": [{"type": "file", "channels": [0], "source": path}],
            "sampling_rate": RATE_HZ,
            "num_samples": round(seconds * RATE_HZ),
            "duration": seconds,
            "channel_ids": [0],
        }
        supervision = {"id": id, "recording_id": id, "text": text, "speaker": id[:4]} | stretch
        cut = {"id": f"{id}-0", "supervisions": [supervision], "recording": recording} | stretch
        fields = {"audio_filepath": path, "duration": seconds, "text": text, "speaker": id[:4]}
        lines[jsonl].append(json.dumps(fields))
        lines[cuts].append(json.dumps(cut | {"type": "MonoCut"}))
        lines[folder / "wav.scp"].append(f"{id} {path}")
        lines[folder / "text"].append(f"{id} {text}")
        lines[folder / "utt2dur"].append(f"{id} {seconds}")
    for path, written in lines.items():
        path.write_text("\n".join(written) + "\n")
    return [jsonl, cuts, folder]


def write_shard(path: Path) -> Path:
    with tarfile.open(path, "w") as tar:
        for n in range(SHARD_UTTERANCES):
            text = json.dumps({"text": "WORDS", "duration": 10.0}).encode()
            for suffix, contents in (("flac", bytes(1000)), ("json", text)):
                info = tarfile.TarInfo(f"{n:06d}.{suffix}")
                info.size = len(contents)
                tar.addfile(info, io.BytesIO(contents))
    return path


def write_tables(folder: Path) -> dict[str, Path]:
    """Write the same table in four ways; all recordings differ in the MD5 of their headers."""
    flac = io.BytesIO()
    noise = np.random.default_rng(0).normal(scale=0.05, size=10 * RATE_HZ)
    soundfile.write(flac, noise, RATE_HZ, format="FLAC")
    start, end = flac.getvalue()[:26], flac.getvalue()[42:]
    draw = random.Random(0)
    audio = [{"bytes": start + draw.randbytes(16) + end} for _ in range(TABLE_UTTERANCES)]
    names = [f"{n:06d}" for n in range(TABLE_UTTERANCES)]
    table = pa.table({"audio": audio, "text": ["WORDS"] * TABLE_UTTERANCES, "id": names})
    paths = {name: folder / name for name in ("plain.parquet", "100.parquet", "1000.parquet")}
    plain = {"compression": "none", "use_dictionary": False}
    pq.write_table(table, paths["plain.parquet"], row_group_size=100, **plain)
    pq.write_table(table, paths["100.parquet"], row_group_size=100)
    pq.write_table(table, paths["1000.parquet"], row_group_size=1000)
    paths["x.arrow"] = folder / "x.arrow"
    with pa.OSFile(str(paths["x.arrow"]), "wb") as file:
        with pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table, max_chunksize=100)
    return paths


def time_tables(folder: Path) -> None:
    for name, path in write_tables(folder).items():
        listing = min(timed(lambda path=path: read_manifest(path)) for _ in range(3))
        utterances, _ = read_manifest(path)

        def read_randomly(utterances=utterances) -> None:
            for utterance in random.Random(0).sample(utterances, 50):
                parquet._row_group.cache_clear()
                read_recording(utterance, sample_rate_hz=RATE_HZ)

        def read_in_order(utterances=utterances) -> None:
            for utterance in utterances[:300]:
                read_recording(utterance, sample_rate_hz=RATE_HZ)

        randomly, in_order = 1000 * timed(read_randomly) / 50, 1000 * timed(read_in_order) / 300
        print(
            f"{name:14} {listing:6.2f} s, one: random {randomly:.1f} ms, in order {in_order:.1f} ms"
        )
        path.unlink()


def write_hour(path: Path) -> Path:
    draw = np.random.default_rng(0)
    with soundfile.SoundFile(path, "w", RATE_HZ, 1, **FORMATS[path.suffix[1:]]) as file:
        for _ in range(HOUR_SECONDS):
            file.write(draw.normal(scale=0.05, size=RATE_HZ).astype(np.float32))
    return path


def timed(run) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for path in [*write_listings(folder), write_shard(folder / "shard.tar")]:
            number = SHARD_UTTERANCES if path.suffix == ".tar" else UTTERANCES
            seconds = min(timed(lambda path=path: read_manifest(path)) for _ in range(3))
            kind = path.name if path != folder else "wav.scp, text, utt2dur"
            print(f"{kind:24} {number:8,} utterances  {seconds:6.2f} s", flush=True)
        time_tables(folder)
        for suffix in FORMATS:
            path = write_hour(folder / f"hour.{suffix}")
            whole = timed(lambda path=path: read_audio(path, sample_rate_hz=RATE_HZ))
            at = [
                timed(
                    lambda path=path, start=start: read_audio(
                        path,
                        sample_rate_hz=RATE_HZ,
                        offset_seconds=start,
                        duration_seconds=10.0,
                    )
                )
                for start in (1.0, 1800.0, 3500.0)
            ]
            places = ", ".join(f"{1000 * seconds:.0f}" for seconds in at)
            print(f"{suffix:5} hour {whole:6.2f} s, 10 s of it at 1, 1800, 3500 s: {places} ms")
            path.unlink()


if __name__ == "__main__":
    main()
