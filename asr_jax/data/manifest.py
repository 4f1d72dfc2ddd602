"""What utterances there are in DATA, whatever kind of listing that is."""

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

from asr_jax.audio import AudioError
from asr_jax.data.gc_paused import gc_paused
from asr_jax.data.recordings import recording_seconds
from asr_jax.data.sources.kaldi import is_kaldi, kaldi_utterances
from asr_jax.data.sources.lhotse import is_lhotse, lhotse_utterances
from asr_jax.data.sources.librispeech_folder import folder_utterances
from asr_jax.data.sources.lines import numbered_objects
from asr_jax.data.sources.nemo import jsonl_utterances
from asr_jax.data.sources.prepared import is_prepared, read_prepared
from asr_jax.data.sources.tar_shards import is_shard_name, shard_paths, tar_utterances
from asr_jax.data.sources.tfds import is_tfds, tfds_utterances
from asr_jax.types import Skipped, Utterance

HEADER_THREADS = 8
# Enough to see that a manifest's paths lead nowhere.
FILES_LOOKED_FOR = 100


def read_manifest(data: str | Path) -> tuple[list[Utterance], list[Skipped]]:
    """Utterances of DATA, sorted by id, and those left out, with the reasons.

    DATA is a folder in LibriSpeech layout, a JSONL manifest (NeMo), a manifest of cuts (Lhotse), a
    Kaldi data directory, tar shards, or a prepared dataset: docs/data.md, and the file of this room
    that is named after the kind. White space in transcripts is collapsed. What the listing gives no
    duration for is measured by its header, and left out if that cannot be read. Where it does, only
    the first few recordings are looked for: any other that is missing shows when it is read.

    Raises ValueError, naming file and line, for what is wrong with the listing itself, for
    duplicate ids, and when nothing is left.
    """
    with gc_paused():
        listed = list(_listed(data))
    if not listed:
        raise ValueError(
            f"{data}: no transcripts in it (*.trans.txt, wav.scp or *.tar in a folder, JSON lines)"
        )
    skipped = [item for item in listed if isinstance(item, Skipped)]
    utterances = [item for item in listed if isinstance(item, Utterance)]
    utterances.sort(key=lambda utterance: utterance.id)
    ids = [utterance.id for utterance in utterances]
    for id, following in pairwise(ids):
        if id == following:
            times = ids.count(id)
            raise ValueError(f"{data}: the id {id} occurs {times} times, ids must be unique")

    measured = _measured(utterances)
    skipped += [item for item in measured if isinstance(item, Skipped)]
    utterances = [item for item in measured if isinstance(item, Utterance)]
    if not utterances:
        raise ValueError(
            f"{data}: none of its {len(skipped)} recordings can be read, "
            f"the first is {skipped[0].id}: {skipped[0].reason}"
        )
    return utterances, skipped


def require_exists(data: str | Path) -> None:
    """Raises ValueError where nothing lies that read_manifest could read."""
    path = Path(data)
    if not (path.is_dir() or path.is_file() or is_tfds(path) or is_shard_name(path.name)):
        raise ValueError(f"{data}: no such folder or manifest")


def read_transcribed(data: str | Path, name: str) -> tuple[list[Utterance], list[Skipped]]:
    """read_manifest of what is to be scored: raises ValueError too where no transcript has a word.

    `name` is what the user calls it.
    """
    utterances, skipped = read_manifest(data)
    if not any(utterance.text for utterance in utterances):
        raise ValueError(f"{name} = {data}: all transcripts are empty")
    return utterances, skipped


def _listed(data: str | Path) -> Iterator[Utterance | Skipped]:
    require_exists(data)
    path = Path(data)
    if is_prepared(path):
        return iter(read_prepared(path))
    if is_tfds(path):
        return tfds_utterances(path)
    if path.is_dir():
        if is_kaldi(path):
            return kaldi_utterances(path)
        shards = sorted(inside for inside in path.iterdir() if is_shard_name(inside.name))
        # The compressed archives of LibriSpeech may lie beside what they held.
        is_sharded = any(shard.suffix == ".tar" for shard in shards)
        return tar_utterances(shards) if is_sharded else folder_utterances(path)
    if is_shard_name(path.name):
        return tar_utterances(shard_paths(str(data)))
    _, first = next(numbered_objects(path), ("", {}))
    return lhotse_utterances(path) if is_lhotse(first) else jsonl_utterances(path)


def _measured(utterances: list[Utterance]) -> list[Utterance | Skipped]:
    """With the durations that headers give where the listing does not."""
    measured: list[Utterance | Skipped] = list(utterances)
    unknown = [n for n, one in enumerate(utterances) if math.isnan(one.duration_seconds)]
    known = [n for n, one in enumerate(utterances) if not math.isnan(one.duration_seconds)]
    first = known[:FILES_LOOKED_FOR]
    # Opening 280,000 headers is waiting for the disk.
    with ThreadPoolExecutor(HEADER_THREADS) as pool:

        def measure(numbers: list[int]) -> None:
            found = pool.map(lambda number: _measured_one(utterances[number]), numbers)
            for number, one in zip(numbers, found):
                measured[number] = one

        measure(unknown + first)
        if all(isinstance(measured[number], Skipped) for number in first):
            measure(known[FILES_LOOKED_FOR:])
    return measured


def _measured_one(utterance: Utterance) -> Utterance | Skipped:
    if math.isnan(utterance.duration_seconds):
        try:
            seconds = recording_seconds(utterance) - utterance.offset_seconds
        except AudioError as error:
            return Skipped(utterance.id, f"{error.reason}: {utterance.place}")
        if seconds <= 0:
            return Skipped(utterance.id, f"offset beyond the end: {utterance.offset_seconds:g} s")
        return utterance._replace(duration_seconds=seconds)
    if utterance.within is None and not utterance.audio.is_file():
        return Skipped(utterance.id, f"no such file: {utterance.place}")
    return utterance
