"""What stands behind a layer goes into it: batch normalization, and scales and biases of its outputs. Nodes that copy go.

Runtimes do so when they open a graph; a quantizer has to find it done. What a convolution gives before its bias is added has a
range of its own, on which 8 bits are spent for nothing. PP-OCR's detector, written by Paddle with an Identity behind each node
and biases in nodes of their own, lost R2 0.037 in int8, and 0.022 once they were gone (48 pages that took no part).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from exporters.graph.files import Graph, names_read
from exporters.graph.names import free, taken
from exporters.graph.rules import is_plain

Values = NDArray[np.float64]
Line = tuple[Values, Values]
"""Scale and shift of each output of a layer, or of all of them alike: `[outputs]` or `[1]`."""

_OWN = frozenset({"", "ai.onnx"})
_ONE = np.ones(1)
_ARITHMETIC: Mapping[str, Callable[[Values], Line]] = {
    "Add": lambda by: (_ONE, by),
    "Sub": lambda by: (_ONE, -by),
    "Mul": lambda by: (by, 0 * by),
    "Div": lambda by: (1 / by, 0 * by),
}
_FROM_THE_LEFT = frozenset({"Sub", "Div"})


def drop_copies(graph: Graph) -> None:
    """Let whoever reads a copy of a tensor read the tensor itself; copies of constants and of the graph's outputs stay."""
    model = graph.model
    reads = Counter(names_read(model.graph))
    readers = _readers(model)
    kept = []
    for node in model.graph.node:
        own = readers.get(node.output[0], []) if node.output else []
        # Fewer than all are seen where the graph gives it away, or a graph inside reads it.
        is_ours = sum(list(one.input).count(node.output[0]) for one in own) == reads[node.output[0]]
        if node.op_type != "Identity" or node.domain not in _OWN or node.input[0] in graph.constants or not is_ours:
            kept.append(node)
            continue
        for reader in own:
            reader.input[:] = [node.input[0] if name == node.output[0] else name for name in reader.input]
        readers.setdefault(node.input[0], []).extend(own)
        reads[node.input[0]] += reads[node.output[0]] - 1
    if len(kept) < len(model.graph.node):
        _keep(model, kept)


def absorb(graph: Graph) -> None:
    """Take arithmetic behind convolutions and Gemms into their weights and biases, if those are float32 and theirs alone."""
    model = graph.model
    reads = Counter(names_read(model.graph))
    readers = _readers(model)
    gone = set[int]()
    for layer in model.graph.node:
        while (behind := _only_reader(layer, readers, reads)) is not None:
            line = _line(graph, behind, layer)
            if line is None or not _takes(graph, layer, reads):
                break
            _assign(graph, layer, *line)
            layer.output[0] = behind.output[0]
            gone.add(id(behind))  # `readers` holds the node, so that no other gets its id
    if gone:
        _keep(model, [node for node in model.graph.node if id(node) not in gone])
        graph.drop_unused()


def _readers(model: onnx.ModelProto) -> dict[str, list[onnx.NodeProto]]:
    found: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in dict.fromkeys(node.input):
            found.setdefault(name, []).append(node)
    return found


def _keep(model: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> None:
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)


def _only_reader(
    layer: onnx.NodeProto, readers: Mapping[str, list[onnx.NodeProto]], reads: Mapping[str, int]
) -> onnx.NodeProto | None:
    if layer.op_type not in {"Conv", "Gemm"} or layer.domain not in _OWN or reads[layer.output[0]] != 1:
        return None
    found = readers.get(layer.output[0], [])
    return found[0] if len(found) == 1 and found[0].domain in _OWN else None


def _takes(graph: Graph, layer: onnx.NodeProto, reads: Mapping[str, int]) -> bool:
    constants = graph.constants
    return (
        (layer.op_type == "Conv" or (is_plain(layer) and _adds_a_row(graph, layer)))
        and all(
            name in constants
            and constants[name].data_type == TensorProto.FLOAT
            and reads[name] <= 1  # 0 if it was added here
            for name in layer.input[1:]
        )
    )


def _adds_a_row(graph: Graph, gemm: onnx.NodeProto) -> bool:
    """Whether what a Gemm adds, if it does, is the same for every sample."""
    weight, *added = (graph.constants.get(name) for name in gemm.input[1:])
    if weight is None or None in added:
        return False
    outputs = int(weight.dims[-1])
    return all(list(one.dims) in ([outputs], [1, outputs]) or math.prod(one.dims) == 1 for one in added if one)


def _line(graph: Graph, node: onnx.NodeProto, layer: onnx.NodeProto) -> Line | None:
    """Return what a node makes of each output of the layer before it; None if it does not treat outputs one by one."""
    weight = graph.constants.get(layer.input[1])
    if weight is None:
        return None
    outputs, rank = int(weight.dims[0 if layer.op_type == "Conv" else -1]), len(weight.dims)
    if node.op_type == "BatchNormalization":
        return _of_norm(graph, node, layer.output[0])
    if node.op_type not in _ARITHMETIC or (node.op_type in _FROM_THE_LEFT and node.input[0] != layer.output[0]):
        return None
    others = [name for name in node.input if name != layer.output[0]]
    if len(others) != 1 or others[0] not in graph.constants:
        return None
    by = graph.constants[others[0]]
    dims, ones = list(by.dims), [1] * (rank - 2)
    is_by_output = [1] * (rank - len(dims)) + dims == [1, outputs, *ones]
    is_scalar = len(dims) <= rank and all(size == 1 for size in dims)
    if by.data_type != TensorProto.FLOAT or not (is_by_output or is_scalar):
        return None
    values = graph.values(others[0]).reshape(-1).astype(np.float64)
    return None if node.op_type == "Div" and not values.all() else _ARITHMETIC[node.op_type](values)


def _of_norm(graph: Graph, node: onnx.NodeProto, entered: str) -> Line | None:
    about = {one.name: helper.get_attribute_value(one) for one in node.attribute}
    names = list(node.input[1:])
    is_float = all(name in graph.constants and graph.constants[name].data_type == TensorProto.FLOAT for name in names)
    if about.get("training_mode", 0) or any(node.output[1:]) or node.input[0] != entered or not is_float:
        return None
    scale, shift, mean, variance = (graph.values(name).astype(np.float64) for name in names)
    by = scale / np.sqrt(variance + about.get("epsilon", 1e-5))
    return by, shift - mean * by


def _assign(graph: Graph, layer: onnx.NodeProto, scale: Values, shift: Values) -> None:
    weight: NDArray[Any] = graph.values(layer.input[1]).astype(np.float64)
    turned = weight if layer.op_type == "Conv" else weight.T
    outputs = len(turned)
    if not (scale == 1).all():
        scaled = turned * np.broadcast_to(scale, (outputs,)).reshape(-1, *[1] * (weight.ndim - 1))
        graph.assign(layer.input[1], scaled if layer.op_type == "Conv" else scaled.T)
    has_bias = len(layer.input) == 3
    before = graph.values(layer.input[2]).astype(np.float64).reshape(-1) if has_bias else np.zeros(1)
    bias = np.broadcast_to(before * scale + shift, (outputs,))
    if has_bias:
        graph.assign(layer.input[2], bias)
        return
    name = free(f"{layer.input[1]}.bias", taken(graph.model))
    graph.model.graph.initializer.append(numpy_helper.from_array(bias.astype(np.float32), name))
    layer.input.append(name)
