"""LiteRT computes what ONNX Runtime computes of dense layers, from the same integers; other networks it refuses in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import kit
from kit.bundle import Bundle, find, open_folder
from kit.choices import Provider
from kit.errors import BundleInvalid, Unavailable, UsageError
from kit.ready import open_ready
from kit.runtime import registry
from kit.runtime.base import RunnerOptions, run_in_batches
from kit.verify import judged

from .conftest import Kit

pytest.importorskip("ai_edge_litert")


def opened(bundle: Bundle, variant: str | None = None, *, runtime: str = "litert", threads: int = 1) -> Any:
    return registry.open_runner(runtime, bundle, bundle.variant(variant), RunnerOptions(threads=threads))


@pytest.mark.parametrize("variant", ["fp32", "int8-qdq", "int8-pixel"])
def test_the_published_variants_answer_as_promised(variant: str) -> None:
    bundle = find("mnist-mlp")
    with opened(bundle, variant) as runner:
        answers = [runner.run(group.inputs) for group in bundle.golden()]
    assert judged(bundle, bundle.variant(variant), bundle.golden(), answers).passed


@pytest.mark.parametrize("variant", ["int8-qdq", "int8-pixel"])
def test_integers_are_the_same_as_in_onnx_runtime(variant: str) -> None:
    bundle = find("mnist-mlp")
    pixels = {"pixels": bundle.golden()[0].inputs["pixels"]}
    with opened(bundle, variant) as one, opened(bundle, variant, runtime="onnxruntime") as other:
        found, wanted = one.run(pixels)["logits"], other.run(pixels)["logits"]
    step = np.abs(wanted).max() / 255
    assert np.abs(found - wanted).max() < 4 * step  # where a sum lies between two integers, the two may round apart
    assert np.abs(found - wanted).mean() < 0.02 * step


@pytest.mark.parametrize("count", [1, 3, 64])
def test_any_number_of_samples_is_answered(quantized: Bundle, count: int) -> None:
    pixels = {"pixels": np.random.default_rng(0).integers(0, 256, (count, 28, 28), np.uint8)}
    for variant in quantized.variants:
        if not registry.can_run("litert", variant) or variant.precision.value == "fp16":
            continue
        with opened(quantized, variant.id) as one, opened(quantized, variant.id, runtime="onnxruntime") as other:
            found, wanted = one.run(pixels)["logits"], other.run(pixels)["logits"]
        assert found.shape == wanted.shape
        assert np.abs(found - wanted).max() <= 0.02 * np.abs(wanted).max(), variant.id


def test_bound_buffers_are_read_and_written() -> None:
    bundle = find("mnist-mlp")
    pixels = bundle.golden()[0].inputs["pixels"]
    with opened(bundle, "int8-pixel") as runner:
        wanted = runner.run({"pixels": pixels})["logits"]
        bound = runner.bind({"batch": 1})
        for place in range(8):
            assert np.array_equal(bound.run(pixels[place : place + 1])[0], wanted[place])
        bound.inputs["pixels"][:] = pixels[:1]
        bound.compute()
        assert np.array_equal(bound.outputs["logits"][0], wanted[0])
        with runner.share() as other:
            assert np.array_equal(other.run({"pixels": pixels[:1]})["logits"][0], wanted[0])
    with pytest.raises(UsageError, match="closed"):
        runner.run({"pixels": pixels[:2]})


def test_rows_of_a_table_are_answered(scores: Path) -> None:
    bundle = open_folder(scores)
    with kit.load(scores, runtime="litert") as engine:
        values = engine.predict([{"age": 40, "smoker": "yes"}, {"age": 20, "smoker": "no"}]).values
    with opened(bundle, runtime="onnxruntime") as other:
        wanted = other.run({"features": np.array([[40, 1], [20, 0]], np.float32)})["score"]
    assert np.allclose(values.ravel(), wanted.ravel(), rtol=1e-5)


def saved(folder: Path, nodes: list[Any], constants: dict[str, np.ndarray], shape: tuple[Any, ...]) -> Bundle:
    graph = helper.make_graph(
        nodes, "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *shape])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(onnx.shape_inference.infer_shapes(model), folder / "network.onnx")
    return open_ready(folder / "network.onnx")


@pytest.mark.parametrize("activation", ["Relu", "Tanh", "Sigmoid", "Softmax"])
def test_activations_are_those_of_onnx(tmp_path: Path, activation: str) -> None:
    random = np.random.default_rng(1)
    constants = {"w": random.normal(size=(6, 5)).astype(np.float32), "v": random.normal(size=(3, 5)).astype(np.float32),
                 "b": random.normal(size=5).astype(np.float32)}  # fmt: skip
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Add", ["h", "b"], ["i"]),
             helper.make_node(activation, ["i"], ["j"]), helper.make_node("Gemm", ["j", "v"], ["y"], transB=1)]  # fmt: skip
    bundle = saved(tmp_path, nodes, constants, (6,))
    x = {"x": random.normal(size=(4, 6)).astype(np.float32)}
    with opened(bundle) as one, opened(bundle, runtime="onnxruntime") as other:
        assert np.allclose(run_in_batches(one, x)["y"], other.run(x)["y"], atol=1e-5)


def test_what_is_more_than_dense_layers_is_refused_in_words(tmp_path: Path, duo: Bundle) -> None:
    constants = {"w": np.ones((2, 1, 3, 3), np.float32)}
    bundle = saved(tmp_path, [helper.make_node("Conv", ["x", "w"], ["y"])], constants, (1, 8, 8))
    with pytest.raises(Unavailable, match="dense layers alone here, and this one has Conv"):
        opened(bundle)
    with pytest.raises(Unavailable, match="several inputs"):
        opened(duo)


def test_other_providers_are_refused() -> None:
    bundle = find("mnist-mlp")
    with pytest.raises(Unavailable, match="on the CPU only"):
        registry.open_runner("litert", bundle, bundle.variant("fp32"), RunnerOptions(provider=Provider.CUDA))


def test_a_file_that_is_none_is_said_to_be() -> None:
    from kit.runtime.litert import _opened

    with pytest.raises(BundleInvalid, match="LiteRT does not accept"):
        _opened(b"nothing of the kind", 1)


@pytest.mark.slow
def test_nothing_is_said_by_the_library_itself(kit: Kit) -> None:
    done = kit("verify", "mnist-mlp", "--runtime", "litert")
    assert done.returncode == 0, done.stderr
    assert "TensorFlow" not in done.stderr
    assert "int8-pixel in litert" in done.stdout
