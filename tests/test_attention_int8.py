"""What int8 does for networks of attention and convolutions before it rounds: smooth, fold, and leave sums in float."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from exporters.candidates import VariantRecipe
from exporters.formats.folding import fold_pixels
from exporters.formats.int8 import DynamicInt8, StaticInt8, quantize_dynamic, quantize_static
from exporters.formats.smooth import factors, smooth
from exporters.formats.tables import quantize_tables
from kit.bundle.manifest import Calibration
from kit.choices import CalibrationMethod
from kit.runtime.onnxruntime import OnnxRuntimeRunner
from kit.samples import Samples
from kit.tensors import Signature, Tensors, TensorSpec
from tests.helpers.originals import graph, rms, run, source_of

CALIBRATION = Calibration(
    method=CalibrationMethod.MINMAX, dataset="uneven", split="train", samples=64, indices_sha256="0" * 64, seed=0
)
WIDTH, ROWS = 16, 24


def uneven(count: int, *, seed: int = 0) -> NDArray[np.float32]:
    """Rows of which one channel is far larger than all others, as attention networks have them."""
    values = np.random.default_rng(seed).standard_normal((count, ROWS, WIDTH)).astype(np.float32)
    values[..., 3] *= 60
    return values


def attending(*, norm: bool) -> tuple[onnx.ModelProto, Signature]:
    """Queries, keys and values of one tensor, two products without weights, and a layer behind them."""
    rng = np.random.default_rng(1)
    weights = {
        name: (rng.standard_normal((WIDTH, WIDTH)) / WIDTH).astype(np.float32) for name in ("q.w", "k.w", "v.w", "o.w")
    }
    weights |= {"norm.scale": np.where(np.arange(WIDTH) == 3, 60, 1).astype(np.float32), "one": np.ones(1, np.float32)}
    weights |= {"norm.bias": np.full(WIDTH, 0.1, np.float32)}
    first = (
        helper.make_node("LayerNormalization", ["x", "norm.scale", "norm.bias"], ["h"])
        if norm
        else helper.make_node("Mul", ["x", "one"], ["h"])
    )
    nodes = [
        first,
        *(helper.make_node("MatMul", ["h", f"{one}.w"], [one], name=one) for one in "qkv"),
        helper.make_node("Transpose", ["k"], ["k.t"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["q", "k.t"], ["scores"], name="scores"),
        helper.make_node("Softmax", ["scores"], ["shares"], axis=-1),
        helper.make_node("MatMul", ["shares", "v"], ["mixed"], name="mixed"),
        helper.make_node("MatMul", ["mixed", "o.w"], ["y"], name="o"),
    ]
    spec = ("batch", ROWS, WIDTH)
    signature = Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=spec),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=spec),),
    )
    return graph(nodes, weights, signature), signature


def batches() -> list[Tensors]:
    return [{"x": uneven(4, seed=seed)} for seed in range(10)]


def samples(seed: int = 0) -> Samples:
    return Samples(inputs={"x": uneven(40, seed=seed)}, source="uneven")


@pytest.mark.parametrize("norm", [False, True])
def test_smoothing_leaves_what_a_model_computes_and_divides_once_for_all_layers_of_a_tensor(
    norm: bool, tmp_path: Path
) -> None:
    model, _ = attending(norm=norm)
    chosen = factors(model, batches(), tmp_path)
    assert chosen["h"][3] > 4 * np.median(chosen["h"])
    made = smooth(model, chosen, tmp_path, tmp_path)
    others = samples(seed=99)
    assert rms(run(model, others), run(made, others)) < 1e-5
    divisions = [node for node in made.graph.node if node.op_type == "Mul" and "h.smooth" in " ".join(node.input)]
    assert len(divisions) == (0 if norm else 1)  # a LayerNormalization takes it in


def test_weights_beside_the_graph_are_smoothed_in_a_copy(tmp_path: Path) -> None:
    model, _ = attending(norm=False)
    (tmp_path / "own").mkdir()
    (tmp_path / "copy").mkdir()
    path = tmp_path / "own" / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="model.data", size_threshold=0)
    before = (tmp_path / "own" / "model.data").read_bytes()
    large = onnx.load(path, load_external_data=False)
    chosen = factors(large, batches(), path.parent)
    made = smooth(large, chosen, path.parent, tmp_path / "copy")
    onnx.save(made, tmp_path / "copy" / "model.onnx")
    others = samples(seed=99)
    assert rms(run(path, others), run(tmp_path / "copy" / "model.onnx", others)) < 1e-5
    assert (tmp_path / "own" / "model.data").read_bytes() == before


def test_layers_that_see_fewer_rows_than_channels_are_left_alone(tmp_path: Path) -> None:
    model, _ = attending(norm=False)
    few: list[Tensors] = [{"x": uneven(1)[:, : WIDTH // 2 - 1]}]
    loose = onnx.ModelProto()
    loose.CopyFrom(model)
    for value in (*loose.graph.input, *loose.graph.output):
        value.type.tensor_type.shape.dim[1].dim_param = "rows"
    assert factors(loose, few, tmp_path) == {}


@pytest.mark.parametrize("kind", ["static", "dynamic"])
def test_smoothing_makes_int8_of_attention_better(kind: str) -> None:
    model, signature = attending(norm=False)
    others = samples(seed=99)
    exact = run(model, others)
    found = factors(model, batches(), Path())
    errors = []
    for chosen in (found, {}):
        if kind == "static":
            made = quantize_static(model, signature, (samples(),), CALIBRATION, factors=chosen)
        else:
            made = quantize_dynamic(model, factors=chosen, calibration=CALIBRATION)
        assert made.record.smoothed is bool(chosen)
        errors.append(rms(exact, run(made.model, others)))
    assert errors[0] < 0.7 * errors[1]


def test_products_of_two_tensors_and_sums_of_layers_stay_float_in_qdq() -> None:
    model, signature = attending(norm=True)
    made = quantize_static(model, signature, (samples(),), CALIBRATION).model
    makers = {name: node for node in made.graph.node for name in node.output}
    by_name = {node.name: node for node in made.graph.node}
    assert all(makers[name].op_type != "DequantizeLinear" for name in by_name["scores"].input)
    quantized = [node.input[0] for node in made.graph.node if node.op_type == "QuantizeLinear"]
    assert not {"q", "k", "v"} & set(quantized)
    assert makers[by_name["o"].input[0]].op_type == "DequantizeLinear"


def test_dynamic_int8_says_which_samples_its_inputs_were_smoothed_with(tmp_path: Path) -> None:
    model, signature = attending(norm=False)
    source = source_of(tmp_path, model, signature, train=(samples(),))
    recipe = VariantRecipe(id="int8-dynamic", format=DynamicInt8())
    made = recipe.make(source)
    assert made.quantization is not None
    assert made.quantization.smoothed
    assert made.quantization.calibration is not None
    assert made.quantization.calibration.samples == 40
    static = VariantRecipe(id="int8-qdq", format=StaticInt8()).make(source)
    assert static.quantization is not None
    assert static.quantization.smoothed
    assert len(source.smoothings) == 1  # looked for once


def looking_up(tokens: int = 300) -> onnx.ModelProto:
    rng = np.random.default_rng(2)
    table = (rng.standard_normal((tokens, WIDTH)) * np.logspace(-2, 1, WIDTH)).astype(np.float32)
    signature = Signature(
        inputs=(TensorSpec(name="ids", dtype="int64", shape=("batch", "words")),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=("batch", "words", WIDTH)),),
    )
    nodes = [helper.make_node("Gather", ["table", "ids"], ["y"], name="lookup")]
    return graph(nodes, {"table": table}, signature)


def test_a_table_becomes_integers_with_a_scale_for_each_column() -> None:
    model = looking_up()
    exact = onnx.ModelProto()
    exact.CopyFrom(model)
    assert quantize_tables(model, Path())
    onnx.checker.check_model(model)
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert TensorProto.INT8 in kinds.values()
    assert "table" not in kinds
    ids = Samples(inputs={"ids": np.arange(300).reshape(3, 100)}, source="ids")
    found, right = run(model, ids), run(exact, ids)
    assert np.all(np.abs(found - right) <= np.abs(right).max(axis=(0, 1)) / 127)


def test_a_small_table_and_one_that_is_computed_with_stay_float() -> None:
    assert not quantize_tables(looking_up(tokens=8), Path())
    model = looking_up()
    model.graph.node.append(helper.make_node("ReduceSum", ["table"], ["sum"], keepdims=0))
    model.graph.output.append(helper.make_tensor_value_info("sum", TensorProto.FLOAT, []))
    assert not quantize_tables(model, Path())


def seeing(
    *, channels_last: bool = False, pads: int = 1, std: tuple[float, ...] = (0.229, 0.224, 0.225)
) -> onnx.ModelProto:
    """A convolution of raw pixels that are scaled and shifted channel by channel."""
    rng = np.random.default_rng(3)
    mean = np.array([0.485, 0.456, 0.406], np.float32)
    scale = (1 / 255 / np.array(std, np.float32)).reshape(-1, 1, 1)
    shift = (-mean / np.array(std, np.float32)).reshape(-1, 1, 1)
    weights = {
        "scale": scale.astype(np.float32),
        "shift": shift.astype(np.float32),
        "conv.weight": rng.standard_normal((8, 3, 3, 3)).astype(np.float32) / 5,
    }
    shape: tuple[int | str, ...] = ("batch", 12, 12, 3) if channels_last else ("batch", 3, 12, 12)
    nodes = [helper.make_node("Cast", ["pixels"], ["cast"], to=TensorProto.FLOAT)]
    last = "cast"
    if channels_last:
        nodes.append(helper.make_node("Transpose", ["cast"], ["first"], perm=[0, 3, 1, 2]))
        last = "first"
    nodes += [
        helper.make_node("Mul", [last, "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "shift"], ["normal"]),
        helper.make_node("Conv", ["normal", "conv.weight"], ["seen"], name="conv", pads=[pads] * 4, strides=[2, 2]),
        helper.make_node("Relu", ["seen"], ["y"]),
    ]
    side = (12 + 2 * pads - 3) // 2 + 1
    signature = Signature(
        inputs=(TensorSpec(name="pixels", dtype="uint8", shape=shape),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=("batch", 8, side, side)),),
    )
    return graph(nodes, weights, signature)


def pixels(model: onnx.ModelProto, *, seed: int = 0) -> Samples:
    dims = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim][1:]
    values = np.random.default_rng(seed).integers(0, 256, (16, *dims), np.uint8)
    return Samples(inputs={"pixels": values}, source="pixels")


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("pads", [0, 1])
def test_raw_pixels_enter_their_convolution_as_they_are(channels_last: bool, pads: int) -> None:
    model = seeing(channels_last=channels_last, pads=pads)
    made = onnx.ModelProto()
    made.CopyFrom(model)
    assert fold_pixels(made, Path())
    onnx.checker.check_model(made, full_check=True)
    given = pixels(model)
    exact, found = run(model, given), run(made, given)
    if not pads:
        assert np.abs(exact - found).max() < 1e-4
    else:  # the zero of a channel is no whole number of pixels: the border differs by half of one
        inside = (slice(None), slice(None), slice(1, -1), slice(1, -1))
        assert np.abs(exact - found)[inside].max() < 1e-4
        assert np.abs(exact - found).max() < 27 * 0.5 / 255 / 0.224
    signature = OnnxRuntimeRunner(model.SerializeToString(), binds=False).signature
    quantized = quantize_static(model, signature, (given,), CALIBRATION).model
    assert "Cast" not in {node.op_type for node in quantized.graph.node}
    assert "pixels" not in [node.input[0] for node in quantized.graph.node if node.op_type == "QuantizeLinear"]
    others = pixels(model, seed=1)
    assert rms(run(model, others), run(quantized, others)) < 0.03 * float(np.sqrt(np.mean(exact**2)))


def test_pixels_are_not_folded_where_zero_is_no_pixel() -> None:
    model = seeing(pads=1)
    shift = next(tensor for tensor in model.graph.initializer if tensor.name == "shift")
    shift.CopyFrom(numpy_helper.from_array(np.full((3, 1, 1), 2, np.float32), "shift"))
    assert not fold_pixels(model, Path())


def test_pixels_that_something_else_reads_are_not_folded() -> None:
    model = seeing(pads=0)
    model.graph.node.append(helper.make_node("ReduceMean", ["normal"], ["mean"], keepdims=0))
    model.graph.output.append(helper.make_tensor_value_info("mean", TensorProto.FLOAT, []))
    before = model.SerializeToString()
    assert not fold_pixels(model, Path())
    assert model.SerializeToString() == before


def test_large_models_keep_their_weights_beside_them_once(tmp_path: Path) -> None:
    """A table that became integers leaves no bytes behind in the file of weights."""
    rng = np.random.default_rng(4)
    weights = {
        "table": rng.standard_normal((2000, WIDTH)).astype(np.float32),
        "layer.w": rng.standard_normal((WIDTH, 600)).astype(np.float32),
        "other.w": rng.standard_normal((600, 4)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"], name="lookup"),
        helper.make_node("MatMul", ["rows", "layer.w"], ["wide"], name="layer"),
        helper.make_node("Tanh", ["wide"], ["bent"]),
        helper.make_node("MatMul", ["bent", "other.w"], ["y"], name="other"),
    ]
    signature = Signature(
        inputs=(TensorSpec(name="ids", dtype="int64", shape=("batch", 6)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=("batch", 6, 4)),),
    )
    model = graph(nodes, weights, signature)
    path = tmp_path / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="model.data", size_threshold=0)
    ids = Samples(inputs={"ids": rng.integers(0, 2000, (40, 6))}, source="ids")
    (tmp_path / "made").mkdir()
    target = tmp_path / "made" / "int8.onnx"
    made = quantize_static(path, signature, (ids,), CALIBRATION, target=target)
    target.write_bytes(made.model.SerializeToString())
    exact, found = run(path, ids), run(target, ids)
    assert rms(exact, found) < 0.05 * float(np.sqrt(np.mean(exact**2)))
    assert (
        sum(one.stat().st_size for one in (tmp_path / "made").iterdir())
        < 0.5 * (tmp_path / "model.data").stat().st_size
    )
    assert made.record.weights_quantized == made.record.weights_total
