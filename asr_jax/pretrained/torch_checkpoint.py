"""Checkpoints that torch.save wrote, read without torch and without running their pickle.

A checkpoint is a zip: ROOT/data.pkl describes the tensors, and ROOT/data/KEY holds the values of
one storage. Pickle builds its objects by functions that the file names. Here it finds only those
that describe a tensor, and every other name is an error; torch.load(weights_only=True) has the same
rule.
"""

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from asr_jax.pretrained.nemo_archive import Stored
from asr_jax.pretrained.weights import READABLE, Weight

_MOST_PICKLE_BYTES = 64 << 20
# torch's classes of storages, and the types of their values.
_STORAGES = {
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "DoubleStorage": "float64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
# A local header of a zip: its signature, 22 bytes, and the lengths of a name and an extra field.
_LOCAL_HEADER = struct.Struct("<4s22xHH")


class _StorageType(NamedTuple):
    dtype: str


class _Storage(NamedTuple):
    dtype: str
    key: str
    size: int
    """Number of values."""


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    """In values."""


class _Values(NamedTuple):
    """The bytes of a storage."""

    size: int
    read: Callable[[], np.ndarray]


class _Unpickler(pickle.Unpickler):
    """An unpickler that knows dicts and the descriptions of tensors, and nothing else."""

    def find_class(self, module: str, name: str) -> object:
        """Return the function of that name. Raises UnpicklingError for any other."""
        known: dict[tuple[str, str], object] = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _rebuilt,
            ("torch._utils", "_rebuild_tensor_v3"): _rebuilt_with_dtype,
            ("torch._utils", "_rebuild_parameter"): _rebuilt_parameter,
            ("torch.storage", "UntypedStorage"): _StorageType(""),
        }
        if module == "torch" and name in _STORAGES:
            return _StorageType(_STORAGES[name])
        # Newer types have no class of storages: _rebuild_tensor_v3 takes their names.
        if module == "torch" and name.startswith(("float", "bfloat", "int", "uint", "complex")):
            return name
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"names {module}.{name}, which describes no tensor")
        return known[module, name]

    def persistent_load(self, pid: object) -> _Storage:
        """Return the description of a storage."""
        match pid:
            case ("storage", _StorageType(dtype), str(key), _, int(size)):
                return _Storage(dtype, key, size)
        raise pickle.UnpicklingError("names something that is no storage")


def _rebuilt(
    storage: object, offset: object, shape: object, strides: object, *_: object
) -> _Tensor:
    """Return the description of a tensor."""
    match storage, offset, shape, strides:
        case _Storage(), int(), tuple(), tuple():
            numbers = (offset, *shape, *strides)
            if len(shape) == len(strides) and all(type(n) is int and n >= 0 for n in numbers):
                return _Tensor(storage, offset, shape, strides)
    raise pickle.UnpicklingError("describes a tensor that cannot exist")


def _rebuilt_with_dtype(
    storage: object,
    offset: object,
    shape: object,
    strides: object,
    requires_grad: object,
    hooks: object,
    dtype: object,
    *_: object,
) -> _Tensor:
    tensor = _rebuilt(storage, offset, shape, strides)
    return tensor._replace(storage=tensor.storage._replace(dtype=str(dtype)))


def _rebuilt_parameter(tensor: object, *_: object) -> object:
    return tensor


def read_checkpoint(stored: Stored) -> dict[str, Weight]:
    """Return the tensors of a checkpoint that holds a dict of tensors, by their names.

    Only their descriptions are read here. Raises ValueError, naming the file, for one that is
    damaged, that names anything but tensors, or whose tensors exceed their storages.
    """
    try:
        with stored.open() as file, zipfile.ZipFile(file) as archive:
            root, pickled = _pickle(archive)
            state = _Unpickler(io.BytesIO(pickled)).load()
            if not isinstance(state, dict):
                raise pickle.UnpicklingError("must hold a dict of tensors")
            return {
                str(name): _weight(str(name), tensor, archive, root, stored)
                for name, tensor in dict.items(state)
                if not isinstance(tensor, dict)
            }
    except zipfile.BadZipFile as error:
        raise ValueError(f"{stored.name}: not a complete torch checkpoint: {error}") from error
    except MemoryError:
        raise
    except Exception as error:  # a damaged pickle raises any of them
        message = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{stored.name}: {message}") from error


def _pickle(archive: zipfile.ZipFile) -> tuple[str, bytes]:
    """Return the folder in the zip that holds everything, and the pickle."""
    found = [name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl"]
    if len(found) != 1:
        raise zipfile.BadZipFile("it must hold one data.pkl")
    root = found[0].removesuffix("data.pkl")
    if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
        raise pickle.UnpicklingError("byteorder must be little")
    size = archive.getinfo(found[0]).file_size
    if size > _MOST_PICKLE_BYTES:
        raise pickle.UnpicklingError(f"data.pkl: must be at most {_MOST_PICKLE_BYTES} bytes")
    return root, archive.read(found[0])


def _weight(
    name: str, tensor: object, archive: zipfile.ZipFile, root: str, stored: Stored
) -> Weight:
    """Return the description of a tensor, checked against its storage."""
    if not isinstance(tensor, _Tensor):
        raise pickle.UnpicklingError(f"{name}: must be a tensor")
    storage, shape = tensor.storage, tensor.shape
    if storage.dtype not in READABLE:
        return Weight(shape, storage.dtype, lambda: np.zeros(0))
    dtype = READABLE[storage.dtype]
    values = _values(archive, f"{root}data/{storage.key}", stored)
    last = tensor.offset + sum((n - 1) * stride for n, stride in zip(shape, tensor.strides))
    if values.size != storage.size * dtype.itemsize or (0 not in shape and last >= storage.size):
        raise zipfile.BadZipFile(f"{name}: exceeds its storage")
    strides = [stride * dtype.itemsize for stride in tensor.strides]

    def read() -> np.ndarray:
        storage = values.read().view(dtype)[tensor.offset :]
        return np.lib.stride_tricks.as_strided(storage, shape, strides, writeable=False)

    return Weight(shape, storage.dtype, read)


def _values(archive: zipfile.ZipFile, name: str, stored: Stored) -> _Values:
    """Return the bytes of a storage: in place unless it is compressed."""
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED:

        def decompressed() -> np.ndarray:
            with stored.open() as file, zipfile.ZipFile(file) as archive:
                return np.frombuffer(archive.read(name), np.uint8)

        return _Values(info.file_size, decompressed)
    with stored.open() as file:
        file.seek(info.header_offset)
        signature, *lengths = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
        first = info.header_offset + _LOCAL_HEADER.size + sum(lengths)
        end = file.seek(0, io.SEEK_END)
    if signature != b"PK\3\4" or info.flag_bits & 1 or first + info.file_size > end:
        raise zipfile.BadZipFile(f"{name}: is truncated")
    return _Values(info.file_size, lambda: stored.part(first, info.file_size))
