"""Parameters for inference in one safetensors file, in float32, bfloat16 or int8.

A file has no optimizer state and no executable content. Its tensors are named by the parameters'
paths, such as `encoder.blocks.attention.query.kernel`; its metadata has format and version
(format_version.py).

For a matrix in int8, `NAME` holds round(value / scale), and `NAME.channel_scale` a float32 for each
output channel (each label of an embedding): the channel's largest magnitude divided by 127.
Other parameters (biases, norms, short kernels) are few and stay floats.
"""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import safetensors  # pyright: ignore[reportMissingImports]
from jaxtyping import PyTree
from safetensors.numpy import save_file  # pyright: ignore[reportMissingImports]

from asr_jax.export.format_version import ABOUT, ArtifactError, require_readable

# A scale takes four bytes, which does not pay for fewer values.
_FEWEST_PER_SCALE = 8
_SCALE = ".channel_scale"

Dtype = Literal["float32", "bfloat16"]


def save_params(
    path: Path, params: PyTree, *, dtype: Dtype, int8: bool, about: dict[str, str]
) -> None:
    """Write a tree of float arrays, with `about` in the file's metadata."""
    tensors = {}
    for name, value in leaves_by_path(params).items():
        value = np.asarray(value, np.float32)
        if int8 and (axis := _summed_axis(name, value.shape)) is not None:
            tensors[name], tensors[name + _SCALE] = to_int8(value, axis)
        else:
            tensors[name] = value.astype(jnp.dtype(dtype))
    save_file(tensors, path, metadata={**about, **ABOUT})


def write_params(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    value_of: Callable[[str], np.ndarray],
    *,
    about: dict[str, str],
) -> None:
    """Write float32 parameters one after the other, so that one of them is in memory at a time.

    The file is that of `save_params`, whose library takes all values at once. A file of safetensors
    is the length of a header in eight bytes, the header in JSON, and the values.

    Args:
        value_of: maps a name of `shapes` to its values.
    """
    header: dict[str, object] = {"__metadata__": {**about, **ABOUT}}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            values = np.ascontiguousarray(value_of(name), "<f4")
            if values.shape != shape:
                raise ValueError(f"{name} has shape {values.shape}, must be {shape}")
            file.write(values.data)


def read_about(path: Path) -> dict[str, str]:
    """Read a file's metadata. Raises ArtifactError for a file that this package cannot read."""
    try:
        with safetensors.safe_open(path, "np") as file:
            about = file.metadata() or {}
    except safetensors.SafetensorError as error:
        raise ArtifactError(f"{path}: not a complete safetensors file: {error}") from error
    require_readable(path, about)
    return about


def load_params(path: Path, abstract: PyTree) -> tuple[PyTree, dict[str, str]]:
    """Read the parameters as float32, with the structure of `abstract`, and the metadata.

    Raises ArtifactError unless names and shapes are those of `abstract`.
    """
    about = read_about(path)
    with safetensors.safe_open(path, "np") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    scales = {name for name in tensors if name.endswith(_SCALE)}
    values = {name: tensors[name].astype(np.float32) for name in tensors.keys() - scales}
    for name in scales:
        values[name.removesuffix(_SCALE)] *= tensors[name]
    expected = {name: leaf.shape for name, leaf in leaves_by_path(abstract).items()}
    for name in sorted(expected.keys() | values.keys()):
        shape = values[name].shape if name in values else "missing"
        if shape != expected.get(name):
            raise ArtifactError(
                f"{path}: not a model of this config: {name} is {shape}, expected "
                f"{expected.get(name, 'none')}"
            )
    return jax.tree_util.tree_map_with_path(lambda keys, _: values[_name(keys)], abstract), about


def to_int8(value: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Return int8 values and float32 scales, shared along `axis`: value ~ int8 * scale."""
    largest = np.abs(value).max(axis=axis, keepdims=True)
    scale = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    return np.rint(value / scale).astype(np.int8), scale


def _summed_axis(name: str, shape: tuple[int, ...]) -> int | None:
    """Return the axis that a matrix product sums over; None for other and for small parameters."""
    axis = {"kernel": -2, "down": -2, "up": -2, "embedding": -1}.get(name.rpartition(".")[2])
    if axis is None or len(shape) < 2 or shape[axis] < _FEWEST_PER_SCALE:
        return None
    return axis


def leaves_by_path(tree: PyTree) -> dict[str, PyTree]:
    """Return the leaves of a tree of dicts by their paths, joined by dots."""
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _name(path: jax.tree_util.KeyPath) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")
