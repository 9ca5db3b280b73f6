"""The one entrance of the workshop: a module and a ModelSpec in, checked variants in a bundle out.

Who calls whom: `export_bundle` (a bundle that `kit train` made) and `export` (any module) set up a workbench, make what the
options call for (candidates), hand each to the gate, and publish all of them in one step; when one fails nothing is
published.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from torch import nn

from exporters import candidates, workbench
from exporters.gate import LabelledData, Passed
from exporters.options import ExportOptions
from exporters.search import blame
from exporters.workbench import ExportReport, OnStep, Workbench
from kit import bundle as bundles
from kit.bundle import Bundle, GoldenSamples
from kit.bundle.records import ModelSpec
from kit.choices import Precision
from kit.lab import data as datasets
from kit.lab import models
from kit.lab.data import Split
from kit.system import machine
from kit.tasks import images

__all__ = ["ExportOptions", "ExportReport", "LabelledData", "Split", "export", "export_bundle"]


def export_bundle(
    bundle: Bundle,
    options: ExportOptions,
    *,
    data_dir: Path | None = None,
    on_step: OnStep = lambda _: None,
) -> ExportReport:
    """Export a trained bundle's weights and add the variants to it.

    Raises:
        UsageError: The bundle is packed, holds no weights or training record, or a module kit cannot rebuild.
        DatasetUnavailable: The data set it was trained on, which the gate needs, is not here.
        GateFailed: A check said no; the bundle is as it was.
    """
    bundles.refuse_unwritable(bundle)
    bench = workbench.for_bundle(bundle, opset=options.opset, data_dir=data_dir, on_step=on_step)
    passed = make(bench, options, on_step)
    on_step("publishing")
    entries = tuple((one.variant, one.data) for one in passed)
    published = bundles.publish(bundle, entries, tools=machine.tool_versions())
    return ExportReport(bundle=published, passed=passed)


def export(
    module: nn.Module,
    spec: ModelSpec,
    *,
    out: str | os.PathLike[str],
    options: ExportOptions | None = None,
    data: LabelledData | None = None,
    golden: tuple[datasets.Split, str] | None = None,
    on_step: OnStep = lambda _: None,
) -> ExportReport:
    """Export any module into a bundle of its own.

    Args:
        module: Takes normalised float32 `[N, *spec.input.shape]`, gives logits `[N, classes]`; set to evaluation mode.
        spec: What it is.
        out: Folder of the bundle; replaced if it is one.
        options: What to make.
        data: Labelled data for the accuracy gate; its training split gives static INT8 its calibration samples. Without
            data only parity with PyTorch is checked, and the manifest says so by having no accuracy.
        golden: Samples that may be redistributed, and their source; seeded noise if None.
        on_step: Told what is being done.

    Raises:
        UsageError: Static INT8 without calibration samples, or a folder that holds other things.
        GateFailed: A check said no; nothing was written.
    """
    options = options or ExportOptions()
    folder = Path(out)
    bundles.refuse_foreign(folder)
    images.check_pipeline(spec.pipeline, spec.input.shape)
    module.eval()
    samples = _golden(module, spec, golden)
    bench = workbench.for_module(module, spec, samples, opset=options.opset, data=data, on_step=on_step)
    passed = make(bench, options, on_step)
    on_step("publishing")
    bundle = bundles.create(
        folder,
        spec=spec,
        golden=samples,
        tools=machine.tool_versions(),
        weights=models.save_weights(module),
        variants=tuple((one.variant, one.data) for one in passed),
    )
    return ExportReport(bundle=bundle, passed=passed)


def make(bench: Workbench, options: ExportOptions, on_step: OnStep) -> tuple[Passed, ...]:
    """Make the candidates that were asked for and pass each through the gate; fp32, which has passed, stands first."""
    passed = [bench.fp32]
    for plan in candidates.plans(options):
        exclude = plan.exclude
        if options.finds_exclusions and plan.precision in {Precision.INT8, Precision.INT4}:
            exclude = blame.fewest_excluded(plan, bench, options.allowed_drop_points, on_step)
        on_step(f"{plan.id}: make")
        candidate = plan.make(bench.source, exclude)
        on_step(f"{plan.id}: checks")
        passed.append(bench.examine(candidate, options.allowed_drop_points))
    return tuple(passed)


def _golden(module: nn.Module, spec: ModelSpec, given: tuple[datasets.Split, str] | None) -> GoldenSamples:
    """Attach PyTorch's logits to the samples, or to seeded noise that stands for them."""
    if given is None:
        noise = np.random.default_rng(0).integers(0, 256, size=(256, *spec.input.shape), dtype=np.uint8)
        given = (datasets.Split(noise, np.full(len(noise), -1, np.int64)), "seeded noise")
    split, source = given
    return GoldenSamples(
        pixels=split.images,
        labels=split.labels,
        logits=workbench.answers(module, spec, split.images),
        source=source,
    )
