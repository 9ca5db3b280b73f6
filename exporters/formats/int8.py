"""fp32 ONNX -> INT8 ONNX by ONNX Runtime's quantizer, static (QDQ or integer operators) or dynamic, every layer counted.

Choices, all measured on the 784-512-256-128-10 network:

- Weights are signed, activations are unsigned 8 bit. x86 CPUs without VNNI add pairs of products in 16 bits and saturate with
  8-bit weights: there the rms error of the logits was five times larger. In 7 bits (`reduce_range`) every runtime on every CPU
  computes the same sums, so dense networks, which lose nothing by it, have 7. Others have 8 (`usual_bits`): EfficientNet-Lite0
  gives its float model's answer for 97 % of photographs in 8 bits, 93 % in 7. kit opens them so that nothing saturates.
- A raw uint8 input is a quantized tensor already: scale 1, zero point 0. If nothing but a reshape or a transpose stands
  between it and its first layer, the static graph reads it so: there is no Quantize node and no float copy of it.
- Float outputs stay float: quantizing them to 8 bits costs accuracy and saves nothing.
- Relu is quantized with its layer, so that ONNX Runtime absorbs it: each layer becomes one QGemm.
- QDQ keeps its biases in float, those of the last layers in an Add of their own: the CUDA provider cannot dequantize int32,
  and ONNX Runtime on the CPU makes integers of them itself (0.4 us for the Add, of 12.5).
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from exporters import staging
from exporters.formats import ends, ranges, recurrent, rounding, smooth, workplace
from exporters.formats.base import EveryLayer, Source, count, excluded_layers, is_dense
from exporters.formats.calibration import CalibrationDraw, calibration_reader, draw
from exporters.formats.counting import count_weights
from exporters.formats.equalize import equalize
from exporters.formats.tables import quantize_tables
from exporters.graph.rules import (
    ACTIVATIONS,
    LAYERS,
    drop_unused_initializers,
    initializers,
    layers,
    sort,
    strip,
    uses,
)
from kit.bundle.manifest import Calibration, Quantization
from kit.choices import FEW_BITS, CalibrationMethod, Precision, QuantizationScheme, VariantFormat
from kit.errors import GateFailed
from kit.samples import Samples
from kit.system.progress import OnProgress, silent
from kit.tensors import Signature, Tensors

ALL_BITS = 8

_TABLE = "Gather"  # looks up embeddings: its float constants become integers without a range of activations


@dataclass(frozen=True, kw_only=True)
class StaticInt8(EveryLayer):
    """Activation ranges from calibration samples.

    Attributes:
        form: `qdq` or `qoperator`.
        per_channel: Give each output of a layer a scale of its own; else the layers' ranges are evened out first.
        weight_bits: 7 or 8; None for what is usual for the model.
        samples: How many to draw; None for the usual number, or all there are.
    """

    form: VariantFormat = VariantFormat.QDQ
    per_channel: bool = True
    weight_bits: int | None = None
    method: CalibrationMethod = CalibrationMethod.MINMAX
    samples: int | None = None
    seed: int = 0
    precision = Precision.INT8

    def prepared(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """Return the float model that is quantized."""
        return prepared(model, per_channel=self.per_channel)[0]

    def make(self, source: Source, exclude: tuple[str, ...], target: Path) -> Quantization:
        """Write the model; see exporters.formats.base.Format."""
        drawn = draw(source, method=self.method, samples=self.samples, seed=self.seed)
        made = self.quantized(source, exclude, drawn, target)
        staging.write(made.model, target)
        return made.record

    def quantized(self, source: Source, exclude: tuple[str, ...], drawn: CalibrationDraw, target: Path) -> Quantized:
        """Return the graph; weights of a large one already lie beside `target`."""
        weights_alone = dataclasses.replace(self, method=CalibrationMethod.MINMAX)  # no rounding depends on it
        return quantize_static(
            source.path if source.is_large else source.model,
            source.signature,
            drawn.samples,
            drawn.record,
            form=self.form,
            per_channel=self.per_channel,
            weight_bits=self.weight_bits,
            exclude=exclude,
            target=target,
            cache=source.roundings.setdefault(repr(weights_alone), {}),
            factors=_factors(source, drawn),
            on_progress=source.on_progress,
        )


@dataclass(frozen=True, kw_only=True)
class DynamicInt8(EveryLayer):
    """Activation ranges found in each call; needs no samples, and is better for some."""

    per_channel: bool = True
    weight_bits: int | None = None
    precision = Precision.INT8
    form = VariantFormat.DYNAMIC

    def make(self, source: Source, exclude: tuple[str, ...], target: Path) -> Quantization:
        """Write the model; see exporters.formats.base.Format."""
        drawn = draw(source, method=CalibrationMethod.MINMAX, samples=None, seed=0) if source.train else None
        made = quantize_dynamic(
            source.path if source.is_large else source.model,
            per_channel=self.per_channel,
            weight_bits=self.weight_bits,
            exclude=exclude,
            target=target,
            calibration=drawn.record if drawn else None,
            factors=_factors(source, drawn) if drawn else {},
            batches=_looked_at(source, drawn) if drawn else (),
            cache=source.roundings.setdefault(repr(self), {}),
            on_progress=source.on_progress,
        )
        staging.write(made.model, target)
        return made.record


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """An INT8 graph and the record of how it was made."""

    model: onnx.ModelProto
    record: Quantization


def quantize_static(
    model: onnx.ModelProto | Path,
    signature: Signature,
    samples: Sequence[Samples],
    calibration: Calibration,
    *,
    form: VariantFormat = VariantFormat.QDQ,
    per_channel: bool = True,
    weight_bits: int | None = None,
    exclude: tuple[str, ...] = (),
    target: Path | None = None,
    cache: rounding.Cache | None = None,
    factors: smooth.Factors | None = None,
    on_progress: OnProgress = silent,
) -> Quantized:
    """Quantize weights and activations of a fp32 model, with activation ranges from calibration samples.

    A model with weights beside its graph is given by its path, and needs `target`, where the file will lie. `cache`
    holds what was found of the same model with the same samples before; `factors` are of exporters.formats.smooth, None
    to find them. The others are those of StaticInt8.

    Raises:
        UsageError: A layer of that name does not exist, or all are excluded.
        GateFailed: A layer was skipped, or the quantizer failed.
    """
    from onnxruntime import quantization as ort

    method = CalibrationMethod.parse(calibration.method)
    is_qdq = form is VariantFormat.QDQ
    graph = staging.read(model) if isinstance(model, Path) else model
    graph, equalized = prepared(graph, per_channel=per_channel)
    bits = weight_bits or usual_bits(graph)
    reader = calibration_reader(graph, signature, samples)
    some = [] if is_dense(graph) else rounding.some_of(signature, reader.all)
    if factors is None:
        seen = [] if is_dense(graph) else rounding.some_of(signature, reader.all, smooth.SAMPLES)
        factors = _found_factors(graph, seen, model.parent if isinstance(model, Path) else Path())
    options: dict[str, Any] = {"QuantizeBias": not is_qdq}
    if is_qdq and not is_dense(graph):
        # What follows a product of matrices adds, normalizes or bends, all of it in float: its sum need not be 8 bits before.
        options["OpTypesToExcludeOutputQuantization"] = ["MatMul"]
    if method is not CalibrationMethod.MINMAX and reader.is_strided:
        options["CalibStridedMinMax"] = 1  # histograms too are made batch by batch
    with workplace.rewritten(model if isinstance(model, Path) else graph, factors, folds=True) as rewritten:
        graph = staging.read(rewritten) if isinstance(rewritten, Path) else rewritten
        kept = excluded_layers(graph, exclude)
        if not is_qdq:
            _refuse_shared_biases(graph)
        entered = ends.doors(graph, kept)
        # Raw values are quantized as they are, whatever range the samples happened to show.
        raw = {"scale": np.array(1, np.float32), "zero_point": np.array(0, np.uint8)}
        options["TensorQuantOverrides"] = {door.tensor: [raw] for door in entered}
        with (
            workplace.files(rewritten, target) as (source, written),
            tempfile.TemporaryDirectory(prefix="kit-") as place,
        ):
            on_progress(f"ranges of {sum(signature.rows(group.inputs) for group in samples):,} calibration samples")
            kinds = [*LAYERS, *ACTIVATIONS]
            ort.quantize_static(
                source,
                written,
                reader,
                quant_format=ort.QuantFormat.QDQ if is_qdq else ort.QuantFormat.QOperator,
                activation_type=ort.QuantType.QUInt8,
                weight_type=ort.QuantType.QInt8,
                per_channel=per_channel,
                reduce_range=bits == FEW_BITS,
                op_types_to_quantize=kinds,
                nodes_to_exclude=[*(layer.node.name for layer in kept), *_without_weights(graph)],
                **ranges.wanted(method, Path(source), reader, kinds, Path(place), is_large=isinstance(model, Path)),
                use_external_data_format=isinstance(model, Path),
                extra_options=options,
            )
            quantized = staging.read(Path(written))
            adjusted = (
                bool(some)
                and is_qdq
                and rounding.adjust(
                    graph,
                    quantized,
                    some,
                    bits=bits,
                    folder=Path(source).parent,
                    made_in=Path(written).parent,
                    cache=cache,
                    on_progress=on_progress,
                )
            )
            if is_qdq and quantize_tables(quantized, Path(written).parent) and target is not None:
                staging.rewrite_weights(quantized, target)
    for door in entered:
        ends.read_as_quantized(quantized, door)
    makers = {name: node for node in graph.graph.node for name in node.output}
    for output in graph.graph.output:
        if output.name not in makers or makers[output.name].op_type in ACTIVATIONS:
            continue  # the range of the quantized output is all that is left of the activation
        if is_qdq:
            ends.keep_float(quantized, output.name)
            ends.add_last_bias(quantized, output.name)
        else:
            ends.end_in_float(quantized, output.name)
    drop_unused_initializers(quantized)
    sort(quantized)
    strip(quantized)
    made = _recorded(graph, quantized, QuantizationScheme.STATIC, calibration, exclude, per_channel, bits)
    record = dataclasses.replace(made.record, equalized=equalized, smoothed=bool(factors), adjusted=adjusted)
    return dataclasses.replace(made, record=record)


def prepared(model: onnx.ModelProto, *, per_channel: bool) -> tuple[onnx.ModelProto, bool]:
    """Return the float model to quantize, and whether its layers were evened out; of a large one they are not."""
    if per_channel or staging.is_large(model):
        return model, False
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy, equalize(copy)


def quantize_dynamic(
    model: onnx.ModelProto | Path,
    *,
    per_channel: bool = True,
    weight_bits: int | None = None,
    exclude: tuple[str, ...] = (),
    target: Path | None = None,
    calibration: Calibration | None = None,
    factors: Mapping[str, smooth.Floats] | None = None,
    batches: Sequence[Tensors] = (),
    cache: rounding.Cache | None = None,
    on_progress: OnProgress = silent,
) -> Quantized:
    """Quantize weights of a fp32 model now and activations in each call; needs no samples.

    `model`, `target` and `cache` are those of `quantize_static`. Weights are rounded by `batches` of samples; without
    any, each to its nearest. `calibration` says where samples and factors come from.

    Raises:
        UsageError: A layer of that name does not exist, or all are excluded.
        GateFailed: A layer was skipped, or the quantizer failed.
    """
    from onnxruntime import quantization as ort

    graph = staging.read(model) if isinstance(model, Path) else model
    bits = weight_bits or usual_bits(graph)
    with (
        workplace.rewritten(model, factors or {}, folds=False) as rewritten,
        workplace.files(rewritten, target) as (source, written),
    ):
        graph = staging.read(rewritten) if isinstance(rewritten, Path) else rewritten
        kept = excluded_layers(graph, exclude)
        ort.quantize_dynamic(
            source,
            written,
            weight_type=ort.QuantType.QInt8,
            per_channel=per_channel,
            reduce_range=bits == FEW_BITS,
            op_types_to_quantize=[*LAYERS, _TABLE, *recurrent.quantizable(graph)],
            # The quantizer makes MatMul and Add of Gemm before it looks at names.
            nodes_to_exclude=[name for layer in kept for name in (layer.node.name, f"{layer.node.name}_MatMul")],
            use_external_data_format=isinstance(model, Path),
        )
        quantized = staging.read(Path(written))
        adjusted = bool(batches) and rounding.adjust(
            graph,
            quantized,
            batches,
            bits=bits,
            folder=Path(source).parent,
            made_in=Path(written).parent,
            cache=cache,
            on_progress=on_progress,
        )
    sort(quantized)
    strip(quantized)
    is_looked_at = bool(factors) or adjusted
    made = _recorded(
        graph, quantized, QuantizationScheme.DYNAMIC, calibration if is_looked_at else None, exclude, per_channel, bits
    )
    record = dataclasses.replace(made.record, smoothed=bool(factors), adjusted=adjusted)
    return dataclasses.replace(made, record=record)


def _looked_at(source: Source, drawn: CalibrationDraw, most: int = rounding.SAMPLES) -> list[Tensors]:
    """Return so many of the samples, to look at; none for dense networks, which lose nothing by the nearest integer."""
    if is_dense(source.model):
        return []
    batches = calibration_reader(source.model, source.signature, drawn.samples).all
    return rounding.some_of(source.signature, batches, most)


def _factors(source: Source, drawn: CalibrationDraw) -> smooth.Factors:
    key = drawn.record.indices_sha256
    if key not in source.smoothings:
        batches = _looked_at(source, drawn, smooth.SAMPLES)
        source.smoothings[key] = _found_factors(source.model, batches, source.path.parent)
    return source.smoothings[key]


def _found_factors(model: onnx.ModelProto, batches: Sequence[Tensors], folder: Path) -> smooth.Factors:
    """Return the factors of a model, none for raw inputs, which enter their layer as they are."""
    found = smooth.factors(model, batches, folder) if batches else {}
    for door in ends.doors(model, ()):
        found.pop(door.tensor, None)
    return found


def _without_weights(model: onnx.ModelProto) -> tuple[str, ...]:
    """Return the names of the products of two tensors, of queries and keys say: in 8 bits they lose much and gain nothing."""
    constants = initializers(model)
    return tuple(
        node.name for node in model.graph.node if node.op_type == "MatMul" and not set(node.input) & constants.keys()
    )


def usual_bits(model: onnx.ModelProto) -> int:
    """Return how many bits the weights of a model get if nobody says: 7 if all its layers are dense, else 8."""
    return FEW_BITS if is_dense(model) else ALL_BITS


def _recorded(
    model: onnx.ModelProto,
    quantized: onnx.ModelProto,
    scheme: QuantizationScheme,
    calibration: Calibration | None,
    exclude: tuple[str, ...],
    per_channel: bool,
    bits: int,
) -> Quantized:
    done, total = count(model, quantized, exclude)
    weights_done, weights_total = count_weights(model, quantized)
    record = Quantization(
        scheme=scheme,
        activation_dtype="uint8",
        weight_dtype="int8",
        weight_bits=bits,
        per_channel=per_channel,
        layers_quantized=done,
        layers_total=total,
        layers_excluded=exclude,
        calibration=calibration,
        weights_quantized=weights_done,
        weights_total=weights_total,
    )
    return Quantized(model=quantized, record=record)


def _refuse_shared_biases(model: onnx.ModelProto) -> None:
    """Refuse a bias that is added twice: as an integer it has the scale of one input, wrong for the other."""
    constants = initializers(model)
    shared = [
        layer.name
        for layer in layers(model)
        if len(layer.node.input) == 3 and layer.node.input[2] in constants and uses(model, layer.node.input[2]) > 1
    ]
    if shared:
        raise GateFailed(
            f"{shared[0]} runs more than once, and integer operators have one scale for its bias",
            hint="use --format qdq",
        )
