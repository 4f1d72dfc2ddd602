"""Makes `default` and `lazy_decode` beside this file, by tensorflow-datasets' own librispeech.

    pip install tensorflow-cpu==2.21.0 tensorflow-datasets==4.9.10 importlib_resources \\
        pydub soundfile
    python tests/data/stock_librispeech/make.py          # needs ffmpeg and ffprobe

Archives in LibriSpeech's form are made of the shortest recordings of samples/an4/dev, and the
builder finds them where it looks for downloads. It wants all seven; the shards of two splits are
kept, and recordings.json says what these hold.
"""

import dataclasses
import io
import json
import shutil
import tarfile
import tempfile
from pathlib import Path
from unittest import mock

import soundfile
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download import checksums
from tensorflow_datasets.datasets.librispeech import librispeech_dataset_builder as stock

HERE = Path(__file__).parent
KEPT = ("dev_clean", "test_clean")
DEV = HERE.parents[2] / "samples/an4/dev"


def archive_of(path: Path, part: str, recordings: list[Path]) -> None:
    def add(name: str, contents: bytes) -> None:
        member = tarfile.TarInfo(f"LibriSpeech/{name}")
        member.size = len(contents)
        archive.addfile(member, io.BytesIO(contents))

    with tarfile.open(path, "w:gz") as archive:
        add("SPEAKERS.TXT", b"; ID | SEX | SUBSET | MINUTES | NAME\n")
        add("CHAPTERS.TXT", b"; ID | READER | MINUTES | SUBSET | PROJ. | BOOK ID | CH. TITLE\n")
        for recording in recordings:
            speaker, chapter = recording.parts[-3:-1]
            samples, rate_hz = soundfile.read(recording, dtype="int16")
            assert rate_hz == 16_000
            flac = io.BytesIO()
            soundfile.write(flac, samples, rate_hz, format="FLAC")
            listed = (recording.parent / f"{speaker}-{chapter}.trans.txt").read_text().splitlines()
            (line,) = (line for line in listed if line.startswith(recording.stem + " "))
            where = f"{part}/{speaker}/{chapter}"
            add(f"{where}/{recording.stem}.flac", flac.getvalue())
            add(f"{where}/{speaker}-{chapter}.trans.txt", f"{line}\n".encode())


def main() -> None:
    frames = lambda path: (soundfile.info(path).frames, path)
    # Of each chapter one.
    shortest = {path.parent: path for path in sorted(DEV.rglob("*.ogg"), key=frames, reverse=True)}
    left = sorted(shortest.values(), key=frames)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "archives").mkdir()
        urls, held = {}, {}
        for split, url in stock._DL_URLS.items():
            archive = folder / "archives" / url.rpartition("/")[2]
            # One split has two recordings, the others one, as the builder wants no empty ones.
            recordings = [left.pop(0) for _ in range(2 if split == "dev_clean" else 1)]
            archive_of(archive, archive.name.partition(".")[0], recordings)
            urls[url] = dataclasses.replace(
                checksums.compute_url_info(archive), filename=archive.name
            )
            if split in KEPT:
                held[split] = [str(recording.relative_to(DEV)) for recording in recordings]
        (HERE / "recordings.json").write_text(json.dumps(held, indent=1) + "\n")
        at_hand = tfds.download.DownloadConfig(
            manual_dir=folder / "archives",
            extract_dir=folder / "extracted",
            try_download_gcs=False,
        )
        with mock.patch.object(stock.Builder, "url_infos", urls):
            for config in ("default", "lazy_decode"):
                builder = stock.Builder(
                    config=config, data_dir=folder / "out", file_format="array_record"
                )
                builder.download_and_prepare(download_config=at_hand)
                shutil.rmtree(HERE / config, ignore_errors=True)
                shutil.copytree(builder.data_dir, HERE / config)
                for shard in (HERE / config).glob("*.array_record-*"):
                    if not shard.name.startswith(tuple(f"librispeech-{name}." for name in KEPT)):
                        shard.unlink()


if __name__ == "__main__":
    main()
