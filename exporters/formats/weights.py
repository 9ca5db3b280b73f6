"""fp32 ONNX -> weights of 4 or 8 bits in blocks (MatMulNBits of com.microsoft); activations are quantized within each call.

The quantizer knows MatMul only and passes over Gemm without a word, so that Gemm becomes MatMul and Add first. Without
`accuracy_level=4`, integer arithmetic on the weights, it was 25 times slower on a CPU. Layers are quantized one by one, so
that the weights of one layer at a time are held.

Block sizes were measured on all-MiniLM-L6-v2. 4 bits need small blocks with zero points of their own. 8 bits lose little in
blocks of 128, which are 1.2 times as fast as blocks of 32, and less without zero points than with them. Embedding tables
have 8 bits in either case: in 4 (GatherBlockQuantized) the vectors moved by a third more, and OpenVINO has no such operator.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import helper, numpy_helper
from onnx.external_data_helper import ExternalDataInfo

from exporters import staging
from exporters.formats.base import Source, count, excluded_layers, refusal_to_quantize
from exporters.formats.counting import count_weights
from exporters.formats.tables import quantize_tables
from exporters.graph.files import array_of
from exporters.graph.names import free, renamed, taken
from exporters.graph.rules import Layer, drop_unused_initializers, initializers, is_plain, layers, strip
from kit.bundle.manifest import Quantization
from kit.choices import Precision, QuantizationScheme, VariantFormat
from kit.errors import GateFailed

BLOCK_SIZES = {4: 32, 8: 128}
"""Weights of one output that share a scale, by their bits."""
_LEAST_BLOCK = 32  # of smaller ones nothing is gained
_INTEGER_ARITHMETIC = 4
_DOMAIN, _VERSION = "com.microsoft", 1


@dataclass(frozen=True, kw_only=True)
class WeightOnly:
    """Weights in blocks, 4 or 8 bits each."""

    bits: int
    form = VariantFormat.WEIGHT_ONLY

    @property
    def precision(self) -> Precision:
        """Of its weights."""
        return Precision.INT4 if self.bits == 4 else Precision.INT8

    def refusal(self, model: onnx.ModelProto) -> str:
        """Say why a model cannot have weights in blocks."""
        if reason := refusal_to_quantize(model):
            return reason
        return "it has no dense layer" if {layer.name for layer in layers(model)} <= set(self.unable(model)) else ""

    def unable(self, model: onnx.ModelProto) -> tuple[str, ...]:
        """Return the names of layers that are no plain products with a matrix."""
        constants = initializers(model)
        return tuple(
            dict.fromkeys(
                layer.name
                for layer in layers(model)
                if layer.node.op_type == "Conv"
                or len(constants[layer.weight].dims) != 2
                or (layer.node.op_type == "Gemm" and not is_plain(layer.node))
            )
        )

    def prepared(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """Return the model itself."""
        return model

    def make(self, source: Source, exclude: tuple[str, ...], target: Path) -> Quantization:
        """Write the model; see exporters.formats.base.Format."""
        kept = {layer.name for layer in excluded_layers(source.model, exclude)} | set(self.unable(source.model))
        quantized = source.copy()
        beside = target.with_suffix(".data")
        named = _Named(taken(quantized))
        with staging.DataWriter(beside) as data:
            for layer in [one for one in layers(quantized) if one.name not in kept]:
                matmul = _as_matmul(quantized, layer)
                made = _quantize(quantized, matmul, source.path.parent, self.bits, named)
                for tensor in made if source.is_large else ():
                    data.add(tensor)
            tables = quantize_tables(quantized, source.path.parent)
            for tensor in tables if source.is_large else ():
                data.add(tensor)
            drop_unused_initializers(quantized)
            for tensor in staging.external_tensors(quantized):
                if ExternalDataInfo(tensor).location != beside.name:
                    data.add(tensor, array_of(tensor, source.path.parent))
        strip(quantized)
        staging.write(quantized, target)
        return _record(source.model, quantized, exclude, self.bits)


def has_products(model: onnx.ModelProto) -> bool:
    """Whether a model is more than convolutions and plain dense layers, as attention is: INT8 arithmetic serves those."""
    return any(node.op_type == "MatMul" for node in model.graph.node)


def _record(model: onnx.ModelProto, quantized: onnx.ModelProto, exclude: tuple[str, ...], bits: int) -> Quantization:
    done, total = count(model, quantized, exclude)
    weights_done, weights_total = count_weights(model, quantized)
    return Quantization(
        scheme=QuantizationScheme.WEIGHTS,
        activation_dtype="int8",
        weight_dtype=f"uint{bits}",
        weight_bits=bits,
        per_channel=True,
        block_size=BLOCK_SIZES[bits],
        layers_quantized=done,
        layers_total=total,
        layers_excluded=exclude,
        weights_quantized=weights_done,
        weights_total=weights_total,
    )


class _Named:
    """What the quantizer's constants are called: by the names it gives them, unless the model has such names itself."""

    def __init__(self, names: set[str]) -> None:
        self._names = names
        self._called: dict[str, str] = {}

    def call(self, small: onnx.ModelProto) -> None:
        """Rename the constants of one layer; those of a weight that two layers share are called the same."""
        for tensor in small.graph.initializer:
            if tensor.name not in self._called:
                self._called[tensor.name] = free(tensor.name, self._names)
        renamed(small, self._called)


def _quantize(
    model: onnx.ModelProto, matmul: onnx.NodeProto, folder: Path, bits: int, named: _Named
) -> list[onnx.TensorProto]:
    """Quantize the weights of one MatMul; return its new constants, or none if another layer has brought them already."""
    constants = initializers(model)
    weight = numpy_helper.from_array(array_of(constants[matmul.input[1]], folder), matmul.input[1])
    small = _quantized_alone(weight, matmul.name, bits)
    named.call(small)
    node = small.graph.node[0]
    node.input[0] = matmul.input[0]
    node.output[:] = matmul.output
    matmul.CopyFrom(node)
    added = []
    for tensor in small.graph.initializer:
        if tensor.name not in constants:
            added.append(model.graph.initializer.add())
            added[-1].CopyFrom(tensor)
    if _DOMAIN not in {entry.domain for entry in model.opset_import}:
        model.opset_import.append(helper.make_opsetid(_DOMAIN, _VERSION))
    return added


def _quantized_alone(weight: onnx.TensorProto, name: str, bits: int) -> onnx.ModelProto:
    """Return a graph of one MatMul with these weights, quantized."""
    with _same_logging():
        from onnxruntime.quantization import matmul_nbits_quantizer as ort

    ends = [helper.make_tensor_value_info(end, onnx.TensorProto.FLOAT, None) for end in ("x", "y")]
    node = helper.make_node("MatMul", ["x", weight.name], ["y"], name=name)
    model = helper.make_model(helper.make_graph([node], "one layer", ends[:1], ends[1:], [weight]))
    logger = logging.getLogger("onnxruntime.quantization.matmul_nbits_quantizer")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        config = ort.DefaultWeightOnlyQuantConfig(
            block_size=_block_size(weight.dims[0], bits),
            is_symmetric=bits == 8,
            accuracy_level=_INTEGER_ARITHMETIC,
            bits=bits,
        )
        quantizer = ort.MatMulNBitsQuantizer(model, algo_config=config)
        quantizer.process()
    except (RuntimeError, ValueError, TypeError) as error:
        raise GateFailed(f"the quantizer failed: {error}") from error
    finally:
        logger.setLevel(level)
    quantized: onnx.ModelProto = quantizer.model.model
    if [one.op_type for one in quantized.graph.node] != ["MatMulNBits"]:
        raise GateFailed(f"the quantizer passed over {weight.name}")
    return quantized


def _block_size(rows: int, bits: int) -> int:
    """Return the usual size, or a smaller one where it would be filled up with nothing."""
    return max(_LEAST_BLOCK, min(BLOCK_SIZES[bits], 1 << max(rows - 1, 0).bit_length()))


@contextlib.contextmanager
def _same_logging() -> Iterator[None]:
    """Leave the root logger as it is: ONNX Runtime's module sets it up for everybody when it is imported."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    try:
        yield
    finally:
        root.setLevel(level)
        root.handlers[:] = handlers


def _as_matmul(model: onnx.ModelProto, layer: Layer) -> onnx.NodeProto:
    gemm = layer.node
    if gemm.op_type != "Gemm":
        return gemm
    place = list(model.graph.node).index(gemm)
    names, given = taken(model), str(gemm.output[0])
    name, product, added = (free(f"{given}.{part}", names) for part in ("MatMul", "product", "Add"))
    nodes = [helper.make_node("MatMul", list(gemm.input[:2]), [product], name=name)]
    if len(gemm.input) == 3:
        nodes.append(helper.make_node("Add", [product, gemm.input[2]], [given], name=added))
    else:
        nodes[0].output[0] = given
    model.graph.node.remove(gemm)
    for offset, node in enumerate(nodes):
        model.graph.node.insert(place + offset, node)
    made: onnx.NodeProto = model.graph.node[place]
    return made
