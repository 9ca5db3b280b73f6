"""What a page has done: graphs read and refused, heat maps, accuracy counted and kept, programs that run a variant."""

from __future__ import annotations

import dataclasses
import io
import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from apps.demo import counting, explain, graphs, jobs, samples, snippets
from apps.demo.worker import Job
from kit.bundle import Bundle, FileRef, Variant
from kit.bundle.manifest import Quantization
from kit.choices import QuantizationScheme
from kit.errors import BadInput, BundleInvalid, UsageError
from kit.metrics.calibration import confusion, reliability
from kit.tasks.registry import task_of
from kit.tensors import Tensors


def job(asked: dict, arrays: Tensors | None = None, *, state: dict | None = None) -> Job:
    return Job(asked, arrays or {}, {} if state is None else state, lambda _what, _share: None)


def test_a_graph_is_read_with_its_weights_and_drawn(digits: Bundle) -> None:
    found = graphs.read(digits.read(digits.variant("int8-qdq").graph))
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
    model = onnx.load(tiny.path(tiny.variant().graph))
    inner = onnx.helper.make_node("Odd", ["x"], ["y"], domain="evil.example")
    graph = onnx.helper.make_graph([inner], "inner", [], [onnx.helper.make_tensor_value_info("y", 1, [1])])
    model.graph.node.append(onnx.helper.make_node("If", ["c"], ["z"], then_branch=graph, else_branch=graph))
    with pytest.raises(BundleInvalid, match=r"evil\.example"):
        graphs.read(model.SerializeToString())
    model = onnx.load(tiny.path(tiny.variant().graph))
    value = onnx.helper.make_tensor("v", 1, [1], [1.0])
    value.data_location = onnx.TensorProto.EXTERNAL
    model.graph.node.append(onnx.helper.make_node("Constant", [], ["k"], value=value))
    with pytest.raises(BundleInvalid, match="another file"):
        graphs.read(model.SerializeToString())


def test_weights_elsewhere_are_refused_inside_functions_too(tiny: Bundle) -> None:
    model = onnx.load(tiny.path(tiny.variant().graph))
    value = onnx.helper.make_tensor("v", 1, [1], [1.0])
    value.data_location = onnx.TensorProto.EXTERNAL
    inner = onnx.helper.make_node("Constant", [], ["y"], value=value)
    opsets = [onnx.helper.make_opsetid("", 20)]
    model.functions.append(onnx.helper.make_function("com.microsoft", "Inner", [], ["y"], [inner], opsets))
    with pytest.raises(BundleInvalid, match="another file"):
        graphs.read(model.SerializeToString())


def with_weights_in(tiny: Bundle, *locations: str) -> bytes:
    """Return a model whose first weights lie in another file, or say so twice."""
    model = onnx.load(tiny.path(tiny.variant().graph))
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for location in locations:
        tensor.external_data.add(key="location", value=location)
    return model.SerializeToString()


def test_weights_may_lie_in_the_files_that_the_manifest_names_and_in_no_others(tiny: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(with_weights_in(tiny, "fp32-12345678.data"))
    assert (
        graphs.read(path, files=["fp32-12345678.data"]).operators
        == graphs.read(tiny.read(tiny.variant().graph)).operators
    )
    with pytest.raises(BundleInvalid, match=r"another file: 'fp32-12345678\.data', which its manifest does not name"):
        graphs.read(path)
    for wrong in (("../fp32-12345678.data",), ("/etc/passwd",), ("fp32-12345678.data", "/etc/passwd"), ()):
        with pytest.raises(BundleInvalid, match="another file"):
            graphs.read(with_weights_in(tiny, *wrong), files=["fp32-12345678.data"])


def test_a_large_graph_is_drawn_in_part() -> None:
    names = [f"{'x' * 500}{index}" for index in range(1002)]
    nodes = [onnx.helper.make_node("Relu", [a], [b], name="n" * 5000) for a, b in itertools.pairwise(names)]
    ends = [onnx.helper.make_tensor_value_info(name, 1, [1]) for name in (names[0], names[-1])]
    model = onnx.helper.make_model(onnx.helper.make_graph(nodes, "long", ends[:1], ends[1:]))
    found = graphs.read(model.SerializeToString())
    assert found.operators == {"Relu": 1001}
    dot = found.dot()
    assert "and 801 more" in dot
    assert dot.count(" -> ") == graphs.MOST_DRAWN
    assert len(dot) < 100_000


@pytest.mark.parametrize(
    ("shape", "quarter"),
    [((28, 28), np.s_[:14, :14]), ((3, 28, 28), np.s_[:, :14, :14]), ((28, 28, 3), np.s_[:14, :14])],
)
def test_heat_lies_where_the_answer_rests(shape: tuple[int, ...], quarter: tuple) -> None:
    """A model that looks at one quarter of the picture alone."""

    def run(pictures: np.ndarray) -> np.ndarray:
        lit = np.stack([one[quarter].mean() for one in pictures]) / 255
        return np.stack([lit, 1 - lit], axis=1).astype(np.float32)

    found = explain.occlusion(run, np.full(shape, 255, np.uint8))
    assert found.label == 0
    assert found.heat.shape == (28, 28)
    assert found.heat[:12, :12].min() > 0
    assert np.abs(found.heat[17:, 17:]).max() < 1e-6
    assert found.patches == explain.how_many(shape, "uint8")
    with pytest.raises(UsageError, match="height and width"):
        explain.occlusion(run, np.zeros(784, np.uint8))


def test_large_pictures_are_covered_by_larger_patches() -> None:
    assert explain.patches((28, 28), "uint8") == {"patch": 5, "stride": 2, "fill": 0}
    assert explain.patches((3, 224, 224), "uint8") == {"patch": 40, "stride": 16, "fill": 128}
    assert explain.how_many((3, 224, 224), "uint8") < 300


def test_accuracy_is_counted_and_kept(digits: Bundle, cache: Path) -> None:
    asked = {"path": str(digits.folder), "dataset": "digits"}
    assert jobs_names(digits) == ["digits", counting.GOLDEN]
    assert counting.count(job({**asked, "only_kept": True})).told == {"kept": False}
    counted = counting.count(job(asked))
    labels, answers, sure = (counted.arrays[name] for name in ("labels", "answers", "sure"))
    numbers, pictures = counted.arrays["numbers"], counted.arrays["pictures"]
    published = {variant.id: variant.score("top-1") for variant in digits.variants}
    for told, own in zip(counted.told["variants"], answers, strict=True):
        assert told["scores"][0]["metric"] == "top-1"
        assert told["scores"][0]["value"] == pytest.approx((own == labels).mean())
        assert (own == labels).sum() == published[told["variant"]].correct
        assert {"agreement", "cosine", "max-error"} <= {score["metric"] for score in told["scores"]}
    assert counted.told["against"] == "labels"
    assert counted.told["kept"] is False
    assert set(np.flatnonzero((answers != labels).any(axis=0))) <= set(numbers.tolist())
    assert pictures.shape == (len(numbers), 28, 28)
    counts = confusion(labels, answers[0], 10)
    assert counts.sum() == len(labels)
    assert np.trace(counts) == (answers[0] == labels).sum()
    bins = reliability(sure[0], answers[0] == labels)
    assert sum(one.samples for one in bins) == len(labels)
    (kept,) = (cache.parent / "counted").glob("*.npz")
    again = counting.count(job({**asked, "only_kept": True}))
    assert again.told == {**counted.told, "kept": True}
    assert all(np.array_equal(again.arrays[name], one) for name, one in counted.arrays.items())
    kept.write_bytes(kept.read_bytes()[:100])
    assert counting.count(job({**asked, "only_kept": True})).arrays == {}


def jobs_names(bundle: Bundle) -> list[str]:
    return counting.datasets(job({"path": str(bundle.folder)}))["names"]


def test_without_labels_the_originals_answers_are_what_counts(duo: Bundle, cache: Path) -> None:  # noqa: ARG001
    assert jobs_names(duo) == [counting.GOLDEN]
    counted = counting.count(job({"path": str(duo.folder), "dataset": counting.GOLDEN}))
    (variant,) = counted.told["variants"]
    scores = {score["metric"]: score["value"] for score in variant["scores"]}
    assert scores["cosine"] == pytest.approx(1.0)
    assert scores["max-error"] < 1e-4
    assert counted.told["against"] == "the original"
    assert counted.arrays == {}


def test_another_models_data_is_refused(tiny: Bundle, cache: Path) -> None:  # noqa: ARG001
    with pytest.raises(UsageError, match=r"digits holds|8, 8"):
        counting.count(job({"path": str(tiny.folder), "dataset": "digits"}))
    with pytest.raises(UsageError, match="no data set of this model"):
        counting.count(job({"path": str(tiny.folder), "dataset": str(tiny.folder)}))


def test_contestants_are_opened_once_and_asked(digits: Bundle) -> None:
    state: dict = {}
    asked = {"path": str(digits.folder), "runtimes": ["onnxruntime"]}
    opened = jobs.open_bundle(job(asked, state=state))["contestants"]
    assert [one["variant"] for one in opened] == ["fp32", "int8-qdq", "int8-dynamic"]
    assert all(one["provider"] == "cpu" and not one["problem"] for one in opened)
    first = state["stand"]
    jobs.open_bundle(job(asked, state=state))
    assert all(a is b for a, b in zip(state["stand"], first, strict=True))
    which = {"path": str(digits.folder), "number": 3}
    drawn = jobs.sample(job(which, state=state))
    assert "digits test sample" in drawn.told["source"]
    answer = jobs.predict(job({"kind": "sample", **which}, state=state))
    assert answer.told["kind"] == "classes"
    names = answer.told["classes"]
    assert {names[one["label"]] for one in answer.told["answers"]} == {drawn.told["right"]}
    assert [answer.arrays[f"probabilities {number}"].shape for number in range(3)] == [(1, 10)] * 3
    assert np.array_equal(answer.arrays["input pixels"], drawn.arrays["pixels"])
    heat = jobs.occlude(job({"number": 0}, drawn.arrays, state=state)).arrays["heat"]
    assert heat.shape == (28, 28)


def as_file(**arrays: np.ndarray) -> dict[str, np.ndarray]:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return {"file": np.frombuffer(buffer.getvalue(), np.uint8)}


def test_tensors_are_asked_about_and_compared(duo: Bundle) -> None:
    state: dict = {}
    jobs.open_bundle(job({"path": str(duo.folder), "runtimes": ["onnxruntime", "openvino"]}, state=state))
    golden = {"path": str(duo.folder), "number": 1, "golden": True}
    drawn = jobs.sample(job(golden, state=state))
    assert drawn.told == {"source": "golden sample 1", "right": ""}
    assert set(drawn.arrays) == {"ids", "numbers"}
    answer = jobs.predict(job({"kind": "sample", **golden}, state=state))
    assert answer.told["kind"] == "tensors"
    assert answer.told["against"] == "the original"
    for one in answer.told["answers"]:
        assert [each["name"] for each in one["outputs"]] == ["scores", "vectors"]
        assert max(each["max_abs_error"] for each in one["fidelity"]) < 1e-4
    own = as_file(ids=np.zeros((2, 7), np.int64), numbers=np.ones((2, 3), np.float32))
    answer = jobs.predict(job({"kind": "file"}, own, state=state))
    assert answer.told["against"].startswith("fp32")
    assert answer.told["answers"][0]["outputs"][1]["shape"] == [2, 7, 6]
    for wrong, match in (
        (as_file(ids=np.zeros((2, 7), np.int64)), "lacks the input 'numbers'"),
        (as_file(ids=np.zeros((2, 7), np.int32), numbers=np.ones((2, 3), np.float32)), "ids must be int64"),
        ({"file": np.zeros(9, np.uint8)}, "no named arrays"),
    ):
        with pytest.raises(BadInput, match=match):
            jobs.predict(job({"kind": "file"}, wrong, state=state))


def test_a_file_that_unpacks_into_too_much_is_refused(duo: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "MOST_BYTES", 1000)
    with pytest.raises(BadInput, match="more than the 1,000 that are allowed"):
        samples.from_file(as_file(ids=np.zeros((50, 50), np.int64))["file"].tobytes(), duo.signature)


def test_a_ready_model_is_asked_and_scored(duo: Bundle, cache: Path) -> None:  # noqa: ARG001
    path = str(duo.path(duo.variant().graph))
    state: dict = {}
    (opened,) = jobs.open_bundle(job({"path": path, "runtimes": ["onnxruntime"]}, state=state))["contestants"]
    assert opened["variant"] == "model"
    answer = jobs.predict(job({"kind": "sample", "path": path, "number": 0, "golden": True}, state=state))
    assert answer.told["answers"][0]["fidelity"]
    assert counting.count(job({"path": path, "dataset": counting.GOLDEN}, state=state)).told["samples"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("program", [snippets.with_kit, snippets.with_onnxruntime])
@pytest.mark.parametrize("name", ["digits", "duo"])
def test_the_lines_that_are_shown_run(name: str, program, request: pytest.FixtureRequest) -> None:
    bundle: Bundle = request.getfixturevalue(name)
    variant = bundle.variants[-1]
    if program is snippets.with_onnxruntime:
        code = program(bundle, variant)
        assert "kit" not in code
        folder = bundle.folder
    else:
        code = program(bundle, variant, example='"photo.png"' if name == "digits" else "")
        code = "\n".join(line for line in code.splitlines() if "photo.png" not in line)
        folder = bundle.folder.parent
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_the_lines_of_a_task_run_on_a_picture(digits: Bundle) -> None:
    golden = digits.golden()[0]
    Image.fromarray(golden.inputs["pixels"][0]).save(digits.folder / "picture.png")
    code = snippets.of_task(task_of(digits), digits.variant("fp32"))
    line = [sys.executable, "-P", "-c", code]
    done = subprocess.run(line, cwd=digits.folder, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == str(golden.expected["logits"][0].argmax()), done.stderr


def test_a_program_says_what_it_takes_and_which_files_it_needs(duo: Bundle) -> None:
    ref = FileRef(file="fp32-00000000.data", sha256="0" * 64, size_bytes=1)
    variant: Variant = dataclasses.replace(duo.variant(), data=(ref,))
    code = snippets.with_onnxruntime(duo, variant)
    assert "fp32-00000000.data must lie beside" in code
    assert "'ids': np.zeros((1, 5), np.int64),  # [batch, sequence], 0 to 10" in code
    assert "'numbers': np.zeros((1, 3), np.float32),  # [batch, 3]" in code


@pytest.mark.parametrize(("bits", "is_said"), [(7, False), (8, True)])
def test_a_program_says_where_weights_of_eight_bits_saturate(duo: Bundle, bits: int, is_said: bool) -> None:
    record = Quantization(
        scheme=QuantizationScheme.STATIC,
        activation_dtype="uint8",
        weight_dtype="int8",
        weight_bits=bits,
        per_channel=True,
        layers_quantized=1,
        layers_total=1,
    )
    code = snippets.with_onnxruntime(duo, dataclasses.replace(duo.variant(), quantization=record))
    assert ("session.x64quantprecision" in code) is is_said
