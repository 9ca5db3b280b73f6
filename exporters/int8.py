"""fp32 ONNX -> INT8 ONNX, static (QDQ) or dynamic, with every layer counted.

Choices, all measured on the 784-512-256-128-10 network:

- Weights are signed, per channel and in 7 bits (`reduce_range`); activations are unsigned 8 bit. x86 CPUs without VNNI
  add pairs of products in 16 bits and saturate with 8-bit weights: there the rms error of the logits was five times
  larger. In 7 bits every CPU computes the same sums, and a bundle goes to machines nobody has seen.
- Raw pixels are already a quantized tensor: scale 1, zero point 0. The static graph reads them so, and has no Quantize node
  at the door and no float copy of the picture.
- The logits stay float: quantizing them to 8 bits costs accuracy and saves nothing.
- Relu is quantized with its layer, so that ONNX Runtime absorbs it: each layer becomes one QGemm.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from exporters.onnx_graph import drop_unused_initializers, initializers, strip
from kit.errors import GateFailed
from kit.spec import Calibration, ModelSpec, Quantization, QuantizationScheme

LAYERS = ("Gemm", "MatMul", "Conv")
_FUSED = ("Relu", "Clip")
_CALIBRATION_BATCH = 128


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """An INT8 model and the record of how it was made."""

    model: onnx.ModelProto
    record: Quantization


def quantize_static(
    model: onnx.ModelProto, spec: ModelSpec, samples: NDArray[np.uint8], calibration: Calibration
) -> Quantized:
    """Quantize weights and activations, with activation ranges from calibration samples (MinMax), in QDQ format.

    Args:
        model: fp32, as exporters.onnx_graph makes it.
        spec: Name of the input.
        samples: uint8 `[N, *input shape]`, from the training split.
        calibration: The record of where the samples came from.

    Raises:
        GateFailed: A layer was skipped, or the quantizer failed.
    """
    from onnxruntime import quantization as ort

    class Samples(ort.CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no stubs
        def __init__(self) -> None:
            starts = range(0, len(samples), _CALIBRATION_BATCH)
            self.batches = iter([samples[start : start + _CALIBRATION_BATCH] for start in starts])

        def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
            batch = next(self.batches, None)
            return None if batch is None else {spec.input.name: batch}

    door = _door(model)
    # Raw pixels are quantized as they are, whatever range the samples happened to show.
    known = {door: [{"scale": np.array(1, np.float32), "zero_point": np.array(0, np.uint8)}]} if door else {}
    with _files(model) as (source, target):
        ort.quantize_static(
            source,
            target,
            Samples(),
            quant_format=ort.QuantFormat.QDQ,
            activation_type=ort.QuantType.QUInt8,
            weight_type=ort.QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
            op_types_to_quantize=[*LAYERS, *_FUSED],
            calibrate_method=ort.CalibrationMethod.MinMax,
            extra_options={"TensorQuantOverrides": known},
        )
        quantized = onnx.load(target)
    if door:
        _read_pixels_as_quantized(quantized, door)
    _keep_logits_float(quantized)
    drop_unused_initializers(quantized)
    strip(quantized)
    return _counted(model, quantized, QuantizationScheme.STATIC, calibration)


def quantize_dynamic(model: onnx.ModelProto) -> Quantized:
    """Quantize weights now and activations anew in each call; needs no samples.

    Raises:
        GateFailed: A layer was skipped, or the quantizer failed.
    """
    from onnxruntime import quantization as ort

    with _files(model) as (source, target):
        ort.quantize_dynamic(
            source,
            target,
            weight_type=ort.QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
            op_types_to_quantize=list(LAYERS),
        )
        quantized = onnx.load(target)
    strip(quantized)
    return _counted(model, quantized, QuantizationScheme.DYNAMIC, None)


def _counted(
    model: onnx.ModelProto, quantized: onnx.ModelProto, scheme: QuantizationScheme, calibration: Calibration | None
) -> Quantized:
    """Count the layers in the file that was made, and write the record."""
    count, total = _count(model, quantized)
    record = Quantization(
        scheme=scheme,
        activation_dtype="uint8",
        weight_dtype="int8",
        weight_bits=7,
        per_channel=True,
        layers_quantized=count,
        layers_total=total,
        calibration=calibration,
    )
    return Quantized(model=quantized, record=record)


def _door(model: onnx.ModelProto) -> str:
    """Return the tensor that holds the raw pixels, cast to float, where it enters the first layer and nothing else.

    Empty where something other than a reshape stands between, such as a normalisation that could not be folded.
    """
    tensor = model.graph.input[0].name
    kinds = ("Cast", "Reshape", "Flatten")
    while True:
        readers = [node for node in model.graph.node if tensor in node.input]
        if len(readers) != 1:
            return ""
        if readers[0].op_type in LAYERS:
            return tensor if tensor != model.graph.input[0].name else ""
        if readers[0].op_type not in kinds:
            return ""
        tensor = readers[0].output[0]


def _read_pixels_as_quantized(model: onnx.ModelProto, door: str) -> None:
    """Take out the Cast and the QuantizeLinear at the door: with scale 1 and zero point 0 they change nothing."""
    graph = model.graph
    cast = next(node for node in graph.node if graph.input[0].name in node.input)
    quantize = next(node for node in graph.node if node.op_type == "QuantizeLinear" and node.input[0] == door)
    dequantize = next(node for node in graph.node if quantize.output[0] in node.input)
    dequantize.input[0] = door
    for node in graph.node:
        node.input[:] = [graph.input[0].name if name == cast.output[0] else name for name in node.input]
    for node in (cast, quantize):
        graph.node.remove(node)


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


def _count(model: onnx.ModelProto, quantized: onnx.ModelProto) -> tuple[int, int]:
    """Count the layers with constant weights in the fp32 graph, and those of them that no longer have float weights.

    Raises:
        GateFailed: One was skipped.
    """
    constants = initializers(model)
    total = sum(node.op_type in LAYERS and node.input[1] in constants for node in model.graph.node)
    floats = {t.name for t in quantized.graph.initializer if t.data_type == onnx.TensorProto.FLOAT}
    skipped = [n.name or n.output[0] for n in quantized.graph.node if n.op_type in LAYERS and n.input[1] in floats]
    if skipped or not total:
        raise GateFailed(
            f"the quantizer skipped {len(skipped)} of {total} layers: {', '.join(skipped) or 'there are none'}"
        )
    return total, total


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
            yield str(source), str(target)
        except (RuntimeError, ValueError, onnx.shape_inference.InferenceError) as error:
            raise GateFailed(f"the quantizer failed: {error}") from error
        finally:
            logger.setLevel(level)
