"""Checkpoints that torch.load(weights_only=True) reads, written without torch.

The file is a zip of an uncompressed pickle, which describes the tensors, and of one member for the
values of each. torch_checkpoint.py of the room above reads it back.
"""

import struct
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

_ROOT = "model_weights"
_STORAGES = {"float32": "FloatStorage", "int64": "LongStorage"}


def write_checkpoint(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write a state dict of float32 and int64 tensors."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        archive.writestr(f"{_ROOT}/data.pkl", b"".join(_pickle(tensors)))
        archive.writestr(f"{_ROOT}/byteorder", b"little")
        for key, tensor in enumerate(tensors.values()):
            values = np.array(tensor, tensor.dtype.newbyteorder("<"), order="C")
            archive.writestr(f"{_ROOT}/data/{key}", values.tobytes())
        archive.writestr(f"{_ROOT}/version", b"3\n")


def _pickle(tensors: Mapping[str, np.ndarray]) -> Iterator[bytes]:
    """Yield the operations, of pickle's protocol 2, that build an OrderedDict of tensors."""
    yield b"\x80\x02" + _name("collections", "OrderedDict") + b")R("
    for key, (name, tensor) in enumerate(tensors.items()):
        yield _text(name) + _name("torch._utils", "_rebuild_tensor_v2") + b"(("
        yield _text("storage") + _name("torch", _STORAGES[tensor.dtype.name])
        yield _text(str(key)) + _text("cpu") + _integer(tensor.size) + b"tQ"
        yield _integer(0) + _integers(tensor.shape)
        yield _integers([stride // tensor.itemsize for stride in _strides(tensor)])
        yield b"\x89" + _name("collections", "OrderedDict") + b")RtR"
    yield b"u."


def _strides(tensor: np.ndarray) -> tuple[int, ...]:
    """Return the strides in bytes of the tensor's values in order."""
    return np.empty(tensor.shape, tensor.dtype).strides if tensor.ndim else ()


def _name(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def _text(text: str) -> bytes:
    encoded = text.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def _integer(number: int) -> bytes:
    if number < 2**31:
        return b"J" + struct.pack("<i", number)
    return b"\x8a\x08" + struct.pack("<q", number)


def _integers(numbers) -> bytes:
    return b"(" + b"".join(map(_integer, numbers)) + b"t"
