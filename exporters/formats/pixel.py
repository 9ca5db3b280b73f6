"""A chain of integer layers from a raw uint8 input on: QDQ without its float operators, QGemm of com.microsoft in their place.

Raw uint8 values are a quantized tensor of scale 1 and zero point 0, ReLU is the lower end of an unsigned activation, and the
last layer gives a float output: no tensor inside is float. ONNX Runtime makes the same kernels of a QDQ file
when it opens one, if its fusions find everything; here they stand in the file. One scale for a layer (with the layers
evened out before, exporters.formats.equalize) is a third faster for one image than one for each output: the kernel that
requantizes takes 5 ns more for every output that has a scale of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from exporters import staging
from exporters.formats.base import Source, refusal_of_int8
from exporters.formats.calibration import draw
from exporters.formats.int8 import StaticInt8
from exporters.graph.names import free, taken
from exporters.graph.rules import drop_unused_initializers, follow, initializers, is_plain, strip
from kit.bundle.manifest import Quantization
from kit.choices import VariantFormat
from kit.errors import UsageError

DOMAIN = "com.microsoft"
_VERSION = 1
_SHOWN = 12


@dataclass(frozen=True, kw_only=True)
class Pixel(StaticInt8):
    """Integer layers in a chain; one scale for a layer unless `per_channel`."""

    form: VariantFormat = VariantFormat.PIXEL
    per_channel: bool = False

    def refusal(self, model: onnx.ModelProto) -> str:
        """Say why a model cannot have this format."""
        return refusal_of_int8(model) or refusal(model)

    def make(self, source: Source, exclude: tuple[str, ...], target: Path) -> Quantization:
        """Write the model; see exporters.formats.base.Format."""
        drawn = draw(source, method=self.method, samples=self.samples, seed=self.seed)
        qdq = StaticInt8(form=VariantFormat.QDQ, per_channel=self.per_channel, weight_bits=self.weight_bits)
        made = qdq.quantized(source, exclude, drawn, target)
        staging.write(from_qdq(made.model), target)
        return made.record


def refusal(model: onnx.ModelProto) -> str:
    """Say why a fp32 model cannot have the pixel format; empty if it can.

    It can if it takes one raw uint8 input and is Cast, Flatten, perhaps a Slice, and Gemms with ReLU between: what normalises
    the input must be folded into the first layer.
    """
    if len(model.graph.input) != 1 or len(model.graph.output) != 1:
        return f"it has {len(model.graph.input)} inputs and {len(model.graph.output)} outputs, not one of each"
    if model.graph.input[0].type.tensor_type.elem_type != onnx.TensorProto.UINT8:
        return "its input is not raw uint8"
    if staging.is_large(model):
        return "its weights are too large for one file"
    kinds = [node.op_type for node in model.graph.node]
    layer = next((kind for kind in kinds if kind in {"Conv", "MatMul", "Gemm"}), "")
    if layer == "Conv":
        return "its first layer is a convolution, not a dense one"
    body = kinds[kinds.index("Gemm") :] if "Gemm" in kinds else []
    is_chain = body[::2] == ["Gemm"] * len(body[::2]) and body[1::2] == ["Relu"] * len(body[1::2]) and len(body) % 2
    door = [kind for kind in kinds[: len(kinds) - len(body)] if kind != "Slice"]
    if door in (["Cast", "Flatten"], ["Cast", "Reshape"]) and is_chain:
        plain = all(is_plain(node) for node in model.graph.node if node.op_type == "Gemm")
        return "" if plain else "it has a layer that is used twice, or scales its product"
    kinds = list(dict.fromkeys(kinds))
    named = ", ".join(kinds[:_SHOWN]) + (", ..." if len(kinds) > _SHOWN else "")
    return f"its graph is no chain of dense layers with ReLU between them: {named}"


def from_qdq(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the integer chain of a QDQ model that `quantize_static` made of one `refusal` has nothing against.

    Raises:
        UsageError: It is no such chain.
    """
    chain = onnx.ModelProto()
    chain.CopyFrom(model)
    graph, constants = chain.graph, initializers(chain)
    makers = {name: node for node in graph.node for name in node.output}
    door = [node for node in graph.node if node.op_type in {"Slice", "Flatten", "Reshape"}]
    gemms = [node for node in graph.node if node.op_type == "Gemm"]
    if not door or not gemms or any(name not in makers for gemm in gemms for name in gemm.input[:2]):
        raise UsageError("the pixel format is for quantized dense layers alone", hint="use --format qdq")
    nodes, tensor, names = list(door), door[-1].output[0], taken(chain)
    for gemm in gemms:
        given, weight = (makers[name] for name in gemm.input[:2])  # a DequantizeLinear each
        bias, quantize = _bias(chain, gemm), _quantizer(chain, gemm)
        inputs = [tensor, *given.input[1:3], *weight.input[:3], ""]
        if bias:
            inputs[-1] = free(f"{bias}.integer", names)
            step = _value(constants, given.input[1]) * _value(constants, weight.input[1])
            rounded = np.rint(_value(constants, bias) / step).astype(np.int32)
            graph.initializer.append(numpy_helper.from_array(rounded, inputs[-1]))
        if quantize is not None:
            inputs += quantize.input[1:3]
        tensor = graph.output[0].name if quantize is None else quantize.output[0]
        nodes.append(helper.make_node("QGemm", inputs, [tensor], name=gemm.name, domain=DOMAIN))
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    if DOMAIN not in {entry.domain for entry in chain.opset_import}:
        chain.opset_import.append(helper.make_opsetid(DOMAIN, _VERSION))
    drop_unused_initializers(chain)
    strip(chain)
    return chain


def _bias(model: onnx.ModelProto, gemm: onnx.NodeProto) -> str:
    """Return the name of a layer's float bias, which may be added behind it; empty if it has none."""
    if len(gemm.input) == 3:
        return str(gemm.input[2])
    added = next((node for node in model.graph.node if node.op_type == "Add" and gemm.output[0] in node.input), None)
    return "" if added is None else str(added.input[1])


def _quantizer(model: onnx.ModelProto, gemm: onnx.NodeProto) -> onnx.NodeProto | None:
    """Return what quantizes a layer's output, at once or after its ReLU; None for the last layer."""
    behind = follow(model, gemm.output[0])[:2]
    return next((node for node in behind if node.op_type == "QuantizeLinear"), None)


def _value(constants: dict[str, onnx.TensorProto], name: str) -> NDArray[np.float64]:
    return numpy_helper.to_array(constants[name]).astype(np.float64)
