"""Folders of Hugging Face transformers: config.json and one or several safetensors files."""

import functools
import json
from pathlib import Path

import numpy as np
import safetensors  # pyright: ignore[reportMissingImports]

from asr_jax.pretrained.weights import Weight, Weights

_ONE, _INDEX = "model.safetensors", "model.safetensors.index.json"
# safetensors' names of types, in NumPy's.
_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I64": "int64",
    "I32": "int32",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}


def read_json(path: Path) -> dict[str, object]:
    """Read a file that holds a JSON object; a file that does not exist is an empty one."""
    if not path.is_file():
        return {}
    try:
        fields = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{path}: must hold an object")
    return fields


def read_weights(folder: Path) -> Weights:
    """Return the tensors of all shards by their names. Only their descriptions are read here.

    Raises ValueError for files that are missing or damaged, or that disagree with the index.
    """
    if (folder / _ONE).is_file():
        return _shard(folder / _ONE)
    index = read_json(folder / _INDEX).get("weight_map")
    if not isinstance(index, dict):
        raise ValueError(f"{folder}: needs {_ONE}, or shards and {_INDEX}")
    weights: dict[str, Weight] = {}
    for file in sorted(set(map(str, index.values()))):
        if Path(file).name != file:
            raise ValueError(f"{folder / _INDEX}: {file!r}: must name a file in the same folder")
        shard = _shard(folder / file)
        weights |= {name: weight for name, weight in shard.items() if index.get(name) == file}
    if missing := sorted(index.keys() - weights.keys()):
        raise ValueError(f"{folder / index[missing[0]]}: tensor {missing[0]} is missing")
    return weights


def _shard(path: Path) -> dict[str, Weight]:
    try:
        with safetensors.safe_open(path, "np") as file:
            described = {name: file.get_slice(name) for name in file.keys()}
            return {
                name: Weight(
                    tuple(tensor.get_shape()),
                    _DTYPES.get(str(tensor.get_dtype()), str(tensor.get_dtype())),
                    functools.partial(_read, path, name),
                )
                for name, tensor in described.items()
            }
    except (OSError, safetensors.SafetensorError) as error:
        raise ValueError(f"{path}: not a complete safetensors file: {error}") from error


def _read(path: Path, name: str) -> np.ndarray:
    with safetensors.safe_open(path, "np") as file:
        return file.get_tensor(name)
