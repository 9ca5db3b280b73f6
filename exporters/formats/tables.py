"""Embedding tables as integers: a row is looked up in 8 bits and made float afterwards; no calibration is needed.

Each column has a scale of its own. Nothing is computed in integers, and nothing is slower: the file is smaller. In
all-MiniLM-L6-v2 the tables are half of all weights.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from exporters.graph.files import array_of, nbytes
from exporters.graph.names import free, taken
from exporters.graph.rules import drop_unused_initializers, initializers, opset_of, uses

_LEAST_BYTES = 16 * 2**10  # of a table: of smaller ones nothing is gained
_MOST = 127
_LEAST_OPSET = 13  # of a DequantizeLinear that takes a scale for each column


def quantize_tables(model: onnx.ModelProto, folder: Path) -> list[onnx.TensorProto]:
    """Make integers of the float tables that a graph only looks rows up in; return those integers.

    The graph is changed, and holds the integers; `folder` is where weights lie that are not in it.
    """
    if opset_of(model) < _LEAST_OPSET:
        return []
    constants = initializers(model)
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        if node.op_type == "Gather" and node.input[0] in constants and not _axis(node):
            readers.setdefault(node.input[0], []).append(node)
    made: list[onnx.TensorProto] = []
    for name, nodes in readers.items():
        table = constants[name]
        is_plain = (
            table.data_type == onnx.TensorProto.FLOAT and len(table.dims) == 2 and uses(model, name) == len(nodes)
        )
        if is_plain and nbytes(table) >= _LEAST_BYTES:
            made.append(_quantize(model, table, nodes, folder))
    drop_unused_initializers(model)
    return made


def _axis(gather: onnx.NodeProto) -> int:
    return next((int(one.i) for one in gather.attribute if one.name == "axis"), 0)


def _quantize(
    model: onnx.ModelProto, table: onnx.TensorProto, readers: list[onnx.NodeProto], folder: Path
) -> onnx.TensorProto:
    values = array_of(table, folder)
    scale = np.maximum(np.abs(values).max(axis=0) / _MOST, np.finfo(np.float32).tiny).astype(np.float32)
    integers = np.clip(np.rint(values / scale), -_MOST, _MOST).astype(np.int8)
    names = taken(model)
    quantized, scales = free(f"{table.name}_quantized", names), free(f"{table.name}_scale", names)
    made: onnx.TensorProto = model.graph.initializer.add()
    made.CopyFrom(numpy_helper.from_array(integers, quantized))
    model.graph.initializer.append(numpy_helper.from_array(scale, scales))
    for node in readers:
        output = str(node.output[0])
        node.input[0], node.output[0] = quantized, free(f"{quantized}.{output}", names)
        place = list(model.graph.node).index(node) + 1
        dequantize = helper.make_node(
            "DequantizeLinear", [node.output[0], scales], [output], name=f"{quantized}.dequantize.{output}", axis=-1
        )
        model.graph.node.insert(place, dequantize)
    return made
