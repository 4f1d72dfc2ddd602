"""Makes the files beside this one, with Hugging Face's datasets, from samples/an4/dev.

    pip install datasets==5.2.0
    python tests/data/huggingface/make.py

`hub` is what `push_to_hub` and `to_parquet` write, and `disk` what `save_to_disk` writes. Both hold
the shortest recordings of two speakers, whose bytes are those of the files.
"""

import shutil
from pathlib import Path

from datasets import Audio, Dataset, DatasetDict

HERE = Path(__file__).parent
DEV = HERE.parents[2] / "samples/an4/dev"


def examples() -> list[dict[str, object]]:
    """Return the three shortest recordings of each of two speakers."""
    rows = []
    for speaker in sorted(path for path in DEV.iterdir() if path.is_dir())[:2]:
        listings = speaker.rglob("*.trans.txt")
        lines = [line for listing in listings for line in listing.read_text().splitlines()]
        texts = dict(line.split(maxsplit=1) for line in lines)
        recordings = sorted(speaker.rglob("*.ogg"), key=lambda path: path.stat().st_size)[:3]
        for path in sorted(recordings):
            audio = {"bytes": path.read_bytes(), "path": path.name}
            text = texts[path.stem]
            rows.append({"audio": audio, "text": text, "speaker_id": int(speaker.name)})
    return rows


if __name__ == "__main__":
    for name in ("hub", "disk"):
        shutil.rmtree(HERE / name, ignore_errors=True)
    rows = examples()
    # An Audio feature from the start would decode the recordings, which takes torchcodec.
    parts = (Dataset.from_list(part) for part in (rows[:4], rows[4:]))
    train, test = (part.cast_column("audio", Audio(decode=False)) for part in parts)
    for number in range(2):
        shard = train.shard(2, number, contiguous=True)
        shard.to_parquet(HERE / f"hub/data/train-{number:05}-of-00002.parquet")
    test.to_parquet(HERE / "hub/data/test-00000-of-00001.parquet")
    DatasetDict({"train": train, "test": test}).save_to_disk(HERE / "disk")
