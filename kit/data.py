"""Data sets as uint8 arrays with labels and splits; no torch.

`load("mnist")` reads the IDX files with numpy wherever they lie; torchvision is imported only to download them. `digits`,
scikit-learn's 1,797 handwritten digits, is embedded in that package and needs no network.

The folder is `--data-dir`, else `KIT_DATA_DIR`, else the user's cache; below it stand torchvision's own folder names
(`MNIST/raw/train-images-idx3-ubyte.gz`, packed or not).
"""

from __future__ import annotations

import gzip
import hashlib
import os
import socket
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import platformdirs
from numpy.typing import NDArray
from PIL import Image

from kit import packages
from kit.errors import DatasetInvalid, DatasetUnavailable, PackageMissing, UsageError
from kit.images import place_by_mass
from kit.spec import Normalization

DIGITS = tuple("0123456789")
GARMENTS = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


@dataclass(frozen=True)
class Split:
    """Images uint8 `[N, height, width]` and labels int64 `[N]`."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __post_init__(self) -> None:
        """Refuse images and labels that are no pair of arrays."""
        if getattr(self.images, "dtype", None) is None or np.shape(self.labels) != self.images.shape[:1]:
            raise UsageError("a Split takes an array of images and an array with one label for each")

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: NDArray[np.int64]) -> Split:
        """Return the samples at `indices`, copied."""
        return Split(self.images[indices], self.labels[indices])


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """What is known of a data set before it is read.

    Attributes:
        folder: torchvision's folder name below the data folder; empty for an embedded set.
        pipeline: The pipeline of kit.images that turns a picture into what the set holds.
        normalization: Mean and deviation of the training images.
        golden: Data set whose pictures may be redistributed in a bundle.
        licence: Source and licence of those pictures.
    """

    name: str
    folder: str
    labels: tuple[str, ...]
    pipeline: str
    normalization: Normalization
    golden: str
    licence: str


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A data set in memory: `train` to learn and choose from, `test` for the final figure alone."""

    info: DatasetInfo
    train: Split
    test: Split

    @property
    def name(self) -> str:
        """The name users type."""
        return self.info.name


DATASETS = {
    info.name: info
    for info in (
        DatasetInfo(
            name="mnist",
            folder="MNIST",
            labels=DIGITS,
            pipeline="mnist-ink@2",
            normalization=Normalization(mean=0.1307, std=0.3081),
            golden="digits",
            licence="MNIST, CC BY-SA 3.0",
        ),
        DatasetInfo(
            name="fashion-mnist",
            folder="FashionMNIST",
            labels=GARMENTS,
            pipeline="resize@1",
            normalization=Normalization(mean=0.2860, std=0.3530),
            golden="fashion-mnist",
            licence="Fashion-MNIST, MIT",
        ),
        DatasetInfo(
            name="digits",
            folder="",
            labels=DIGITS,
            pipeline="mnist-ink@2",
            normalization=Normalization(mean=0.1572, std=0.2928),
            golden="digits",
            licence="scikit-learn digits (UCI optical recognition of handwritten digits), CC BY 4.0",
        ),
    )
}


def info(name: str) -> DatasetInfo:
    """Return what is known of a data set.

    Raises:
        UsageError: There is no data set of that name.
    """
    if name not in DATASETS:
        raise UsageError(f"unknown data set {name!r}", hint="choose one of: " + ", ".join(DATASETS))
    return DATASETS[name]


def default_dir() -> Path:
    """Return `KIT_DATA_DIR`, else the user's cache folder."""
    chosen = os.environ.get("KIT_DATA_DIR")
    return Path(chosen) if chosen else platformdirs.user_cache_path("kit") / "data"


def load(name: str, *, data_dir: Path | None = None, download: bool = False) -> Dataset:
    """Read a data set, downloading it first if allowed and needed.

    Raises:
        UsageError: Unknown name.
        DatasetUnavailable: It is not here and was not to be had.
        DatasetInvalid: Its files are corrupt.
        PackageMissing: `digits` without scikit-learn, or a download without torchvision.
    """
    known = info(name)
    if not known.folder:
        return _load_digits(known)
    root = data_dir or default_dir()
    if not is_here(name, data_dir=root):
        if not download:
            raise DatasetUnavailable(
                f"the data set {name!r} is not in {root}",
                hint=f"let kit train download it, or point KIT_DATA_DIR at a folder that holds {known.folder}/raw",
            )
        _download(known, root)
    raw = root / known.folder / "raw"
    return Dataset(info=known, train=_read_split(raw, "train", known), test=_read_split(raw, "t10k", known))


def is_here(name: str, *, data_dir: Path | None = None) -> bool:
    """Whether `load` would find the data set without a download."""
    known = info(name)
    if not known.folder:
        return packages.version("scikit-learn") is not None
    raw = (data_dir or default_dir()) / known.folder / "raw"
    stems = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    return all(_find_idx(raw, f"{stem}-ubyte") for stem in stems)


def validation_indices(count: int, *, fraction: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split `range(count)` into sorted training and validation indices, the same for the same arguments.

    Raises:
        UsageError: The fraction leaves one side empty.
    """
    held_out = round(count * fraction)
    if not 0 < held_out < count:
        raise UsageError(f"a validation fraction of {fraction} leaves nothing to train or to validate on")
    order = np.random.default_rng(seed).permutation(count).astype(np.int64)
    return np.sort(order[held_out:]), np.sort(order[:held_out])


def calibration_indices(candidates: NDArray[np.int64], *, samples: int, seed: int) -> NDArray[np.int64]:
    """Draw up to `samples` of the candidate indices, sorted, the same for the same arguments."""
    count = min(samples, len(candidates))
    return np.sort(np.random.default_rng(seed).choice(candidates, size=count, replace=False))


def indices_sha256(indices: NDArray[np.int64]) -> str:
    """Hash a set of sample indices, so that a record can name it."""
    return hashlib.sha256(np.sort(indices).astype("<i8").tobytes()).hexdigest()


def golden_split(name: str, *, samples: int = 256, data_dir: Path | None = None) -> tuple[Split, str]:
    """Return pictures that may travel inside a bundle for models of this data set, and their licence.

    The draw is fixed; for `digits` itself it comes from the test split.
    """
    source = info(info(name).golden)
    test = load(source.name, data_dir=data_dir).test
    chosen = calibration_indices(np.arange(len(test), dtype=np.int64), samples=samples, seed=0)
    return test.take(chosen), source.licence


def _load_digits(known: DatasetInfo) -> Dataset:
    """Read scikit-learn's digits, drawn at 8x8, and lay them out as MNIST is: 20x20 in 28x28, centred by mass."""
    sklearn_datasets = packages.needed(
        "sklearn.datasets", distribution="scikit-learn", purpose="the data set 'digits'", extra="train"
    )
    raw = sklearn_datasets.load_digits()
    small = np.asarray(raw.images) * (255.0 / 16.0)
    images = np.stack([_enlarge(image) for image in small.astype(np.uint8)])
    labels = np.asarray(raw.target).astype(np.int64)
    train, test = validation_indices(len(labels), fraction=0.2, seed=0)
    everything = Split(images, labels)
    return Dataset(info=known, train=everything.take(train), test=everything.take(test))


def _enlarge(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    ink = Image.fromarray(image).resize((20, 20), Image.Resampling.BICUBIC)
    return place_by_mass(np.asarray(ink), (28, 28))


def _find_idx(raw: Path, stem: str) -> Path | None:
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
    path = _find_idx(raw, stem)
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


def _download(known: DatasetInfo, root: Path) -> None:
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


def at_hand(name: str, *, data_dir: Path | None = None) -> Dataset | None:
    """Read a data set if it is on this machine already, else return None; corrupt files still raise."""
    if name not in DATASETS:
        return None
    try:
        return load(name, data_dir=data_dir)
    except (DatasetUnavailable, PackageMissing):
        return None
