"""Rules that rewrite graphs: exact, or exact to rounding, and of no effect on what they do not understand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper, parser

from exporters.graph import files, names
from exporters.graph.absorb import absorb, drop_copies
from exporters.graph.files import Graph
from exporters.graph.prologue import put_on
from exporters.graph.rewrite import flatten, flush, fold, gates, move_in, simplify, unscale, untranspose
from exporters.graph.rules import follow, least_onnxruntime, opset_of, sort, strip
from kit.errors import UsageError
from kit.runtime.onnxruntime import OnnxRuntimeRunner
from kit.tasks.base import Prologue

RNG = np.random.default_rng(0)


def graph_of(text: str, **constants: NDArray[np.generic]) -> Graph:
    """A graph written as text, with constants by name."""
    opsets = '<ir_version: 10, opset_import: ["" : 20]>\n'
    model = parser.parse_model(opsets + text)
    for name, values in constants.items():
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    onnx.checker.check_model(model, full_check=True)
    return Graph(model)


def run(graph: Graph, **inputs: NDArray[np.generic]) -> NDArray[np.generic]:
    """Its only output."""
    with OnnxRuntimeRunner(graph.model.SerializeToString()) as runner:
        (output,) = runner.run(inputs).values()
    return output


def kinds(graph: Graph) -> list[str]:
    return [node.op_type for node in graph.model.graph.node]


def floats(*shape: int) -> NDArray[np.float32]:
    return RNG.standard_normal(shape).astype(np.float32)


def test_transposed_weights_are_stored_as_they_are_multiplied() -> None:
    graph = graph_of(
        "g (float[n, 3] x) => (float[n, 5] y) { y = Gemm<transB = 1>(x, w, b) }", w=floats(5, 3), b=floats(5)
    )
    x = floats(4, 3)
    before = run(graph, x=x)
    untranspose(graph)
    assert list(graph.constants["w"].dims) == [3, 5]
    assert np.array_equal(run(graph, x=x), before)


def test_a_weight_that_is_also_read_otherwise_stays_transposed() -> None:
    graph = graph_of(
        "g (float[n, 3] x) => (float[n, 3] y) { z = Gemm<transB = 1>(x, w, b)  y = MatMul(z, w) }",
        w=floats(5, 3),
        b=floats(5),
    )
    untranspose(graph)
    assert list(graph.constants["w"].dims) == [5, 3]


def test_gates_that_are_put_together_in_each_call_are_put_together_once() -> None:
    graph = graph_of(
        """g (float[4, n, 3] x) => (float[4, 1, n, 5] y) {
            first = Slice(w, zero, ten, zero)  last = Slice(w, ten, twenty, zero)
            turned = Concat<axis = 0>(last, first)  whole = Unsqueeze(turned, zero)
            y = LSTM<hidden_size = 5>(x, whole, r) }""",
        w=floats(20, 3),
        r=floats(1, 20, 5),
        zero=np.array([0]),
        ten=np.array([10]),
        twenty=np.array([20]),
    )
    x = floats(4, 2, 3)
    before = run(graph, x=x)
    gates(graph)
    assert kinds(graph) == ["LSTM"]
    assert sorted(graph.constants) == ["r", "whole.constant"]
    assert np.array_equal(run(graph, x=x), before)


def test_a_constant_of_the_users_own_is_not_taken_for_a_computed_one() -> None:
    graph = graph_of(
        """g (float[4, n, 3] x) => (float[4, 1, n, 5] y) {
            whole = Unsqueeze(w, zero)  seen = LSTM<hidden_size = 5>(x, whole, r)  y = Mul(seen, own) }""",
        w=floats(20, 3),
        r=floats(1, 20, 5),
        zero=np.array([0]),
        own=np.array([2], np.float32),
    )
    names.renamed(graph.model, {"own": "whole.constant"})
    x = floats(4, 2, 3)
    before = run(graph, x=x)
    gates(graph)
    assert sorted(graph.constants) == ["r", "whole.constant", "whole.constant_"]
    assert np.array_equal(run(graph, x=x), before)


def test_gates_that_are_made_of_themselves_stay_and_end_the_walk() -> None:
    loop = [helper.make_node("Identity", ["a"], ["b"]), helper.make_node("Identity", ["b"], ["a"])]
    layer = helper.make_node("LSTM", ["x", "a", "r"], ["y"], hidden_size=5)
    graph = Graph(helper.make_model(helper.make_graph([*loop, layer], "g", [], [])))
    gates(graph)
    assert kinds(graph) == ["Identity", "Identity", "LSTM"]


@pytest.mark.slow
def test_a_long_chain_of_moves_is_walked_to_its_end() -> None:
    steps = [helper.make_node("Identity", [f"w{place}"], [f"w{place + 1}"]) for place in range(2000)]
    layer = helper.make_node("LSTM", ["x", "w2000", "r"], ["y"], hidden_size=5)
    weight = numpy_helper.from_array(floats(1, 20, 3), "w0")
    inside = helper.make_graph([*steps, layer], "g", [], [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
    inside.initializer.append(weight)
    graph = Graph(helper.make_model(inside, opset_imports=[helper.make_opsetid("", 20)]))
    gates(graph)
    assert kinds(graph) == ["LSTM"]


def test_gates_that_are_computed_of_an_input_stay() -> None:
    graph = graph_of(
        """g (float[4, n, 3] x, float[20, 3] w) => (float[4, 1, n, 5] y) {
            whole = Unsqueeze(w, zero)  y = LSTM<hidden_size = 5>(x, whole, r) }""",
        r=floats(1, 20, 5),
        zero=np.array([0]),
    )
    gates(graph)
    assert kinds(graph) == ["Unsqueeze", "LSTM"]


def test_nodes_are_put_in_an_order_that_branches_can_read_in() -> None:
    text = """g (float[n] x, bool c) => (float[n] y) {
        a = Neg(x)
        y = If(c) <then_branch = then () => (float[n] t) { t = Abs(a) }, else_branch = otherwise () => (float[n] e)
            { e = Identity(x) }>
    }"""
    model = graph_of(text).model
    sort(model)
    assert [node.op_type for node in model.graph.node] == ["Neg", "If"]
    model.graph.node.insert(0, model.graph.node.pop())
    sort(model)
    assert [node.op_type for node in model.graph.node] == ["Neg", "If"]
    onnx.checker.check_model(model)


def test_a_scaled_layer_takes_its_factors_into_its_weights() -> None:
    graph = graph_of(
        "g (float[n, 3] x) => (float[n, 5] y) { y = Gemm<alpha = 2.0, beta = 0.5>(x, w, b) }",
        w=floats(3, 5),
        b=floats(5),
    )
    x = floats(4, 3)
    before = run(graph, x=x)
    unscale(graph)
    assert {one.f for one in graph.model.graph.node[0].attribute} == {1.0}
    assert np.allclose(run(graph, x=x), before, atol=1e-6)


# As Paddle's exporter writes a convolution: an Identity behind each node, the bias in a node of its own.
PADDLE = """g (float[n, 3, 6, 6] x) => (float[n, 4, 6, 6] y) {
    a = Conv<pads = [1, 1, 1, 1]>(x, w)  b = Identity(a)  c = Add(b, shift)  d = Identity(c)
    e = BatchNormalization(d, scale, bias, mean, variance)  f = Mul(e, half)  g = Sub(f, shift)  y = Relu(g) }"""


def paddle(**others: NDArray[np.generic]) -> Graph:
    given = {
        "w": floats(4, 3, 3, 3),
        "shift": floats(4, 1, 1),
        **{name: floats(4) for name in ("scale", "bias", "mean")},
        "variance": np.abs(floats(4)) + 0.5,
        "half": np.float32(0.5),
    }
    return graph_of(PADDLE, **{**given, **others})


def test_what_stands_behind_a_convolution_goes_into_it() -> None:
    graph = paddle()
    x = floats(2, 3, 6, 6)
    before = run(graph, x=x)
    simplify(graph, batch="n")
    assert kinds(graph) == ["Conv", "Relu"]
    assert sorted(graph.constants) == ["w", "w.bias"]
    onnx.checker.check_model(graph.model, full_check=True)
    assert np.allclose(run(graph, x=x), before, atol=1e-5)


def test_what_stands_behind_a_gemm_goes_into_it() -> None:
    text = """g (float[n, 3] x) => (float[n, 5] y) {
        a = Gemm(x, w, b)  c = BatchNormalization(a, scale, bias, mean, variance)  d = Div(c, two)  y = Add(d, row) }"""
    named = {name: floats(5) for name in ("b", "scale", "bias", "mean")}
    graph = graph_of(
        text, w=floats(3, 5), **named, variance=np.abs(floats(5)) + 0.5, two=np.float32(2), row=floats(1, 5)
    )
    x = floats(4, 3)
    before = run(graph, x=x)
    simplify(graph, batch="n")
    assert kinds(graph) == ["Gemm"]
    assert np.allclose(run(graph, x=x), before, atol=1e-5)


@pytest.mark.parametrize(("shape", "expected"), [((1, 5), 1), ((1,), 1), ((), 1), ((5, 1), 2), ((5, 5), 2)])
def test_a_gemm_takes_in_what_is_added_to_a_row(shape: tuple[int, ...], expected: int) -> None:
    """Five samples, and five outputs."""
    text = "g (float[5, 3] x) => (float[5, 5] y) { a = Gemm(x, w, b)  y = Add(a, row) }"
    graph = graph_of(text, w=floats(3, 5), b=floats(*shape), row=floats(5))
    x = floats(5, 3)
    before = run(graph, x=x)
    absorb(graph)
    assert len(kinds(graph)) == expected
    assert np.allclose(run(graph, x=x), before, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "constants"),
    [
        ("a = Conv(x, w)  b = Conv(x, w)  c = Add(a, s)  y = Add(c, b)", {"s": (4, 1, 1)}),  # weights of two layers
        ("a = Conv(x, w)  c = Add(a, s)  y = Mul(c, a)", {"s": (4, 1, 1)}),  # read elsewhere as well
        ("a = Conv(x, w)  y = Add(a, s)", {"s": (1, 4, 4)}),  # differs from place to place
        ("a = Conv(x, w)  y = Add(a, s)", {"s": (1, 1, 4)}),  # along the last axis, which is as long
        ("a = Conv(x, w)  y = Sub(s, a)", {"s": (4, 1, 1)}),  # the other way round
        ("a = Conv(x, w)  y = Mul(a, a)", {}),
    ],
)
def test_what_does_not_treat_outputs_one_by_one_stays(text: str, constants: dict[str, tuple[int, ...]]) -> None:
    graph = graph_of(
        f"g (float[n, 3, 4, 4] x) => (float[n, 4, 4, 4] y) {{ {text} }}",
        w=floats(4, 3, 1, 1),
        **{name: floats(*shape) for name, shape in constants.items()},
    )
    before = kinds(graph)
    absorb(graph)
    assert kinds(graph) == before


def test_a_convolution_whose_output_is_given_away_keeps_it() -> None:
    graph = graph_of(
        "g (float[n, 3, 4, 4] x) => (float[n, 4, 4, 4] a, float[n, 4, 4, 4] y) { a = Conv(x, w)  y = Add(a, s) }",
        w=floats(4, 3, 1, 1),
        s=floats(4, 1, 1),
    )
    absorb(graph)
    assert kinds(graph) == ["Conv", "Add"]


def test_copies_go_but_for_outputs_and_what_a_branch_reads() -> None:
    graph = graph_of(
        """g (float[n, 3] x, bool c) => (float[n, 3] y, float[n, 3] z) {
        a = Identity(x)  b = Identity(a)  y = Identity(b)  d = Identity(x)
        z = If(c) <then_branch = t () => (float[n, 3] p) { p = Neg(d) },
            else_branch = e () => (float[n, 3] q) { q = Abs(b) }> }"""
    )
    drop_copies(graph)
    assert kinds(graph) == ["Identity", "Identity", "Identity", "If"]  # b and d are read in branches, y is an output
    assert graph.model.graph.node[0].input[0] == "x"
    x = floats(2, 3)
    with OnnxRuntimeRunner(graph.model.SerializeToString()) as runner:
        found = runner.run({"x": x, "c": np.array(True)})
    assert np.array_equal(found["y"], x)
    assert np.array_equal(found["z"], -x)


def test_numbers_too_small_to_be_normal_become_nothing() -> None:
    weights = floats(3, 5)
    weights[0, :2] = 1e-40, -1e-42
    halves = np.array([6e-8, 1], np.float16)
    graph = graph_of(
        "g (float[n, 3] x, float16[n, 2] h) => (float[n, 5] y, float16[n, 2] z) { y = MatMul(x, w)  z = Mul(h, v) }",
        w=weights,
        v=halves,
    )
    flush(graph)
    assert not graph.values("w")[0, :2].any()
    assert np.array_equal(graph.values("w")[1:], weights[1:])
    assert np.array_equal(graph.values("v"), halves)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_weights_keep_their_dtype(dtype: type[np.floating]) -> None:
    word = "float16" if dtype is np.float16 else "double"
    graph = graph_of(
        f"g ({word}[n, 3] x) => ({word}[n, 5] y) {{ y = Gemm<alpha = 2.0, transB = 1>(x, w, b) }}",
        w=floats(5, 3).astype(dtype),
        b=floats(5).astype(dtype),
    )
    simplify(graph, batch="n")
    assert graph.values("w").dtype == dtype
    assert list(graph.constants["w"].dims) == [3, 5]


RAW = """g (uint8[batch, 4, 4] pixels) => (float[batch, m] y) {
    a = Cast<to = 1>(pixels)  b = Mul(a, scale)  c = Add(b, shift)  d = Reshape(c, shape)  y = Gemm(d, w, bias) }"""
SCALE, SHIFT = np.float32(0.02), np.float32(-1.5)


def raw_graph() -> Graph:
    return graph_of(RAW, scale=SCALE, shift=SHIFT, shape=np.array([-1, 16]), w=floats(16, 3), bias=floats(3))


def test_arithmetic_on_raw_values_is_folded_into_a_dense_layer() -> None:
    graph = raw_graph()
    pixels = RNG.integers(0, 256, (5, 4, 4), dtype=np.uint8)
    before = run(graph, pixels=pixels)
    fold(graph)
    flatten(graph, batch="batch")
    assert kinds(graph) == ["Cast", "Flatten", "Gemm"]
    assert np.allclose(run(graph, pixels=pixels), before, atol=1e-5)


def test_arithmetic_that_another_node_reads_stays() -> None:
    text = RAW.replace("(float[batch, m] y)", "(float[batch, m] y, float[batch, 4, 4] c)")
    graph = graph_of(text, scale=SCALE, shift=SHIFT, shape=np.array([-1, 16]), w=floats(16, 3), bias=floats(3))
    fold(graph)
    assert kinds(graph) == ["Cast", "Mul", "Add", "Reshape", "Gemm"]


def test_what_is_cut_away_is_not_computed() -> None:
    text = """g (uint8[batch, 6, 6] pixels) => (float[batch, m] y) {
        a = Cast<to = 1>(pixels)  b = Mul(a, scale)  c = Add(b, shift)
        d = Slice(c, one, five, first)  e = Slice(d, one, five, second)  f = Reshape(e, shape)  y = Gemm(f, w, bias) }"""
    integers = {"one": [1], "five": [5], "first": [1], "second": [2], "shape": [-1, 16]}
    graph = graph_of(
        text, scale=SCALE, shift=SHIFT, w=floats(16, 3), bias=floats(3), **{k: np.array(v) for k, v in integers.items()}
    )
    pixels = RNG.integers(0, 256, (5, 6, 6), dtype=np.uint8)
    before = run(graph, pixels=pixels)
    move_in(graph, batch="batch")
    assert kinds(graph) == ["Slice", "Cast", "Flatten", "Gemm"]
    assert np.allclose(run(graph, pixels=pixels), before, atol=1e-5)


def test_names_that_a_rule_gives_make_way_for_the_models_own() -> None:
    text = """g (uint8[batch, 6, 6] x) => (float[batch, m] y) {
        a = Cast<to = 1>(x)  b = Mul(a, scale)  c = Slice(b, one, five, first)  f = Reshape(c, shape)
        d = Gemm(f, w, bias)  e = Relu(d)  y = Mul(e, own) }"""
    integers = {"one": [1], "five": [5], "first": [1], "shape": [-1, 24]}
    given = {name: np.array(values) for name, values in integers.items()}
    own = np.array([3], np.float32)
    graph = graph_of(text, scale=SCALE, w=floats(24, 3), bias=floats(3), **given, own=own)
    names.renamed(graph.model, {"own": "x.starts", "e": "x.cropped"})
    x = RNG.integers(0, 256, (5, 6, 6), dtype=np.uint8)
    before = run(graph, x=x)
    move_in(graph, batch="batch")
    onnx.checker.check_model(graph.model, full_check=True)
    assert kinds(graph)[0] == "Slice"
    assert np.allclose(run(graph, x=x), before, atol=1e-4)


def convolution(channels: int = 3, *, attributes: str = "", groups: int = 1, bias: bool = True) -> Graph:
    text = f"""g (float[batch, {channels}, 8, 8] x) => (float[batch, 6, h, w] y) {{
        y = Conv<group = {groups}{attributes}>(x, k{", b" if bias else ""}) }}"""
    weights = {"k": floats(6, channels // groups, 3, 3)} | ({"b": floats(6)} if bias else {})
    return graph_of(text, **weights)


PER_CHANNEL = Prologue(input="pixels", scale=(0.01, 0.02, 0.03), shift=(-1.0, 0.5, 2.0))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("groups", [1, 3])
def test_channels_are_normalised_in_the_weights_of_a_convolution(groups: int, bias: bool) -> None:
    graph = convolution(groups=groups, bias=bias)
    pixels = RNG.integers(0, 256, (2, 3, 8, 8), dtype=np.uint8)
    scale, shift = (np.array(one, np.float32).reshape(3, 1, 1) for one in (PER_CHANNEL.scale, PER_CHANNEL.shift))
    before = run(graph, x=pixels * scale + shift)
    put_on(graph, PER_CHANNEL, "x")
    assert kinds(graph) == ["Cast", "Mul", "Add", "Conv"]
    fold(graph)
    assert kinds(graph) == ["Cast", "Conv"]
    assert np.allclose(run(graph, pixels=pixels), before, atol=1e-4)


def test_a_padded_convolution_keeps_a_shift_before_it_but_takes_a_scale() -> None:
    graph = convolution(attributes=", pads = [1, 1, 1, 1]")
    pixels = RNG.integers(0, 256, (2, 3, 8, 8), dtype=np.uint8)
    scaled = Prologue(input="pixels", scale=(0.01, 0.02, 0.03), shift=(0.0, 0.0, 0.0))
    before = run(graph, x=(pixels * np.array(scaled.scale, np.float32).reshape(3, 1, 1)))
    put_on(graph, scaled, "x")
    fold(graph)
    assert kinds(graph) == ["Cast", "Conv"]
    assert np.allclose(run(graph, pixels=pixels), before, atol=1e-4)
    other = convolution(attributes=', auto_pad = "SAME_UPPER"')
    put_on(other, PER_CHANNEL, "x")
    fold(other)
    assert kinds(other) == ["Cast", "Mul", "Add", "Conv"]


def test_channels_may_come_last() -> None:
    graph = convolution()
    pixels = RNG.integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    last = Prologue(input="pixels", scale=PER_CHANNEL.scale, shift=PER_CHANNEL.shift, channels_last=True)
    scale, shift = (np.array(one, np.float32) for one in (last.scale, last.shift))
    before = run(graph, x=np.ascontiguousarray((pixels * scale + shift).transpose(0, 3, 1, 2)))
    put_on(graph, last, "x")
    fold(graph)
    assert kinds(graph) == ["Cast", "Transpose", "Conv"]
    assert np.allclose(run(graph, pixels=pixels), before, atol=1e-4)


def test_channels_are_normalised_in_the_weights_of_a_dense_layer() -> None:
    text = "g (float[batch, 3, 2, 2] x) => (float[batch, m] y) { a = Reshape(x, shape)  y = Gemm(a, w, b) }"
    graph = graph_of(text, shape=np.array([-1, 12]), w=floats(12, 5), b=floats(5))
    pixels = RNG.integers(0, 256, (4, 3, 2, 2), dtype=np.uint8)
    scale, shift = (np.array(one, np.float32).reshape(3, 1, 1) for one in (PER_CHANNEL.scale, PER_CHANNEL.shift))
    before = run(graph, x=pixels * scale + shift)
    put_on(graph, PER_CHANNEL, "x")
    move_in(graph, batch="batch")
    assert kinds(graph) == ["Cast", "Flatten", "Gemm"]
    assert np.allclose(run(graph, pixels=pixels), before, atol=1e-4)


def test_a_row_for_each_channel_is_no_sample() -> None:
    text = "g (float[batch, 3, 3, 2] x) => (float[rows, 5] y) { a = Flatten<axis = 2>(x)  y = Gemm(a, w, b) }"
    graph = graph_of(text, w=floats(6, 5), b=floats(5))
    pixels = RNG.integers(0, 256, (4, 3, 3, 2), dtype=np.uint8)
    scale, shift = (np.array(one, np.float32).reshape(3, 1, 1) for one in (PER_CHANNEL.scale, PER_CHANNEL.shift))
    before = run(graph, x=pixels * scale + shift)
    put_on(graph, PER_CHANNEL, "x")
    move_in(graph, batch="batch")
    assert np.allclose(run(graph, pixels=pixels), before, atol=1e-4)


def test_who_only_asks_for_a_shape_does_not_keep_the_arithmetic() -> None:
    text = """g (float[batch, 3, 8, 8] x) => (float[batch, 6, 6, 6] y) {
        s = Shape(x)  f = Cast<to = 1>(s)  m = ReduceMax<keepdims = 0>(f)  c = Conv(x, k)  y = Mul(c, m) }"""
    graph = graph_of(text, k=floats(6, 3, 3, 3))
    put_on(graph, PER_CHANNEL, "x")
    pixels = RNG.integers(0, 256, (2, 3, 8, 8), dtype=np.uint8)
    before = run(graph, pixels=pixels)
    fold(graph)
    assert "Add" not in kinds(graph)
    assert np.allclose(run(graph, pixels=pixels), before, rtol=1e-4, atol=1e-3)


def test_arithmetic_before_an_input_of_whole_numbers_is_refused() -> None:
    graph = graph_of("g (int64[n] x) => (int64[n] y) { y = Identity(x) }")
    with pytest.raises(UsageError, match="takes no floats"):
        put_on(graph, Prologue(input="pixels", scale=(1.0,), shift=(0.0,)), "x")


def test_a_graph_that_bites_its_tail_ends_the_walk() -> None:
    loop = [helper.make_node("Relu", ["a"], ["b"]), helper.make_node("Relu", ["b"], ["a"])]
    given = helper.make_tensor_value_info("a", TensorProto.FLOAT, [1])
    model = helper.make_model(helper.make_graph(loop, "g", [given], []))
    assert len(follow(model, "a")) < 3


def test_a_name_that_is_taken_inside_makes_way() -> None:
    graph = graph_of("g (float[n, 3] x) => (float[n, 3] y) { w2 = Relu(x)  y = Mul(w2, w) }", w=floats(3))
    x = floats(2, 3)
    before = run(graph, x=x)
    names.call(graph, {"x": "w", "y": "w2"})
    onnx.checker.check_model(graph.model)
    assert np.array_equal(run(graph, w=x), before)


def test_local_paths_and_descriptions_go_out_of_inner_graphs_too() -> None:
    text = """g (bool c, float[2] x) => (float[2] y) {
        y = If(c)<then_branch = a () => (float[2] t) { t = Relu(x) }, else_branch = b () => (float[2] e) { e = Neg(x) }> }"""
    graph = graph_of(text)
    inner = graph.model.graph.node[0].attribute[0].g.node[0]
    inner.metadata_props.add(key="trace", value="/home/somebody/model.py")
    graph.model.metadata_props.add(key="trace", value="/home/somebody/model.py")
    strip(graph.model)
    assert b"somebody" not in graph.model.SerializeToString()


def large(tmp_path: Path, rows: int = 9000) -> Path:
    """A file of 72 MB, its weights inside."""
    graph = graph_of(
        f"g (float[n, 2000] x) => (float[n, {rows}] y) {{ y = Gemm<transB = 1>(x, w, b) }}",
        w=floats(rows, 2000),
        b=floats(rows),
    )
    path = tmp_path / "large.onnx"
    path.write_bytes(graph.model.SerializeToString())
    return path


def test_large_weights_are_written_beside_the_graph_and_read_where_they_lie(tmp_path: Path) -> None:
    path = large(tmp_path)
    assert files.weights_bytes(path) == 9000 * 2001 * 4
    graph = files.read(path)
    assert len(graph.model.SerializeToString()) < 1000
    untranspose(graph)
    written = graph.save(tmp_path, "model.onnx")
    assert written.stat().st_size < 10_000
    assert (tmp_path / "model.data").stat().st_size >= 9000 * 2001 * 4
    x = floats(2, 2000)
    with OnnxRuntimeRunner(path) as old, OnnxRuntimeRunner(written) as new:
        assert np.allclose(old.run({"x": x})["y"], new.run({"x": x})["y"], rtol=1e-4, atol=1e-3)
    again = files.read(written)
    assert np.array_equal(again.values("w"), graph.values("w"))


def test_a_graph_and_its_weights_take_names_that_carry_their_hashes(tmp_path: Path) -> None:
    written = files.read(large(tmp_path)).save(tmp_path, "model.onnx")
    place = tmp_path / "staged"
    place.mkdir()
    graph, (data,) = files.place(written, "fp32", place)
    assert graph.file == f"fp32-{graph.sha256[:8]}.onnx"
    assert data.file == f"fp32-{data.sha256[:8]}.data"
    assert {one.name for one in place.iterdir()} == {graph.file, data.file}
    assert not written.exists()
    with OnnxRuntimeRunner(place / graph.file) as runner:
        assert runner.run({"x": floats(1, 2000)})["y"].shape == (1, 9000)


def test_a_small_graph_keeps_its_bytes_when_it_is_placed(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    content = raw_graph().model.SerializeToString()
    path.write_bytes(content)
    graph, data = files.place(path, "fp32", tmp_path)
    assert data == ()
    assert (tmp_path / graph.file).read_bytes() == content


def test_an_older_graph_needs_no_newer_runtime() -> None:
    model = raw_graph().model
    model.ir_version, model.opset_import[0].version = 4, 11
    assert (opset_of(model), least_onnxruntime(model)) == (11, "1.14")
    model.ir_version, model.opset_import[0].version = 10, 21
    assert least_onnxruntime(model) == "1.18"
    del model.opset_import[:]
    assert opset_of(model) == 1
