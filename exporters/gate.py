"""What must hold before anything is published: the file, its batches, parity with PyTorch, and accuracy.

A failed gate raises GateFailed with the figures; nothing was written. Order of the checks: cheap ones first; accuracy on
the validation split before the test split is looked at.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from exporters.graph.rules import domains_of, least_onnxruntime, opset_of
from kit import parity
from kit.accuracy import accuracy
from kit.bundle import GoldenSamples, file_ref
from kit.bundle.records import Accuracy, ModelSpec, Quantization, Variant
from kit.choices import BATCH, Precision, VariantFormat
from kit.errors import GateFailed, KitError
from kit.lab.data import Split
from kit.parity import Parity, Verdict
from kit.runtime.base import logits_of
from kit.runtime.onnxruntime import OnnxRuntimeRunner

BATCHES = (1, 2, 17)
"""Batch sizes every graph is run at: one that was specialised to its example fails here."""


# Dynamic quantization finds one range for the whole batch, so its rows may move by a quantization step; weight-only kernels
# differ between one row and several.
_BATCH_RTOL = {VariantFormat.DYNAMIC: 0.1, VariantFormat.WEIGHT_ONLY: 0.02}

LEAST_AGREEMENT = 0.95
"""Top-1 agreement with PyTorch a quantized variant must reach on the golden samples where there is no labelled data."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A model that wants to be published."""

    id: str
    model: onnx.ModelProto
    precision: Precision
    format: VariantFormat
    normalization_folded: bool
    quantization: Quantization | None = None


@dataclass(frozen=True, kw_only=True)
class LabelledData:
    """Labelled images to check a model with.

    Attributes:
        dataset: Name, for the record.
        validation: Held out of the training data: where the gate decides.
        test: For the final figure alone; held to the same bar, chosen by nothing.
        train: What static quantization draws its calibration images from; None where it is not wanted.
        validation_name: `train` where the model has seen those images, for want of any held out.
    """

    dataset: str
    validation: Split
    test: Split
    train: Split | None = None
    validation_name: str = "validation"


@dataclass(frozen=True, kw_only=True)
class Reference:
    """PyTorch's logits on the golden samples and, where there is labelled data, on its splits."""

    golden: GoldenSamples
    validation: NDArray[np.float32] | None = None
    test: NDArray[np.float32] | None = None


@dataclass(frozen=True, kw_only=True)
class Passed:
    """A candidate that met every check: its manifest entry, its bytes, and the parity that was measured.

    Attributes:
        parity_images: What `parity` was measured on, such as "mnist test".
        logits: The candidate's own logits on validation and test, a baseline for the next candidate.
    """

    variant: Variant
    data: bytes = field(repr=False)
    parity: Parity
    parity_images: str
    verdict: Verdict | None
    logits: tuple[NDArray[np.float32], NDArray[np.float32]] | None = field(repr=False)


def examine(
    candidate: Candidate,
    spec: ModelSpec,
    reference: Reference,
    *,
    data: LabelledData | None,
    baseline: Passed | None,
    max_drop_points: float,
) -> Passed:
    """Run every check on a candidate.

    Args:
        candidate: The model.
        spec: What it must take and give.
        reference: PyTorch's answers.
        data: Labelled data, if there is any.
        baseline: The fp32 candidate, for another precision.
        max_drop_points: Largest loss of top-1 against the baseline, in percentage points.

    Raises:
        GateFailed: A check said no; the message holds the figures.
    """
    check_file(candidate.model, spec)
    encoded = candidate.model.SerializeToString(deterministic=True)
    try:
        with OnnxRuntimeRunner(encoded) as runner:
            check_batches(runner, spec, reference.golden.pixels, rtol=_batch_rtol(candidate))
            golden = logits_of(runner, reference.golden.pixels)
            validation = logits_of(runner, data.validation.images) if data else None
            before = baseline.logits if baseline and baseline.logits else (None, None)
            figures = check_accuracy(candidate.id, data, (validation, None), before, max_drop_points)
            test = logits_of(runner, data.test.images) if data else None
    except GateFailed:
        raise
    except KitError as error:
        raise GateFailed(f"{candidate.id}: {error}", hint=error.hint) from error
    golden_parity = parity.compare(reference.golden.logits, golden)
    found, images = golden_parity, "golden samples"
    if data is not None and test is not None and reference.test is not None:
        found, images = parity.compare(reference.test, test), f"{data.dataset} test"
        figures = check_accuracy(candidate.id, data, (validation, test), before, max_drop_points)
    verdict = None
    if candidate.precision in {Precision.FP32, Precision.FP16}:
        verdict = parity.judge_float(found) if candidate.precision is Precision.FP32 else parity.judge_half(found)
        if not verdict.passed:
            raise GateFailed(
                f"{candidate.id} does not agree with PyTorch on {found.images} {images}: {verdict.reason}, "
                f"top-1 agreement {found.top1_agreement:.2%}"
            )
    elif data is None and not golden_parity.top1_agreement >= LEAST_AGREEMENT:
        raise GateFailed(
            f"{candidate.id} agrees with PyTorch on {golden_parity.top1_agreement:.1%} of {golden_parity.images} golden "
            f"samples, less than {LEAST_AGREEMENT:.0%}; rms error {golden_parity.rms_error:.3g}",
            hint="nothing was published; pass labelled data, or try another --quantization",
        )
    logits = (validation, test) if validation is not None and test is not None else None
    variant = Variant(
        id=candidate.id,
        artifact=file_ref(candidate.id, ".onnx", encoded),
        precision=candidate.precision,
        format=candidate.format,
        opset=opset_of(candidate.model),
        ir_version=int(candidate.model.ir_version),
        domains=domains_of(candidate.model),
        min_onnxruntime=least_onnxruntime(candidate.model),
        normalization_folded=candidate.normalization_folded,
        parity=golden_parity.record(),
        quantization=candidate.quantization,
        validation=figures[0],
        accuracy=figures[1],
    )
    return Passed(variant=variant, data=encoded, parity=found, parity_images=images, verdict=verdict, logits=logits)


def _batch_rtol(candidate: Candidate) -> float:
    usual = parity.HALF_RTOL if candidate.precision is Precision.FP16 else parity.FLOAT_RTOL
    return _BATCH_RTOL.get(candidate.format, usual)


def check_file(model: onnx.ModelProto, spec: ModelSpec) -> None:
    """Hold the file to the ONNX standard, to one file, and to the spec's names, dtypes and shapes.

    Raises:
        GateFailed: It does not hold.
    """
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise GateFailed(f"onnx.checker refuses the graph: {error}") from error
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in model.graph.initializer):
        raise GateFailed("the graph keeps weights in another file")
    for found, wanted in ((model.graph.input, spec.input), (model.graph.output, spec.output)):
        described = [_describe(value) for value in found]
        expected = (wanted.name, wanted.dtype, (BATCH, *map(str, wanted.shape)))
        if described != [expected]:
            raise GateFailed(f"the graph has {described} where the spec says {expected}")


def check_batches(runner: OnnxRuntimeRunner, spec: ModelSpec, pixels: NDArray[np.uint8], *, rtol: float) -> None:
    """Run batches of 1, 2 and 17 and compare each row to the same row run alone, relative to the largest logit.

    Raises:
        GateFailed: A batch does not run, has the wrong shape, or its rows depend on their neighbours.
    """
    supply = np.resize(pixels, (max(BATCHES), *spec.input.shape))
    alone = np.concatenate([runner.run(supply[i : i + 1]) for i in range(len(supply))])
    scale = max(float(np.abs(alone).max()), 1e-12)
    for size in BATCHES:
        logits = runner.run(supply[:size])
        if logits.shape != (size, *spec.output.shape) or str(logits.dtype) != spec.output.dtype:
            raise GateFailed(f"a batch of {size} gives {logits.dtype} {logits.shape}")
        error = float(np.abs(logits - alone[:size]).max()) / scale
        if not error <= rtol:  # not-a-number is no agreement
            raise GateFailed(f"in a batch of {size} the rows depend on their neighbours")


def _describe(value: onnx.ValueInfoProto) -> tuple[str, str, tuple[str, ...]]:
    tensor = value.type.tensor_type
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type)).name
    sizes = tuple(dim.dim_param or str(dim.dim_value) for dim in tensor.shape.dim)
    return value.name, dtype, sizes


def check_accuracy(
    name: str,
    data: LabelledData | None,
    logits_of_splits: tuple[NDArray[np.float32] | None, NDArray[np.float32] | None],
    before: tuple[NDArray[np.float32] | None, NDArray[np.float32] | None],
    max_drop_points: float,
    *,
    hint: str = "nothing was published; allow more with --max-drop, or try another --quantization",
) -> tuple[Accuracy | None, Accuracy | None]:
    """Count top-1 on validation and test, as far as they were run, and hold each to the allowed drop, validation first.

    Args:
        name: Of the candidate.
        data: The labels.
        logits_of_splits: Of the candidate on both splits; None for one that was not run.
        before: Of the baseline, likewise.
        max_drop_points: Largest loss of top-1, in percentage points; one image is allowed in any case, unless it is 0.
        hint: What to do about more.

    Raises:
        GateFailed: More was lost.
    """
    figures: list[Accuracy | None] = []
    for split, logits, base in zip(
        (data.validation_name if data else "validation", "test"), logits_of_splits, before, strict=True
    ):
        if data is None or logits is None:
            figures.append(None)
            continue
        labels = (data.test if split == "test" else data.validation).labels
        found = accuracy(logits, labels, dataset=data.dataset, split=split, baseline=base)
        if found.flips_to_wrong - found.flips_to_right > allowed_flips(max_drop_points, found.images):
            raise GateFailed(
                f"{name} loses {found.drop_points:.2f} points of top-1 on the {split} split "
                f"({found.top1:.2%} of {found.images} images; {found.flips_to_wrong} became wrong, "
                f"{found.flips_to_right} became right), more than the allowed {max_drop_points:g}",
                hint=hint,
            )
        figures.append(found)
    return figures[0], figures[1]


def allowed_flips(max_drop_points: float, images: int) -> float:
    """Return how many images of a split may be lost; one is the least that a split can tell: of 144 it is 0.7 points."""
    return max(max_drop_points / 100 * images, 1.0 if max_drop_points > 0 else 0.0) + 1e-9
