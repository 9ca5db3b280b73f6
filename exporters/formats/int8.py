"""fp32 ONNX -> INT8 ONNX by ONNX Runtime's quantizer, static (QDQ or integer operators) or dynamic, every layer counted.

Choices, all measured on the 784-512-256-128-10 network:

- Weights are signed and in 7 bits (`reduce_range`); activations are unsigned 8 bit. x86 CPUs without VNNI add pairs of
  products in 16 bits and saturate with 8-bit weights: there the rms error of the logits was five times larger. In 7 bits
  every CPU computes the same sums, and a bundle goes to machines nobody has seen.
- Raw pixels are already a quantized tensor: scale 1, zero point 0. The static graph reads them so, and has no Quantize node
  at the door and no float copy of the picture.
- The logits stay float: quantizing them to 8 bits costs accuracy and saves nothing.
- Relu is quantized with its layer, so that ONNX Runtime absorbs it: each layer becomes one QGemm.
- QDQ keeps its biases in float, the last one in an Add of its own: the CUDA provider cannot dequantize int32, and ONNX
  Runtime on the CPU makes integers of them itself (0.4 us for the Add, of 12.5).
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from exporters.formats.equalize import equalize
from exporters.graph.rules import LAYERS, Layer, drop_unused_initializers, initializers, is_plain, layers, strip, uses
from kit.bundle.records import Calibration, ModelSpec, Quantization
from kit.choices import CalibrationMethod, QuantizationScheme, VariantFormat
from kit.errors import GateFailed, UsageError

_WEIGHT_BITS = 7
_FUSED = ("Relu", "Clip")
_CALIBRATION_BATCH = 128


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """An INT8 model and the record of how it was made."""

    model: onnx.ModelProto
    record: Quantization


def quantize_static(
    model: onnx.ModelProto,
    spec: ModelSpec,
    samples: NDArray[np.uint8],
    calibration: Calibration,
    *,
    form: VariantFormat = VariantFormat.QDQ,
    per_channel: bool = True,
    exclude: tuple[str, ...] = (),
) -> Quantized:
    """Quantize weights and activations, with activation ranges from calibration samples.

    Args:
        model: fp32, as exporters.sources.module makes it.
        spec: Name of the input.
        samples: uint8 `[N, *input shape]`, from the training split.
        calibration: The method, and the record of where the samples came from.
        form: `qdq` or `qoperator`.
        per_channel: Give each output of a layer a scale of its own; else the layers' ranges are evened out first.
        exclude: Names of layers to leave in float.

    Raises:
        UsageError: A layer of that name does not exist, or all are excluded.
        GateFailed: A layer was skipped, or the quantizer failed.
    """
    from onnxruntime import quantization as ort

    class Samples(ort.CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no stubs
        def __init__(self) -> None:
            # All of one size: the histograms of ONNX Runtime's calibrators stumble over a smaller last batch.
            size = next(size for size in range(_CALIBRATION_BATCH, 0, -1) if len(samples) % size == 0)
            self.batches = iter(np.split(samples, len(samples) // size))

        def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
            batch = next(self.batches, None)
            return None if batch is None else {spec.input.name: batch}

    methods = {
        CalibrationMethod.MINMAX: ort.CalibrationMethod.MinMax,
        CalibrationMethod.ENTROPY: ort.CalibrationMethod.Entropy,
        CalibrationMethod.PERCENTILE: ort.CalibrationMethod.Percentile,
    }
    is_qdq = form is VariantFormat.QDQ
    model, equalized = prepared(model, per_channel=per_channel)
    kept = excluded_layers(model, exclude)
    if not is_qdq:
        _refuse_shared_biases(model)
    door = _door(model, kept)
    # Raw pixels are quantized as they are, whatever range the samples happened to show.
    known = {door: [{"scale": np.array(1, np.float32), "zero_point": np.array(0, np.uint8)}]} if door else {}
    with _files(model) as (source, target):
        ort.quantize_static(
            source,
            target,
            Samples(),
            quant_format=ort.QuantFormat.QDQ if is_qdq else ort.QuantFormat.QOperator,
            activation_type=ort.QuantType.QUInt8,
            weight_type=ort.QuantType.QInt8,
            per_channel=per_channel,
            reduce_range=True,
            op_types_to_quantize=[*LAYERS, *_FUSED],
            nodes_to_exclude=[layer.node.name for layer in kept],
            calibrate_method=methods[CalibrationMethod.parse(calibration.method)],
            extra_options={"TensorQuantOverrides": known, "QuantizeBias": not is_qdq},
        )
        quantized = onnx.load(target)
    if door:
        _read_pixels_as_quantized(quantized, door)
    makers = {name: node for node in model.graph.node for name in node.output}
    if makers[model.graph.output[0].name].op_type in _FUSED:
        pass  # the range of the quantized output is all that is left of the activation
    elif is_qdq:
        _keep_logits_float(quantized)
        _add_last_bias(quantized)
    else:
        _end_in_float(quantized)
    drop_unused_initializers(quantized)
    strip(quantized)
    made = _recorded(model, quantized, QuantizationScheme.STATIC, calibration, exclude, per_channel=per_channel)
    return dataclasses.replace(made, record=dataclasses.replace(made.record, equalized=equalized))


def prepared(model: onnx.ModelProto, *, per_channel: bool) -> tuple[onnx.ModelProto, bool]:
    """Return the float model that static quantization starts from, and whether its layers were evened out."""
    if per_channel:
        return model, False
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy, equalize(copy)


def quantize_dynamic(model: onnx.ModelProto, *, per_channel: bool = True, exclude: tuple[str, ...] = ()) -> Quantized:
    """Quantize weights now and activations anew in each call; needs no samples.

    Raises:
        UsageError: A layer of that name does not exist, or all are excluded.
        GateFailed: A layer was skipped, or the quantizer failed.
    """
    from onnxruntime import quantization as ort

    kept = excluded_layers(model, exclude)
    with _files(model) as (source, target):
        ort.quantize_dynamic(
            source,
            target,
            weight_type=ort.QuantType.QInt8,
            per_channel=per_channel,
            reduce_range=True,
            op_types_to_quantize=list(LAYERS),
            # The quantizer makes MatMul and Add of Gemm before it looks at names.
            nodes_to_exclude=[name for layer in kept for name in (layer.node.name, f"{layer.node.name}_MatMul")],
        )
        quantized = onnx.load(target)
    strip(quantized)
    return _recorded(model, quantized, QuantizationScheme.DYNAMIC, None, exclude, per_channel=per_channel)


def excluded_layers(model: onnx.ModelProto, exclude: tuple[str, ...]) -> tuple[Layer, ...]:
    """Return the layers that are to stay in float.

    Raises:
        UsageError: There is none of that name, or no layer is left to quantize.
    """
    found = layers(model)
    names = [layer.name for layer in found]
    for name in exclude:
        if name not in names:
            raise UsageError(f"the model has no layer {name!r}", hint="its layers are: " + ", ".join(names))
    if found and set(exclude) >= set(names):
        raise UsageError("with every layer excluded nothing is quantized", hint="use --precision fp32")
    return tuple(layer for layer in found if layer.name in exclude)


def _recorded(
    model: onnx.ModelProto,
    quantized: onnx.ModelProto,
    scheme: QuantizationScheme,
    calibration: Calibration | None,
    exclude: tuple[str, ...],
    *,
    per_channel: bool,
) -> Quantized:
    """Count the layers in the file that was made, and write the record."""
    done, total = count(model, quantized, exclude)
    record = Quantization(
        scheme=scheme,
        activation_dtype="uint8",
        weight_dtype="int8",
        weight_bits=_WEIGHT_BITS,
        per_channel=per_channel,
        layers_quantized=done,
        layers_total=total,
        layers_excluded=exclude,
        calibration=calibration,
    )
    return Quantized(model=quantized, record=record)


def _refuse_shared_biases(model: onnx.ModelProto) -> None:
    """Refuse a bias that is added twice: as an integer it has the scale of one input, and the other's answers are off.

    Raises:
        GateFailed: There is one.
    """
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


def _door(model: onnx.ModelProto, kept: tuple[Layer, ...]) -> str:
    """Return the tensor that holds the raw pixels, cast to float, where it enters the first layer and nothing else.

    Empty where something other than a reshape stands between, such as a normalisation that could not be folded, or where
    the first layer stays in float.
    """
    stays_float = {layer.node.output[0] for layer in kept}
    tensor, is_cast = model.graph.input[0].name, False
    kinds = ("Slice", "Cast", "Reshape", "Flatten")
    while True:
        readers = [node for node in model.graph.node if tensor in node.input]
        if len(readers) != 1:
            return ""
        if readers[0].op_type in LAYERS:
            return tensor if is_cast and readers[0].output[0] not in stays_float else ""
        if readers[0].op_type not in kinds:
            return ""
        is_cast = is_cast or readers[0].op_type == "Cast"
        tensor = readers[0].output[0]


def _read_pixels_as_quantized(model: onnx.ModelProto, door: str) -> None:
    """Take out the Cast and the QuantizeLinear at the door: with scale 1 and zero point 0 they change nothing."""
    graph = model.graph
    cast = next(node for node in graph.node if node.op_type == "Cast")
    quantize = next(node for node in graph.node if node.op_type == "QuantizeLinear" and node.input[0] == door)
    for node in graph.node:
        node.input[:] = [door if name == quantize.output[0] else name for name in node.input]
    for node in (cast, quantize):
        graph.node.remove(node)
    for node in graph.node:
        node.input[:] = [cast.input[0] if name == cast.output[0] else name for name in node.input]


def _keep_logits_float(model: onnx.ModelProto) -> None:
    """Remove a QuantizeLinear, DequantizeLinear pair in front of the output."""
    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output}
    last = makers[graph.output[0].name]
    if last.op_type != "DequantizeLinear":
        return
    quantize = makers[last.input[0]]
    makers[quantize.input[0]].output[0] = graph.output[0].name
    for node in (quantize, last):
        graph.node.remove(node)


def _add_last_bias(model: onnx.ModelProto) -> None:
    """Add the float bias of the layer that gives the logits behind it: with it inside, its integer kernel is not found."""
    graph, constants = model.graph, initializers(model)
    last = next(node for node in graph.node if graph.output[0].name in node.output)
    if last.op_type != "Gemm" or len(last.input) != 3 or last.input[1] in constants or not is_plain(last):
        return
    bias, logits = last.input[2], last.output[0]
    del last.input[2:]
    last.output[0] = f"{logits}.product"
    graph.node.append(helper.make_node("Add", [last.output[0], bias], [logits]))


def _end_in_float(model: onnx.ModelProto) -> None:
    """Let the last integer operator give float logits by itself, where it can, and take out the DequantizeLinear."""
    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output}
    last = makers[graph.output[0].name]
    before = makers.get(last.input[0])
    if last.op_type != "DequantizeLinear" or before is None or before.op_type != "QGemm":
        return
    del before.input[7:]  # the scale and zero point of its output
    before.output[0] = graph.output[0].name
    graph.node.remove(last)


def count(model: onnx.ModelProto, quantized: onnx.ModelProto, exclude: tuple[str, ...]) -> tuple[int, int]:
    """Count the layers of the file that no longer have float weights, and all layers of the fp32 graph.

    Raises:
        GateFailed: One was skipped that was not excluded by name.
    """
    found = layers(model)
    floats = {t.name for t in quantized.graph.initializer if t.data_type == onnx.TensorProto.FLOAT}
    used = {name for node in quantized.graph.node if node.op_type in LAYERS for name in node.input}
    left = [layer.name for layer in found if layer.weight in floats & used]  # a name twice where a layer runs twice
    skipped = list(dict.fromkeys(name for name in left if name not in exclude))
    if ignored := [name for name in exclude if name not in left]:
        raise GateFailed(f"the quantizer quantized layers that were excluded: {', '.join(ignored)}")
    if skipped or not found:
        raise GateFailed(
            f"the quantizer skipped {len(skipped)} of {len(found)} layers: {', '.join(skipped) or 'there are none'}",
            hint="leave them in float by name: " + " ".join(f"--exclude-layer {name}" for name in skipped)
            if skipped and len(skipped) < len(found)
            else "",
        )
    return len(found) - len(left), len(found)


@contextlib.contextmanager
def _files(model: onnx.ModelProto) -> Iterator[tuple[str, str]]:
    """Give the quantizer, which works on files, a place to work; hold back its advice and translate its failures."""
    logger = logging.getLogger()
    level = logger.level
    with tempfile.TemporaryDirectory(prefix="kit-") as folder:
        source, target = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
        onnx.save(model, source)
        logger.setLevel(logging.ERROR)
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # some calibrators print what they are doing
                yield str(source), str(target)
        except (RuntimeError, ValueError, onnx.shape_inference.InferenceError) as error:
            raise GateFailed(f"the quantizer failed: {error}") from error
        finally:
            logger.setLevel(level)
