"""Integer weights that are rounded for the sake of their layer's output."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from exporters import ExportOptions, candidates
from exporters.candidates import VariantRecipe
from exporters.formats import rounding
from exporters.formats.int8 import quantize_dynamic, quantize_static
from kit.bundle.manifest import Calibration, Quantization
from kit.choices import CalibrationMethod
from kit.runtime.onnxruntime import OnnxRuntimeRunner
from kit.samples import Samples
from kit.system.progress import Watch
from kit.tensors import Signature, TensorSpec
from tests.helpers.originals import dense, graph, source_of

CALIBRATION = Calibration(
    method=CalibrationMethod.MINMAX, dataset="alike", split="train", samples=64, indices_sha256="0" * 64, seed=0
)


WORDS = 12


def alike(shape: tuple[int, ...], *, seed: int = 0) -> NDArray[np.float32]:
    """Values whose channels follow each other, as those of real pictures and words do, and are not 0 on average."""
    rng = np.random.default_rng(seed)
    if len(shape) == 3 and shape[1] == WORDS:  # what follows each other lies last
        return alike((shape[0] * WORDS, shape[2]), seed=seed).reshape(shape)
    common = rng.standard_normal((shape[0], 1, *shape[2:]))
    return (1 + common + 0.2 * rng.standard_normal(shape)).astype(np.float32)


def one_layer(
    operator: str, given: tuple[int | str, ...], weight: tuple[int, ...], *, bias: int = 0, **about: object
) -> tuple[onnx.ModelProto, Signature]:
    """A layer behind a tanh, so that no input is raw, and its answers as they are."""
    rng = np.random.default_rng(1)
    weights = {"layer.weight": rng.standard_normal(weight).astype(np.float32)}
    inputs = ["inside", "layer.weight"]
    if bias:
        weights["layer.bias"] = rng.standard_normal(bias).astype(np.float32)
        inputs.append("layer.bias")
    nodes = [
        helper.make_node("Tanh", ["x"], ["inside"]),
        helper.make_node(operator, inputs, ["y"], name="layer", **about),
    ]
    shape = ("batch", *("rows", "columns")[: len(given) - 2]) if operator == "Conv" else given[:-1]
    made: tuple[int | str, ...] = (
        ("batch", bias or weight[0], *shape[1:]) if operator == "Conv" else (*shape, weight[1])
    )
    signature = Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=given),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=made),),
    )
    return graph(nodes, weights, signature), signature


def answers(model: onnx.ModelProto, values: NDArray[np.float32]) -> NDArray[np.float32]:
    with OnnxRuntimeRunner(model.SerializeToString(), binds=False) as runner:
        return runner.run({"x": values})["y"]


def error_of(
    model: onnx.ModelProto, signature: Signature, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> list[float]:
    """Return the rms error of answers to other samples, with weights rounded for the output and each to its nearest."""
    samples = Samples(inputs={"x": alike(shape)}, source="alike")
    others = alike(shape, seed=1)
    exact = answers(model, others)
    found = []
    for adjusts in (True, False):
        if not adjusts:
            monkeypatch.setattr(rounding, "_places", lambda *_: [])
        # In 7 bits, so that it is the weights that the error comes from.
        made = quantize_static(model, signature, (samples,), CALIBRATION, weight_bits=7)
        assert made.record.adjusted is adjusts
        found.append(float(np.sqrt(np.mean((answers(made.model, others) - exact) ** 2))))
    return found


@pytest.mark.parametrize(
    ("operator", "weight", "bias", "about", "shape"),
    [
        ("Conv", (8, 32, 1, 1), 8, {}, (64, 32, 6, 6)),
        ("Conv", (8, 16, 3, 3), 8, {"pads": [1, 1, 1, 1], "strides": [2, 2]}, (64, 16, 9, 9)),
        ("Conv", (8, 16, 3, 3), 0, {"dilations": [2, 1], "pads": [2, 0, 1, 1]}, (64, 16, 9, 9)),
        ("Conv", (8, 4, 3, 3), 8, {"group": 4}, (64, 16, 7, 7)),
        ("Conv", (8, 16, 5), 8, {"pads": [2, 2]}, (64, 16, 20)),
        ("MatMul", (48, 8), 0, {}, (64, 48)),
        ("MatMul", (48, 8), 0, {}, (16, 48, WORDS)),
    ],
)  # fmt: skip
def test_the_error_of_a_layer_falls(
    operator: str,
    weight: tuple[int, ...],
    bias: int,
    about: dict[str, object],
    shape: tuple[int, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: tuple[int | str, ...] = ("batch", *shape[1:])
    if operator == "Conv":
        given = ("batch", shape[1], *("rows", "columns")[: len(shape) - 2])
    elif len(shape) == 3:  # words in the middle, what follows each other last
        given, shape = ("batch", "words", shape[1]), (shape[0], shape[2], shape[1])
    model, signature = one_layer(operator, given, weight, bias=bias, **about)
    with monkeypatch.context() as patch:
        adjusted, nearest = error_of(model, signature, shape, patch)
    assert adjusted < 0.8 * nearest


@pytest.mark.parametrize("bits", [7, 8])
def test_the_largest_weight_of_an_output_is_as_exact_as_others(tmp_path: Path, bits: int) -> None:
    model, signature = one_layer("Conv", ("batch", 16, "rows", "columns"), (8, 16, 1, 1), bias=8)
    exact = np.full((8, 16, 1, 1), 0.01, np.float32)
    exact[np.arange(8), np.arange(8)] = 1.0
    (weights,) = [one for one in model.graph.initializer if one.name == "layer.weight"]
    weights.CopyFrom(numpy_helper.from_array(exact, weights.name))
    (recipe,) = candidates.recipes(ExportOptions(precisions=("int8",), weight_bits=bits))
    path, _ = made_of(recipe, tmp_path, model, signature)
    held = {one.name: numpy_helper.to_array(one) for one in onnx.load(path).graph.initializer}
    (layer,) = [one for one in held.values() if one.dtype == np.int8 and one.ndim == 4]
    assert np.abs(layer.astype(int)).max(axis=(1, 2, 3)).tolist() == [rounding.largest(bits)] * 8
    assert rounding.largest(bits) == {7: 64, 8: 127}[bits]  # what ONNX Runtime's scale goes by


def made_of(
    recipe: VariantRecipe, folder: Path, model: onnx.ModelProto, signature: Signature
) -> tuple[Path, Quantization]:
    source = source_of(folder, model, signature, train=(Samples(inputs={"x": alike((64, 16, 9, 9))}, source="alike"),))
    made = recipe.make(source)
    assert made.quantization is not None
    return made.files.path, made.quantization


def test_networks_of_dense_layers_have_seven_bits_and_others_eight_unless_somebody_says(tmp_path: Path) -> None:
    (usual,) = candidates.recipes(ExportOptions(precisions=("int8",)))
    (few,) = candidates.recipes(ExportOptions(precisions=("int8",), weight_bits=7))
    (dynamic,) = candidates.recipes(ExportOptions(precisions=("int8",), quantization="dynamic", weight_bits=8))
    assert [one.id for one in (usual, few, dynamic)] == ["int8-qdq", "int8-qdq-7-bit", "int8-dynamic-8-bit"]
    model, signature = one_layer("Conv", ("batch", 16, "rows", "columns"), (8, 16, 3, 3), bias=8)
    for recipe, bits in ((usual, 8), (few, 7)):
        path, record = made_of(recipe, tmp_path, model, signature)
        assert (record.weight_bits, record.adjusted) == (bits, True)
        weights = [
            numpy_helper.to_array(one)
            for one in onnx.load(path).graph.initializer
            if one.data_type == onnx.TensorProto.INT8
        ]
        (layer,) = [one for one in weights if one.ndim == 4]
        assert 2 ** (bits - 2) <= np.abs(layer.astype(int)).max() <= rounding.largest(bits)
    for recipe, bits in ((usual, 7), (dynamic, 8)):
        record = recipe.make(source_of(tmp_path, *dense((16, 8, 4)))).quantization
        assert record is not None
        assert (record.weight_bits, record.adjusted) == (bits, False)


def test_weights_that_two_layers_read_are_left_as_they_are() -> None:
    signature = Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", 8)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=("batch", 8)),),
    )
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["once"], name="one"),
        helper.make_node("Tanh", ["once"], ["inside"]),
        helper.make_node("MatMul", ["inside", "w"], ["y"], name="two"),
    ]
    weight = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)
    model = graph(nodes, {"w": weight}, signature)
    samples = Samples(inputs={"x": alike((64, 8))}, source="alike")
    assert not quantize_static(model, signature, (samples,), CALIBRATION).record.adjusted


def test_a_model_that_is_quantized_again_is_looked_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, signature = one_layer("Conv", ("batch", 16, "rows", "columns"), (8, 16, 3, 3), bias=8)
    source = source_of(
        tmp_path, model, signature, train=(Samples(inputs={"x": alike((64, 16, 9, 9))}, source="alike"),)
    )
    (recipe,) = candidates.recipes(ExportOptions(precisions=("int8",)))
    first = recipe.make(source)
    monkeypatch.setattr(rounding, "_moments", lambda *_: pytest.fail("it was looked at"))
    assert recipe.make(source).files.graph.sha256 == first.files.graph.sha256


def test_weights_beside_the_graph_are_rounded_where_they_lie(tmp_path: Path) -> None:
    """The same integers as those of a model in one file."""
    model, signature = one_layer("Conv", ("batch", 16, "rows", "columns"), (8, 16, 3, 3), bias=8)
    samples = Samples(inputs={"x": alike((64, 16, 9, 9))}, source="alike")
    whole = quantize_static(model, signature, (samples,), CALIBRATION).model
    (tmp_path / "source").mkdir()
    (tmp_path / "made").mkdir()
    beside = tmp_path / "source" / "model.onnx"
    onnx.save(model, beside, save_as_external_data=True, location="model.data", size_threshold=0)
    target = tmp_path / "made" / "int8.onnx"
    large = quantize_static(beside, signature, (samples,), CALIBRATION, target=target)
    assert large.record.adjusted
    target.write_bytes(large.model.SerializeToString())
    found = {one.name: numpy_helper.to_array(one) for one in onnx.load(target).graph.initializer}
    for one in whole.graph.initializer:
        if one.data_type == onnx.TensorProto.INT8:
            assert np.array_equal(numpy_helper.to_array(one), found[one.name])


def test_how_long_rounding_will_take_is_told() -> None:
    now = iter([0.0, 0.0, 2.0, 3.0])
    said: list[str] = []
    watch = Watch("rounding layers", 8.0, lambda what, _=None: said.append(what), clock=lambda: next(now))
    watch.tell()
    watch.add(2.0)
    watch.tell()
    watch.add(4.0)
    watch.tell()
    assert said == [
        "rounding layers, 0 %",
        "rounding layers, 25 %, about 6 s left",
        "rounding layers, 75 %, about 1 s left",
    ]


def test_dynamic_int8_is_rounded_and_its_biases_behind_products_move() -> None:
    rng = np.random.default_rng(5)
    weights = {
        "layer.weight": rng.standard_normal((48, 8)).astype(np.float32),
        "layer.bias": rng.standard_normal(8).astype(np.float32),
    }
    nodes = [
        helper.make_node("Tanh", ["x"], ["inside"]),
        helper.make_node("MatMul", ["inside", "layer.weight"], ["product"], name="layer"),
        helper.make_node("Add", ["product", "layer.bias"], ["y"], name="add"),
    ]
    signature = Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", 48)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=("batch", 8)),),
    )
    model = graph(nodes, weights, signature)
    others = alike((64, 48), seed=1)
    exact = answers(model, others)
    errors = []
    for batches in ([{"x": alike((64, 48))}], []):
        made = quantize_dynamic(model, weight_bits=7, batches=batches, calibration=CALIBRATION)
        assert made.record.adjusted is bool(batches)
        assert (made.record.calibration is not None) is bool(batches)
        errors.append(float(np.sqrt(np.mean((answers(made.model, others) - exact) ** 2))))
        (bias,) = [tensor for tensor in made.model.graph.initializer if tensor.name == "layer.bias"]
        assert np.array_equal(numpy_helper.to_array(bias), weights["layer.bias"]) is not bool(batches)
    assert errors[0] < 0.8 * errors[1]


def test_what_is_added_along_a_pictures_width_is_no_bias() -> None:
    rng = np.random.default_rng(6)
    weights = {
        "conv.weight": rng.standard_normal((8, 3, 1, 1)).astype(np.float32),
        "along": rng.standard_normal(8).astype(np.float32),
    }
    nodes = [
        helper.make_node("Tanh", ["x"], ["inside"]),
        helper.make_node("Conv", ["inside", "conv.weight"], ["seen"], name="conv"),
        helper.make_node("Add", ["seen", "along"], ["y"], name="add"),
    ]
    signature = Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", 3, 4, 8)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=("batch", 8, 4, 8)),),
    )
    samples = Samples(inputs={"x": alike((16, 3, 4, 8))}, source="alike")
    made = quantize_static(graph(nodes, weights, signature), signature, (samples,), CALIBRATION).model
    (along,) = [tensor for tensor in made.graph.initializer if tensor.name == "along"]
    assert np.array_equal(numpy_helper.to_array(along), weights["along"])
