"""ONNX graphs: questions that every room of the workshop asks of them, and rules each of them applies. No torch.

A rule changes the model it is given; a question does not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

LAYERS = ("Gemm", "MatMul", "Conv")
"""Operators that have weights and do the work; what is quantized, and what is counted."""

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
    """Remove everything that does not compute: metadata, doc strings, inferred shapes."""
    graph = model.graph
    model.ClearField("doc_string")
    for holder in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        holder.ClearField("metadata_props")
        holder.ClearField("doc_string")
    graph.ClearField("value_info")
    graph.name = "kit"


def initializers(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """Return the graph's constants by name."""
    return {tensor.name: tensor for tensor in model.graph.initializer}


def opset_of(model: onnx.ModelProto) -> int:
    """Return the version of ONNX's own operator set."""
    return next(int(entry.version) for entry in model.opset_import if entry.domain in {"", "ai.onnx"})


def domains_of(model: onnx.ModelProto) -> tuple[str, ...]:
    """Return the operator domains the nodes use beyond ONNX's own; empty means portable."""
    return tuple(sorted({node.domain for node in model.graph.node} - {"", "ai.onnx"}))


def least_onnxruntime(model: onnx.ModelProto) -> str:
    """Return the oldest ONNX Runtime that reads the model."""
    versions = (_RUNTIME_FOR_OPSET.get(opset_of(model), "1.31"), _RUNTIME_FOR_IR.get(int(model.ir_version), "1.31"))
    return max(versions, key=lambda version: tuple(int(part) for part in version.split(".")))


def drop_unused_initializers(model: onnx.ModelProto) -> None:
    """Remove constants no node reads."""
    used = {name for node in model.graph.node for name in node.input}
    for tensor in [t for t in model.graph.initializer if t.name not in used]:
        model.graph.initializer.remove(tensor)


def follow(model: onnx.ModelProto, tensor: str) -> list[onnx.NodeProto]:
    """Return the chain of nodes from `tensor` on, as long as each output has one reader."""
    chain: list[onnx.NodeProto] = []
    while True:
        readers = [node for node in model.graph.node if tensor in node.input]
        if len(readers) != 1 or len(readers[0].output) != 1:
            return chain
        chain.append(readers[0])
        tensor = readers[0].output[0]


def is_plain(gemm: onnx.NodeProto) -> bool:
    """Whether a Gemm is x @ W + b, nothing scaled and nothing transposed."""
    values = {attribute.name: helper.get_attribute_value(attribute) for attribute in gemm.attribute}
    scaled = values.get("alpha", 1.0) != 1.0 or values.get("beta", 1.0) != 1.0
    return not scaled and not values.get("transA", 0) and not values.get("transB", 0)


def uses(model: onnx.ModelProto, tensor: str) -> int:
    """Count the inputs of nodes that read a tensor."""
    return sum(list(node.input).count(tensor) for node in model.graph.node)


def assign(tensor: onnx.TensorProto, values: NDArray[np.floating]) -> None:
    """Give a constant other values, as float32."""
    name = tensor.name
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values, np.float32), name))
