"""Writes .nemo archives and torch checkpoints, also damaged ones, without torch."""

import copy
import functools
import io
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import yaml

from asr_jax.pretrained.nemo_archive import CONFIG, WEIGHTS, Archive
from asr_jax.pretrained.torch_checkpoint import read_checkpoint
from tests.pretrained.references import MODELS

DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
STORAGES = {
    "float32": "FloatStorage",
    "float64": "DoubleStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
}


def contents(name: str) -> tuple[dict, dict[str, np.ndarray], dict[str, bytes]]:
    """Return config, tensors and other files of an archive of `references.MODELS`."""
    config, tensors, files = _contents(name)
    return copy.deepcopy(config), dict(tensors), dict(files)


@functools.cache
def _contents(name: str) -> tuple[dict, dict[str, np.ndarray], dict[str, bytes]]:
    archive = Archive(MODELS / f"{name}.nemo")
    weights = read_checkpoint(archive.stored(WEIGHTS))
    tensors = {key: weight.read().copy() for key, weight in weights.items() if weight.shape}
    rest = {key: archive.read(key) for key in archive.names if key not in (CONFIG, WEIGHTS)}
    return yaml.safe_load(archive.read(CONFIG)), tensors, rest


def write_archive(
    path: Path,
    config: Mapping,
    tensors: Mapping[str, np.ndarray],
    files: Mapping[str, bytes],
    *,
    mode: str = "w",
    compression: int = zipfile.ZIP_STORED,
) -> Path:
    """Write an archive; `mode` is that of tarfile."""
    members = {
        CONFIG: yaml.dump(dict(config), Dumper=DUMPER).encode(),
        WEIGHTS: checkpoint(tensors, compression=compression),
        **files,
    }
    return write_tar(path, members, mode=mode)


def write_tar(path: Path, members: Mapping[str, bytes], *, mode: str = "w") -> Path:
    """Write a tar of members in ./, as NeMo does."""
    with tarfile.open(path, mode) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(f"./{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def checkpoint(
    tensors: Mapping[str, np.ndarray],
    *,
    pickled: bytes | None = None,
    compression: int = zipfile.ZIP_STORED,
) -> bytes:
    """Return the bytes that torch.save writes for a dict of tensors, or with another pickle."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled or state_pickle(tensors))
        archive.writestr("archive/byteorder", "little")
        for number, tensor in enumerate(tensors.values()):
            archive.writestr(f"archive/data/{number}", tensor.tobytes())
    return file.getvalue()


def state_pickle(tensors: Mapping[str, np.ndarray]) -> bytes:
    """Return the pickle of an OrderedDict of tensors, each with a storage of its own."""
    ordered = b"ccollections\nOrderedDict\n)R"
    parts = [b"\x80\x02", ordered, b"("]
    for number, (name, tensor) in enumerate(tensors.items()):
        parts += [_text(name), tensor_pickle(number, tensor)]
    return b"".join([*parts, b"u."])


def tensor_pickle(key: int, tensor: np.ndarray, *, size: int | None = None) -> bytes:
    """Return the opcodes of a tensor in C order whose storage has `size` values."""
    ordered = b"ccollections\nOrderedDict\n)R"
    size = tensor.size if size is None else size
    strides = [int(np.prod(tensor.shape[axis + 1 :])) for axis in range(tensor.ndim)]
    name = str(tensor.dtype)
    is_new = name not in STORAGES
    storage = (
        b"ctorch.storage\nUntypedStorage\n" if is_new else f"ctorch\n{STORAGES[name]}\n".encode()
    )
    function = b"ctorch._utils\n_rebuild_tensor_v" + (b"3\n" if is_new else b"2\n")
    dtype = f"ctorch\n{name}\n".encode() if is_new else b""
    return b"".join(
        [
            *(function, b"(", b"(", _text("storage"), storage, _text(str(key)), _text("cpu")),
            *(_int(size), b"tQ", _int(0), _tuple(tensor.shape), _tuple(strides)),
            *(b"\x89", ordered, dtype, b"tR"),
        ]
    )


def _text(text: str) -> bytes:
    data = text.encode()
    return b"X" + len(data).to_bytes(4, "little") + data


def _int(number: int) -> bytes:
    return b"J" + number.to_bytes(4, "little")


def _tuple(numbers) -> bytes:
    return b"(" + b"".join(map(_int, numbers)) + b"t"
