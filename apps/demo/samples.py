"""One sample to ask a model about: of its data set, of its golden samples, or of a file that somebody uploads."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.demo.worker import Job
from kit import datasets, ready
from kit.bundle import Bundle
from kit.errors import BadInput, PackageMissing
from kit.samples import Samples, Splits, count
from kit.system.npz import NpzError, open_npz
from kit.tasks.base import Task
from kit.tasks.registry import task_of
from kit.tasks.tensors import PlainTensors, samples_of
from kit.tensors import Signature

MOST_BYTES = 2**30
"""Of all arrays of an uploaded file, unpacked."""

_MOST_VALUES = 4


@dataclass(frozen=True, kw_only=True)
class DrawnSample:
    """One sample; in words, `source` is where it comes from, and `right` the right answer, empty if nobody knows it."""

    samples: Samples
    source: str
    right: str


def bundle_of(job: Job) -> Bundle:
    """Open the bundle or the ready model that is asked about, by its `path`; a ready model is looked at once."""
    path = Path(job.asked["path"])
    if not ready.is_ready(path):
        return ready.find(path)
    stamp = path.stat()
    key = f"ready {path} {stamp.st_mtime_ns} {stamp.st_size}"
    if key not in job.state:
        job.state[key] = ready.find(path)
    found: Bundle = job.state[key]
    return found


def splits_of(bundle: Bundle, job: Job) -> Splits | None:
    """Return the labelled data a bundle was made with, read once; None if it is not at hand."""
    key = f"splits {bundle.origin} {bundle.manifest.attachments.get('training')}"
    if key not in job.state:
        job.state[key] = datasets.of(bundle)
    found: Splits | None = job.state[key]
    return found


def draw(bundle: Bundle, job: Job) -> DrawnSample:
    """Draw a sample: see apps.demo.jobs.sample for what is asked. Golden ones alone are drawn one after the other."""
    number, signature = int(job.asked["number"]), bundle.signature
    splits = None if job.asked.get("golden") else splits_of(bundle, job)
    groups = splits.test if splits else bundle.golden()
    total = count(groups, signature)
    index = number % total if job.asked.get("golden") else int(np.random.default_rng(number).integers(total))
    source = f"{splits.dataset} test sample {index:,}" if splits else f"golden sample {index:,}"
    row = index
    for group in groups:
        rows = signature.rows(group.inputs)
        if row < rows:
            one = group.take(signature, slice(row, row + 1)) if signature.batch else group
            return DrawnSample(samples=one, source=source, right=_right(one, names_of(bundle)))
        row -= rows
    raise BadInput(f"{bundle.name} has no samples")


def known_task(bundle: Bundle) -> Task:
    """Open a task, plain tensors if no package knows it; raises BundleInvalid if its options or files are wrong."""
    try:
        return task_of(bundle)
    except PackageMissing:
        return PlainTensors(bundle.signature)


def names_of(bundle: Bundle) -> tuple[str, ...]:
    """Return the names of a bundle's classes; none if it has no classes."""
    return tuple(map(str, getattr(known_task(bundle), "labels", ()) or ()))


def _right(one: Samples, names: tuple[str, ...]) -> str:
    for values in (one.targets or {}).values():
        target = np.asarray(values).reshape(-1)
        if names and target.size == 1 and target.dtype.kind in "iu":
            return names[int(target[0])] if 0 <= int(target[0]) < len(names) else ""
        if target.size <= _MOST_VALUES:
            return ", ".join(f"{value:.4g}" if target.dtype.kind == "f" else str(value) for value in target)
    return ""


def from_file(data: bytes, signature: Signature) -> dict[str, NDArray[Any]]:
    """Return the inputs in an .npz; raises BadInput if it is something else, too large, or does not fit the model."""
    hint = "save one: numpy.savez(FILE, " + ", ".join(f"{spec.name}=..." for spec in signature.inputs) + ")"
    try:
        with open_npz(io.BytesIO(data), most_bytes=MOST_BYTES) as held:
            arrays = {name: held[name] for name in held.files}
    except NpzError as error:
        raise BadInput(f"the file holds no named arrays: {error}", hint=hint) from error
    return dict(samples_of(arrays, signature, "the file").inputs)
