"""Data sets of pictures: a folder by class, a folder without classes, or an .npz with `images` and perhaps `labels`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kit.errors import BadInput, DatasetInvalid, PictureInvalid, UsageError
from kit.samples import drawn_rows
from kit.tasks.batches import MOST_BYTES, LabelledArrays
from kit.tasks.classification import Classifier
from kit.tasks.images.folders import LOOKED_FOR, OF_NO_CLASS, UNREADABLE, entries, is_picture, passed_over, walk
from kit.tasks.tensors import arrays_of
from kit.tensors import TensorSpec

_NAMED = 3  # folders named in a message
_LABELS = ("labels", "label", "y", "targets")
_IMAGES = ("images", "pixels", "x", "pictures")

Values = Callable[[Any], NDArray[Any]]
_Listed = list[tuple[Path, int | None]]


def everywhere(folder: Path) -> list[Path]:
    """Return the pictures in a folder and below it, sorted; raises OSError."""
    return [path for path in walk(folder) if is_picture(path)]


def spread_over(paths: Sequence[Path], most: int) -> list[Path]:
    """Return a few of many, evenly spread."""
    step = max(1, math.ceil(len(paths) / max(most, 1)))
    return list(paths[::step])[:most]


def read_folder(folder: Path, classifier: Classifier, values: Values) -> LabelledArrays:
    """Read the pictures of a folder: labelled by the names of its subfolders if these are labels, else without labels.

    Raises:
        DatasetInvalid: It holds no pictures, none that can be read, or subfolders that are no labels.
    """
    try:
        listed, passed = _listed(folder, classifier)
    except OSError as error:
        raise DatasetInvalid(f"{folder} cannot be read: {error.strerror or error}") from error
    if not listed:
        raise DatasetInvalid(f"{folder} holds no pictures", hint=LOOKED_FOR)
    notes = [passed_over(passed, OF_NO_CLASS)] if passed else []
    first = next((array for path, _ in listed if (array := _value(path, values)) is not None), None)
    total = len(listed)
    if first is not None and total * first.nbytes > MOST_BYTES:
        rows = drawn_rows(total, max(1, MOST_BYTES // first.nbytes), seed=0)
        listed = [listed[row] for row in rows.tolist()]
        notes.append(f"{len(listed):,} of {total:,} pictures, drawn by seed 0")
    made = [(path, label, _value(path, values)) for path, label in listed]
    unreadable = [path for path, _, array in made if array is None]
    notes += [passed_over(unreadable, UNREADABLE)] if unreadable else []
    read = [(label, array) for _, label, array in made if array is not None]
    if not read:
        raise DatasetInvalid(f"no picture in {folder} can be read, such as {unreadable[0].name}")
    labels = [label for label, _ in read if label is not None]
    return LabelledArrays(
        arrays=[array for _, array in read],
        labels=np.array(labels, np.int64) if labels else None,
        source="; ".join([f"pictures of {folder.resolve().name}", *notes]),
    )


def _listed(folder: Path, classifier: Classifier) -> tuple[_Listed, list[Path]]:
    """Return pictures with their labels, None if the folder has no classes, and what is passed over."""
    inside = entries(folder)
    classes = {path: classifier.named(path.name) for path in inside if path.is_dir()}
    known = {path: label for path, label in classes.items() if label is not None}
    if known:
        listed: _Listed = [(path, label) for one, label in known.items() for path in everywhere(one)]
        taken = {path for path, _ in listed}
        return listed, [path for path in walk(folder) if path not in taken]
    if any(is_picture(path) for path in inside):
        listed = [(path, None) for path in inside if is_picture(path)]
        return listed, [path for path in inside if not is_picture(path)]
    if any(everywhere(path) for path in classes):
        names = ", ".join(path.name for path in list(classes)[:_NAMED])
        raise DatasetInvalid(
            f"no subfolder of {folder} is called as a label of the model: {names}",
            hint=f"labels: {classifier.described()}; or put the pictures right into the folder, without labels",
        )
    return [], []


def _value(path: Path, values: Values) -> NDArray[Any] | None:
    try:
        return values(path)
    except PictureInvalid:
        return None


def read_npz(path: Path, classifier: Classifier, spec: TensorSpec, values: Values) -> LabelledArrays:
    """Read pictures, and labels if there are any, from named arrays.

    Raises:
        DatasetInvalid: It lacks pictures, or holds others than the model takes.
    """
    images, labels = _arrays(path, spec.name)
    if labels is not None and labels.shape != (len(images),):
        raise DatasetInvalid(f"{path.name} has labels {list(labels.shape)} for {len(images)} pictures")
    try:
        arrays = [values(image) for image in images]
    except (PictureInvalid, UsageError) as error:
        raise DatasetInvalid(f"{path.name}: {error}", hint=error.hint) from error
    indices = None
    if labels is not None:
        found = [classifier.index(one, f"{path.name}, label {row}") for row, one in enumerate(labels.tolist())]
        indices = np.array(found, np.int64)
    return LabelledArrays(arrays=arrays, labels=indices, source=path.name)


def of_npz(path: Path, most: int) -> list[Image.Image]:
    """Return a few pictures of an .npz; none if its arrays are no pictures."""
    images, _ = _arrays(path, "")
    made = []
    for image in images[: most if images.dtype == np.uint8 else 0]:
        plain = image
        if plain.ndim == 3 and 1 in {plain.shape[0], plain.shape[-1]}:
            plain = plain[0] if plain.shape[0] == 1 else plain[..., 0]
        if plain.ndim == 3 and plain.shape[0] in {3, 4} and plain.shape[-1] not in {3, 4}:
            plain = plain.transpose(1, 2, 0)
        try:
            made.append(Image.fromarray(np.ascontiguousarray(plain)))
        except (TypeError, ValueError):  # five channels, for instance
            return []
    return made


def _arrays(path: Path, name: str) -> tuple[NDArray[Any], NDArray[Any] | None]:
    try:
        held = arrays_of(path)
    except BadInput as error:
        raise DatasetInvalid(str(error), hint=error.hint) from error
    images = next((held[one] for one in (name, *_IMAGES) if one in held), None)
    if images is None or images.ndim < 3 or not len(images):
        raise DatasetInvalid(
            f"{path.name} holds no pictures; it holds {', '.join(held) or 'nothing'}",
            hint="save them so: numpy.savez(FILE, images=uint8 [N, height, width], labels=int64 [N])",
        )
    return images, next((held[one] for one in _LABELS if one in held), None)


def drawn(seed: int) -> Image.Image:
    """Return a made-up picture: strokes of colour on a light ground, wider than high."""
    rng = np.random.default_rng(seed)
    pixels = np.full((96, 128, 3), 235, np.uint8)
    pixels[12:84, 40 + 8 * seed : 56 + 8 * seed] = rng.integers(0, 120, 3)
    pixels[40 + 4 * seed : 52 + 4 * seed, 24:104] = rng.integers(0, 120, 3)
    return Image.fromarray(pixels)
