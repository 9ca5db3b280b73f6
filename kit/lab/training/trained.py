"""From a trained module to a bundle on disk, not yet exported: weights, golden samples and the training record."""

from __future__ import annotations

import hashlib
from pathlib import Path

from kit import bundle
from kit.bundle import Bundle, GoldenSamples
from kit.errors import BundleInvalid
from kit.lab import models
from kit.lab.data import Dataset, golden_split
from kit.lab.training.loop import TrainingResult
from kit.runtime.pytorch import reference_logits
from kit.system import machine


def save(
    result: TrainingResult, folder: Path, *, dataset: Dataset | None = None, data_dir: Path | None = None
) -> Bundle:
    """Write a new bundle, or replace the one in `folder`, with no variants yet.

    The golden samples come from a data set whose pictures may be redistributed, never from the training data of one that
    may not; from a folder of a person's own images they are test images of that folder, and say so.

    Args:
        result: What was trained.
        folder: Of the bundle.
        dataset: What it was trained on, where it is in memory; else it is read again.
        data_dir: Where data sets lie.

    Raises:
        UsageError: The folder holds other things.
        StorageUnavailable: It cannot be written.
    """
    pixels, licence = golden_split(dataset or result.record.dataset, data_dir=data_dir)
    golden = GoldenSamples(
        pixels=pixels.images,
        labels=pixels.labels,
        logits=reference_logits(result.module, result.spec, pixels.images),
        source=licence,
    )
    return bundle.create(
        folder,
        spec=result.spec,
        golden=golden,
        tools=machine.tool_versions(),
        weights=models.save_weights(result.module),
        training=result.record,
    )


def same_weights(result: TrainingResult, folder: Path) -> Bundle | None:
    """Return the bundle in `folder` if it holds just these weights for the same spec; None otherwise."""
    try:
        found = bundle.open_folder(folder)
    except BundleInvalid:
        return None
    weights, digest = found.manifest.weights, hashlib.sha256(models.save_weights(result.module)).hexdigest()
    return found if weights is not None and weights.sha256 == digest and found.spec == result.spec else None
