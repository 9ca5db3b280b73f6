"""What a person typed, made good: names of tasks, data and metrics become what the pipeline takes. Used by the command line.

export_source("model.onnx", task="image-classification", task_options={"labels": ("cat", "dog")}, data="photos/")
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from exporters import room, workbench
from exporters.options import ExportOptions
from exporters.pipeline import ExportReport, export_bundle, export_original
from exporters.search.blame import Blame, blame_bundle
from exporters.search.choose import AutoOptions, AutoReport, export_auto
from kit import bundle as bundles
from kit import datasets, metrics
from kit.bundle import Bundle
from kit.bundle.manifest import Provenance, check_name
from kit.errors import BundleInvalid, BundleNotFound, UsageError
from kit.metrics import Metric
from kit.samples import Splits
from kit.system.progress import OnProgress, silent
from kit.tasks import registry as tasks
from kit.tasks.base import Task
from kit.tasks.tensors import PlainTensors, arrays_of
from kit.tensors import BATCH, Axis, Signature, TensorSpec

_FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")

RAW_ITEMS = 3
"""Raw items that travel in the bundle with the tensors they must become."""


def export_source(
    source: str,
    *,
    out: Path | None = None,
    name: str | None = None,
    task: str | None = None,
    task_options: Mapping[str, Any] | None = None,
    weights: Path | None = None,
    inputs: Sequence[TensorSpec] = (),
    axes: Mapping[str, Axis | None] | None = None,
    samples: Path | None = None,
    data: str | None = None,
    data_dir: Path | None = None,
    metric: str | None = None,
    options: ExportOptions | None = None,
    on_progress: OnProgress = silent,
) -> ExportReport:
    """Make a bundle of a model named `model.onnx`, `program.pt2`, `package.module:factory` or as a Hugging Face folder.

    `out` is `artifacts/NAME` if None; a task that is None is what the source's files say. In `axes`, None for `batch`
    says that its rows depend on each other. `samples` is an npz of golden samples, `data` a registered data set or a
    path that the task reads. `weights`, and `inputs` where it has no example inputs, are for a factory.

    Raises:
        BundleNotFound: There is no such source.
        UsageError: Something does not fit the model, or the folder that nobody named holds the bundle of another one.
        StorageUnavailable, MemoryShort: There is no room for it.
        GateFailed: A check said no; nothing was written.
    """
    from exporters.sources import open_source

    _refuse_unknown(source)
    named = _name(source, name)
    folder = out or bundles.ROOT / named
    bundles.refuse_foreign(folder)
    options = options or ExportOptions()
    chosen = _task(task, task_options or {})
    judged = _metric(metric)
    room.check(source, folder, weights=weights, variants=1 + len(options.precisions))
    on_progress("opening the model")
    original = open_source(
        source,
        name=named,
        signature=_signature(inputs, axes or {}),
        inputs=None if samples is None or not _FACTORY.fullmatch(source) else _inputs(samples),
        axes={name: axis for name, axis in (axes or {}).items() if axis is not None} or None,
        task=chosen,
        weights=weights,
    )
    try:
        if out is None:
            _refuse_another(folder, original.record)
        if BATCH in (axes or {}) and (axes or {})[BATCH] is None:
            original.signature = dataclasses.replace(original.signature, batch=None)
        knows = chosen or original.task or PlainTensors()
        knows.check(original.signature)
        golden = None if samples is None else PlainTensors().samples(samples, original.signature)
        return export_original(
            original,
            out=folder,
            name=named,
            task=chosen or original.task,
            options=options,
            data=_data(data, knows, original.signature, data_dir=data_dir, on_progress=on_progress),
            golden=golden,
            raw=knows.raw(None, RAW_ITEMS),  # made up by the task: the user's own things stay where they are
            metric=judged,
            on_progress=on_progress,
        )
    finally:
        original.close()


def export_more(
    bundle: Bundle,
    options: ExportOptions,
    *,
    data: str | None = None,
    data_dir: Path | None = None,
    metric: str | None = None,
    on_progress: OnProgress = silent,
) -> ExportReport:
    """Add variants to a bundle, held to data that somebody named; raises what `export_bundle` does."""
    judged = _metric(metric)
    splits = _data_of(bundle, data, data_dir=data_dir, on_progress=on_progress)
    return export_bundle(bundle, options, data=splits, data_dir=data_dir, metric=judged, on_progress=on_progress)


def export_fastest(
    bundle: Bundle,
    options: AutoOptions,
    *,
    data: str | None = None,
    data_dir: Path | None = None,
    metric: str | None = None,
    on_progress: OnProgress = silent,
) -> AutoReport:
    """Make all variants of a bundle and choose, held to data that somebody named; raises what `export_auto` does."""
    judged = _metric(metric)
    splits = _data_of(bundle, data, data_dir=data_dir, on_progress=on_progress)
    return export_auto(bundle, options, data=splits, data_dir=data_dir, metric=judged, on_progress=on_progress)


def blame_layers(
    bundle: Bundle,
    options: ExportOptions,
    *,
    data: str | None = None,
    data_dir: Path | None = None,
    metric: str | None = None,
    on_progress: OnProgress = silent,
) -> Blame:
    """Find out which layers lose what, on data that somebody named; raises what `blame_bundle` does."""
    judged = _metric(metric)
    splits = _data_of(bundle, data, data_dir=data_dir, on_progress=on_progress)
    return blame_bundle(bundle, options, data=splits, data_dir=data_dir, metric=judged, on_progress=on_progress)


def _signature(inputs: Sequence[TensorSpec], axes: Mapping[str, Axis | None]) -> Signature | None:
    if not inputs:
        return None
    from exporters.sources.trial import UNKNOWN

    named = any(BATCH in spec.shape for spec in inputs)
    batch = BATCH if named and axes.get(BATCH, Axis()) is not None else None
    try:
        return Signature(inputs=tuple(inputs), outputs=UNKNOWN, batch=batch)
    except ValueError as error:
        raise UsageError(f"these inputs cannot be: {error}") from error


def _inputs(samples: Path) -> dict[str, Any]:
    return {name: array for name, array in arrays_of(samples).items() if not name.startswith("target.")}


def _refuse_unknown(source: str) -> None:
    path = Path(source)
    if path.is_file() and path.suffix == ".py":
        raise UsageError(f"{source} is no model", hint=f"name a function that returns one: {path.stem}:FUNCTION")
    if not Path(source).exists() and not _FACTORY.fullmatch(source):
        raise BundleNotFound(
            f"there is no bundle and no model {source!r}",
            hint="name a bundle, a model.onnx, a program.pt2, package.module:factory, or a Hugging Face folder",
        )


def _refuse_another(folder: Path, record: Provenance) -> None:
    """Refuse to replace the bundle of another model that nobody named: every exporter calls its file model.onnx."""
    try:
        before = bundles.find(folder).manifest.original if bundles.is_bundle(str(folder)) else record
    except BundleInvalid:
        return  # a damaged one is made anew
    if before is None or (before.kind, before.name, before.sha256) != (record.kind, record.name, record.sha256):
        what = "another model" if before is None else f"the {before.kind} {before.name}"
        same = before is not None and (before.kind, before.name) == (record.kind, record.name)
        raise UsageError(
            f"{folder} is a bundle of {what}{', of another content' if same else ''}",
            hint=f"choose another --name, or replace it: --out {folder}",
        )


def remark_on_task(bundle: Bundle) -> str:
    """Say that nobody here knows a bundle's task, so that plain tensors stand for it; empty if somebody does."""
    ref = bundle.manifest.task
    if ref is None or workbench.knows_task(bundle):
        return ""
    package = f" (install {ref.package})" if ref.package else ""
    return f"No installed package knows the task {ref.name}{package}: its model is taken as one of plain tensors."


def _name(source: str, name: str | None) -> str:
    if name is None:
        path = Path(source)
        stem = source.rpartition(":")[2] if not path.exists() else path.resolve().name
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(stem).stem if path.is_file() else stem).strip("-._")[:100]
    try:
        return check_name(name)
    except ValueError as error:
        raise UsageError(str(error), hint="choose another --name") from error


def _task(name: str | None, options: Mapping[str, Any]) -> Task | None:
    if name is None:
        return None
    try:
        return tasks.find(name)(**options)
    except TypeError as error:  # such as a missing argument
        missing = re.search(r"'(\w+)'", str(error))
        flag = f"--{missing[1].replace('_', '-')}" if missing else str(error)
        raise UsageError(f"the task {name} needs {flag}", hint=f"kit export SOURCE --task {name} {flag} ...") from error
    except ValueError as error:
        raise UsageError(f"the task {name} does not take these options: {error}") from error


def _metric(name: str | None) -> Metric | None:
    return None if name is None else metrics.find(name)


def _data(
    name: str | None, task: Task, signature: Signature, *, data_dir: Path | None, on_progress: OnProgress
) -> Splits | None:
    if name is None:
        return None
    on_progress("reading data")
    return datasets.load(name, task, signature, data_dir=data_dir)


def _data_of(bundle: Bundle, name: str | None, *, data_dir: Path | None, on_progress: OnProgress) -> Splits | None:
    return (
        None
        if name is None
        else _data(name, workbench.task_of(bundle), bundle.signature, data_dir=data_dir, on_progress=on_progress)
    )
