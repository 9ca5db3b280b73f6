"""Named arrays from .npz files of strangers: a small file never asks for more memory than its arrays fill.

with path.open("rb") as file, open_npz(file) as held:
    held.headers["pixels"].shape  # known before any data is read
    arrays = {name: held[name] for name in held.files}
"""

from __future__ import annotations

import contextlib
import math
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

NUMBERS = "biuf"
"""Kinds of numpy's dtypes: booleans, integers and real numbers."""

TEXT = "U"

_MOST_PACKED = 1100
"""Deflate makes at most 1032 bytes of one."""

_MOST_MEMBERS = 10_000
_MOST_ELEMENTS = 2**48
_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
_ENCRYPTED = 0x1
_ENDING = ".npy"


class NpzError(ValueError):
    """A file that holds no named arrays, or not those it promises; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Header:
    """What an array is going to be."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return math.prod(self.shape) * self.dtype.itemsize


class Npz:
    """An open npz file, its headers read, by name in the order of the file. A context manager."""

    def __init__(self, archive: zipfile.ZipFile, headers: dict[str, Header]) -> None:
        self._archive = archive
        self.headers = headers

    @property
    def files(self) -> list[str]:
        """Names of the arrays."""
        return list(self.headers)

    def __getitem__(self, name: str) -> NDArray[Any]:
        """Return an array; raise NpzError if there is none of that name, or it is damaged."""
        if name not in self.headers:
            raise NpzError(f"it holds no array {name!r}")
        with _one_error(), self._archive.open(f"{name}{_ENDING}") as content:
            array: NDArray[Any] = npy.read_array(content, allow_pickle=False)
            if content.read(1):  # and so to the end, where its checksum is compared
                raise NpzError(f"{name} is longer than its header says")
            return array

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._archive.close()


def open_npz(file: BinaryIO, *, most_bytes: int | None = None, kinds: str = NUMBERS + TEXT) -> Npz:
    """Open an npz file, without pickles, after checking what its headers promise.

    The file stays open as long as its arrays are read. `most_bytes` is for all arrays, unpacked; `kinds` are those of
    the dtypes that are accepted.

    Raises:
        NpzError: It is no such file, damaged, too large, or made to hurt. Reading its arrays raises nothing else.
    """
    with contextlib.ExitStack() as stack, _one_error():
        archive = stack.enter_context(zipfile.ZipFile(file))
        members = archive.infolist()
        if len(members) > _MOST_MEMBERS:
            raise NpzError(f"it has {len(members):,} members, more than the {_MOST_MEMBERS:,} that are allowed")
        total = sum(member.file_size for member in members)
        if most_bytes is not None and total > most_bytes:
            raise NpzError(f"its arrays would take {total:,} bytes, more than the {most_bytes:,} that are allowed")
        headers = {member.filename.removesuffix(_ENDING): _header(archive, member, kinds) for member in members}
        if len(headers) != len(members):
            raise NpzError("two of its arrays have the same name")
        stack.pop_all()
        return Npz(archive, headers)


@contextlib.contextmanager
def _one_error() -> Iterator[None]:
    """Turn whatever zipfile, the decompressors and numpy raise of a damaged file into one error."""
    try:
        yield
    except (NpzError, MemoryError):
        raise
    except Exception as error:  # they document none of it: struct.error, LZMAError, OverflowError, RecursionError, ...
        raise NpzError(f"{type(error).__name__}: {error}") from error


def _header(archive: zipfile.ZipFile, member: zipfile.ZipInfo, kinds: str) -> Header:
    """Read the header of an array, which must be of as many bytes as its member holds."""
    name = member.filename
    if not name.endswith(_ENDING):
        raise NpzError(f"{name!r} is no array")
    if member.flag_bits & _ENCRYPTED:
        raise NpzError(f"{name} is encrypted")
    if member.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        raise NpzError(f"{name} is compressed in a way that numpy does not write")
    if member.file_size > _MOST_PACKED * (member.compress_size + 1):
        raise NpzError(f"{name} claims {member.file_size:,} bytes in {member.compress_size:,}")
    with archive.open(member) as content:
        version = npy.read_magic(content)
        if version not in _HEADERS:
            raise NpzError(f"{name} is of an unknown version of numpy's format")
        shape, _, dtype = _HEADERS[version](content)
        held = member.file_size - content.tell()
    header = Header(shape=shape, dtype=dtype)
    if dtype.kind not in kinds:
        raise NpzError(f"{name} is {dtype}, neither numbers nor what was expected")
    if any(size < 0 for size in shape) or math.prod(size or 1 for size in shape) > _MOST_ELEMENTS:
        raise NpzError(f"{name} has an impossible shape: {_brief(shape)}; it holds {held:,} bytes")
    if header.nbytes != held:
        raise NpzError(f"{name} is to be {dtype} {list(shape)}, {header.nbytes:,} bytes, and holds {held:,}")
    return header


def _brief(shape: tuple[int, ...]) -> str:
    return "[" + ", ".join(f"{size:.2e}" if abs(size) > _MOST_ELEMENTS else str(size) for size in shape[:8]) + "]"
