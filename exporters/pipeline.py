"""The one entrance of the workshop: a module and a ModelSpec in, checked variants in a bundle out.

Who calls whom: `export_bundle` (a bundle that `kit train` made) and `export` (any module) both make candidates
(onnx_graph, int8), hand each to the gate, and publish all of them in one step; when one fails nothing is published.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from exporters import int8, onnx_graph
from exporters.gate import Candidate, LabelledData, Passed, Reference, examine
from exporters.onnx_graph import Graph
from kit import bundle as bundles
from kit import data as datasets
from kit import images, machine, models
from kit.bundle import Bundle, GoldenSamples
from kit.data import Split
from kit.errors import GateFailed, UsageError
from kit.runtime.pytorch import reference_logits
from kit.spec import Calibration, ModelSpec, Precision, QuantizationScheme, VariantFormat

_SEEN_FRACTION = 0.1
OnStep = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What to make, and the bar it must meet.

    Attributes:
        precisions: Any of fp32 and int8; fp32 is made in any case, as the baseline.
        quantization: How int8 finds its activation ranges.
        opset: ONNX operator set.
        max_drop_points: Largest loss of top-1 against fp32, in percentage points.
        calibration_samples: Training images that static quantization draws its ranges from.
        seed: Of the draw of those images.
    """

    precisions: tuple[Precision, ...] = (Precision.FP32,)
    quantization: QuantizationScheme = QuantizationScheme.STATIC
    opset: int = onnx_graph.DEFAULT_OPSET
    max_drop_points: float = 0.3
    calibration_samples: int = 1024
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be made."""
        if not self.precisions:
            raise UsageError("precisions must be a tuple of one or more", hint='such as ("fp32", "int8")')
        object.__setattr__(self, "precisions", tuple(Precision.parse(item) for item in self.precisions))
        object.__setattr__(self, "quantization", QuantizationScheme.parse(self.quantization))
        if self.opset not in onnx_graph.OPSETS:
            known = f"{onnx_graph.OPSETS[0]} to {onnx_graph.OPSETS[-1]}"
            raise UsageError(f"opset {self.opset} is not supported", hint=f"choose one of {known}")
        if self.calibration_samples < 1:
            raise UsageError("calibration needs 1 sample or more")
        if self.max_drop_points < 0:
            raise UsageError(f"the allowed drop must not be negative, found {self.max_drop_points}")


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """What was published, and the figures each candidate passed with."""

    bundle: Bundle
    passed: tuple[Passed, ...]


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
    bundles.refuse_packed(bundle)
    weights, record = bundle.manifest.weights, bundle.manifest.training
    if weights is None or record is None or not models.is_known(bundle.spec.architecture):
        raise UsageError(
            f"bundle {bundle.name!r} was not made by kit train: kit cannot rebuild {bundle.spec.architecture!r}",
            hint="export its module from Python: exporters.export(module, spec, out=...)",
        )
    on_step("reading data")
    bundle.read(weights)  # checks the sha256 before anything is made of it
    module = models.load_trained(bundle.spec, bundle.path(weights))
    dataset = datasets.load(record.dataset, data_dir=data_dir)
    # Where all images were trained on, a tenth of them has to do for the gate, and is called by its name.
    fraction = record.validation_fraction or _SEEN_FRACTION
    fitted, held_out = datasets.validation_indices(len(dataset.train), fraction=fraction, seed=record.seed)
    data = LabelledData(
        dataset=dataset.name,
        train=dataset.train.take(fitted),
        validation=dataset.train.take(held_out),
        test=dataset.test,
        validation_name="validation" if record.validation_fraction else "train",
    )
    passed = _make(module, bundle.spec, bundle.golden(), options, data, on_step)
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
    passed = _make(module, spec, samples, options, data, on_step)
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


def _make(
    module: nn.Module,
    spec: ModelSpec,
    golden: GoldenSamples,
    options: ExportOptions,
    data: LabelledData | None,
    on_step: OnStep,
) -> tuple[Passed, ...]:
    """Make the candidates that were asked for, fp32 first, and pass each through the gate."""
    if data is not None:
        _check_data(data, spec)
    on_step("PyTorch reference")
    reference = Reference(
        golden=golden,
        validation=_reference(module, spec, data.validation.images) if data else None,
        test=_reference(module, spec, data.test.images) if data else None,
    )
    on_step("fp32: export")
    graph = onnx_graph.to_onnx(module, spec, opset=options.opset)
    on_step("fp32: checks")
    float_candidate = Candidate(
        id="fp32",
        model=graph.model,
        precision=Precision.FP32,
        format=VariantFormat.FLOAT,
        normalization_folded=graph.normalization_folded,
    )
    fp32 = examine(float_candidate, spec, reference, data=data, baseline=None, max_drop_points=options.max_drop_points)
    if Precision.INT8 not in options.precisions:
        return (fp32,)
    on_step("int8: quantize")
    candidate = _quantize(graph, spec, options, data)
    on_step("int8: checks")
    quantized = examine(candidate, spec, reference, data=data, baseline=fp32, max_drop_points=options.max_drop_points)
    return fp32, quantized


def _quantize(graph: Graph, spec: ModelSpec, options: ExportOptions, data: LabelledData | None) -> Candidate:
    if options.quantization is QuantizationScheme.DYNAMIC:
        made, variant_id, form = int8.quantize_dynamic(graph.model), "int8-dynamic", VariantFormat.DYNAMIC
    elif data is None or data.train is None:
        raise UsageError(
            "static INT8 needs training data to draw its calibration samples from",
            hint="pass data=LabelledData(train=Split(images, labels), ...), or use dynamic quantization",
        )
    else:
        made = int8.quantize_static(graph.model, spec, *_calibration(data.dataset, data.train, options))
        variant_id, form = "int8-qdq", VariantFormat.QDQ
    return Candidate(
        id=variant_id,
        model=made.model,
        precision=Precision.INT8,
        format=form,
        normalization_folded=graph.normalization_folded,
        quantization=made.record,
    )


def _calibration(name: str, train: Split, options: ExportOptions) -> tuple[NDArray[np.uint8], Calibration]:
    """Draw the calibration images and record the draw."""
    everything = np.arange(len(train), dtype=np.int64)
    drawn = datasets.calibration_indices(everything, samples=options.calibration_samples, seed=options.seed)
    record = Calibration(
        method="minmax",
        dataset=name,
        split="train",
        samples=len(drawn),
        indices_sha256=datasets.indices_sha256(drawn),
        seed=options.seed,
    )
    return train.images[drawn], record


def _check_data(data: LabelledData, spec: ModelSpec) -> None:
    """Raise UsageError unless images and labels fit the spec."""
    for name, split in (("train", data.train), ("validation", data.validation), ("test", data.test)):
        if split is None:
            continue
        found = f"{split.images.dtype} {split.images.shape}"
        if split.images.dtype != np.uint8 or split.images.shape[1:] != spec.input.shape or len(split) == 0:
            raise UsageError(f"{name} images must be {spec.input.describe()}, found {found}")
        if split.labels.min() < 0 or split.labels.max() >= len(spec.labels):
            span = f"{split.labels.min()}..{split.labels.max()}"
            raise UsageError(f"{name} labels must lie in 0..{len(spec.labels) - 1}, found {span}")


def _golden(module: nn.Module, spec: ModelSpec, given: tuple[datasets.Split, str] | None) -> GoldenSamples:
    """Attach PyTorch's logits to the samples, or to seeded noise that stands for them."""
    if given is None:
        noise = np.random.default_rng(0).integers(0, 256, size=(256, *spec.input.shape), dtype=np.uint8)
        given = (datasets.Split(noise, np.full(len(noise), -1, np.int64)), "seeded noise")
    split, source = given
    return GoldenSamples(
        pixels=split.images,
        labels=split.labels,
        logits=_reference(module, spec, split.images),
        source=source,
    )


def _reference(module: nn.Module, spec: ModelSpec, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Ask PyTorch; a module that cannot answer a batch cannot be exported either."""
    try:
        return reference_logits(module, spec, pixels)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        reason = str(error).splitlines()[0]
        raise GateFailed(f"PyTorch cannot run the module on pixels {pixels.shape[1:]}: {reason}") from error
