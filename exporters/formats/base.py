"""What every format offers: why a model cannot have it, or a file that has it and the record of how it was made."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Protocol

import onnx

from exporters import staging
from exporters.formats.rounding import Rounded
from exporters.formats.smooth import Factors
from exporters.graph.files import nbytes, tensors_of
from exporters.graph.rules import LAYERS, Layer, initializers, layers
from kit.bundle.manifest import Quantization
from kit.choices import Precision, VariantFormat
from kit.errors import GateFailed, UsageError
from kit.samples import Samples
from kit.system.progress import OnProgress, silent
from kit.tensors import Signature

_QUANTIZED = {
    "DequantizeLinear": VariantFormat.QDQ,
    "QuantizeLinear": VariantFormat.QDQ,
    "DynamicQuantizeLinear": VariantFormat.DYNAMIC,
    "MatMulInteger": VariantFormat.DYNAMIC,
    "ConvInteger": VariantFormat.DYNAMIC,
    "DynamicQuantizeMatMul": VariantFormat.DYNAMIC,
    "DynamicQuantizeLSTM": VariantFormat.DYNAMIC,
    "MatMulIntegerToFloat": VariantFormat.DYNAMIC,
    "MatMulNBits": VariantFormat.WEIGHT_ONLY,
    "GatherBlockQuantized": VariantFormat.WEIGHT_ONLY,
    "QGemm": VariantFormat.QOPERATOR,
    "QLinearMatMul": VariantFormat.QOPERATOR,
    "QLinearConv": VariantFormat.QOPERATOR,
}
_SHOWN = 8
_SMALL_INTEGERS = (
    *(onnx.TensorProto.INT8, onnx.TensorProto.UINT8),
    *(onnx.TensorProto.INT4, onnx.TensorProto.UINT4),
)
_MOST_BYTES = 2**31 - 2**20  # what ONNX Runtime's INT8 quantizer can hold: protobuf's own limit


@dataclass(frozen=True, kw_only=True)
class Source:
    """What candidates are made of.

    Attributes:
        folder: Where candidates wait, in a folder each.
        train: What calibration samples are drawn from; None if there is no data.
        is_fine_tuned: Whether its weights were trained to bear being quantized.
        roundings: What exporters.formats.rounding found of it, by format.
        smoothings: What exporters.formats.smooth found of it, by the hash of the calibration samples.
    """

    path: Path
    folder: Path
    signature: Signature
    train: tuple[Samples, ...] | None = None
    dataset: str = ""
    is_fine_tuned: bool = False
    roundings: dict[str, dict[str, Rounded]] = field(default_factory=dict, repr=False, compare=False)
    smoothings: dict[str, Factors] = field(default_factory=dict, repr=False, compare=False)
    on_progress: OnProgress = field(default=silent, repr=False, compare=False)

    @cached_property
    def model(self) -> onnx.ModelProto:
        """The graph; weights beside it are not read. Copy it before you change it."""
        return staging.read(self.path)

    @property
    def is_large(self) -> bool:
        """Whether its weights lie beside the graph."""
        return staging.is_large(self.model)

    def copy(self) -> onnx.ModelProto:
        """Return a copy of the graph that may be changed."""
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        return model


class Format(Protocol):
    """A way to write a model."""

    @property
    def precision(self) -> Precision:
        """Of its weights."""

    @property
    def form(self) -> VariantFormat:
        """How the graph expresses it."""

    def refusal(self, model: onnx.ModelProto) -> str:
        """Say why a model cannot have this format; empty if it can, for all one knows without making it."""

    def unable(self, model: onnx.ModelProto) -> tuple[str, ...]:
        """Return the names of layers that this format is not for; they stay in float in any case."""

    def prepared(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """Return the float model that is quantized: it computes the same, the scale of what lies inside may differ."""

    def make(self, source: Source, exclude: tuple[str, ...], target: Path) -> Quantization | None:
        """Write the model into `target`, weights beside it if they are large; return the record of it.

        Raises:
            UsageError: It cannot be made of this model, or lacks data, or there is no layer of an excluded name.
            GateFailed: A layer was skipped, or the converter failed.
        """


def refusal_of_quantized(model: onnx.ModelProto) -> str:
    """Say by what a model shows that somebody has quantized it; empty for a float model."""
    if found := quantized_as(model):
        return f"it is quantized already ({found[0]})"
    sizes: dict[int, int] = {}
    for tensor in tensors_of(model):
        sizes[tensor.data_type] = sizes.get(tensor.data_type, 0) + nbytes(tensor)
    integers = sum(sizes.get(dtype, 0) for dtype in _SMALL_INTEGERS)
    return "it is quantized already: most of its weights are integers" if 2 * integers > sum(sizes.values()) else ""


def quantized_as(model: onnx.ModelProto) -> tuple[str, VariantFormat] | None:
    """Return an operator on integer weights and the format it belongs to; None for a float model."""
    for node in _all_nodes(model.graph):
        if node.op_type in _QUANTIZED:
            return str(node.op_type), _QUANTIZED[node.op_type]
    return None


def _all_nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    nodes = list(graph.node)
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                nodes += _all_nodes(inner)
    return nodes


def weight_bytes(model: onnx.ModelProto) -> int:
    """Return the bytes of all constants, wherever they lie."""
    return sum(nbytes(tensor) for tensor in tensors_of(model))


class EveryLayer:
    """What a format of int8 says that can take every layer, and quantizes the model as it is."""

    def refusal(self, model: onnx.ModelProto) -> str:
        """Say why a model cannot be quantized."""
        return refusal_of_int8(model)

    def unable(self, _: onnx.ModelProto) -> tuple[str, ...]:
        """Return nothing: every layer can be quantized."""
        return ()

    def prepared(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """Return the model itself."""
        return model


def is_dense(model: onnx.ModelProto) -> bool:
    """Whether all layers of a model are dense ones: Gemm."""
    return all(layer.node.op_type == "Gemm" for layer in layers(model))


def is_convolutional(model: onnx.ModelProto) -> bool:
    """Whether most of the weights of a model's layers are those of convolutions."""
    constants = initializers(model)
    sizes = dict.fromkeys(LAYERS, 0)
    for layer in layers(model):
        sizes[layer.node.op_type] += math.prod(constants[layer.weight].dims)
    return 2 * sizes["Conv"] > sum(sizes.values())


def refusal_to_quantize(model: onnx.ModelProto, *, most_bytes: int | None = None) -> str:
    """Say why integers cannot be made of a model's weights; empty if they can."""
    if reason := refusal_of_quantized(model):
        return reason
    if not layers(model):
        return f"it has no layer with weights of its own ({', '.join(LAYERS)})"
    floats = {tensor.name for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT}
    others = [layer for layer in layers(model) if layer.weight not in floats]
    if others:
        dtype = onnx.TensorProto.DataType.Name(initializers(model)[others[0].weight].data_type).lower()
        return f"its weights are {dtype}, not float32"
    if most_bytes is not None and (size := weight_bytes(model)) > most_bytes:
        return (
            f"its weights take {size / 1e9:.1f} GB, and ONNX Runtime's quantizer holds 2 GB at most; int4 and fp16 work"
        )
    return ""


def refusal_of_int8(model: onnx.ModelProto) -> str:
    """Say why ONNX Runtime's INT8 quantizer cannot take a model; empty if it can."""
    return refusal_to_quantize(model, most_bytes=_MOST_BYTES)


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
    named = ", ".join(skipped[:_SHOWN]) + (", ..." if len(skipped) > _SHOWN else "")
    if ignored := [name for name in exclude if name not in left]:
        raise GateFailed(f"the quantizer quantized layers that were excluded: {', '.join(ignored)}")
    if skipped or not found:
        raise GateFailed(
            f"the quantizer skipped {len(skipped)} of {len(found)} layers: {named or 'there are none'}",
            hint=_hint_to_exclude(skipped) if skipped and len(skipped) < len(found) else "",
        )
    return len(found) - len(left), len(found)


def _hint_to_exclude(skipped: list[str]) -> str:
    if len(skipped) > _SHOWN:
        return "leave them in float: --exclude-layer auto"
    return "leave them in float by name: " + " ".join(f"--exclude-layer {name}" for name in skipped)
