"""Recurrent layers: what ONNX Runtime can make integers of, and what is said of the others.

Its quantizer makes DynamicQuantizeLSTM of LSTM: 3.5 times as fast as in float with two layers of 512 units, one sample of 20
steps, on an AMD EPYC (family 25 model 17). GRU and RNN have no such operator, and graphs inside branches are passed over.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import onnx

from exporters.graph.files import inner_graphs
from exporters.graph.rules import MOVES, RECURRENT, initializers, uses
from kit.bundle.manifest import Quantization

_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
_LSTM = "LSTM"


def quantizable(model: onnx.ModelProto) -> tuple[str, ...]:
    """Return `LSTM` if the quantizer can be let loose on all of a graph's own, else nothing: it does not look itself."""
    found = [node for node in model.graph.node if node.op_type == _LSTM]
    return (_LSTM,) if found and all(_is_plain(model, node) for node in found) else ()


def _is_plain(model: onnx.ModelProto, lstm: onnx.NodeProto) -> bool:
    """Whether an LSTM's weights are constants of its own, and its layout the one that the integer operator has."""
    constants = initializers(model)
    turned = any(one.name == "layout" and one.i for one in lstm.attribute)
    return not turned and all(
        name in constants and constants[name].data_type == onnx.TensorProto.FLOAT and uses(model, name) == 1
        for name in lstm.input[1:3]
    )


def remark(model: onnx.ModelProto, quantization: Quantization) -> str:
    """Say which recurrent layers of a quantized model stay in float, and how much of it they are; empty if there are none."""
    found: dict[tuple[str, ...], tuple[str, int]] = {}
    _look(model.graph, {}, (), found)
    if not found:
        return ""
    kinds = dict.fromkeys(kind for kind, _ in found.values())
    share = sum(size for _, size in found.values()) / max(quantization.weights_total, 1)
    return (
        f"{' and '.join(kinds)} {'stays' if len(kinds) == 1 else 'stay'} in float: {min(share, 1):.0%} of the weights"
    )


_Scope = Mapping[str, tuple[tuple[str, ...], onnx.TensorProto | onnx.NodeProto]]
"""What stands behind a name: a constant, or the node that gives it, and where it was found."""


def _look(
    graph: onnx.GraphProto, outer: _Scope, place: tuple[str, ...], found: dict[tuple[str, ...], tuple[str, int]]
) -> None:
    """Note every float constant that the weights of recurrent layers follow from: the operator, and how many weights."""
    scope = {**outer, **{tensor.name: ((*place, tensor.name), tensor) for tensor in graph.initializer}}
    for node in graph.node:
        values = [one.t for one in node.attribute if one.name == "value"] if node.op_type == "Constant" else []
        scope |= {name: ((*place, name), values[0] if values else node) for name in node.output}
    for number, node in enumerate(graph.node):
        for attribute in node.attribute:
            for inner in inner_graphs(attribute):
                _look(inner, scope, (*place, f"{number} {attribute.name}"), found)
        todo = list(node.input[1:3]) if node.op_type in RECURRENT else []
        while todo:
            key, behind = scope.get(todo.pop(), ((), node))
            if isinstance(behind, onnx.TensorProto):
                if behind.data_type in _FLOATS and len(behind.dims) > 1:
                    found[key] = (str(node.op_type), math.prod(behind.dims))
            elif behind.op_type in MOVES:
                todo += behind.input
