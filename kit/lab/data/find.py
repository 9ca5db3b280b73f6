"""From a data set's name to the data set, wherever it lies on this machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from kit.errors import DatasetUnavailable, PackageMissing
from kit.lab.data import digits, folder, idx
from kit.lab.data.draws import calibration_indices
from kit.lab.data.sets import DATASETS, Dataset, Split, default_dir, info
from kit.system import packages


def load(
    name: str,
    *,
    data_dir: Path | None = None,
    download: bool = False,
    keep: bool = False,
    on_share: Callable[[float], None] = lambda _: None,
) -> Dataset:
    """Read a data set, downloading it first if allowed and needed.

    Args:
        name: One of DATASETS, a folder of images by class, or the name under which a bundle records such a folder.
        data_dir: Where data sets lie; for a folder that a bundle records, also that folder itself.
        download: Fetch what is not here.
        keep: Keep the pixels of a folder of images, so that the name recorded for it finds them again.
        on_share: Told the share of a folder of images that is read, 0 to 1.

    Raises:
        UsageError: Unknown name.
        DatasetUnavailable: It is not here and was not to be had.
        DatasetInvalid: Its files are corrupt, or a folder is not laid out as it should be, or not what a bundle records.
        PackageMissing: `digits` without scikit-learn, or a download without torchvision.
    """
    if folder.is_recorded(name):
        return folder.load_recorded(name, data_dir, on_share=on_share)
    if name not in DATASETS:
        return folder.load(folder.locate(name, data_dir or default_dir()), keep=keep, on_share=on_share)
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
    """Whether `load` would find what a bundle records without a download; paths are not looked at."""
    if name not in DATASETS:
        return folder.is_recorded(name) and folder.is_here(name, data_dir)
    known = info(name)
    if not known.folder:
        return packages.version("scikit-learn") is not None
    return idx.is_here(known, data_dir or default_dir())


def short_name(name: str) -> str:
    """Return what a data set gives to the names of bundles: `mnist`, or a folder's own name without the path to it."""
    return name if name in DATASETS else folder.stem(name)


def golden_split(dataset: str | Dataset, *, samples: int = 256, data_dir: Path | None = None) -> tuple[Split, str]:
    """Return pictures that may travel inside a bundle for models of this data set, and their source and licence.

    The draw is fixed. A data set that is its own source gives test images, and all of them where they are fewer: `digits`,
    and a folder of a person's own images, whose licence nobody stated.
    """
    if isinstance(dataset, str):
        dataset = load(info(dataset).golden if dataset in DATASETS else dataset, data_dir=data_dir)
    own = dataset if dataset.info.golden == dataset.name else load(dataset.info.golden, data_dir=data_dir)
    test = own.test
    chosen = calibration_indices(np.arange(len(test), dtype=np.int64), samples=samples, seed=0)
    return test.take(chosen), own.info.licence


def at_hand(name: str, *, data_dir: Path | None = None) -> Dataset | None:
    """Read a data set; None if it is not on this machine, or the name means nothing here. Corrupt files still raise."""
    if name not in DATASETS and not folder.is_recorded(name):
        return None
    try:
        return load(name, data_dir=data_dir)
    except (DatasetUnavailable, PackageMissing):
        return None
