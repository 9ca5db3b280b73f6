"""Recurrent layers: LSTM becomes integers in dynamic int8, and what stays in float is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from exporters import workbench
from exporters.formats import int8, recurrent
from exporters.formats.counting import count_weights, remark
from exporters.gate import Passed
from exporters.options import ExportOptions
from exporters.pipeline import make
from kit.runtime.onnxruntime import OnnxRuntimeRunner
from kit.tensors import Signature, TensorSpec
from tests.helpers.originals import OnnxOriginal, graph, noise, rms

DYNAMIC = ExportOptions(precisions=("int8",), quantization="dynamic")
STEPS, WIDTH = 6, 16
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def recurrent_model(kind: str = "LSTM") -> tuple[onnx.ModelProto, Signature]:
    """A recurrent layer that goes on from a state, and a dense one behind it."""
    kept = ("hidden", "cell") if kind == "LSTM" else ("hidden",)
    signature = Signature(
        inputs=(
            TensorSpec(name="x", dtype="float32", shape=("batch", STEPS, 8)),
            *(TensorSpec(name=one, dtype="float32", shape=("batch", 1, WIDTH)) for one in kept),
        ),
        outputs=(TensorSpec(name="y", dtype="float32", shape=("batch", STEPS, 3)),),
    )
    rng = np.random.default_rng(0)
    rows = GATES[kind] * WIDTH
    shapes = {"w": (1, rows, 8), "r": (1, rows, WIDTH), "last": (WIDTH, 3)}
    weights = {name: (rng.standard_normal(shape) / 4).astype(np.float32) for name, shape in shapes.items()}
    weights["flat"] = np.array([0, STEPS, WIDTH])
    turned = [f"{one}.turned" for one in ("x", *kept)]
    nodes = [
        *(helper.make_node("Transpose", [one.removesuffix(".turned")], [one], perm=[1, 0, 2]) for one in turned),
        helper.make_node(kind, [turned[0], "w", "r", "", "", *turned[1:]], ["found"], hidden_size=WIDTH, name="first"),
        helper.make_node("Transpose", ["found"], ["steps"], perm=[2, 0, 1, 3]),
        helper.make_node("Reshape", ["steps", "flat"], ["rows"]),
        helper.make_node("MatMul", ["rows", "last"], ["y"], name="last.layer"),
    ]
    return graph(nodes, weights, signature), signature


def export(model: onnx.ModelProto, signature: Signature, folder: Path, options: ExportOptions) -> Passed:
    bench = workbench.of(OnnxOriginal(model, signature), folder, opset=20, max_loss=1)
    return make(bench, options, lambda _: None)[-1]


def kinds(model: onnx.ModelProto) -> set[str]:
    return {node.op_type for node in model.graph.node}


def lstm_of(model: onnx.ModelProto) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.op_type == "LSTM")


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("bits", [7, 8])
def test_an_lstm_becomes_integers_with_its_state_and_gives_its_answers(per_channel: bool, bits: int) -> None:
    model, signature = recurrent_model()
    found = int8.quantize_dynamic(model, per_channel=per_channel, weight_bits=bits)
    assert "DynamicQuantizeLSTM" in kinds(found.model)
    assert "LSTM" not in kinds(found.model)
    assert found.record.weights_quantized == found.record.weights_total == 4 * WIDTH * (8 + WIDTH) + 3 * WIDTH
    samples = noise(signature, 30)
    answers = []
    for one in (model, found.model):
        with OnnxRuntimeRunner(one.SerializeToString()) as runner:
            answers.append(runner.run(samples.inputs)["y"])
    assert rms(*answers) < 0.03 * float(answers[0].std())
    assert remark(found.model, found.record) == ""


def test_it_passes_the_gate(tmp_path: Path) -> None:
    passed = export(*recurrent_model(), tmp_path, DYNAMIC)
    assert passed.variant.id == "int8-dynamic"
    assert passed.variant.needs.domains == ("com.microsoft",)
    assert passed.remarks == ()


@pytest.mark.parametrize("kind", ["GRU", "RNN"])
def test_what_has_no_integer_operator_stays_in_float_and_is_said(tmp_path: Path, kind: str) -> None:
    passed = export(*recurrent_model(kind), tmp_path, DYNAMIC)
    size = GATES[kind] * WIDTH * (8 + WIDTH)
    assert passed.remarks == (f"{kind} stays in float: {100 * (size / (size + 3 * WIDTH)):.0f} % of the weights",)
    record = passed.variant.quantization
    assert record is not None
    assert record.weights_quantized == 3 * WIDTH


def test_weights_in_blocks_leave_every_recurrent_layer_in_float_and_say_so(tmp_path: Path) -> None:
    options = ExportOptions(precisions=("int8",), quantization="weights")
    assert export(*recurrent_model(), tmp_path, options).remarks == ("LSTM stays in float: 97 % of the weights",)


def test_an_lstm_whose_weights_another_one_reads_stays_in_float() -> None:
    model, _ = recurrent_model()
    again = onnx.NodeProto()
    again.CopyFrom(lstm_of(model))
    again.name, again.output[0] = "again", "unread"
    model.graph.node.append(again)
    found = int8.quantize_dynamic(model)
    assert "LSTM" in kinds(found.model)
    assert remark(found.model, found.record).startswith("LSTM stays in float")


def test_an_lstm_of_another_layout_stays_in_float() -> None:
    model, _ = recurrent_model()
    assert recurrent.quantizable(model) == ("LSTM",)
    lstm_of(model).attribute.append(helper.make_attribute("layout", 1))
    assert recurrent.quantizable(model) == ()


def test_a_recurrent_layer_in_a_branch_is_counted_where_its_weights_come_from() -> None:
    inner = helper.make_graph(
        [
            helper.make_node("Unsqueeze", ["w", "zero"], ["whole"]),
            helper.make_node("GRU", ["x", "whole", "r"], ["then"], hidden_size=WIDTH),
        ],
        "then",
        [],
        [helper.make_tensor_value_info("then", onnx.TensorProto.FLOAT, None)],
    )
    other = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["else"])],
        "else",
        [],
        [helper.make_tensor_value_info("else", onnx.TensorProto.FLOAT, None)],
    )
    signature = Signature(
        inputs=(
            TensorSpec(name="x", dtype="float32", shape=("steps", "batch", 8)),
            TensorSpec(name="c", dtype="bool", shape=()),
        ),
        outputs=(TensorSpec(name="y", dtype="float32", shape=("steps", "batch", 8)),),
    )
    weights = {
        "w": np.zeros((3 * WIDTH, 8), np.float32),
        "r": np.zeros((1, 3 * WIDTH, WIDTH), np.float32),
        "zero": np.array([0]),
    }
    model = graph([helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=other)], weights, signature)
    dense, _ = recurrent_model()
    record = int8.quantize_dynamic(dense).record
    assert count_weights(model, model) == (0, 3 * WIDTH * (8 + WIDTH))
    share = 3 * WIDTH * (8 + WIDTH) / record.weights_total
    assert remark(model, record) == f"GRU stays in float: {100 * (share):.0f} % of the weights"
