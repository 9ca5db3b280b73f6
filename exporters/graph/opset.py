"""Graphs of old operator sets, brought to the oldest that quantizers write for."""

from __future__ import annotations

import onnx
from onnx import version_converter

from exporters.graph.files import Graph
from exporters.graph.rules import opset_of

LEAST = 13
"""The first in which DequantizeLinear takes a scale for each channel, and Pad takes uint8."""

_REFUSED = (RuntimeError, ValueError, version_converter.ConvertError)


def raised(graph: Graph) -> Graph:
    """Return a graph at opset 13 if it has an older one and ONNX's own converter can bring it there; else the graph itself.

    Values that are held outside of the graph stay where they are.
    """
    if opset_of(graph.model) >= LEAST:
        return graph
    names = {tensor.name for tensor in graph.model.graph.initializer}
    try:
        model: onnx.ModelProto = version_converter.convert_version(graph.model, LEAST)
    except _REFUSED:
        return graph  # an operator that has no way there: what needs a newer opset will say so
    kept = names <= {tensor.name for tensor in model.graph.initializer}
    return Graph(model, graph.held) if kept else graph
