"""The IDX files that torchvision lays out, read with numpy wherever they lie; torchvision itself only downloads them."""

from __future__ import annotations

import gzip
import socket
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kit.errors import DatasetInvalid, DatasetUnavailable
from kit.lab.data.sets import Dataset, DatasetInfo, Split
from kit.system import packages

_STEMS = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")


def is_here(known: DatasetInfo, root: Path) -> bool:
    """Whether all four files lie below `root`."""
    return all(_find(root / known.folder / "raw", f"{stem}-ubyte") for stem in _STEMS)


def read(known: DatasetInfo, root: Path) -> Dataset:
    """Read the four files.

    Raises:
        DatasetUnavailable: One is missing.
        DatasetInvalid: One is corrupt.
    """
    raw = root / known.folder / "raw"
    return Dataset(info=known, train=_read_split(raw, "train", known), test=_read_split(raw, "t10k", known))


def _find(raw: Path, stem: str) -> Path | None:
    return next((path for path in (raw / f"{stem}.gz", raw / stem) if path.is_file()), None)


def _read_split(raw: Path, stem: str, known: DatasetInfo) -> Split:
    images = _read_idx(raw, f"{stem}-images-idx3-ubyte", 3)
    labels = _read_idx(raw, f"{stem}-labels-idx1-ubyte", 1).astype(np.int64)
    if len(images) != len(labels) or len(labels) == 0:
        raise DatasetInvalid(f"{raw} holds {len(images)} {stem} images but {len(labels)} labels")
    if labels.max() >= len(known.labels):
        raise DatasetInvalid(f"{raw} holds the label {labels.max()}, {known.name!r} has {len(known.labels)} classes")
    return Split(images, labels)


def _read_idx(raw: Path, stem: str, dimensions: int) -> NDArray[np.uint8]:
    """Read one file in the IDX format (http://yann.lecun.com/exdb/mnist): magic 0x0000080D, D sizes, uint8 values."""
    path = _find(raw, stem)
    if path is None:
        raise DatasetUnavailable(f"{raw / stem} is missing")
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        magic = struct.unpack_from(">HBB", data)
        sizes = struct.unpack_from(f">{dimensions}I", data, 4)
        values = np.frombuffer(data, np.uint8, offset=4 + 4 * dimensions)
    except (OSError, EOFError, zlib.error, struct.error, ValueError) as error:
        raise DatasetInvalid(f"{path} is corrupt: {error}", hint=f"remove {path} and fetch it again") from error
    if magic != (0, 0x08, dimensions) or values.size != int(np.prod(sizes)):
        raise DatasetInvalid(f"{path} is no complete IDX file", hint=f"remove {path} and fetch it again")
    return values.reshape(sizes)


def download(known: DatasetInfo, root: Path) -> None:
    """Let torchvision download and check the files.

    Raises:
        DatasetUnavailable: No network, no mirror, or no room.
    """
    torchvision = packages.needed(
        "torchvision.datasets", distribution="torchvision", purpose=f"downloading {known.name!r}", extra="train"
    )
    try:
        with _socket_timeout(20.0):
            getattr(torchvision, known.folder)(root=str(root), train=True, download=True)
    except (OSError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise DatasetUnavailable(
            f"the data set {known.name!r} is not in {root} and could not be downloaded ({reason})",
            hint=(
                f"copy {known.folder}/raw there and set KIT_DATA_DIR or --data-dir to its parent, "
                "or use the embedded set: --dataset digits"
            ),
        ) from error


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """Give up on a network that swallows packets instead of waiting for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
