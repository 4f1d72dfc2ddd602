"""Prepared datasets: ArrayRecord shards of recordings and transcripts, with an index.

A folder is one part, such as train-clean-100. It is a dataset of tensorflow-datasets, which
`builder_from_directory` can read, plus index.json, from which 281,241 utterances are listed in a
second or two without reading the shards. The index is stored by columns, which is twice as fast to
read as by utterances. Neither writing nor reading needs TensorFlow.
"""

import contextlib
import io
import json
import math
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from asr_jax.text_files import escaped, transcript
from asr_jax.types import Record, Utterance

INDEX = "index.json"
FORMAT = 1
COLUMNS = ("id", "text", "speaker", "duration_seconds", "gain", "confidence")
# Columns that earlier versions did not write, and the value of each of their entries.
ABSENT = {"gain": 1.0, "confidence": None}


class Entry(NamedTuple):
    """A recording as it is stored; `audio` is an encoded file that libsndfile can read."""

    id: str
    text: str
    speaker: str
    duration_seconds: float
    audio: bytes
    gain: float = 1.0
    """The factor that restores the recording's samples from those of `audio`."""
    confidence: float | None = None
    """Confidence, 0 to 1, of the model that wrote the text; None if a person wrote it."""


class StoredRecord(NamedTuple):
    """A decoded record of a shard, of this package or of tensorflow-datasets' librispeech."""

    id: str
    text: str
    speaker: str
    audio: bytes | np.ndarray
    """An encoded file, or integer samples."""


ReadRecord = Callable[[int], StoredRecord]
_open_shards: dict[tuple[int, Path], ReadRecord] = {}
_opening = threading.Lock()


def write_prepared(folder: Path, entries: Iterable[Entry]) -> int:
    """Write a part and return the number of its recordings.

    The folder appears under its name once it is complete; leftovers of an earlier start are
    deleted. Raises ValueError or OSError if it cannot be written.
    """
    import tensorflow_datasets as tfds  # takes a second, which only this function needs

    columns: dict[str, list[object]] = {name: [] for name in COLUMNS}

    def examples() -> Iterator[tuple[int, dict[str, object]]]:
        for number, entry in enumerate(entries):
            fields = entry._asdict()
            yield number, {name: fields[name] for name in features}
            for name, column in columns.items():
                column.append(fields[name])

    text, number = tfds.features.Text(), np.float64
    audio = tfds.features.Tensor(shape=(), dtype=np.object_)
    features = tfds.features.FeaturesDict(
        {"id": text, "text": text, "speaker": text, "duration_seconds": number, "audio": audio}
    )

    class Speech(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version(f"{FORMAT}.0.0")

        def _info(self) -> tfds.core.DatasetInfo:
            return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

        def _split_generators(self, dl_manager: object) -> dict[str, Iterator]:
            return {"part": examples()}

        def _generate_examples(self) -> None:
            raise NotImplementedError

    scratch = folder.with_name(f".{folder.name}.writing")
    shutil.rmtree(scratch, ignore_errors=True)
    tfds.disable_progress_bar()
    try:
        builder = Speech(data_dir=scratch, file_format="array_record")
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare()
        written = Path(builder.data_dir)
        _write_index(written, columns, builder.info.splits["part"].shard_lengths)
        os.replace(written, folder)
    except RuntimeError as error:  # ArrayRecord raises it for a full disk
        raise ValueError(f"{folder}: cannot be written ({str(error)[:200]})") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return len(columns["id"])


def _write_index(
    folder: Path, columns: Mapping[str, list[object]], shard_lengths: list[int]
) -> None:
    shards = sorted(folder.glob("*.array_record-*"))
    sizes = [[s.name, s.stat().st_size, n] for s, n in zip(shards, shard_lengths, strict=True)]
    index = {"format": FORMAT, "shards": sizes, **columns}
    (folder / INDEX).write_text(json.dumps(index, ensure_ascii=False), encoding="utf-8")


def is_prepared(folder: Path) -> bool:
    """Return whether the folder is a prepared dataset."""
    return (folder / INDEX).is_file()


def read_prepared(folder: Path) -> list[Utterance]:
    """Read a part's utterances from its index.

    Raises ValueError if the index is damaged or the shards do not have the sizes that it states.
    """
    path = folder / INDEX
    try:
        index = json.loads(path.read_bytes())
        shards = [(folder / name, size, length) for name, size, length in index["shards"]]
        places = [(shard, n) for shard, _, length in shards for n in range(length)]
        columns = [
            index.get(name, [ABSENT[name]] * len(places)) if name in ABSENT else index[name]
            for name in COLUMNS
        ]
        for name, column in zip(COLUMNS, columns):
            if len(column) != len(places):
                raise ValueError(f"{len(column)} entries of {name}, {len(places)} recordings")
        utterances = [
            Utterance(
                id=id,
                audio=audio,
                text=transcript(text),
                duration_seconds=seconds,
                speaker=speaker,
                within=Record(number, gain),
                confidence=math.nan if confidence is None else float(confidence),
            )
            for (audio, number), id, text, speaker, seconds, gain, confidence in zip(
                places, *columns
            )
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: damaged ({error}); prepare the data again") from error
    for shard, size, _ in shards:
        actual_size = shard.stat().st_size if shard.exists() else None
        if actual_size != size:
            state = "missing" if actual_size is None else f"{actual_size} bytes"
            raise ValueError(f"{shard}: {state}, {path} says {size} bytes; prepare the data again")
    return utterances


def read_record(shard: Path, number: int) -> StoredRecord:
    """Read a record of a shard. Raises OSError or ValueError if it cannot be read."""
    # Per process, since a reader does not survive a fork; shared by all threads, since each reader
    # keeps a file open and LibriSpeech has hundreds of shards.
    key = os.getpid(), shard
    with _opening:
        if key not in _open_shards:
            _open_shards[key] = _open_shard(shard)
    return _open_shards[key](number)


def _open_shard(shard: Path) -> ReadRecord:
    """Return a function that reads a record of the shard by its number."""
    from array_record.python.array_record_module import ArrayRecordReader

    if escaped(str(shard)) != str(shard):
        raise ValueError("its path is not UTF-8, as ArrayRecord needs it")
    reader = ArrayRecordReader(str(shard), options="readahead_buffer_size:0")
    decode = _record_decoder(shard.parent)

    def read(number: int) -> StoredRecord:
        (contents,) = reader.read([number])
        return decode(contents)

    return read


def _record_decoder(folder: Path) -> Callable[[bytes], StoredRecord]:
    """Return the decoder of a dataset's records; it leaves audio encoded and avoids TensorFlow."""
    import tensorflow_datasets as tfds

    described = json.loads((folder / "features.json").read_bytes())
    features = {}
    for name, feature in described["featuresDict"]["features"].items():
        if "audio" in feature:
            lazy = feature["audio"].get("lazyDecode", False)
            dtype = np.object_ if lazy else np.dtype(feature["audio"]["dtype"])
            features[name] = tfds.features.Tensor(shape=() if lazy else (None,), dtype=dtype)
        elif "text" in feature:
            features[name] = tfds.features.Text()
        else:
            dtype = feature["tensor"]["dtype"]
            features[name] = tfds.features.Tensor(
                shape=(), dtype=np.object_ if dtype == "string" else np.dtype(dtype)
            )
    decoder = tfds.features.FeaturesDict(features)

    # The second name is that of tensorflow-datasets' librispeech.
    audio_name = "audio" if "audio" in features else "speech"
    speaker_name = "speaker" if "speaker" in features else "speaker_id"

    def decode(contents: bytes) -> StoredRecord:
        record = decoder.deserialize_example_np(contents)
        assert isinstance(record, dict)
        audio = record[audio_name]
        if not isinstance(audio, bytes | np.ndarray):
            raise ValueError("the record has no audio")
        id, text, speaker = (_string(record[name]) for name in ("id", "text", speaker_name))
        return StoredRecord(id, text, speaker, audio)

    return decode


def _string(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
