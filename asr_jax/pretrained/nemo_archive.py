"""NeMo's archives (.nemo): a tar of a YAML file, a tokenizer and a torch checkpoint.

Members are read by name where they are, and nothing is unpacked. NeMo writes plain tars; earlier
versions compressed them by gzip (save_restore_connector.py).
"""

import contextlib
import io
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

import numpy as np

from asr_jax.text_files import GZIP_MAGIC

CONFIG, WEIGHTS = "model_config.yaml", "model_weights.ckpt"
# Archives hold about ten members. A model of 10 billion parameters has 40 GB.
_MOST_MEMBERS = 1000
_MOST_BYTES, _MOST_WEIGHTS_BYTES = 64 << 20, 64 << 30
_DAMAGED = (tarfile.TarError, EOFError, OSError, zlib.error)


class Stored(NamedTuple):
    """A file, which may be a part of another one."""

    name: str
    """Its name for messages."""
    open: Callable[[], AbstractContextManager[IO[bytes]]]
    """Opens it for reading and seeking."""
    part: Callable[[int, int], np.ndarray]
    """Maps (first byte, number of bytes) to the bytes, which are read when they are used."""


class Archive:
    """The members of an archive, by their names without a leading "./"."""

    def __init__(self, path: Path):
        """Read the list of members.

        Raises ValueError for a file that is no complete tar, and for links, devices, and paths that
        lead out of the archive.
        """
        with path.open("rb") as file:
            self._is_gzip = file.read(2) == GZIP_MAGIC
        self.path = path
        try:
            with self._opened() as tar:
                self._members = dict(_checked(path, tar))
            for member in () if self._is_gzip else self._members.values():
                if member.offset_data + member.size > path.stat().st_size:
                    raise EOFError(f"{member.name} is truncated")
        except _DAMAGED as error:
            raise ValueError(f"{path}: not a complete .nemo archive: {error}") from error

    @property
    def names(self) -> list[str]:
        """Names of all members."""
        return list(self._members)

    def read(self, name: str) -> bytes:
        """Read a small member. Raises ValueError if there is none of that name."""
        return self._contents(self._member(name, _MOST_BYTES))

    def stored(self, name: str) -> Stored:
        """Return a large member: in place in a plain tar, else decompressed in memory."""
        member = self._member(name, _MOST_WEIGHTS_BYTES)
        if self._is_gzip:
            contents = self._contents(member)
            return Stored(
                f"{self.path}: {name}",
                lambda: io.BytesIO(contents),
                lambda first, size: np.frombuffer(contents, np.uint8, size, first),
            )

        @contextlib.contextmanager
        def opened() -> Iterator[IO[bytes]]:
            with self._opened() as tar:
                file = tar.extractfile(member)
                assert file is not None, "a regular member, by _checked"
                yield file

        def part(first: int, size: int) -> np.ndarray:
            return np.memmap(self.path, np.uint8, "r", member.offset_data + first, (size,))

        return Stored(f"{self.path}: {name}", opened, part)

    def _opened(self) -> tarfile.TarFile:
        return tarfile.open(self.path, "r:gz" if self._is_gzip else "r:")

    def _member(self, name: str, most_bytes: int) -> tarfile.TarInfo:
        if name not in self._members:
            raise ValueError(f"{self.path}: a .nemo archive needs {name}, and this one has none")
        member = self._members[name]
        if member.size > most_bytes:
            rule = f"must be at most {most_bytes} bytes, it has {member.size}"
            raise ValueError(f"{self.path}: {name}: {rule}")
        return member

    def _contents(self, member: tarfile.TarInfo) -> bytes:
        try:
            with self._opened() as tar:
                file = tar.extractfile(member)
                return file.read() if file else b""
        except _DAMAGED as error:
            raise ValueError(f"{self.path}: {member.name}: damaged: {error}") from error


def _checked(path: Path, tar: tarfile.TarFile) -> Iterator[tuple[str, tarfile.TarInfo]]:
    """Yield the regular members with their names."""
    seen: set[str] = set()
    for number, member in enumerate(tar):
        name = PurePosixPath(member.name)
        wrong = ""
        if number >= _MOST_MEMBERS:
            wrong = f"it is one of more than {_MOST_MEMBERS} members"
        elif name.is_absolute() or ".." in name.parts:
            wrong = "its path leads out of the archive"
        elif member.isdir():
            continue
        elif not member.isreg() or member.issparse():
            wrong = "it is a link, a device or a sparse file; must be a regular file"
        elif str(name) in seen:
            wrong = "the archive holds two members of this name"
        if wrong:
            raise ValueError(f"{path}: member {member.name!r}: {wrong}")
        seen.add(str(name))
        yield str(name), member
