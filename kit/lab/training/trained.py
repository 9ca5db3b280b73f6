"""From a trained module to a bundle on disk, not yet exported: weights, golden samples and the training record."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from kit import bundle
from kit.bundle import Bundle
from kit.bundle.manifest import Provenance
from kit.errors import BundleInvalid
from kit.lab import models, records
from kit.lab.blueprint import ARCHITECTURE, Blueprint
from kit.lab.data import Dataset, golden_split
from kit.lab.training.loop import TrainingResult
from kit.lab.training.trainer import predict
from kit.lab.training.world import World
from kit.samples import Samples
from kit.system import machine
from kit.tasks.proof import items_of


def save(
    result: TrainingResult, folder: Path, *, dataset: Dataset | None = None, data_dir: Path | None = None
) -> Bundle:
    """Write a new bundle, or replace the one in `folder`, with no variants yet.

    The golden samples come from a data set whose pictures may be redistributed, never from the training data of one that
    may not; from a folder of a person's own images they are its test images, and say so. Without a `dataset` in memory
    it is read again.

    Raises:
        UsageError: The folder holds other things.
        StorageUnavailable: It cannot be written.
    """
    pixels, licence = golden_split(dataset or result.record.dataset, data_dir=data_dir)
    golden = Samples(
        inputs={"pixels": pixels.images},
        expected={"logits": answers(result.module, result.blueprint, pixels.images)},
        targets={"labels": pixels.labels},
        source=licence,
    )
    task, signature = result.blueprint.task, result.blueprint.signature
    task.check(signature)
    return bundle.create(
        folder,
        name=result.name,
        signature=signature,
        task=task,
        items=items_of(task),
        golden=(golden,),
        tools=machine.tool_versions(),
        original=Provenance(kind=ARCHITECTURE, name=result.blueprint.architecture),
        weights=models.save_weights(result.module),
        attachments=records.attachments(training=result.record),
    )


def answers(module: torch.nn.Module, blueprint: Blueprint, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return a trained module's logits float32 `[N, classes]` on the CPU, for pixels uint8 `[N, height, width]`."""
    here = World(device=torch.device("cpu"))
    logits: NDArray[np.float32] = predict(module, torch.tensor(pixels), blueprint.normalization, here).numpy()
    return logits


def same_weights(result: TrainingResult, folder: Path) -> Bundle | None:
    """Return the bundle in `folder` if it holds just these weights for the same blueprint; None otherwise."""
    try:
        found = bundle.open_folder(folder)
    except BundleInvalid:
        return None
    original, digest = found.manifest.original, hashlib.sha256(models.save_weights(result.module)).hexdigest()
    if original is None or original.weights is None or original.weights.sha256 != digest:
        return None
    return found if Blueprint.of(found) == result.blueprint else None
