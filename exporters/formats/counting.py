"""How much of a model became integers: single weights, multiplications, and what stays in float.

    done, total = count_weights(model, quantized)
    done, total = count_arithmetic(model, quantized, signature)
    remark(quantized, record)        # "GRU stays in float: 96% of the weights"

A weight is a value of a float constant, wherever it lies: biases, the scales of norms and the graphs inside loops count too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
import onnx
from onnx import TensorProto

from exporters.graph.files import inner_graphs, tensors_of
from exporters.graph.rules import LAYERS, MOVES, RECURRENT, layers
from exporters.graph.shapes import with_shapes
from kit.bundle.manifest import Quantization
from kit.system.wording import percent
from kit.tensors import Signature

_FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16})
_ARITHMETIC = frozenset({*LAYERS, "ConvTranspose", *RECURRENT})
# Inputs of integer operators that are scales, by operator: they are how integers are read, and no weights.
_SCALES: dict[str, tuple[int, ...]] = {
    "QuantizeLinear": (1,),
    "DequantizeLinear": (1,),
    "MatMulNBits": (2,),
    "GatherBlockQuantized": (2,),
    "DynamicQuantizeMatMul": (2,),
    "MatMulIntegerToFloat": (2, 3),
    "DynamicQuantizeLSTM": (8, 10),
    "QGemm": (1, 4, 7),
    "QLinearConv": (1, 3, 4, 6),
    "QLinearMatMul": (1, 3, 4, 6),
}

_Shape = tuple[int, ...]


def count_weights(model: onnx.ModelProto, quantized: onnx.ModelProto) -> tuple[int, int]:
    """Count the single weights that became integers, by what is float in the file that was made, and all of them."""
    total, left = _float_values(model), _float_values(quantized)
    return max(total - left, 0), total


def _float_values(model: onnx.ModelProto) -> int:
    count = sum(math.prod(tensor.dims) for tensor in tensors_of(model) if tensor.data_type in _FLOATS)
    named = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in _nodes(model.graph):
        for attribute in node.attribute if node.op_type == "Constant" else ():
            if attribute.name == "value":
                named[node.output[0]] = attribute.t
            count += len(attribute.floats) if attribute.name == "value_floats" else attribute.name == "value_float"
    read_as_scales = [named[name] for name in _scales(model) if name in named]
    return int(count - sum(math.prod(tensor.dims) for tensor in read_as_scales if tensor.data_type in _FLOATS))


def _scales(model: onnx.ModelProto) -> set[str]:
    nodes = list(_nodes(model.graph))
    found = {node.input[place] for node in nodes for place in _SCALES.get(node.op_type, ()) if place < len(node.input)}
    ranges = {node.output[1] for node in nodes if node.op_type == "DynamicQuantizeLinear" and len(node.output) > 1}
    # The scale of MatMulInteger's weights is multiplied with that of its input, and both with the sum afterwards.
    makers = {name: node for node in nodes for name in node.output}
    sums = {node.output[0] for node in nodes if node.op_type in {"MatMulInteger", "ConvInteger"}}
    sums = {node.output[0] for node in nodes if node.op_type == "Cast" and node.input[0] in sums}
    steps = {name for node in nodes if node.op_type == "Mul" and sums & set(node.input) for name in node.input} - sums
    for node in (
        *(one for one in nodes if ranges & set(one.input)),
        *(makers[name] for name in steps if name in makers),
    ):
        found.update(node.input if node.op_type == "Mul" else ())
    return found | steps


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in inner_graphs(attribute):
                yield from _nodes(inner)


def count_arithmetic(model: onnx.ModelProto, quantized: onnx.ModelProto, signature: Signature) -> tuple[int, int]:
    """Count the multiply-adds of one call of the usual sizes that are done with integers, and all of them.

    Those of products with matrices, convolutions and recurrent layers; the body of a loop counts once. 0 of 0 if a shape cannot
    be inferred.
    """
    shapes = {**_shapes(quantized, signature), **_shapes(model, signature)}
    counts = [_multiply_adds(node, shapes) for node in _nodes(model.graph) if node.op_type in _ARITHMETIC]
    dequantized = {node.output[0] for node in _nodes(quantized.graph) if node.op_type == "DequantizeLinear"}
    left = [
        _multiply_adds(node, shapes)
        for node in _nodes(quantized.graph)
        if node.op_type in _ARITHMETIC and not node.domain and not dequantized.issuperset(node.input[:2])
    ]
    known = [count for count in (*counts, *left) if count is not None]
    if len(known) < len(counts) + len(left):
        return 0, 0
    total = sum(known[: len(counts)])
    return max(total - sum(known[len(counts) :]), 0), total


def _shapes(model: onnx.ModelProto, signature: Signature) -> dict[str, _Shape]:
    inferred = with_shapes(model, signature, signature.usual_sizes())
    return {} if inferred is None else dict(_known_shapes(inferred.graph))  # a figure for people, not a check


def _known_shapes(graph: onnx.GraphProto) -> Iterator[tuple[str, _Shape]]:
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor = value.type.tensor_type
        if tensor.HasField("shape") and all(dim.HasField("dim_value") for dim in tensor.shape.dim):
            yield value.name, tuple(dim.dim_value for dim in tensor.shape.dim)
    for constant in graph.initializer:
        yield constant.name, tuple(constant.dims)
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "value":
                yield node.output[0], tuple(attribute.t.dims)
            for inner in inner_graphs(attribute):
                yield from _known_shapes(inner)


def _multiply_adds(node: onnx.NodeProto, shapes: Mapping[str, _Shape]) -> int | None:
    given, weight = (shapes.get(name) for name in node.input[:2])
    if given is None or weight is None:
        return None
    if node.op_type == "MatMul":  # [..., rows, inner] @ [..., inner, columns]
        groups = np.broadcast_shapes(given[:-2], weight[:-2])
        return math.prod((*groups, *given[-2:])) * (weight[-1] if len(weight) > 1 else 1)
    if node.op_type == "Gemm":
        turned = any(one.name == "transA" and one.i for one in node.attribute)
        return given[1 if turned else 0] * math.prod(weight)
    if node.op_type == "ConvTranspose":  # each value is multiplied with the whole kernel of its channel
        return math.prod(given) * math.prod(weight[1:])
    if node.op_type == "Conv":
        made = shapes.get(node.output[0])
        return None if made is None else math.prod(made) * math.prod(weight[1:])
    again = shapes.get(node.input[2])
    return None if again is None else math.prod(given[:2]) * (math.prod(weight) + math.prod(again))


# What stands behind a name: a constant, or the node that gives it, and where it was found.
_Scope = Mapping[str, tuple[tuple[str, ...], TensorProto | onnx.NodeProto]]


def remark(model: onnx.ModelProto, quantization: Quantization) -> str:
    """Say which operators of a quantized model have float weights, and how many; empty if there are none.

    Weights have several axes longer than 1: biases and norms do not. Layers that were left in float by name are not said again.
    """
    found: dict[tuple[str, ...], tuple[str, int]] = {}
    named = set(quantization.layers_excluded)
    kept = {layer.weight for layer in layers(model) if named & {layer.name, layer.name.removesuffix("_MatMul")}}
    _look(model.graph, {}, (), found, _scales(model) | kept)
    if not found:
        return ""
    kinds = dict.fromkeys(kind for kind, _ in found.values())
    share = sum(size for _, size in found.values()) / max(quantization.weights_total, 1)
    stay = "stays" if len(kinds) == 1 else "stay"
    return f"{' and '.join(kinds)} {stay} in float: {percent(min(share, 1))} of the weights"


def _look(
    graph: onnx.GraphProto,
    outer: _Scope,
    place: tuple[str, ...],
    found: dict[tuple[str, ...], tuple[str, int]],
    passed_over: set[str],
) -> None:
    """Note every float constant that an operator's weights follow from: the operator, and how many weights."""
    scope = {**outer, **{tensor.name: ((*place, tensor.name), tensor) for tensor in graph.initializer}}
    for node in graph.node:
        values = [one.t for one in node.attribute if one.name == "value"] if node.op_type == "Constant" else []
        scope |= {name: ((*place, name), values[0] if values else node) for name in node.output}
    for number, node in enumerate(graph.node):
        for attribute in node.attribute:
            for inner in inner_graphs(attribute):
                _look(inner, scope, (*place, f"{number} {attribute.name}"), found, passed_over)
        if node.op_type in MOVES or node.op_type in _SCALES:
            continue
        todo = list(node.input[1:3] if node.op_type in RECURRENT else node.input)
        seen = set(passed_over)
        while todo:
            name = todo.pop()
            if name in seen or name not in scope:
                continue
            seen.add(name)
            key, behind = scope[name]
            if not isinstance(behind, TensorProto):
                todo += behind.input if behind.op_type in MOVES else ()
            elif behind.data_type in _FLOATS and sum(size > 1 for size in behind.dims) > 1:
                found.setdefault(key, (str(node.op_type), math.prod(behind.dims)))
