"""What a data set is, and those that kit knows by name."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
from numpy.typing import NDArray

from kit.errors import UsageError
from kit.lab.blueprint import Normalization

DIGITS = tuple("0123456789")
GARMENTS = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


@dataclass(frozen=True)
class Split:
    """Images uint8 `[N, height, width]` and labels int64 `[N]`."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __post_init__(self) -> None:
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
        pipeline: The pipeline of kit.tasks.images that turns a picture into what the set holds.
        normalization: Mean and deviation of the training images.
        golden: Data set whose pictures may be redistributed in a bundle.
        licence: Source and licence of those pictures.
        recipe: Fields of the default recipe that are otherwise for this set.
    """

    name: str
    folder: str
    labels: tuple[str, ...]
    pipeline: str
    normalization: Normalization
    golden: str
    licence: str
    recipe: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A data set: `train` to learn and choose from, `test` for the final figure alone; `notes` tell how it was read."""

    info: DatasetInfo
    train: Split
    test: Split
    notes: tuple[str, ...] = ()

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
            pipeline="mnist-ink@3",
            normalization=Normalization(mean=0.1307, std=0.3081),
            golden="digits",
            licence="MNIST, CC BY-SA 3.0",
        ),
        DatasetInfo(
            name="fashion-mnist",
            folder="FashionMNIST",
            labels=GARMENTS,
            pipeline="resize@2",
            normalization=Normalization(mean=0.2860, std=0.3530),
            golden="fashion-mnist",
            licence="Fashion-MNIST, MIT",
            # Garments fill their box and all stand upright, in training and in test images alike: turned and sheared ones
            # teach what is never asked. Not measured; `--augment` distorts them as digits are.
            recipe={"augment": False},
        ),
        DatasetInfo(
            name="digits",
            folder="",
            labels=DIGITS,
            pipeline="mnist-ink@3",
            normalization=Normalization(mean=0.1572, std=0.2928),
            golden="digits",
            licence="scikit-learn digits (UCI optical recognition of handwritten digits), CC BY 4.0",
        ),
    )
}


def info(name: str) -> DatasetInfo:
    """Return what is known of a data set; raises UsageError if there is none of that name."""
    if name not in DATASETS:
        raise UsageError(f"unknown data set {name!r}", hint="choose one of: " + ", ".join(DATASETS))
    return DATASETS[name]


def default_dir() -> Path:
    """Return `KIT_DATA_DIR`, else the user's cache folder."""
    chosen = os.environ.get("KIT_DATA_DIR")
    return Path(chosen) if chosen else platformdirs.user_cache_path("kit") / "data"
