"""What became integers is counted by what is float in the file, and what stays in float is said."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from apps.cli import figures
from exporters import candidates
from exporters.formats import int8
from exporters.formats.counting import count_arithmetic, count_weights, remark
from exporters.options import ExportOptions
from kit.bundle.manifest import Quantization
from kit.choices import QuantizationScheme
from kit.tensors import Signature, TensorSpec
from tests.helpers.originals import dense, graph, source_of

RNG = np.random.default_rng(0)


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32) / 10


def border(given: tuple[int | str, ...], made: tuple[int | str, ...]) -> Signature:
    return Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=given),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=made),),
    )


def made_of(
    folder: Path, nodes: list[onnx.NodeProto], weights: dict[str, Any], signature: Signature, **options: Any
) -> tuple[onnx.ModelProto, Quantization]:
    """A model in int8, and the record of it."""
    source = source_of(folder, graph(nodes, weights, signature), signature)
    (recipe,) = candidates.recipes(ExportOptions(precisions=("int8",), **options))
    candidate = recipe.make(source)
    assert candidate.quantization is not None
    return onnx.load(candidate.files.path), candidate.quantization


def test_an_lstm_beside_one_dense_layer_is_most_of_a_model_in_float(tmp_path: Path) -> None:
    weights = {"w": floats(1, 256, 48), "r": floats(1, 256, 64), "b": floats(1, 512), "last": floats(64, 10)}
    weights["one"] = np.array([1])
    nodes = [
        helper.make_node("LSTM", ["x", "w", "r", "b"], ["steps"], hidden_size=64, name="lstm"),
        helper.make_node("Squeeze", ["steps", "one"], ["rows"], name="squeeze"),
        helper.make_node("MatMul", ["rows", "last"], ["y"], name="last.layer"),
    ]
    model, record = made_of(tmp_path, nodes, weights, border((8, "batch", 48), (8, "batch", 10)))
    assert record.weights_total - record.weights_quantized == 29_184
    assert record.weights_quantized == 640
    batch = record.macs_total // (8 * (256 * 112 + 640))
    assert record.macs_total == 8 * batch * (256 * 112 + 640)
    assert record.macs_quantized == 8 * batch * 640
    assert figures.layers(record).startswith("1/1 layers, 2 % of weights, 2 % of arithmetic in integers, ")
    assert remark(model, record) == "LSTM stays in float: 96 % of the weights"


def test_a_transposed_convolution_counts_and_is_said(tmp_path: Path) -> None:
    weights = {"up": floats(4, 6, 2, 2), "k": floats(4, 3, 3, 3)}
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["a"], name="k.layer", pads=[1, 1, 1, 1]),
        helper.make_node("ConvTranspose", ["a", "up"], ["y"], name="up.layer", strides=[2, 2]),
    ]
    model, record = made_of(tmp_path, nodes, weights, border(("batch", 3, 8, 8), ("batch", 6, 16, 16)))
    assert (record.weights_quantized, record.weights_total) == (108, 108 + 96)
    batch = record.macs_total // (64 * (4 * 27 + 4 * 24))
    assert (record.macs_quantized, record.macs_total) == (64 * batch * 108, 64 * batch * (108 + 96))
    assert remark(model, record) == "ConvTranspose stays in float: 47 % of the weights"


@pytest.mark.parametrize("name", ["", "held"])
def test_weights_in_a_constant_node_and_on_the_left_of_a_product_stay_in_float(tmp_path: Path, name: str) -> None:
    constant = helper.make_node("Constant", [], ["mix"], value=numpy_helper.from_array(floats(5, 5), name))
    nodes = [
        constant,
        helper.make_node("MatMul", ["mix", "x"], ["a"], name="mixed"),
        helper.make_node("MatMul", ["left", "a"], ["b"], name="left.layer"),
        helper.make_node("MatMul", ["b", "w"], ["y"], name="w.layer"),
    ]
    weights = {"left": floats(5, 5), "w": floats(8, 4)}
    model, record = made_of(tmp_path, nodes, weights, border(("batch", 5, 8), ("batch", 5, 4)), quantization="dynamic")
    assert record.weights_total == 25 + 25 + 32
    assert record.weights_total - record.weights_quantized >= 25
    assert remark(model, record).startswith("MatMul stays in float: ")
    assert record.macs_total % (5 * 5 * 8 * 2 + 5 * 8 * 4) == 0


def test_weights_that_another_name_holds_are_still_float() -> None:
    model, signature = dense((16, 8, 3))
    other = onnx.ModelProto()
    other.CopyFrom(model)
    for tensor in other.graph.initializer:
        tensor.name = f"{tensor.name}.smoothed"
    total = 16 * 8 + 8 + 8 * 3 + 3
    assert count_weights(model, other) == (0, total)
    assert count_weights(model, int8.quantize_dynamic(model).model) == (16 * 8 + 8 * 3, total)
    batch = signature.usual_sizes()["batch"]
    assert count_arithmetic(model, model, signature) == (0, batch * (128 + 24))
    assert count_arithmetic(model, int8.quantize_dynamic(model).model, signature) == (batch * 152, batch * 152)


def test_shares_are_said_in_whole_percent_and_never_as_all_or_nothing_if_they_are_not() -> None:
    record = Quantization(
        scheme=QuantizationScheme.STATIC,
        activation_dtype="uint8",
        weight_dtype="int8",
        weight_bits=8,
        per_channel=True,
        layers_quantized=1,
        layers_total=1,
    )
    assert figures.layers(record) == "1/1 layers in integers, 8 bit per channel"
    some = dataclasses.replace(record, weights_quantized=999, weights_total=1000, macs_quantized=1, macs_total=1000)
    assert figures.layers(some) == "1/1 layers, 99 % of weights, 1 % of arithmetic in integers, 8 bit per channel"
