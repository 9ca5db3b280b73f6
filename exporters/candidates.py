"""What can be made of a fp32 graph: a plan for each variant that was asked for, by the id it will have.

Who calls whom: the pipeline asks `plans` what the options call for, lets each plan `make` its candidate from the Source, and
hands that to the gate. A plan for int8 and int4 can be made again with other layers left in float.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from exporters.formats import float16, int4, int8, pixel
from exporters.formats.int8 import Quantized
from exporters.gate import Candidate
from exporters.options import DEFAULT_CALIBRATION_SAMPLES, ExportOptions
from kit.bundle.records import Calibration, ModelSpec, Quantization
from kit.choices import CalibrationMethod, Precision, QuantizationScheme, VariantFormat
from kit.errors import UsageError
from kit.lab import data as datasets
from kit.lab.data import Split

Made = tuple[onnx.ModelProto, Quantization | None]


@dataclass(frozen=True, kw_only=True)
class Source:
    """What candidates are made of.

    Attributes:
        model: fp32, as exporters.sources.module makes it.
        normalization_folded: Whether the first layer's weights hold the normalisation.
        train: What calibration samples are drawn from; None where there is no data.
        dataset: Its name, for the record.
    """

    model: onnx.ModelProto
    spec: ModelSpec
    normalization_folded: bool
    train: Split | None = None
    dataset: str = ""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How to make one variant.

    Attributes:
        build: Makes the graph of a source and the layers to leave in float, and the record of it.
        exclude: The layers that the options name.
        unable: Names the layers that this kind of quantization is not for.
        prepare: Gives the float graph that is quantized: what it computes is the same, the scale of what lies between may not.
    """

    id: str
    precision: Precision
    format: VariantFormat
    build: Callable[[Source, tuple[str, ...]], Made]
    exclude: tuple[str, ...] = ()
    prepare: Callable[[onnx.ModelProto], onnx.ModelProto] = lambda model: model
    unable: Callable[[onnx.ModelProto], tuple[str, ...]] = lambda _: ()

    def make(self, source: Source, exclude: tuple[str, ...] | None = None) -> Candidate:
        """Make the candidate, with other layers left in float than the options said if `exclude` is given.

        Raises:
            UsageError: It cannot be made of this model, or lacks data.
            GateFailed: A layer was skipped.
        """
        model, record = self.build(source, self.exclude if exclude is None else exclude)
        return Candidate(
            id=self.id,
            model=model,
            precision=self.precision,
            format=self.format,
            normalization_folded=source.normalization_folded,
            quantization=record,
        )


def fp32(source: Source) -> Candidate:
    """Return the candidate that all others are held against: the graph as it is."""
    plan = Plan(id="fp32", precision=Precision.FP32, format=VariantFormat.FLOAT, build=lambda one, _: (one.model, None))
    return plan.make(source)


def plans(options: ExportOptions) -> tuple[Plan, ...]:
    """Return what was asked for besides fp32, in the order fp16, int8, int4."""
    found = []
    exclude = () if options.finds_exclusions else options.exclude_layers
    if Precision.FP16 in options.precisions:
        half = Plan(
            id="fp16",
            precision=Precision.FP16,
            format=VariantFormat.FLOAT,
            build=lambda source, _: (float16.to_float16(source.model), None),
        )
        found.append(half)
    if Precision.INT8 in options.precisions:
        found += [_static(form, options, exclude) for form in options.static_formats]
        if options.quantization is QuantizationScheme.DYNAMIC:
            found.append(_dynamic(options, exclude))
    if Precision.INT4 in options.precisions:
        found.append(
            Plan(
                id="int4",
                precision=Precision.INT4,
                format=VariantFormat.WEIGHT_ONLY,
                build=lambda source, kept: _made(int4.quantize_weights(source.model, exclude=kept)),
                exclude=exclude,
                unable=int4.unable,
            )
        )
    return tuple(found)


def _static(form: VariantFormat, options: ExportOptions, exclude: tuple[str, ...]) -> Plan:
    usual = form is not VariantFormat.PIXEL
    per_channel = usual if options.per_channel is None else options.per_channel

    def build(source: Source, kept: tuple[str, ...]) -> Made:
        if form is VariantFormat.PIXEL and (reason := pixel.refusal(source.model)):
            raise UsageError(f"the pixel format cannot hold this model: {reason}", hint="use --format qdq")
        samples, calibration = _draw_samples(source, options)
        made = int8.quantize_static(
            source.model,
            source.spec,
            samples,
            calibration,
            form=VariantFormat.QDQ if form is VariantFormat.PIXEL else form,
            per_channel=per_channel,
            exclude=kept,
        )
        return pixel.from_qdq(made.model) if form is VariantFormat.PIXEL else made.model, made.record

    return Plan(
        id=_id(f"int8-{form}", per_channel=per_channel, usual=usual),
        precision=Precision.INT8,
        format=form,
        build=build,
        exclude=exclude,
        prepare=lambda model: int8.prepared(model, per_channel=per_channel)[0],
    )


def _dynamic(options: ExportOptions, exclude: tuple[str, ...]) -> Plan:
    per_channel = options.per_channel is not False
    return Plan(
        id=_id("int8-dynamic", per_channel=per_channel, usual=True),
        precision=Precision.INT8,
        format=VariantFormat.DYNAMIC,
        build=lambda source, kept: _made(int8.quantize_dynamic(source.model, per_channel=per_channel, exclude=kept)),
        exclude=exclude,
    )


def _id(base: str, *, per_channel: bool, usual: bool) -> str:
    """Return a variant's id, which says how its weights are scaled where that is not as usual for its format."""
    if per_channel == usual:
        return base
    return f"{base}-per-channel" if per_channel else f"{base}-per-tensor"


def _made(quantized: Quantized) -> Made:
    return quantized.model, quantized.record


def _draw_samples(source: Source, options: ExportOptions) -> tuple[NDArray[np.uint8], Calibration]:
    """Draw the calibration images from the training split, and record the draw.

    Raises:
        UsageError: There are none to draw from.
    """
    if source.train is None:
        raise UsageError(
            "static INT8 needs training data to draw its calibration samples from",
            hint="pass data=LabelledData(train=Split(images, labels), ...), or use dynamic quantization",
        )
    everything = np.arange(len(source.train), dtype=np.int64)
    wanted = options.calibration_samples or min(DEFAULT_CALIBRATION_SAMPLES, len(everything))
    if wanted > len(everything):
        raise UsageError(
            f"{wanted:,} calibration images were asked for, and there are {len(everything):,} to draw from",
            hint=f"use --calibration-size {len(everything)} or less",
        )
    drawn = datasets.calibration_indices(everything, samples=wanted, seed=options.seed)
    record = Calibration(
        method=options.calibration or CalibrationMethod.MINMAX,
        dataset=source.dataset,
        split="train",
        samples=len(drawn),
        indices_sha256=datasets.indices_sha256(drawn),
        seed=options.seed,
    )
    return source.train.images[drawn], record
