"""Whatever opens a graph walks it first: nothing outside is read, and nothing unsound reaches a runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from kit.bundle import graph_file
from kit.errors import BundleInvalid
from kit.runtime.base import RunnerOptions
from kit.runtime.onnxruntime import OnnxRuntimeRunner
from kit.runtime.openvino import OpenVinoRunner
from kit.runtime.reference import ReferenceRunner
from tests import graphs

Change = Callable[[onnx.ModelProto], None]


def outside(name: str = "w") -> TensorProto:
    """A tensor whose values lie in a file of the machine."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../secret.bin")
    return tensor


def sparse(values: TensorProto, indices: TensorProto) -> onnx.SparseTensorProto:
    return onnx.SparseTensorProto(values=values, indices=indices, dims=[8])


INDICES = numpy_helper.from_array(np.arange(4), "i")
VALUES = numpy_helper.from_array(np.ones(4, np.float32), "v")


def function(**parts: object) -> onnx.FunctionProto:
    made = onnx.FunctionProto(name="f", domain="own")
    for name, value in parts.items():
        getattr(made, name).append(value)
    return made


def inside(graph: onnx.GraphProto) -> onnx.NodeProto:
    return helper.make_node("If", ["c"], ["z"], then_branch=graph, else_branch=graph)


def graph_of(nodes: list[onnx.NodeProto], weights: list[TensorProto]) -> onnx.GraphProto:
    return helper.make_graph(nodes, "inner", [], [], weights)


PLACES: dict[str, Change] = {
    "weights": lambda m: m.graph.initializer.append(outside()),
    "an attribute": lambda m: m.graph.node.append(helper.make_node("Constant", [], ["z"], value=outside())),
    "tensors of an attribute": lambda m: m.graph.node.append(helper.make_node("F", [], ["z"], parts=[outside()])),
    "a graph in a node": lambda m: m.graph.node.append(inside(graph_of([], [outside()]))),
    "sparse values": lambda m: m.graph.sparse_initializer.append(sparse(outside(), INDICES)),
    "sparse indices": lambda m: m.graph.sparse_initializer.append(sparse(VALUES, outside())),
    "a sparse attribute": lambda m: m.graph.node.append(
        helper.make_node("Constant", [], ["z"], sparse_value=sparse(outside(), INDICES))
    ),
    "a node of a function": lambda m: m.functions.append(
        function(node=helper.make_node("Constant", [], ["z"], value=outside()))
    ),
    "a default of a function": lambda m: m.functions.append(
        function(attribute_proto=helper.make_attribute("a", outside()))
    ),
    "training": lambda m: m.training_info.add().algorithm.initializer.append(outside()),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_file_that_a_graph_names_is_seen_wherever_it_is_named(tmp_path: Path, place: str) -> None:
    model = graphs.pixels()
    PLACES[place](model)
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    assert graph_file.look(path).external == ("../secret.bin",)
    assert graph_file.external_of(path.read_bytes()) == ("../secret.bin",)
    with pytest.raises(BundleInvalid, match="secret"):
        graph_file.refuse_unsound(path)


def cycle(model: onnx.ModelProto) -> None:
    model.graph.node.extend([graphs.node("Add", "logits b", "a"), graphs.node("Relu", "a", "b")])


def cycle_through_a_branch(model: onnx.ModelProto) -> None:
    branch = helper.make_graph([graphs.node("Identity", "late", "out")], "branch", [], [])
    model.graph.node.extend([inside(branch), graphs.node("Relu", "z", "late")])


def deep(model: onnx.ModelProto) -> None:
    flat = graph = graph_of([graphs.node("Identity", "logits", "z")], [])
    for _ in range(20):
        graph = graph_of([helper.make_node("If", ["c"], ["z"], then_branch=graph, else_branch=flat)], [])
    model.graph.node.append(inside(graph))


def calling_each_other(model: onnx.ModelProto) -> None:
    for name, other in (("f", "g"), ("g", "f")):
        made = onnx.FunctionProto(name=name, domain="own")
        made.node.append(helper.make_node(other, [], ["z"], domain="own"))
        model.functions.append(made)


def large(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(TensorProto(name="w", data_type=1, dims=[2**20, 2**20]))


def nowhere(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(TensorProto(name="w", data_type=1, dims=[4], data_location=TensorProto.EXTERNAL))


def twice(model: onnx.ModelProto) -> None:
    tensor = outside()
    tensor.external_data.add(key="location", value="w.data")
    model.graph.initializer.append(tensor)


UNSOUND: dict[str, tuple[Change, str]] = {
    "nodes that wait for each other": (cycle, "wait for each other"),
    "nodes that wait through a branch": (cycle_through_a_branch, "wait for each other"),
    "graphs in graphs": (deep, "deep"),
    "functions that call each other": (calling_each_other, "call each other"),
    "values in a file without a name": (nowhere, "another file, and names none"),
    "values in two files": (twice, "another file, and names 2"),
    "a size that is not there": (large, "says to hold"),
    "a size below nothing": (
        lambda m: m.graph.initializer.append(TensorProto(name="w", data_type=1, dims=[-4])),
        "says to hold",
    ),
    "no kind of number": (
        lambda m: m.graph.initializer.append(TensorProto(name="w", data_type=99, dims=[0])),
        "no kind",
    ),
    "axes without end": (
        lambda m: m.graph.initializer.append(TensorProto(name="w", data_type=1, dims=[1] * 1000)),
        "axes",
    ),
}


@pytest.mark.parametrize("what", UNSOUND)
def test_an_unsound_graph_reaches_no_runtime(tmp_path: Path, what: str) -> None:
    change, said = UNSOUND[what]
    model = graphs.pixels()
    change(model)
    signature = graphs.bundle(graphs.pixels(), tmp_path / "bundle").signature
    for kind in (OnnxRuntimeRunner, OpenVinoRunner, ReferenceRunner):
        with pytest.raises(BundleInvalid, match=said):
            kind(model.SerializeToString(), RunnerOptions(), signature=signature)


def test_names_that_are_no_text_are_refused() -> None:
    model = graphs.pixels().SerializeToString().replace(b"real", b"re\xffl")
    with pytest.raises(BundleInvalid, match="no ONNX file"):
        graph_file.refuse_unsound(model)


def test_a_function_that_calls_an_operator_of_its_own_name_is_sound() -> None:
    model = graphs.pixels()
    model.functions.append(function(node=helper.make_node("f", [], ["z"])))
    graph_file.refuse_unsound(model.SerializeToString())


def test_nodes_out_of_order_are_no_cycle() -> None:
    model = graphs.pixels()
    nodes = list(reversed(model.graph.node))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    graph_file.refuse_unsound(model.SerializeToString())
