"""Puts arithmetic on raw values in front of a graph, whatever made the graph: Cast, perhaps Transpose, Mul and Add."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from exporters.graph.files import Graph, inner_graphs
from exporters.graph.names import free, renamed, taken
from kit.errors import UsageError
from kit.tasks.base import Prologue

_NUMBERED = re.compile(r"(node_[A-Z]\w*_)(\d+)")
_STEPS = 2


def put_on(graph: Graph, prologue: Prologue, name: str) -> None:
    """Let a graph take raw uint8 values at the input `name`, which is then called as the prologue says.

    Raises:
        UsageError: The input is no tensor of floats with room for the prologue's channels.
    """
    model = graph.model
    given = next(one for one in model.graph.input if one.name == name)
    kind = given.type.tensor_type
    rank = len(kind.shape.dim)
    scale, shift = (_shaped(values, rank, name) for values in (prologue.scale, prologue.shift))
    if kind.elem_type not in {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE}:
        raise UsageError(f"the input {name} takes no floats, so that no arithmetic can be put before it")
    if prologue.channels_last and rank != 4:
        raise UsageError(
            f"the input {name} has {rank} axes; channels can only be moved in [batch, channels, height, width]"
        )
    _make_room(model)
    raw = prologue.input
    names = taken(model)
    if raw != name and raw in names:
        raise UsageError(f"the graph has another tensor {raw!r}", hint="give the input another name")
    cast = free("_to_copy", names)  # the names that torch gives: published files keep their bytes
    nodes = [helper.make_node("Cast", [raw], [cast], name=free("node__to_copy", names), to=TensorProto.FLOAT)]
    last = cast
    if prologue.channels_last:
        last = _add(nodes, "Transpose", [last], free(f"{raw}.channels_first", names), perm=[0, 3, 1, 2])
    for operator, values in (("Mul", scale), ("Add", shift)):
        constant = free(f"{raw}.{'scale' if operator == 'Mul' else 'shift'}", names)
        model.graph.initializer.append(numpy_helper.from_array(values, constant))
        last = _add(nodes, operator, [last, constant], free(f"{constant}d", names))
    if kind.elem_type != TensorProto.FLOAT:
        last = _add(nodes, "Cast", [last], free(f"{raw}.cast", names), to=kind.elem_type)
    kind.elem_type = TensorProto.UINT8
    if prologue.channels_last:
        _move_channels(given)
    _read_instead(model.graph, name, last)
    renamed(model, {name: raw})
    for place, node in enumerate(nodes):
        model.graph.node.insert(place, node)


def _add(nodes: list[onnx.NodeProto], operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
    nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
    return output


def _shaped(values: tuple[float, ...], rank: int, name: str) -> NDArray[np.float32]:
    array = np.array(values, np.float32)
    if len(values) == 1:
        return array.reshape(())
    if rank < 3:
        raise UsageError(f"the input {name} has no channels for {len(values)} numbers")
    return array.reshape(-1, *[1] * (rank - 2))


def _move_channels(given: onnx.ValueInfoProto) -> None:
    dims = given.type.tensor_type.shape.dim
    batch, channels, *rest = [onnx.TensorShapeProto.Dimension.FromString(dim.SerializeToString()) for dim in dims]
    del dims[:]
    dims.extend([batch, *rest, channels])


def _make_room(model: onnx.ModelProto) -> None:
    """Count the nodes up that torch has numbered, as if it had written the arithmetic itself."""
    for node in model.graph.node:
        if found := _NUMBERED.fullmatch(node.name):
            node.name = f"{found[1]}{int(found[2]) + _STEPS}"


def _read_instead(graph: onnx.GraphProto, name: str, other: str) -> None:
    for node in graph.node:
        for place, read in enumerate(node.input):
            if read == name:
                node.input[place] = other
        for attribute in node.attribute:
            for inner in inner_graphs(attribute):
                _read_instead(inner, name, other)
