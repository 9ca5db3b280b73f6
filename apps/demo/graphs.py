"""What an ONNX file holds, without running it: its nodes, operators and weights, as a picture too; and what is refused.

Needs the package onnx, which is imported when a file is read.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from kit.errors import BundleInvalid
from kit.system import packages

KNOWN_DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
"""Those of ONNX itself and of ONNX Runtime: what stands in others is code that comes with nobody's runtime."""

_MOST_DRAWN = 200
_WEIGHTS_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class Node:
    """One node of a graph.

    Attributes:
        name: Its name, or its operator and place.
        operator: With its domain, where that is not ONNX's own: `com.microsoft.QGemm`.
        inputs: Names of the values it reads, weights left out.
        outputs: Names of the values it writes.
        weights: What of the file it reads, such as `int8 784x512`.
        makes_weights: Whether it reads nothing but weights, as those that give int8 weights their scale back.
    """

    name: str
    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weights: tuple[str, ...]
    makes_weights: bool


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A model as it stands in its file, before a runtime fuses anything."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    opsets: dict[str, int]

    @property
    def operators(self) -> dict[str, int]:
        """How often each operator stands in it, the most frequent first."""
        return dict(Counter(node.operator for node in self.nodes).most_common())

    def dot(self, *, ink: str = "#5b6770", accent: str = "#2a6fdb") -> str:
        """Return the picture in Graphviz's language: data flows downwards, and what only prepares weights is left out."""
        drawn = [node for node in self.nodes if not node.makes_weights]
        lines = [
            "digraph {",
            'bgcolor="transparent"; rankdir=TB; nodesep=0.25; ranksep=0.3; node [fontname="sans-serif"];',
            f'node [shape=box, style="rounded", fontsize=11, margin="0.14,0.06", color="{ink}", fontcolor="{ink}"];',
            f'edge [color="{ink}", arrowsize=0.6];',
        ]
        made: dict[str, str] = {}
        for index, name in enumerate(self.inputs):
            made[name.split(" ")[0]] = f"i{index}"
            lines.append(f'i{index} [label={_quoted(name)}, shape=plaintext, fontcolor="{accent}"];')
        for index, node in enumerate(drawn[:_MOST_DRAWN]):
            label = "\n".join([node.operator, *node.weights[:_WEIGHTS_SHOWN]])
            lines.append(f"n{index} [label={_quoted(label)}, tooltip={_quoted(node.name)}];")
            lines += [f"{made[value]} -> n{index};" for value in node.inputs if value in made]
            made.update(dict.fromkeys(node.outputs, f"n{index}"))
        for index, name in enumerate(self.outputs):
            lines.append(f'o{index} [label={_quoted(name)}, shape=plaintext, fontcolor="{accent}"];')
            if name.split(" ")[0] in made:
                lines.append(f"{made[name.split(' ')[0]]} -> o{index};")
        if len(drawn) > _MOST_DRAWN:
            lines.append(f'more [label="and {len(drawn) - _MOST_DRAWN:,} more", shape=plaintext];')
        return "\n".join([*lines, "}"])


def read(model: bytes) -> Graph:
    """Read an ONNX file.

    Raises:
        BundleInvalid: It is no ONNX file, points at files outside of itself, or needs operators that nobody's runtime has.
        PackageMissing: The package onnx is not installed.
    """
    onnx: Any = packages.needed("onnx", distribution="onnx", purpose="reading a graph", extra="demo")
    from google.protobuf.message import DecodeError  # it comes with onnx

    try:
        loaded = onnx.load_model_from_string(model)
    except DecodeError as error:
        raise BundleInvalid(f"this is no ONNX file: {error}") from error
    if not loaded.graph.node:
        raise BundleInvalid("this is no ONNX file: it has no nodes")
    _refuse(onnx, loaded)
    weights = {one.name: _shape_of(onnx, one) for one in loaded.graph.initializer}
    constants = set(weights)
    nodes = []
    for index, node in enumerate(loaded.graph.node):
        reads = [name for name in node.input if name]
        prepares = all(name in constants for name in reads)
        if prepares:
            constants.update(node.output)
            shown = next((weights[name] for name in reads if "x" in weights.get(name, "")), "")
            weights.update(dict.fromkeys(node.output, shown))
        operator = node.op_type if node.domain in {"", "ai.onnx"} else f"{node.domain}.{node.op_type}"
        nodes.append(
            Node(
                name=node.name or f"{node.op_type} {index}",
                operator=operator,
                inputs=tuple(name for name in reads if name not in constants),
                outputs=tuple(node.output),
                weights=tuple(weights[name] for name in reads if "x" in weights.get(name, "")),
                makes_weights=prepares,
            )
        )
    given = {one.name for one in loaded.graph.initializer}
    return Graph(
        inputs=tuple(_value(onnx, one) for one in loaded.graph.input if one.name not in given),
        outputs=tuple(_value(onnx, one) for one in loaded.graph.output),
        nodes=tuple(nodes),
        opsets={one.domain or "ai.onnx": one.version for one in loaded.opset_import},
    )


def _refuse(onnx: Any, loaded: Any) -> None:
    """Refuse what would make a runtime read other files, or code that it does not have."""
    tensors = [*loaded.graph.initializer]
    graphs = [loaded.graph, *loaded.functions]
    sparse = [*loaded.graph.sparse_initializer]
    domains = {one.domain for one in loaded.opset_import} | {one.domain for one in loaded.functions}
    while graphs:
        for node in graphs.pop().node:
            domains.add(node.domain)
            for attribute in node.attribute:
                tensors += [attribute.t, *attribute.tensors]
                below = [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]
                graphs += below
                tensors += [one for graph in below for one in graph.initializer]
                sparse += [one for graph in below for one in graph.sparse_initializer]
                sparse += [*([attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else [])]
                sparse += attribute.sparse_tensors
    tensors += [part for one in sparse for part in (one.values, one.indices)]
    if any(one.data_location == onnx.TensorProto.EXTERNAL for one in tensors):
        raise BundleInvalid("the model keeps weights in another file, which kit does not follow")
    foreign = sorted(domains - KNOWN_DOMAINS)
    if foreign:
        raise BundleInvalid(f"the model needs operators of {', '.join(foreign)}, which no runtime here knows")


def _shape_of(onnx: Any, tensor: Any) -> str:
    dtype = onnx.TensorProto.DataType.Name(tensor.data_type).lower()
    return f"{dtype} {'x'.join(map(str, tensor.dims))}" if tensor.dims else dtype


def _value(onnx: Any, value: Any) -> str:
    tensor = value.type.tensor_type
    dims = [one.dim_param or str(one.dim_value) for one in tensor.shape.dim]
    return f"{value.name} {onnx.TensorProto.DataType.Name(tensor.elem_type).lower()} [{', '.join(dims)}]"


def _quoted(text: str) -> str:
    """Return a string of Graphviz's language."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
