"""The one entrance of the workshop: a model in, checked variants in a bundle out.

report = export("model.onnx", out="artifacts/my-model", options=ExportOptions(precisions=("fp32", "int8")), data=splits)
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from exporters import candidates, workbench
from exporters.gate import Passed
from exporters.options import ExportOptions
from exporters.search import blame, fine_tuning
from exporters.sources.base import Original
from exporters.workbench import ExportReport, Workbench
from kit import bundle as bundles
from kit.bundle import Bundle, Staged
from kit.bundle.manifest import Variant, check_name
from kit.choices import Precision
from kit.errors import UsageError
from kit.metrics import Metric
from kit.samples import Samples, Splits
from kit.system import machine
from kit.system.progress import OnProgress, silent
from kit.tasks.base import Task
from kit.tasks.proof import items_of
from kit.tensors import Axis, Signature

__all__ = ["ExportOptions", "ExportReport", "export", "export_bundle", "make"]

_QUANTIZED = frozenset({Precision.INT8, Precision.INT4})


def export_bundle(
    bundle: Bundle,
    options: ExportOptions,
    *,
    data: Splits | None = None,
    data_dir: Path | None = None,
    metric: str | Metric | None = None,
    on_progress: OnProgress = silent,
) -> ExportReport:
    """Add variants to a bundle of any model.

    Args:
        bundle: Its original is rebuilt if an installed package knows it; else its baseline answers for it.
        options: What to make.
        data: Samples to check and calibrate with; None for those that the bundle was made with, if they are at hand.
        data_dir: Where registered data sets lie.
        metric: What decides, by name or itself; None for the first of its task's metrics that the data allow.
        on_progress: Told what is being done.

    Raises:
        UsageError: The bundle is packed, the data do not fit it, or a variant cannot be made of it.
        GateFailed: A check said no; the bundle is as it was.
    """
    bundles.refuse_unwritable(bundle)
    with workbench.staging_beside(bundle.folder) as folder:
        bench = workbench.for_bundle(
            bundle,
            folder,
            opset=options.opset,
            data=data,
            data_dir=data_dir,
            metric=metric,
            max_loss=options.max_loss,
            fine_tune_seconds=options.fine_tune_seconds,
            on_progress=on_progress,
        )
        passed = make(bench, options, on_progress)
        on_progress("publishing")
        published = bundles.publish(bundle, staged(bundle, passed), tools=machine.tool_versions())
    return ExportReport(bundle=published, passed=passed)


def export(
    source: Any,
    *,
    out: str | os.PathLike[str],
    name: str | None = None,
    signature: Signature | None = None,
    inputs: Any = None,
    axes: Mapping[str, Axis] | None = None,
    task: Task | None = None,
    weights: str | os.PathLike[str] | None = None,
    options: ExportOptions | None = None,
    data: Splits | None = None,
    golden: Sequence[Samples] | None = None,
    raw: Sequence[Any] = (),
    metric: str | Metric | None = None,
    attachments: Mapping[str, bytes] | None = None,
    on_progress: OnProgress = silent,
) -> ExportReport:
    """Export a model into a bundle of its own.

    Args:
        source: A torch module, an ExportedProgram, `package.module:factory`, or the path of an .onnx file, a .pt2 file or a
            Hugging Face folder.
        out: Folder of the bundle; replaced if it is one.
        name: Of the model; None for the folder's.
        signature: What it takes and gives; None to find that out.
        inputs: Example inputs of a module, by name.
        axes: Bounds and typical sizes of axes, by name.
        task: What people put in and get out; None for the one its files speak of, or plain tensors.
        weights: A safetensors file for a factory's module.
        options: What to make.
        data: Samples to check with; their training split gives static INT8 its calibration samples. Without data the
            variants are compared with the original on the golden samples.
        golden: Samples that may be redistributed; None for some of the data's, else samples drawn to fit the signature.
        raw: Items as the task's `raw` gives them: the bundle keeps a few with the tensors they must become.
        metric: What decides, by name or itself; None for the first of the task's metrics that the data allow.
        attachments: Other files of the bundle by role.
        on_progress: Told what is being done.

    Raises:
        UsageError: The data or the task do not fit the model, or the folder holds other things.
        GateFailed: A check said no; nothing was written.
    """
    from exporters.sources import open_source

    name = _checked_name(name or Path(out).name)
    bundles.refuse_foreign(Path(out))
    on_progress("opening the model")
    original = open_source(
        source,
        name=name,
        signature=signature,
        inputs=inputs,
        axes=axes,
        task=task,
        weights=None if weights is None else Path(weights),
    )
    try:
        return export_original(
            original,
            out=out,
            name=name,
            task=task or original.task,
            options=options,
            data=data,
            golden=golden,
            raw=raw,
            metric=metric,
            attachments=attachments,
            on_progress=on_progress,
        )
    finally:
        original.close()


def export_original(
    original: Original,
    *,
    out: str | os.PathLike[str],
    name: str | None = None,
    task: Task | None = None,
    options: ExportOptions | None = None,
    data: Splits | None = None,
    golden: Sequence[Samples] | None = None,
    raw: Sequence[Any] = (),
    metric: str | Metric | None = None,
    attachments: Mapping[str, bytes] | None = None,
    on_progress: OnProgress = silent,
) -> ExportReport:
    """Export a model that is open already; arguments and errors are those of `export`. The caller closes it."""
    options = options or ExportOptions()
    folder = Path(out)
    name = _checked_name(name or folder.name)
    bundles.refuse_foreign(folder)
    if task is not None:
        task.check(original.signature)
    items = items_of(task, raw)
    with workbench.staging_beside(folder) as staging:
        bench = workbench.of(
            original,
            staging,
            opset=options.opset,
            golden=golden,
            data=data,
            task=task,
            metric=metric,
            max_loss=options.max_loss,
            fine_tune_seconds=options.fine_tune_seconds,
            on_progress=on_progress,
        )
        passed = make(bench, options, on_progress)
        on_progress("publishing")
        bundle = bundles.create(
            folder,
            name=name,
            signature=bench.signature,
            golden=bench.golden,
            tools=machine.tool_versions(),
            task=task,
            original=original.record,
            variants=tuple(one.staged for one in passed),
            items=items,
            attachments=attachments,
        )
    return ExportReport(bundle=bundle, passed=passed, remarks=original.remarks if task is None else ())


def _checked_name(name: str) -> str:
    try:
        return check_name(name)
    except ValueError as error:
        raise UsageError(str(error), hint="choose another --out or --name") from error


def make(bench: Workbench, options: ExportOptions, on_progress: OnProgress) -> tuple[Passed, ...]:
    """Make the candidates that were asked for and pass each through the gate; the baseline, which has passed, stands first."""
    passed = [bench.baseline]
    for recipe in candidates.recipes(options):
        if recipe.id == bench.baseline.variant.id:
            passed[0] = bench.baseline.remarked("the model came like this, and is left as it is")
            continue
        at, said = fine_tuning.better(recipe, bench, on_progress)
        exclude = recipe.exclude
        if options.finds_exclusions and recipe.format.precision in _QUANTIZED:
            exclude = blame.fewest_excluded(recipe, at, on_progress)
        on_progress(f"{recipe.id}: make")
        candidate = recipe.make(at.source, exclude)
        on_progress(f"{recipe.id}: checks")
        passed.append(bench.examine(candidate).remarked(said))
    return tuple(passed)


def staged(bundle: Bundle, passed: Sequence[Passed]) -> tuple[Staged, ...]:
    """Return what is published; a baseline that was in the bundle before keeps what was proved of it then."""
    return tuple(_kept(bundle, one) for one in passed)


def _kept(bundle: Bundle, one: Passed) -> Staged:
    before = next((variant for variant in bundle.variants if variant.id == one.variant.id), None)
    if before is None or one.folder != bundle.folder:
        return one.staged
    return Staged(variant=_scored(before, one.variant), folder=bundle.folder)


def _scored(before: Variant, now: Variant) -> Variant:
    fresh = {(score.metric, score.dataset, score.split) for score in now.scores}
    kept = tuple(one for one in before.scores if (one.metric, one.dataset, one.split) not in fresh)
    return dataclasses.replace(before, scores=(*kept, *now.scores))
