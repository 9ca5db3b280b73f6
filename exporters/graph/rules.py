"""Questions about ONNX graphs, and the small changes that every format makes to them. No torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from exporters.graph import files

LAYERS = ("Gemm", "MatMul", "Conv")
"""Operators that have weights and do the work; what is quantized, and what is counted."""

RECURRENT = ("LSTM", "GRU", "RNN")
"""Operators with weights that are no layers of one product; of them, LSTM alone has an integer operator."""

MOVES = frozenset({"Slice", "Concat", "Unsqueeze", "Squeeze", "Transpose", "Reshape", "Split", "Identity", "Constant"})
"""What exporters put the weights of a recurrent layer in order with."""

ACTIVATIONS = ("Relu", "Clip")
"""What quantizers join with the layer before it."""

# Oldest ONNX Runtime that reads an opset and an IR version (onnxruntime.ai/docs/reference/compatibility.html).
_RUNTIME_FOR_OPSET = {18: "1.14", 19: "1.15", 20: "1.17", 21: "1.18", 22: "1.20", 23: "1.22"}
_RUNTIME_FOR_IR = {8: "1.14", 9: "1.17", 10: "1.18", 11: "1.22"}


@dataclass(frozen=True)
class Layer:
    """An operator with constant weights, by the name its module has in PyTorch."""

    name: str
    node: onnx.NodeProto

    @property
    def weight(self) -> str:
        """Name of the initializer."""
        return str(self.node.input[1])


def layers(model: onnx.ModelProto) -> tuple[Layer, ...]:
    """Return the layers with constant weights, in the order they run: `layers.1`, `layers.3`, ..."""
    constants = initializers(model)
    nodes = [node for node in model.graph.node if node.op_type in LAYERS and node.input[1] in constants]
    return tuple(Layer(_layer_name(node), node) for node in nodes)


def _layer_name(node: onnx.NodeProto) -> str:
    """Return the name of the module, from that of its weight; torch's exporter calls the nodes themselves by number."""
    weight = str(node.input[1])
    own = weight.removesuffix(".weight").removeprefix("model.")
    return own if own != weight else str(node.name or node.output[0])


def strip(model: onnx.ModelProto) -> None:
    """Remove everything that does not compute: metadata, doc strings, inferred shapes, local paths in them."""
    model.ClearField("doc_string")
    model.ClearField("metadata_props")
    _strip_graph(model.graph)
    for function in model.functions:
        function.ClearField("doc_string")
        function.ClearField("metadata_props")
        function.ClearField("value_info")
        _strip_nodes(function.node)
    model.graph.name = "kit"


def _strip_graph(graph: onnx.GraphProto) -> None:
    for holder in (graph, *graph.input, *graph.output, *graph.initializer):
        holder.ClearField("metadata_props")
        holder.ClearField("doc_string")
    graph.ClearField("value_info")
    _strip_nodes(graph.node)


def _strip_nodes(nodes: Iterable[onnx.NodeProto]) -> None:
    for node in nodes:
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
        for attribute in node.attribute:
            attribute.ClearField("doc_string")
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                _strip_graph(inner)


def initializers(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """Return the graph's constants by name."""
    return {tensor.name: tensor for tensor in model.graph.initializer}


def opset_of(model: onnx.ModelProto) -> int:
    """Return the version of ONNX's own operator set; 1 if a graph names none, as the specification has it."""
    return next((int(entry.version) for entry in model.opset_import if entry.domain in {"", "ai.onnx"}), 1)


def domains_of(model: onnx.ModelProto) -> tuple[str, ...]:
    """Return the operator domains the nodes use beyond ONNX's own; empty means portable."""
    return tuple(sorted({node.domain for node in model.graph.node} - {"", "ai.onnx"}))


def least_onnxruntime(model: onnx.ModelProto) -> str:
    """Return the oldest ONNX Runtime that kit knows to read the model; older graphs need no older one."""
    versions = (
        _RUNTIME_FOR_OPSET.get(max(opset_of(model), min(_RUNTIME_FOR_OPSET)), "1.31"),
        _RUNTIME_FOR_IR.get(max(int(model.ir_version), min(_RUNTIME_FOR_IR)), "1.31"),
    )
    return max(versions, key=lambda version: tuple(int(part) for part in version.split(".")))


def drop_unused_initializers(model: onnx.ModelProto) -> None:
    """Remove constants that nothing reads."""
    used = set(files.names_read(model.graph))
    for tensor in [t for t in model.graph.initializer if t.name not in used]:
        model.graph.initializer.remove(tensor)


def sort(model: onnx.ModelProto) -> None:
    """Put the nodes in an order in which each follows what it reads, inside the graphs of its own as well."""
    # ONNX Runtime's quantizer orders them by their inputs alone, not by what a branch reads outside of itself.
    nodes = list(model.graph.node)
    makers = {name: number for number, node in enumerate(nodes) for name in node.output if name}
    left = [{makers[name] for name in files.names_of(node) if name in makers} for node in nodes]
    if all(number > max(before, default=-1) for number, before in enumerate(left)):
        return
    order: dict[int, None] = {}
    todo = list(range(len(nodes) - 1, -1, -1))
    while todo:
        missing = left[todo[-1]] - order.keys()
        left[todo[-1]] = set()  # a node that waits for itself is left to the checker
        if missing:
            todo += sorted(missing, reverse=True)
        else:
            order.setdefault(todo.pop())
    del model.graph.node[:]
    model.graph.node.extend(nodes[number] for number in order)


def follow(model: onnx.ModelProto, tensor: str, *, past_shapes: bool = False) -> list[onnx.NodeProto]:
    """Return the chain of nodes from `tensor` on, as long as each output has one reader and is not given away.

    With `past_shapes`, nodes that only ask for a shape do not count as readers.
    """
    looks = {"Shape"} if past_shapes else set[str]()
    chain: list[onnx.NodeProto] = []
    seen = {tensor}
    given = {output.name for output in model.graph.output}
    while True:
        readers = [node for node in model.graph.node if tensor in node.input and node.op_type not in looks]
        if len(readers) != 1 or len(readers[0].output) != 1 or tensor in given or readers[0].output[0] in seen:
            return chain
        seen.add(readers[0].output[0])
        chain.append(readers[0])
        tensor = readers[0].output[0]


def is_plain(gemm: onnx.NodeProto) -> bool:
    """Whether a Gemm is x @ W + b, nothing scaled and nothing transposed."""
    values = {attribute.name: helper.get_attribute_value(attribute) for attribute in gemm.attribute}
    scaled = values.get("alpha", 1.0) != 1.0 or values.get("beta", 1.0) != 1.0
    return not scaled and not values.get("transA", 0) and not values.get("transB", 0)


def uses(model: onnx.ModelProto, tensor: str) -> int:
    """Count who reads a tensor: inputs of nodes, of graphs inside the graph too, and outputs of the graph."""
    return sum(name == tensor for name in files.names_read(model.graph))


def assign(tensor: onnx.TensorProto, values: NDArray[np.floating]) -> None:
    """Give a constant other values, of its own dtype."""
    own = np.ascontiguousarray(values, files.dtype_of(tensor))
    tensor.CopyFrom(numpy_helper.from_array(own, tensor.name))
