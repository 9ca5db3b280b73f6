"""Names in a graph: who has which, and how they change without meeting each other."""

from __future__ import annotations

from collections.abc import Mapping

import onnx

from exporters.graph.files import Graph, inner_graphs


def taken(model: onnx.ModelProto) -> set[str]:
    """Return every name of a value, a constant or a node."""
    found: set[str] = set()
    _collect(model.graph, found)
    return found


def free(name: str, names: set[str]) -> str:
    """Return `name`, lengthened until none of `names` is like it; what is returned is added to them."""
    while name in names:
        name += "_"
    names.add(name)
    return name


def _collect(graph: onnx.GraphProto, found: set[str]) -> None:
    for one in (*graph.input, *graph.output, *graph.initializer):
        found.add(one.name)
    for node in graph.node:
        found.update([node.name, *node.input, *node.output])
        for attribute in node.attribute:
            for inner in inner_graphs(attribute):
                _collect(inner, found)


def call(graph: Graph, names: Mapping[str, str]) -> None:
    """Give inputs and outputs the names that people know them by; whatever bears such a name inside makes way."""
    held, wanted = taken(graph.model), set(names.values())
    inside = (wanted & held) - set(names)
    held |= wanted
    away: dict[str, str] = {}
    for name in inside:
        away[name] = free(name, held)
    changes = {**away, **{old: new for old, new in names.items() if old != new}}
    renamed(graph.model, changes)
    graph.rename_constants(changes)


def renamed(model: onnx.ModelProto, names: Mapping[str, str]) -> None:
    """Call values by other names, all at once, in the graphs inside the graph too."""
    if names:
        _rename(model.graph, names)


def _rename(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    for one in (*graph.input, *graph.output, *graph.initializer, *graph.value_info):
        one.name = names.get(one.name, one.name)
    for node in graph.node:
        for ends in (node.input, node.output):
            for place, name in enumerate(ends):
                if name in names:
                    ends[place] = names[name]
        for attribute in node.attribute:
            for inner in inner_graphs(attribute):
                _rename(inner, names)
