"""What the lab gives to the rest of kit by entry points: its data sets by name, and its networks from their weights.

As the plug of `kit.datasets` this module offers `names`, `load` and `of`; as that of `kit.architectures`, `rebuild`. Data
are read if they are on this machine, and never downloaded: only `kit train` does that.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kit.bundle import Bundle
from kit.errors import UsageError
from kit.lab import data
from kit.lab.data import Dataset, Split
from kit.lab.records import TrainingRecord, training_record
from kit.samples import Samples, Splits
from kit.tasks.base import Task
from kit.tensors import Signature

if TYPE_CHECKING:
    from torch import nn

SEEN_FRACTION = 0.1
"""If a model was trained on all images, so many of them have to do for validation, and are called what they are."""

LABELS = "labels"
"""Name of the targets."""


def names() -> tuple[str, ...]:
    """Return the data sets that have a name."""
    return tuple(data.DATASETS)


def load(name: str, task: Task, signature: Signature, *, data_dir: Path | None = None) -> Splits:  # noqa: ARG001 - the plugs' form
    """Read a data set by its name; raises as `kit.datasets.Plug.load`."""
    return _splits(data.load(name, data_dir=data_dir), signature, fraction=SEEN_FRACTION, seed=0)


def of(bundle: Bundle, *, data_dir: Path | None = None) -> Splits | None:
    """Read the data set that a bundle was trained on, split as it was then; None if it is not on this machine.

    Raises:
        DatasetInvalid: It is there, and was altered.
    """
    record = training_record(bundle)
    dataset = None if record is None else data.at_hand(record.dataset, data_dir=data_dir)
    return None if record is None or dataset is None else splits_of(dataset, record, bundle.signature)


def splits_of(dataset: Dataset, record: TrainingRecord, signature: Signature) -> Splits:
    """Split a data set as a training record says."""
    fraction = record.validation_fraction or SEEN_FRACTION
    held_out = "validation" if record.validation_fraction else "train"
    return _splits(dataset, signature, fraction=fraction, seed=record.seed, validation_name=held_out)


def rebuild(bundle: Bundle) -> nn.Module | None:
    """Build a lab bundle's module, whose forward takes raw pixels as the signature says; None for other bundles.

    Raises:
        BundleInvalid: Its weights were altered, or do not fit.
    """
    from kit.lab import models

    return models.rebuild(bundle)


def _splits(
    dataset: Dataset, signature: Signature, *, fraction: float, seed: int, validation_name: str = "validation"
) -> Splits:
    fitted, held_out = data.validation_indices(len(dataset.train), fraction=fraction, seed=seed)
    parts = {
        "train": dataset.train.take(fitted),
        "validation": dataset.train.take(held_out),
        "test": dataset.test,
    }
    groups = {part: (_samples(dataset, split, signature, part),) for part, split in parts.items()}
    return Splits(dataset=dataset.name, validation_name=validation_name, **groups)


def _samples(dataset: Dataset, split: Split, signature: Signature, part: str) -> Samples:
    return Samples(
        inputs={signature.inputs[0].name: _fitting(dataset, split.images, signature)},
        targets={LABELS: split.labels},
        source=f"{dataset.name} {part}",
    )


def _fitting(dataset: Dataset, images: NDArray[np.uint8], signature: Signature) -> NDArray[Any]:
    """Return images in the shape that the model takes: theirs, or with one channel."""
    spec = signature.inputs[0]
    grey = (tuple(images.shape[1:]), (1, *images.shape[1:]), (*images.shape[1:], 1))
    if len(signature.inputs) == 1 and spec.dtype == "uint8" and spec.shape[:1] == (signature.batch,):
        fitting = [shape for shape in grey if _matches(spec.shape[1:], shape)]
        if fitting:
            return images.reshape(len(images), *fitting[0])
    takes = ", ".join(f"{name}: {described}" for name, described in signature.described().items())
    height, width = images.shape[1:]
    raise UsageError(
        f"{dataset.name} holds grey pictures, uint8 [batch, {height}, {width}], and the model takes {takes}",
        hint="give data of the model's own: --data FILE or FOLDER",
    )


def _matches(wanted: tuple[int | str, ...], shape: tuple[int, ...]) -> bool:
    return len(wanted) == len(shape) and all(
        isinstance(one, str) or one == size for one, size in zip(wanted, shape, strict=True)
    )
