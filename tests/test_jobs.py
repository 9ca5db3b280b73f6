"""What a page has done: graphs read and refused, heat maps, accuracy counted and kept, programs that run a variant."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from apps.demo import explain, graphs, jobs, snippets
from apps.demo.worker import Job
from kit.accuracy import confusion, reliability
from kit.bundle import Bundle
from kit.errors import BundleInvalid, UsageError


def job(asked: dict, *arrays: np.ndarray, state: dict | None = None) -> Job:
    return Job(asked, arrays, {} if state is None else state, lambda _what, _share: None)


def test_a_graph_is_read_with_its_weights_and_drawn(digits: Bundle) -> None:
    found = graphs.read(digits.read(digits.variant("int8-qdq").artifact))
    assert found.operators["Gemm"] + found.operators.get("MatMul", 0) == 4
    assert found.inputs == ("pixels uint8 [batch, 28, 28]",)
    assert found.outputs[0].startswith("logits float")
    gemm = next(node for node in found.nodes if node.operator == "Gemm")
    assert "int8 784x512" in gemm.weights
    dot = found.dot()
    assert dot.startswith("digraph")
    assert "int8 784x512" in dot
    assert sum(node.makes_weights for node in found.nodes) >= 4
    drawn = [line for line in dot.splitlines() if line.startswith("n") and "label=" in line and "->" not in line]
    assert len(drawn) == sum(not node.makes_weights for node in found.nodes)


@pytest.mark.parametrize("data", [b"", b"no onnx", b"\x08\x01"])
def test_what_is_no_graph_is_refused(data: bytes) -> None:
    with pytest.raises(BundleInvalid, match="no ONNX file"):
        graphs.read(data)


def test_weights_elsewhere_and_foreign_operators_are_refused_in_subgraphs_too(tiny: Bundle) -> None:
    model = onnx.load(tiny.path(tiny.variant().artifact))
    inner = onnx.helper.make_node("Odd", ["x"], ["y"], domain="evil.example")
    graph = onnx.helper.make_graph([inner], "inner", [], [onnx.helper.make_tensor_value_info("y", 1, [1])])
    model.graph.node.append(onnx.helper.make_node("If", ["c"], ["z"], then_branch=graph, else_branch=graph))
    with pytest.raises(BundleInvalid, match=r"evil\.example"):
        graphs.read(model.SerializeToString())
    model = onnx.load(tiny.path(tiny.variant().artifact))
    value = onnx.helper.make_tensor("v", 1, [1], [1.0])
    value.data_location = onnx.TensorProto.EXTERNAL
    model.graph.node.append(onnx.helper.make_node("Constant", [], ["k"], value=value))
    with pytest.raises(BundleInvalid, match="another file"):
        graphs.read(model.SerializeToString())


def test_weights_elsewhere_are_refused_inside_functions_too(tiny: Bundle) -> None:
    model = onnx.load(tiny.path(tiny.variant().artifact))
    value = onnx.helper.make_tensor("v", 1, [1], [1.0])
    value.data_location = onnx.TensorProto.EXTERNAL
    inner = onnx.helper.make_node("Constant", [], ["y"], value=value)
    opsets = [onnx.helper.make_opsetid("", 20)]
    model.functions.append(onnx.helper.make_function("com.microsoft", "Inner", [], ["y"], [inner], opsets))
    with pytest.raises(BundleInvalid, match="another file"):
        graphs.read(model.SerializeToString())


def test_heat_lies_where_the_answer_rests() -> None:
    """A model that looks at one quarter of the picture alone."""

    def run(pixels: np.ndarray) -> np.ndarray:
        lit = pixels[:, :14, :14].reshape(len(pixels), -1).mean(axis=1) / 32
        return np.stack([lit, 4 - lit], axis=1).astype(np.float32)

    found = explain.occlusion(run, np.full((28, 28), 255, np.uint8))
    assert found.label == 0
    assert found.heat.shape == (28, 28)
    assert found.heat[:12, :12].min() > 0
    assert np.abs(found.heat[16:, 16:]).max() < 1e-6
    with pytest.raises(UsageError, match="height and width"):
        explain.occlusion(run, np.zeros(784, np.uint8))


def test_accuracy_is_counted_and_kept(digits: Bundle, cache: Path) -> None:
    asked = {"path": str(digits.folder), "dataset": "digits"}
    assert jobs.count(job({**asked, "only_kept": True})).arrays == ()
    counted = jobs.count(job(asked))
    labels, answers, sure, numbers, pictures = counted.arrays
    published = {variant.id: variant.accuracy for variant in digits.variants}
    for told, own in zip(counted.told["variants"], answers, strict=True):
        assert (own == labels).sum() == told["accuracy"]["correct"] == published[told["variant"]].correct
    assert counted.told["kept"] is False
    assert set(np.flatnonzero((answers != labels).any(axis=0))) <= set(numbers.tolist())
    assert pictures.shape == (len(numbers), 28, 28)
    counts = confusion(labels, answers[0], 10)
    assert counts.sum() == len(labels)
    assert np.trace(counts) == (answers[0] == labels).sum()
    bins = reliability(sure[0], answers[0] == labels)
    assert sum(one.images for one in bins) == len(labels)
    (kept,) = (cache.parent / "counted").glob("*.npz")
    again = jobs.count(job({**asked, "only_kept": True}))
    assert again.told["kept"] is True
    assert all(np.array_equal(a, b) for a, b in zip(again.arrays, counted.arrays, strict=True))
    kept.write_bytes(kept.read_bytes()[:100])
    assert jobs.count(job({**asked, "only_kept": True})).arrays == ()


def test_another_models_data_is_refused(tiny: Bundle, cache: Path) -> None:  # noqa: ARG001
    with pytest.raises(UsageError, match="digits has images"):
        jobs.count(job({"path": str(tiny.folder), "dataset": "digits"}))


def test_contestants_are_opened_once_and_asked(digits: Bundle) -> None:
    state: dict = {}
    asked = {"path": str(digits.folder), "runtimes": ["onnxruntime"]}
    opened = jobs.open_bundle(job(asked, state=state))["contestants"]
    assert [one["variant"] for one in opened] == ["fp32", "int8-qdq", "int8-dynamic"]
    assert all(one["provider"] == "cpu" and not one["problem"] for one in opened)
    first = state["stand"]
    jobs.open_bundle(job(asked, state=state))
    assert all(a is b for a, b in zip(state["stand"], first, strict=True))
    drawn = jobs.sample(job({"path": str(digits.folder), "number": 3}, state=state))
    assert "digits test image" in drawn.told["source"]
    answer = jobs.predict(job({"kind": "pixels"}, drawn.arrays[0], state=state))
    assert {one["label"] for one in answer.told["answers"]} == {drawn.told["label"]}
    assert answer.arrays[1].shape == (3, 10)
    heat = jobs.occlude(job({"number": 0}, drawn.arrays[0], state=state)).arrays[0]
    assert heat.shape == (28, 28)


@pytest.mark.parametrize("program", [snippets.with_kit, snippets.with_onnxruntime])
def test_the_lines_that_are_shown_run(digits: Bundle, program) -> None:
    code = program(digits, digits.variant("int8-qdq"))
    if program is snippets.with_onnxruntime:
        assert "kit" not in code
        folder = digits.folder
    else:
        code = "\n".join(line for line in code.splitlines() if "photo.png" not in line)
        folder = digits.folder.parent
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout
