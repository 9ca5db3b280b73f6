"""Named arrays from .npz files of strangers: a small file never asks for more memory than its arrays fill."""

from __future__ import annotations

import math
import zipfile
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy

_MOST_PACKED = 1100
"""Deflate makes at most 1032 bytes of one."""

_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def open_npz(file: BinaryIO, *, most_bytes: int | None = None) -> Any:
    """Open an npz file as `numpy.load` does, without pickles, after checking what its headers promise.

    Args:
        file: Stays open as long as its arrays are read.
        most_bytes: Of all arrays, unpacked; None: as many as the file holds.

    Raises:
        ValueError, OSError, EOFError, zipfile.BadZipFile, and others that numpy and zipfile raise of a damaged file.
    """
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        total = sum(member.file_size for member in members)
        if most_bytes is not None and total > most_bytes:
            raise ValueError(f"its arrays would take {total:,} bytes, more than the {most_bytes:,} that are allowed")
        for member in members:
            _check_member(archive, member)
    file.seek(0)
    return np.load(file, allow_pickle=False)


def _check_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    if member.file_size > _MOST_PACKED * (member.compress_size + 1):
        raise ValueError(f"{member.filename} claims {member.file_size:,} bytes in {member.compress_size:,}")
    with archive.open(member) as content:
        version = npy.read_magic(content)
        if version not in _HEADERS:
            raise ValueError(f"{member.filename} is of an unknown version of numpy's format")
        shape, _, dtype = _HEADERS[version](content)
        held = member.file_size - content.tell()
    wanted = math.prod(shape) * dtype.itemsize
    if not dtype.hasobject and wanted != held:
        raise ValueError(f"{member.filename} is to be {dtype} {list(shape)}, {wanted:,} bytes, and holds {held:,}")
