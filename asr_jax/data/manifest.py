"""The utterances of a dataset, in any of the forms that can be read."""

import math
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import chain, pairwise
from pathlib import Path

from asr_jax.audio.samples import AudioError
from asr_jax.data.gc_paused import gc_paused
from asr_jax.data.recordings import recording_seconds
from asr_jax.data.sources.huggingface import huggingface_utterances, is_huggingface
from asr_jax.data.sources.kaldi import is_kaldi, kaldi_utterances
from asr_jax.data.sources.lhotse import is_lhotse, lhotse_utterances
from asr_jax.data.sources.librispeech_folder import folder_utterances
from asr_jax.data.sources.lines import numbered_objects
from asr_jax.data.sources.nemo import jsonl_utterances
from asr_jax.data.sources.prepared import is_prepared, read_prepared
from asr_jax.data.sources.shar import is_shar, shar_utterances
from asr_jax.data.sources.tables import is_table_name, table_utterances
from asr_jax.data.sources.tar_shards import is_shard_name, shard_paths, tar_utterances
from asr_jax.data.sources.texts_beside import paired_utterances
from asr_jax.data.sources.tfds import is_tfds, tfds_utterances
from asr_jax.text_files import escaped
from asr_jax.types import Skipped, Utterance

HEADER_THREADS = 8
# Enough to notice that a manifest's paths are all wrong.
FILES_LOOKED_FOR = 100
MANIFEST = re.compile(r"\.jsonl?(\.gz)?$")


def read_manifest(data: str | Path) -> tuple[list[Utterance], list[Skipped]]:
    """Read a dataset: its utterances, sorted by id, and those left out, with reasons.

    A dataset is a folder in LibriSpeech layout or with a text file beside each recording, a JSONL
    manifest (NeMo), a manifest of cuts (Lhotse), a table (CSV, TSV), a Kaldi data directory, a
    Lhotse Shar, tar shards, Parquet or Arrow files (Hugging Face), or a prepared dataset: see
    docs/data.md and the modules of data/sources. White space in transcripts is collapsed.
    A duration that the listing does not give is read from the recording's header, and the utterance
    is left out if that fails. For the others, only the first few recordings are checked to exist:
    any other missing recording is noticed when it is read.

    Raises ValueError, naming file and line, for an error in the listing itself, for duplicate ids,
    and if no utterance remains.
    """
    with gc_paused():
        listed = list(map(_with_unicode_id, _listed(data)))
    if not listed:
        raise ValueError(
            f"{data}: no transcripts in it (*.trans.txt, NAME.txt beside NAME.wav, wav.scp, *.tar "
            f"or *.parquet in a folder, JSON lines, a table){_listings_in(Path(data))}"
        )
    skipped = [item for item in listed if isinstance(item, Skipped)]
    utterances = [item for item in listed if isinstance(item, Utterance)]
    utterances.sort(key=lambda utterance: utterance.id)
    ids = [utterance.id for utterance in utterances]
    for id, next_id in pairwise(ids):
        if id == next_id:
            times = ids.count(id)
            raise ValueError(f"{data}: the id {id} occurs {times} times, ids must be unique")

    checked = _checked(utterances)
    skipped += [item for item in checked if isinstance(item, Skipped)]
    utterances = [item for item in checked if isinstance(item, Utterance)]
    if not utterances:
        raise ValueError(
            f"{data}: none of its {len(skipped)} recordings can be read, "
            f"the first is {skipped[0].id}: {skipped[0].reason}"
        )
    return utterances, skipped


def require_exists(data: str | Path) -> None:
    """Raise ValueError if there is nothing that `read_manifest` could read."""
    path = Path(data)
    is_part = is_tfds(path) or is_huggingface(path) or is_shard_name(path.name)
    if not (path.is_dir() or path.is_file() or is_part):
        raise ValueError(f"{data}: no such folder or manifest")


def read_transcribed(data: str | Path, name: str) -> tuple[list[Utterance], list[Skipped]]:
    """Read a dataset to be scored, as `read_manifest` does.

    Also raises ValueError if all transcripts are empty. `name` is the option or field that names
    the dataset.
    """
    utterances, skipped = read_manifest(data)
    if not any(utterance.text for utterance in utterances):
        raise ValueError(f"{name} = {data}: all transcripts are empty")
    return utterances, skipped


def _listed(data: str | Path) -> Iterator[Utterance | Skipped]:
    """Return the dataset's utterances as listed, by the reader of its form."""
    require_exists(data)
    path = Path(data)
    if is_prepared(path):
        return iter(read_prepared(path))
    if is_tfds(path):
        return tfds_utterances(path)
    if path.is_dir():
        if is_kaldi(path):
            return kaldi_utterances(path)
        if is_shar(path):
            return shar_utterances(path)
        shards = sorted(child for child in path.iterdir() if _is_shard(child))
        # LibriSpeech's compressed archives may be in the folder that they were unpacked into.
        is_sharded = any(shard.suffix == ".tar" for shard in shards)
        if is_sharded:
            return tar_utterances(shards)
        if is_huggingface(path):
            return huggingface_utterances(path)
        listed = folder_utterances(path)
        first = next(listed, None)
        return chain([first], listed) if first else paired_utterances(path)
    if is_huggingface(path):
        return huggingface_utterances(path)
    if is_shard_name(path.name):
        return tar_utterances(shard_paths(str(data)))
    if is_table_name(path.name):
        return table_utterances(path)
    _, first = next(numbered_objects(path), ("", {}))
    return lhotse_utterances(path) if is_lhotse(first) else jsonl_utterances(path)


def _listings_in(path: Path) -> str:
    """Return the tables and manifests of a folder as the end of a message; empty without them."""
    names = [child.name for child in path.iterdir()] if path.is_dir() else []
    tables = ", ".join(sorted(name for name in names if is_table_name(name)))
    manifests = ", ".join(sorted(name for name in names if MANIFEST.search(name.lower())))
    found = {"tables": tables, "manifests": manifests}
    return "".join(
        f"; it has {kind}, pass one of them: {found[kind]}" for kind in found if found[kind]
    )


def _with_unicode_id(listed: Utterance | Skipped) -> Utterance | Skipped:
    """Return the utterance with an id that every file of results can hold."""
    if (id := escaped(listed.id)) == listed.id:
        return listed
    return listed._replace(id=id) if isinstance(listed, Utterance) else replace(listed, id=id)


def _is_shard(path: Path) -> bool:
    return is_shard_name(path.name) and not path.name.startswith(".") and path.is_file()


def _checked(utterances: list[Utterance]) -> list[Utterance | Skipped]:
    """Return the utterances with all durations known, or why they are left out."""
    checked: list[Utterance | Skipped] = list(utterances)
    unknown = [n for n, item in enumerate(utterances) if math.isnan(item.duration_seconds)]
    known = [n for n, item in enumerate(utterances) if not math.isnan(item.duration_seconds)]
    first, rest = known[:FILES_LOOKED_FOR], known[FILES_LOOKED_FOR:]
    # Opening 280,000 headers mostly waits for the disk.
    with ThreadPoolExecutor(HEADER_THREADS) as pool:

        def check(indices: list[int]) -> None:
            results = pool.map(_with_duration, [utterances[n] for n in indices])
            for n, result in zip(indices, results):
                checked[n] = result

        check(unknown + first)
        if all(isinstance(checked[n], Skipped) for n in first):
            check(rest)
    return checked


def _with_duration(utterance: Utterance) -> Utterance | Skipped:
    """Return the utterance with its duration, or why its recording cannot be used."""
    if math.isnan(utterance.duration_seconds):
        try:
            seconds = recording_seconds(utterance) - utterance.offset_seconds
        except AudioError as error:
            return Skipped(utterance.id, f"{error.reason}: {utterance.place}")
        if seconds <= 0:
            return Skipped(utterance.id, f"offset beyond the end: {utterance.offset_seconds:g} s")
        return utterance._replace(duration_seconds=seconds)
    # Unlike Path.is_file, os.path.isfile is false for a path that is too long.
    if utterance.within is None and not os.path.isfile(utterance.audio):
        return Skipped(utterance.id, f"no such file: {utterance.place}")
    return utterance
