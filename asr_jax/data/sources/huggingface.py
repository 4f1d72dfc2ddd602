"""Hugging Face's datasets: Parquet files, and the Arrow files that `save_to_disk` writes."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from asr_jax.data.sources.file_names import bucket_url
from asr_jax.types import Skipped, Utterance

SUFFIXES = (".parquet", ".arrow")
# Words in file names that state a split, where one folder has several.
SPLITS = "train training validation valid val dev test testing eval evaluation".split()


def is_huggingface(data: Path) -> bool:
    """Return whether this is a Parquet or Arrow file, a folder of them, or one of its splits.

    Whatever is in a bucket is taken to be one. A split is a folder, or FOLDER/NAME where FOLDER has
    files NAME-00000-of-00002.parquet.
    """
    if bucket_url(data):
        return True
    if data.is_file():
        return data.suffix.lower() in SUFFIXES
    if data.is_dir():
        return (data / "dataset_dict.json").is_file() or bool(_files(data))
    return any(_split(file) == data.name for file in _files(data.parent))


def huggingface_utterances(data: Path) -> Iterator[Utterance | Skipped]:
    """Read the rows of all files of a dataset, in place.

    The recording of a row is in its column `audio`: {bytes, path}, bytes alone or a path, which is
    relative to the dataset's folder, to the file's or to the working directory. The id is the
    row's `id`, or the name of its `file`, `path` or recording without its suffix: the first of
    these that differs in all rows that have it; otherwise FILE:ROW, with rows from 0.

    Raises ValueError if pyarrow is missing, if a folder has several splits, and if no file can be
    read, which includes files without a column of audio or text. If others can be read, such a
    file is skipped.
    """
    try:
        from asr_jax.data.sources.arrow_rows import read_tables
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{bucket_url(data) or data}: Parquet and Arrow need the package pyarrow, "
            "pip install 'asr_jax[parquet]'"
        ) from error

    files = _files_of(data)
    if not files:
        raise ValueError(f"{bucket_url(data) or data}: no *.parquet or *.arrow files in it")
    rows = read_tables(files, data if files[0].is_relative_to(data) else data.parent)
    named = [row.names for row in rows if row.names]
    kinds = enumerate(zip(*named))
    chosen = next((n for n, names in kinds if _are_unique(names)), None)
    for row in rows:
        name = row.names[chosen] if row.names and chosen is not None else ""
        listed, id = row.listed, name or row.location
        yield replace(listed, id=id) if isinstance(listed, Skipped) else listed._replace(id=id)


def _are_unique(names: Sequence[str]) -> bool:
    given = [name for name in names if name]
    return 0 < len(given) == len(set(given))


def _files_of(data: Path) -> list[Path]:
    """Return the files of one dataset. Raises ValueError if there are several datasets."""
    if data.is_file() or (bucket_url(data) and data.suffix.lower() == ".parquet"):
        return [data]
    if not (data.is_dir() or bucket_url(data) and _files(data)):
        return [file for file in _files(data.parent) if _split(file) == data.name]
    saved = data / "dataset_dict.json"
    is_saved = saved.is_file()
    splits = _field(saved, "splits") if is_saved else sorted({_split(f) for f in _files(data)})
    if len(splits) > 1:
        named = ", ".join(str(split) or "others" for split in splits)
        where = bucket_url(data) or data
        raise ValueError(f"{where}: holds several splits, {named}; name one: {where}/{splits[-1]}")
    return _files(data / str(splits[0]) if is_saved else data)


def _files(folder: Path) -> list[Path]:
    """Return the files of a folder, or of its folder `data`, where Hugging Face's hub has them."""
    if (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file():
        listed = _field(folder / "state.json", "_data_files")
        names = [file.get("filename") for file in listed if isinstance(file, dict)]
        return [folder / name for name in names if isinstance(name, str)]
    for parent in (folder, folder / "data"):
        if found := sorted(path for path in _children(parent) if not path.name.startswith(".")):
            return found
    return []


def _children(folder: Path) -> list[Path]:
    """Return the Parquet and Arrow files directly in a folder; none if there is no such folder."""
    if bucket_url(folder):
        from asr_jax.data.sources.bucket import bucket_files

        return [path for path in bucket_files(folder) if path.suffix.lower() in SUFFIXES]
    paths = folder.iterdir() if folder.is_dir() else ()
    return [path for path in paths if path.suffix.lower() in SUFFIXES and path.is_file()]


def _field(path: Path, name: str) -> list[object]:
    """Return a list that a JSON file of `save_to_disk` has."""
    try:
        listed = json.loads(path.read_bytes())[name]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: damaged, needs the field {name}") from error
    if not isinstance(listed, list) or not listed:
        raise ValueError(f"{path}: {name} must be a list that is not empty")
    return listed


def _split(file: Path) -> str:
    """Return the split that the name of a file states; empty if it states none."""
    # Earlier versions of datasets end the name in a fingerprint.
    if numbered := re.fullmatch(r"(.+?)-\d+-of-\d+(-[0-9a-f]+)?", file.stem):
        return numbered[1]
    return next((w for w in re.split(r"[^a-z]+", file.stem.lower()) if w in SPLITS), "")
