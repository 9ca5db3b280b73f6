"""A folder of images by class as a data set. How it may be laid out stands in listing.py.

Every image goes through the pipeline that the bundle then records, so that predicting does what training did. What a set is
called, such as `folder:flowers@1a2b3c4d`, holds the folder's own name, none of the path to it, and a hash of classes, splits
and contents: a set of that name is the one a model was trained on, or an error says that it is not.

What was read is kept as pixels in the user's cache, so that exporting and benching the model need neither the folder nor its
path; a machine that has no such copy is told the folder by `--data-dir`.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
from numpy.typing import NDArray

from kit.errors import DatasetInvalid, DatasetUnavailable, PictureInvalid, StorageUnavailable, UsageError
from kit.lab.blueprint import Normalization
from kit.lab.data import listing
from kit.lab.data.listing import Listing, Picture
from kit.lab.data.sets import DATASETS, Dataset, DatasetInfo, Split
from kit.system import files
from kit.system.npz import open_npz
from kit.tasks.images import to_pixels
from kit.tasks.images.folders import FIRST_SUFFIXES, SUFFIXES

PREFIX = "folder:"
PIPELINE = "resize@2"
SHAPE = (28, 28)

_SUFFIXES = {PIPELINE: SUFFIXES, "resize@1": FIRST_SUFFIXES}
"""Of the pictures that a recorded name stands for, by the pipeline that is part of its hash, the newest first."""

_NAME = re.compile(re.escape(PREFIX) + r"(?P<stem>[A-Za-z0-9][A-Za-z0-9._-]*)@(?P<hash>[0-9a-f]{8})")
_LEAST_STD = 0.01  # images of one grey are no reason to divide by nothing
_HASHING_SHARE = 0.1  # of the time that reading takes, where nothing is kept


def kept_dir() -> Path:
    """Return where the pixels of folders are kept; what lies there may be deleted at any time."""
    return platformdirs.user_cache_path("kit") / "folders"


def is_recorded(name: str) -> bool:
    """Whether this is the name of a folder that a model was trained on, as its bundle records it."""
    return _NAME.fullmatch(name) is not None


def stem(name: str) -> str:
    """Return the folder's own name as it may stand in names of files: from a path, or from what a bundle records."""
    recorded = _NAME.fullmatch(name)
    if recorded:
        return recorded["stem"]
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(name).expanduser().resolve().name).strip("-._")[:60]
    return f"{plain}-folder" if plain in DATASETS else plain or "folder"


def locate(name: str, data_dir: Path) -> Path:
    """Return the folder a person typed, or the one of that name in the data folder; raises UsageError without one."""
    path = Path(name).expanduser()
    if name and not path.exists():
        path = data_dir / name
    if name and path.is_dir():
        return path
    found = f"{path} is a file" if name and path.exists() else f"unknown data set {name!r}, and no folder is called so"
    raise UsageError(
        found, hint=f"choose one of: {', '.join(DATASETS)}; or a folder with a subfolder of images for each class"
    )


def load(folder: Path, *, keep: bool = False, on_share: Callable[[float], None] = lambda _: None) -> Dataset:
    """Read a folder of images, laid out as listing.py says; `keep` its pixels for `load_recorded`.

    Raises:
        DatasetInvalid: It is laid out otherwise, or holds images that cannot be read, which are named.
    """
    found = listing.read(folder, on_share=lambda share: on_share(_HASHING_SHARE * share))
    dataset = _read(folder, found, PIPELINE, on_share)
    notes = list(found.notes)
    if keep and not _keep(dataset):
        notes.append(
            f"the images could not be kept in {kept_dir()}: kit export and bench will need --data-dir {folder}"
        )
    return Dataset(info=dataset.info, train=dataset.train, test=dataset.test, notes=tuple(notes))


def _read(folder: Path, found: Listing, pipeline: str, on_share: Callable[[float], None]) -> Dataset:
    # what decides the pixels belongs to the name, as the contents do
    name = f"{PREFIX}{stem(str(folder))}@{_name_hash(found, pipeline)}"
    dataset = _kept(name)
    if dataset is None:
        pixels = _decode(folder, found.pictures, pipeline, lambda share: on_share(_HASHING_SHARE + 0.9 * share))
        labels = np.array([one.label for one in found.pictures], np.int64)
        test = np.array([bool(one.test) for one in found.pictures])
        train, held_out = (Split(pixels[chosen], labels[chosen]) for chosen in (~test, test))
        dataset = Dataset(info=_info(name, found.labels, train, pipeline), train=train, test=held_out)
    return dataset


def load_recorded(name: str, data_dir: Path | None, *, on_share: Callable[[float], None] = lambda _: None) -> Dataset:
    """Read the images that a bundle names: those of the folder given, or the kept ones.

    `data_dir` is the folder itself, or the one it lies in; None for what was kept.

    Raises:
        DatasetUnavailable: They are not on this machine, as far as kit knows.
        DatasetInvalid: The folder is another one, or was changed since.
    """
    given = _given(name, data_dir)
    dataset = None if given else _kept(name)
    if dataset is not None:
        return dataset
    given = given or _given(name, _from_environment())
    if given is None:
        raise DatasetUnavailable(
            f"the images that {name!r} stands for are not on this machine",
            hint="say where they are: --data-dir FOLDER, with a subfolder of images for each class",
        )
    for pipeline, suffixes in _SUFFIXES.items():
        found = listing.read(given, suffixes=suffixes, on_share=lambda share: on_share(_HASHING_SHARE * share))
        if _name_hash(found, pipeline) == _hash(name):
            dataset = _read(given, found, pipeline, on_share)
            # the folder may have been renamed
            info = _info(name, found.labels, dataset.train, pipeline)
            return Dataset(info=info, train=dataset.train, test=dataset.test)
    raise DatasetInvalid(
        f"{given} does not hold the images of {name!r}: it is another folder, or files were added, removed or altered",
        hint=f"train on what it holds now: kit train --dataset {given}",
    )


def is_here(name: str, data_dir: Path | None) -> bool:
    """Whether there is a folder, or a kept copy, to read a recorded name from."""
    return any((_given(name, data_dir), _kept_path(name).is_file(), _given(name, _from_environment())))


def _given(name: str, root: Path | None) -> Path | None:
    """Return the folder below `root`, or `root` itself, if it holds images by class.

    A `root` of another name is taken for a folder that was renamed only if images lie right in its subfolders: else it may
    hold any number of data sets.
    """
    if root is None:
        return None
    called = stem(name)
    for path, nested in ((root / called, True), (root, stem(str(root)) == called)):
        if path.is_dir() and listing.holds_classes(path, nested=nested):
            return path
    return None


def _from_environment() -> Path | None:
    chosen = os.environ.get("KIT_DATA_DIR")
    return Path(chosen) if chosen else None


def _short(*parts: str) -> str:
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:8]


def _name_hash(found: Listing, pipeline: str) -> str:
    return _short(found.sha256(), pipeline, str(SHAPE))


def _hash(name: str) -> str:
    return name.rpartition("@")[2]


def _decode(
    folder: Path, pictures: tuple[Picture, ...], pipeline: str, on_share: Callable[[float], None]
) -> NDArray[np.uint8]:
    pixels = np.zeros((len(pictures), *SHAPE), np.uint8)
    problems: list[tuple[Path, str]] = []
    for number, one in enumerate(pictures):
        try:
            pixels[number] = to_pixels(one.path, pipeline=pipeline, shape=SHAPE)
        except PictureInvalid as error:
            problems.append((one.path, str(error).removeprefix(str(one.path)).strip()))
        on_share((number + 1) / len(pictures))
    listing.refuse(folder, problems)
    return pixels


def _info(name: str, labels: tuple[str, ...], train: Split, pipeline: str) -> DatasetInfo:
    scaled_mean, scaled_std = float(train.images.mean()) / 255, float(train.images.std()) / 255
    return DatasetInfo(
        name=name,
        folder="",
        labels=labels,
        pipeline=pipeline,
        normalization=Normalization(mean=round(scaled_mean, 4), std=max(round(scaled_std, 4), _LEAST_STD)),
        golden=name,
        licence=f"images of the folder {stem(name)}, licence not stated",
        recipe=recipe_for(len(train)),
    )


def recipe_for(images: int) -> dict[str, Any]:
    """Return what suits that many training images: some hundred steps at least, however few there are."""
    batch_size = next((size for size in (128, 64, 32, 16) if images >= 20 * size), 8) if images < 5_120 else 256
    return {"epochs": 40 if images < 10_000 else 10, "batch_size": batch_size, "lr": 3e-3}


def _kept_path(name: str) -> Path:
    return kept_dir() / f"{name.removeprefix(PREFIX)}.npz"


def _keep(dataset: Dataset) -> bool:
    """Write the pixels into the cache; return whether they are there now."""
    path = _kept_path(dataset.name)
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        names=np.array(dataset.info.labels),
        pipeline=np.array(dataset.info.pipeline),
        train_images=dataset.train.images,
        train_labels=dataset.train.labels,
        test_images=dataset.test.images,
        test_labels=dataset.test.labels,
    )
    with contextlib.suppress(StorageUnavailable):
        files.write(path, buffer.getvalue())
    return path.is_file()


def _kept(name: str) -> Dataset | None:
    """Read what `_keep` wrote; a copy that is damaged counts as none."""
    try:
        with open_npz(io.BytesIO(_kept_path(name).read_bytes())) as arrays:
            labels = tuple(str(label) for label in arrays["names"])
            train = Split(arrays["train_images"], arrays["train_labels"])
            test = Split(arrays["test_images"], arrays["test_labels"])
            pipeline = (
                str(arrays["pipeline"]) if "pipeline" in arrays.files else "resize@1"
            )  # the first was not written
            return Dataset(info=_info(name, labels, train, pipeline), train=train, test=test)
    except (OSError, ValueError, UsageError):
        return None
