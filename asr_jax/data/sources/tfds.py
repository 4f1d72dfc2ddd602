"""Datasets of tensorflow-datasets' own librispeech builder, read without TensorFlow.

Both configs are supported: `default` stores samples, `lazy_decode` stores FLAC.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from asr_jax.audio.samples import AudioError, audio_duration_seconds
from asr_jax.data.sources.lines import first_line
from asr_jax.data.sources.prepared import read_record
from asr_jax.text_files import transcript
from asr_jax.types import Record, Skipped, Utterance

RATE_HZ = 16_000


def is_tfds(folder: Path) -> bool:
    """Return whether this is .../librispeech/CONFIG/VERSION or a split of it, VERSION/SPLIT."""
    if (folder / "dataset_info.json").is_file() and (folder / "features.json").is_file():
        return True
    return not folder.exists() and folder.parent.is_dir() and is_tfds(folder.parent)


def tfds_utterances(data: Path) -> Iterator[Utterance | Skipped]:
    """Read the utterances of all splits, or of the split that `data` names.

    All records are read, since only they have the durations.
    """
    folder, wanted = (data, None) if data.is_dir() else (data.parent, data.name)
    try:
        info = json.loads((folder / "dataset_info.json").read_bytes())
        splits = {split["name"]: split for split in info["splits"]}
        name = info["name"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / 'dataset_info.json'}: damaged") from error
    if name != "librispeech":
        raise ValueError(
            f"{folder}: a dataset {name} of tensorflow-datasets; must be its librispeech, or what "
            "asr-jax prepare wrote, whose index.json is missing"
        )
    if wanted is not None and wanted not in splits:
        raise ValueError(f"{data}: no split {wanted}; {folder} has {', '.join(sorted(splits))}")
    if info.get("fileFormat") != "array_record":
        raise ValueError(
            f"{folder}: its shards are {info.get('fileFormat')}; prepare it with "
            "file_format='array_record'"
        )
    for name in [wanted] if wanted is not None else splits:
        lengths = [int(length) for length in splits[name]["shardLengths"]]
        for shard, length in enumerate(lengths):
            path = folder / f"{info['name']}-{name}.array_record-{shard:05}-of-{len(lengths):05}"
            if not path.is_file():
                raise ValueError(f"{path}: missing, though dataset_info.json lists it")
            for number in range(length):
                yield _utterance(path, number)


def _utterance(path: Path, number: int) -> Utterance | Skipped:
    """Read a record of a shard as an utterance."""
    try:
        record = read_record(path, number)
    except (OSError, ValueError, RuntimeError) as error:
        return Skipped(f"{path.name}:{number}", f"record cannot be read: {first_line(error)}")
    id, audio = record.id, record.audio
    try:
        if isinstance(audio, bytes):
            seconds = audio_duration_seconds(path, contents=audio)
        else:
            seconds = len(audio) / RATE_HZ
    except AudioError as error:
        return Skipped(id, error.reason)
    return Utterance(
        id=id,
        audio=path,
        text=transcript(record.text),
        duration_seconds=seconds,
        speaker=record.speaker,
        within=Record(number),
    )
