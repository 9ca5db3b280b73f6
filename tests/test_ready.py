"""A ready .onnx file is a bundle in memory, without onnx and torch: what the graph does not tell is found by running it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

import kit
from kit import ready
from kit.bundle import graph_file
from kit.bundle.golden import golden_from_bytes
from kit.choices import Precision, Provider, VariantFormat
from kit.doctor import try_model
from kit.errors import BundleInvalid, BundleNotFound
from kit.ready import ReadyModel
from kit.runtime import registry
from kit.runtime.base import RunnerOptions
from kit.samples import SEEDED
from tests import graphs


def saved(model: onnx.ModelProto, folder: Path, name: str = "model.onnx") -> Path:
    path = folder / name
    onnx.save(model, path)
    return path


def opened(model: onnx.ModelProto, folder: Path) -> ReadyModel:
    found = ready.find(saved(model, folder))
    assert isinstance(found, ReadyModel)
    return found


@pytest.mark.parametrize("model", [graphs.pixels, graphs.two_by_two, graphs.sentences, graphs.mixed, graphs.nonzero])
def test_its_golden_samples_are_answered_right_by_every_runtime(tmp_path: Path, model: object) -> None:
    assert callable(model)
    bundle = opened(model(), tmp_path)
    assert bundle.baseline == bundle.variant()
    groups = golden_from_bytes(bundle.read(bundle.manifest.golden.file), bundle.signature)  # and they fit the signature
    for runtime in ("onnxruntime", "openvino", "onnx-reference"):
        with registry.open_runner(runtime, bundle, bundle.variant(), RunnerOptions()) as runner:
            for group in groups:
                assert group.expected is not None
                found = runner.run(group.inputs)
                assert all(np.allclose(found[name], array, atol=1e-3) for name, array in group.expected.items())


def test_its_names_and_places_are_those_of_the_file(tmp_path: Path) -> None:
    path = saved(graphs.pixels(), tmp_path, "my model (1).onnx")
    bundle = kit.find(path)
    assert (bundle.name, bundle.origin) == ("my-model-1", path)
    assert bundle.beside(".bench.json") == tmp_path / "my model (1).bench.json"
    assert bundle.manifest.original is not None
    assert (bundle.manifest.original.kind, bundle.manifest.original.name) == ("onnx", "my model (1).onnx")
    assert bundle.model(bundle.variant()) == path.read_bytes()
    assert bundle.variant().needs.opset == 20
    assert [one.name for one in tmp_path.iterdir()] == [path.name]  # nothing is written
    assert all(bundle.check(ref, anew=True).exists() for ref in bundle.manifest.files())


def test_bundles_are_found_as_before(tmp_path: Path) -> None:
    bundle = graphs.bundle(graphs.pixels(), tmp_path / "bundle")
    assert ready.find(bundle.folder).manifest == bundle.manifest
    with pytest.raises(BundleNotFound):
        ready.find(tmp_path / "missing.onnx")


def test_the_batch_is_an_axis_along_which_samples_do_not_depend_on_each_other(tmp_path: Path) -> None:
    x = [("x", "float32", ["n", 3])]
    apart = graphs.make([graphs.node("Relu", "x", "y")], x, [("y", "float32", ["n", 3])])
    assert opened(apart, tmp_path).signature.batch == "n"
    mixed = graphs.make(
        [graphs.node("ReduceMean", "x first", "mean"), graphs.node("Sub", "x mean", "y")],
        x,
        [("y", "float32", ["n", 3])],
        {"first": np.array([0])},
    )
    assert opened(mixed, tmp_path).signature.batch is None
    whole = graphs.make([graphs.node("ReduceSum", "x", "y", keepdims=0)], x, [("y", "float32", [])])
    assert opened(whole, tmp_path).signature.batch is None


def test_outputs_that_the_graph_does_not_tell_get_the_axes_that_they_follow(tmp_path: Path) -> None:
    model = graphs.make(
        [
            graphs.node("Relu", "x", "same"),
            graphs.node("Concat", "x x", "twice", axis=1),
            graphs.node("ReduceSum", "x last", "sum", keepdims=0),
        ],
        [("x", "float32", [None, None])],
        [("same", "float32", [None, None]), ("twice", "float32", ["batch", "x_1"]), ("sum", "float32", None)],
        {"last": np.array([1])},
    )
    del model.graph.value_info[:]
    signature = opened(model, tmp_path).signature
    assert signature.input("x").shape == ("batch", "x_1")
    assert signature.output("same").shape == ("batch", "x_1")
    assert signature.output("twice").shape == ("batch", "twice_1")
    assert signature.output("sum").shape == ("batch",)
    assert signature.batch == "batch"


def test_an_output_that_varies_is_found_out(tmp_path: Path) -> None:
    bundle = opened(graphs.nonzero(), tmp_path)
    assert bundle.signature.output("places").varies
    assert bundle.signature.batch is None


def test_sizes_that_the_model_accepts_are_found(tmp_path: Path) -> None:
    weight = np.ones((1, 1, 48, 48), np.float32)
    model = graphs.make(
        [graphs.node("Conv", "x weight", "y")],
        [("x", "float32", ["batch", 1, "height", "width"])],
        [("y", "float32", ["batch", 1, None, None])],
        {"weight": weight},
    )
    signature = opened(model, tmp_path).signature
    assert signature.axes["height"].typical[0] >= 48
    assert signature.axes["batch"].typical == (1, 8)


def test_an_axis_that_works_at_one_size_alone_is_held_to_it(tmp_path: Path) -> None:
    model = graphs.make(
        [graphs.node("Reshape", "x shape", "y")],
        [("x", "float32", ["batch", "width"])],
        [("y", "float32", ["batch", 8, 8])],
        {"shape": np.array([-1, 8, 8])},
    )
    narrow = graphs.make(
        [graphs.node("MatMul", "x weight", "y")],
        [("x", "float32", ["batch", "width"])],
        [("y", "float32", ["batch", 2])],
        {"weight": np.ones((100, 2), np.float32)},
    )
    assert opened(model, tmp_path).signature.batch is None  # 64 values make a row, wherever they come from
    axis = opened(narrow, tmp_path).signature.axes["width"]
    assert (axis.least, axis.most, axis.typical) == (100, 100, (100,))


def rate() -> onnx.ModelProto:
    """A scalar that must be 8000 or 16000, or an index is out of range."""
    table = np.zeros(3, np.float32)
    return graphs.make(
        [
            graphs.node("Div", "hertz unit", "index"),
            graphs.node("Sub", "index one", "place"),
            graphs.node("Gather", "table place", "gain"),
            graphs.node("Mul", "x gain", "y"),
        ],
        [("x", "float32", ["batch", 4]), ("hertz", "int64", [])],
        [("y", "float32", ["batch", 4])],
        {"table": table, "unit": np.array(4000), "one": np.array(4)},
    )


def test_values_that_the_model_accepts_are_found_and_the_source_says_which(tmp_path: Path) -> None:
    (golden, *_) = opened(rate(), tmp_path).golden()
    assert golden.inputs["hertz"] == 16000
    assert "sampling rate" in golden.source
    logarithm = graphs.make(
        [graphs.node("Log", "x", "y")], [("x", "float32", ["batch", 50])], [("y", "float32", ["batch", 50])]
    )
    (golden,) = opened(logarithm, tmp_path).golden()
    assert "from 0 to 1" in golden.source
    (golden, *_) = opened(graphs.sentences(vocabulary=1), tmp_path).golden()
    assert not golden.inputs["ids"].any()
    assert golden.source == f"{SEEDED}; whole numbers are 0"


def test_a_model_that_accepts_nothing_is_described_all_the_same(tmp_path: Path) -> None:
    model = graphs.make(
        [graphs.node("Gather", "table place", "y")],
        [("place", "int64", [1])],
        [("y", "float32", [1])],
        {"table": np.zeros(0, np.float32)},
    )
    bundle = opened(model, tmp_path)
    assert bundle.signature.described() == {"place": "int64 [1]"}
    with pytest.raises(
        BundleInvalid, match=r"no inputs that model\.onnx accepts: ONNX Runtime could not run 1 sample"
    ) as caught:
        bundle.golden()
    assert "--samples" in caught.value.hint


@pytest.mark.parametrize("data", [b"", b"not a model", b"\x08\x0a" * 50, b"\x08\x08\x3a\x05ab", b"\xff" * 64])
def test_what_is_no_model_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    with pytest.raises(BundleInvalid):
        ready.find(path)


def test_weights_beside_it_belong_to_it(tmp_path: Path) -> None:
    path = graphs.save_beside(graphs.pixels(), tmp_path / "model.onnx")
    bundle = ready.find(path)
    (data,) = bundle.variant().data
    assert data.file == "model.data"
    assert bundle.model(bundle.variant()) == path
    with registry.open_runner("onnxruntime", bundle, bundle.variant(), RunnerOptions()) as runner:
        assert runner.run(bundle.golden()[0].inputs)["logits"].shape == (8, 3)
    altered = bytearray((tmp_path / "model.data").read_bytes())
    altered[0] ^= 1
    (tmp_path / "model.data").write_bytes(altered)
    with pytest.raises(BundleInvalid, match="was altered"):
        bundle.model(bundle.variant())


@pytest.mark.parametrize("location", ["../secret", "/etc/hostname", ""])
def test_weights_that_lie_elsewhere_are_refused(tmp_path: Path, location: str) -> None:
    path = graphs.save_beside(graphs.pixels(), tmp_path / "model.onnx")
    model = onnx.load(path, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = location
    path.write_bytes(model.SerializeToString())
    with pytest.raises(BundleInvalid, match="not a plain file name"):
        ready.find(path)


def test_weights_of_constants_and_of_inner_graphs_are_seen_too(tmp_path: Path) -> None:
    tensor = onnx.numpy_helper.from_array(np.zeros(3, np.float32), "t")
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret")
    constant = graphs.node("Constant", "", "c", value=tensor)
    branch = onnx.helper.make_graph([constant], "branch", [], [onnx.helper.make_tensor_value_info("c", 1, [3])])
    inner = graphs.node("If", "x", "y", then_branch=branch, else_branch=branch)
    for node, output in ((constant, "c"), (inner, "y")):
        model = graphs.make([node], [("x", "bool", [])], [(output, "float32", [3])])
        path = tmp_path / "model.onnx"
        path.write_bytes(model.SerializeToString())
        assert graph_file.look(path).external == ("../secret",)


@pytest.mark.parametrize(
    ("dtype", "precision"), [("float32", Precision.FP32), ("float16", Precision.FP16), ("int8", Precision.INT8)]
)
def test_the_precision_is_that_of_most_weights(tmp_path: Path, dtype: str, precision: Precision) -> None:
    weight: NDArray[np.generic] = np.ones((100, 4), dtype)
    model = graphs.make(
        [graphs.node("Cast", "weight", "real", to=onnx.TensorProto.FLOAT), graphs.node("MatMul", "x real", "y")],
        [("x", "float32", ["batch", 100])],
        [("y", "float32", ["batch", 4])],
        {"weight": weight},
    )
    variant = opened(model, tmp_path).variant()
    assert variant.precision is precision
    # Integers that are made float first are no integer arithmetic.
    assert variant.format is (VariantFormat.WEIGHT_ONLY if dtype == "int8" else VariantFormat.FLOAT)
    assert registry.can_run("onnx-reference", variant)


@pytest.mark.parametrize(("bits", "precision"), [(8, Precision.INT8), (4, Precision.INT4), (None, Precision.INT4)])
def test_weights_in_blocks_have_the_precision_of_their_bits(
    tmp_path: Path, bits: int | None, precision: Precision
) -> None:
    given = {} if bits is None else {"bits": bits}
    model = graphs.make(
        [graphs.node("MatMulNBits", "x q scale", "y", domain="com.microsoft", K=64, N=4, block_size=32, **given)],
        [("x", "float32", ["batch", 64])],
        [("y", "float32", ["batch", 4])],
        {"q": np.ones((4, 2, 32 if bits == 8 else 16), np.uint8), "scale": np.ones((4, 2), np.float32)},
    )
    variant = opened(model, tmp_path).variant()
    assert (variant.precision, variant.format) == (precision, VariantFormat.WEIGHT_ONLY)
    assert registry.can_run("openvino", variant)
    assert not registry.can_run("onnx-reference", variant)


def test_the_format_and_the_domains_are_those_of_its_operators(tmp_path: Path) -> None:
    model = graphs.make(
        [
            graphs.node("DequantizeLinear", "q scale", "real"),
            graphs.node("FusedMatMul", "x real", "y", domain="com.microsoft"),
        ],
        [("x", "float32", ["batch", 100])],
        [("y", "float32", ["batch", 4])],
        {"q": np.ones((100, 4), np.int8), "scale": np.array(0.5, np.float32)},
    )
    variant = opened(model, tmp_path).variant()
    assert variant.format is VariantFormat.QDQ
    assert variant.needs.domains == ("com.microsoft",)
    assert registry.can_run("openvino", variant)


def test_neither_onnx_nor_torch_is_needed(tmp_path: Path) -> None:
    path = saved(graphs.sentences(), tmp_path)
    code = f"""
import sys
sys.modules.update(onnx=None, torch=None, PIL=None, openvino=None)
from kit import ready
from kit.runtime import registry
from kit.runtime.base import RunnerOptions
bundle = ready.find({str(path)!r})
with registry.open_runner("onnxruntime", bundle, bundle.variant(), RunnerOptions()) as runner:
    print(list(runner.run(bundle.golden()[0].inputs)))
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.stdout.strip() == "['tokens', 'sentence']", found.stderr


def test_the_doctor_tries_a_model_in_every_runtime(tmp_path: Path) -> None:
    trials = {(trial.runtime, trial.provider): trial for trial in try_model(opened(graphs.two_by_two(), tmp_path))}
    assert trials["onnxruntime", Provider.CPU].placement == "cpu 2/2"
    assert trials["openvino", Provider.CPU].works
    assert "cannot rebuild" in trials["pytorch", Provider.CPU].reason
    cuda = trials["onnxruntime", Provider.CUDA]
    assert cuda.works or (cuda.reason and cuda.fix)


def test_the_doctor_says_why_a_model_does_not_run(tmp_path: Path) -> None:
    path = saved(graphs.two_by_two(), tmp_path)
    bundle = ready.find(path)
    path.write_bytes(path.read_bytes() + b" ")
    assert all(not trial.works and trial.reason for trial in try_model(bundle))
