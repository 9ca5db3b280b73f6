"""What an ONNX file holds, without running it: its nodes, operators and weights, as a picture too; and what is refused.

Needs the package onnx, which is imported when a file is read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit.bundle import graph_file
from kit.errors import BundleInvalid
from kit.system import packages

KNOWN_DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
"""Those of ONNX itself and of ONNX Runtime: what stands in others is code that comes with nobody's runtime."""

MOST_DRAWN = 200
"""Nodes of one picture: the browser takes seconds to lay out more."""

_MOST_EDGES = 600
_MOST_ENDS = 24  # inputs, and outputs
_LONGEST_LABEL = 80
_WEIGHTS_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class Node:
    """One node of a graph.

    Attributes:
        operator: With its domain, where that is not ONNX's own: `com.microsoft.QGemm`.
        inputs: Names of the values it reads, weights left out.
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
class GraphView:
    """A model as it stands in its file, before a runtime fuses anything."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    opsets: dict[str, int]

    @property
    def operators(self) -> dict[str, int]:
        """How often each operator stands in it, the most frequent first."""
        return dict(Counter(node.operator for node in self.nodes).most_common())

    @property
    def drawn(self) -> tuple[Node, ...]:
        """The nodes that a picture may have: all but those that only prepare weights."""
        return tuple(node for node in self.nodes if not node.makes_weights)

    def dot(self, *, ink: str = "#5b6770", accent: str = "#2a6fdb") -> str:
        """Return a picture of its first nodes in Graphviz's language: data flows downwards."""
        drawn = self.drawn
        lines = [
            "digraph {",
            'bgcolor="transparent"; rankdir=TB; nodesep=0.25; ranksep=0.3; node [fontname="sans-serif"];',
            f'node [shape=box, style="rounded", fontsize=11, margin="0.14,0.06", color="{ink}", fontcolor="{ink}"];',
            f'edge [color="{ink}", arrowsize=0.6];',
        ]
        edges: list[str] = []
        made: dict[str, str] = {}
        for index, name in enumerate(self.inputs[:_MOST_ENDS]):
            made[name.split(" ")[0]] = f"i{index}"
            lines.append(f'i{index} [label={_quoted(name)}, shape=plaintext, fontcolor="{accent}"];')
        for index, node in enumerate(drawn[:MOST_DRAWN]):
            label = "\n".join([node.operator, *node.weights[:_WEIGHTS_SHOWN]])
            lines.append(f"n{index} [label={_quoted(label)}, tooltip={_quoted(node.name)}];")
            edges += [f"{made[value]} -> n{index};" for value in node.inputs if value in made]
            made.update(dict.fromkeys(node.outputs, f"n{index}"))
        for index, name in enumerate(self.outputs[:_MOST_ENDS]):
            lines.append(f'o{index} [label={_quoted(name)}, shape=plaintext, fontcolor="{accent}"];')
            if name.split(" ")[0] in made:
                edges.append(f"{made[name.split(' ')[0]]} -> o{index};")
        lines += edges[:_MOST_EDGES]
        if len(drawn) > MOST_DRAWN:
            lines.append(f'more [label="and {len(drawn) - MOST_DRAWN:,} more", shape=plaintext];')
        return "\n".join([*lines, "}"])


def read(model: bytes | Path, *, files: Collection[str] = ()) -> GraphView:
    """Read an ONNX file; weights beside it are not opened.

    Args:
        model: The file, or what is in it.
        files: Names of the files beside it that it may keep weights in.

    Raises:
        BundleInvalid: It is no ONNX file, points at other files than those, or needs operators that nobody's runtime has.
        PackageMissing: The package onnx is not installed.
    """
    onnx: Any = packages.needed("onnx", distribution="onnx", purpose="reading a graph", extra="demo")
    from google.protobuf.message import DecodeError  # it comes with onnx

    try:
        data = model.read_bytes() if isinstance(model, Path) else model
        seen = graph_file.look_inside(data)
        loaded = onnx.load_model_from_string(data)
    except OSError as error:
        raise BundleInvalid(f"{model!s} cannot be read: {error.strerror or error}") from error
    except DecodeError as error:
        raise BundleInvalid(f"this is no ONNX file: {error}") from error
    del data
    if not loaded.graph.node:
        raise BundleInvalid("this is no ONNX file: it has no nodes")
    _refuse_operators(
        {*seen.domains, *(one.domain for one in loaded.opset_import), *(one.domain for one in loaded.functions)}
    )
    _refuse_files(seen.external, frozenset(files))
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
    return GraphView(
        inputs=tuple(_value(onnx, one) for one in loaded.graph.input if one.name not in given),
        outputs=tuple(_value(onnx, one) for one in loaded.graph.output),
        nodes=tuple(nodes),
        opsets={one.domain or "ai.onnx": one.version for one in loaded.opset_import},
    )


def _refuse_operators(domains: Iterable[str]) -> None:
    if foreign := sorted(set(domains) - KNOWN_DOMAINS):
        raise BundleInvalid(f"the model needs operators of {', '.join(foreign)}, which no runtime here knows"[:300])


def _refuse_files(named: Iterable[str], files: frozenset[str]) -> None:
    for name in named:
        if name not in files:
            raise BundleInvalid(
                f"the model keeps weights in another file: {name!r}, which its manifest does not name"[:300]
            )


def _shape_of(onnx: Any, tensor: Any) -> str:
    dtype = _dtype(onnx, tensor.data_type)
    return f"{dtype} {'x'.join(map(str, tensor.dims))}" if tensor.dims else dtype


def _dtype(onnx: Any, number: int) -> str:
    try:
        return str(onnx.TensorProto.DataType.Name(number)).lower()
    except ValueError:  # a number that ONNX does not have yet
        return f"type {number}"


def _value(onnx: Any, value: Any) -> str:
    tensor = value.type.tensor_type
    dims = [one.dim_param or str(one.dim_value) for one in tensor.shape.dim]
    return f"{value.name} {_dtype(onnx, tensor.elem_type)} [{', '.join(dims)}]"


def _quoted(text: str) -> str:
    text = "\n".join(line if len(line) <= _LONGEST_LABEL else f"{line[:_LONGEST_LABEL]}…" for line in text.split("\n"))
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
