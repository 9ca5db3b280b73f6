"""From a data set's name to the data set, wherever it lies on this machine."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kit import packages
from kit.data import digits, idx
from kit.data.draws import calibration_indices
from kit.data.sets import DATASETS, Dataset, Split, default_dir, info
from kit.errors import DatasetUnavailable, PackageMissing


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
        return digits.read(known)
    root = data_dir or default_dir()
    if not idx.is_here(known, root):
        if not download:
            raise DatasetUnavailable(
                f"the data set {name!r} is not in {root}",
                hint=f"let kit train download it, or point KIT_DATA_DIR at a folder that holds {known.folder}/raw",
            )
        idx.download(known, root)
    return idx.read(known, root)


def is_here(name: str, *, data_dir: Path | None = None) -> bool:
    """Whether `load` would find the data set without a download."""
    known = info(name)
    if not known.folder:
        return packages.version("scikit-learn") is not None
    return idx.is_here(known, data_dir or default_dir())


def golden_split(name: str, *, samples: int = 256, data_dir: Path | None = None) -> tuple[Split, str]:
    """Return pictures that may travel inside a bundle for models of this data set, and their licence.

    The draw is fixed; for `digits` itself it comes from the test split.
    """
    source = info(info(name).golden)
    test = load(source.name, data_dir=data_dir).test
    chosen = calibration_indices(np.arange(len(test), dtype=np.int64), samples=samples, seed=0)
    return test.take(chosen), source.licence


def at_hand(name: str, *, data_dir: Path | None = None) -> Dataset | None:
    """Read a data set if it is on this machine already, else return None; corrupt files still raise."""
    if name not in DATASETS:
        return None
    try:
        return load(name, data_dir=data_dir)
    except (DatasetUnavailable, PackageMissing):
        return None
