"""Directories that tensorflow-datasets' own librispeech builder prepared, without TensorFlow.

Both of its configs: `default`, which holds samples, and `lazy_decode`, which holds FLAC.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from asr_jax.audio import AudioError, audio_duration_seconds
from asr_jax.data.sources.prepared import read_record
from asr_jax.text import collapse_white_space
from asr_jax.types import Record, Skipped, Utterance

RATE_HZ = 16_000


def is_tfds(folder: Path) -> bool:
    """Whether this is .../librispeech/CONFIG/VERSION, or a split of it: .../VERSION/SPLIT."""
    if (folder / "dataset_info.json").is_file() and (folder / "features.json").is_file():
        return True
    return not folder.exists() and folder.parent.is_dir() and is_tfds(folder.parent)


def tfds_utterances(data: Path) -> Iterator[Utterance | Skipped]:
    """Utterances of all splits, or of the one that `data` names; reads all of it for durations."""
    folder, wanted = (data, None) if data.is_dir() else (data.parent, data.name)
    try:
        info = json.loads((folder / "dataset_info.json").read_text())
        splits = {split["name"]: split for split in info["splits"]}
        name = info["name"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / 'dataset_info.json'}: damaged") from error
    if name != "librispeech":
        raise ValueError(
            f"{folder}: tensorflow-datasets' {name}; must be its librispeech, or what asr-jax "
            "prepare wrote, whose index.json is missing"
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
    try:
        fields = read_record(path, number)
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path}: its record {number} cannot be read: {error}") from error
    id, audio = fields["id"].decode(), fields["audio"]
    try:
        is_encoded = isinstance(audio, bytes)
        seconds = (
            audio_duration_seconds(path, contents=audio) if is_encoded else len(audio) / RATE_HZ
        )
    except AudioError as error:
        return Skipped(id, error.reason)
    return Utterance(
        id=id,
        audio=path,
        text=collapse_white_space(fields["text"].decode()),
        duration_seconds=seconds,
        speaker=str(fields["speaker_id"]),
        within=Record(number),
    )
