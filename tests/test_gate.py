"""The gate: what is wrong is refused with the figure that shows it, whatever the model takes and gives."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from exporters import candidates, gate, request, workbench
from exporters.candidates import Candidate
from exporters.formats.base import Source
from exporters.formats.int8 import quantize_dynamic
from exporters.gate import Passed, answer, check_border, check_file
from exporters.options import ExportOptions
from exporters.pipeline import make
from exporters.sizes import Movement
from kit.choices import VariantFormat
from kit.errors import GateFailed, UsageError
from kit.runtime.onnxruntime import OnnxRuntimeRunner
from kit.samples import Samples, Splits
from kit.tensors import Axis, Signature, TensorSpec
from tests.helpers.originals import OnnxOriginal, dense, graph, noise, source_of, vectors

INT8 = ExportOptions(precisions=("int8",))


def splits(signature: Signature, train: Samples, *, seed: int = 1) -> Splits:
    """Unlabelled data whose training samples are given."""
    return Splits(
        dataset="noise",
        train=(train,),
        validation=(noise(signature, 200, seed=seed),),
        test=(noise(signature, 200, seed=seed + 1),),
    )


def export(
    model: onnx.ModelProto, signature: Signature, folder: Path, options: ExportOptions, **about: object
) -> tuple[Passed, ...]:
    bench = workbench.of(OnnxOriginal(model, signature), folder, opset=20, max_loss=options.max_loss, **about)
    return make(bench, options, lambda _: None)


def test_what_came_as_it_is_asked_for_is_left_as_it_is_and_that_is_said(tmp_path: Path) -> None:
    model, signature = dense((16, 8, 3))
    options = ExportOptions(precisions=("int8",), quantization="dynamic")
    (only,) = export(quantize_dynamic(model).model, signature, tmp_path, options)
    assert only.variant.id == "int8-dynamic"
    assert only.remarks == ("the model came like this, and is left as it is",)


def alone(
    node: str, signature: Signature, *, weights: dict[str, np.ndarray] | None = None, **about: object
) -> onnx.ModelProto:
    """A model of one node."""
    names = [spec.name for spec in signature.inputs] + list(weights or {})
    return graph([helper.make_node(node, names, ["y"], **about)], weights or {}, signature)


def test_a_regression_whose_int8_answers_hardly_vary_is_refused_with_its_r2(tmp_path: Path) -> None:
    """One output: its highest value is always the original's, and nothing that looks for classes would see anything."""
    model, signature = dense((8, 64, 64, 1))
    train = noise(signature, 200)
    train.inputs["x"][0] *= 300.0  # an outlier takes all the steps of the activations
    golden = (noise(signature, 100, seed=7),)
    with pytest.raises(GateFailed, match=r"int8-qdq has r2 of 'y'") as caught:
        export(model, signature, tmp_path, INT8, data=splits(signature, train), golden=golden)
    assert "on golden samples (100 samples)" in str(caught.value)
    assert "allowed 0.05" in str(caught.value)
    named = float(str(caught.value).split("r2 of 'y' ")[1].split()[0])
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    source = Source(path=path, folder=tmp_path, signature=signature, train=(train,), dataset="noise")
    (recipe,) = candidates.recipes(INT8)
    exact, found = (run(one, golden[0]) for one in (path, recipe.make(source).files.path))
    assert named == pytest.approx(1 - ((found - exact) ** 2).sum() / ((exact - exact.mean()) ** 2).sum(), abs=1e-3)
    assert named < 0.5


def run(path: Path, samples: Samples) -> np.ndarray:
    with OnnxRuntimeRunner(path) as runner:
        return runner.run(samples.inputs)["y"]


def test_a_regression_that_is_calibrated_well_passes_and_says_how_well(tmp_path: Path) -> None:
    model, signature = dense((8, 64, 64, 1))
    _, int8 = export(model, signature, tmp_path, INT8, data=splits(signature, noise(signature, 200)))
    scores = {(score.metric, score.split): score for score in int8.variant.scores}
    assert scores["r2", "test"].value > 0.98
    assert scores["cosine", "validation"].value > 0.99
    assert int8.samples == "noise test"


def test_an_output_beside_the_one_that_a_metric_reads_is_held_to_the_original_as_well(tmp_path: Path) -> None:
    """Scores for classes that are right do not excuse a second output that is not."""
    signature = Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", 8)),),
        outputs=tuple(TensorSpec(name=name, dtype="float32", shape=("batch", 4)) for name in ("logits", "vector")),
        axes={"batch": Axis(typical=(1, 8))},
    )
    rng = np.random.default_rng(0)
    weights = {f"{name}.weight": rng.standard_normal((8, 4)).astype(np.float32) for name in ("a", "b", "c")}
    weights["b.weight"] *= np.float32(1e-3)
    weights["spoilt"] = np.array([1000.0, 0, 0, 0], np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "a.weight"], ["logits"], name="a"),
        helper.make_node("MatMul", ["x", "b.weight"], ["small"], name="b"),
        helper.make_node("Add", ["small", "spoilt"], ["spread"], name="spread"),
        helper.make_node("MatMul", ["spread", "c.square"], ["vector"], name="c"),
    ]
    weights["c.square"] = np.diag([0.0, 1, 1, 1]).astype(np.float32)
    del weights["c.weight"]
    golden = (noise(signature, 64),)
    labels = (weights["a.weight"].T @ golden[0].inputs["x"].T).argmax(axis=0)
    labelled = dataclasses.replace(golden[0], targets={"labels": labels})
    data = Splits(dataset="d", train=golden, validation=(labelled,), test=(labelled,))
    with pytest.raises(GateFailed, match="of 'vector'"):
        export(
            graph(nodes, weights, signature), signature, tmp_path, INT8, data=data, metric="agreement", golden=golden
        )


def test_a_named_metric_decides_and_its_name_unit_and_bar_are_in_the_message(tmp_path: Path) -> None:
    model, signature = dense((8, 32, 3))
    options = ExportOptions(precisions=("int8",), max_loss=1e-7)
    with pytest.raises(GateFailed, match="max-error") as caught:
        export(model, signature, tmp_path, options, data=splits(signature, noise(signature, 200)), metric="max-error")
    assert "allowed 1e-07" in str(caught.value)
    with pytest.raises(UsageError, match="right answers"):
        export(model, signature, tmp_path, options, data=splits(signature, noise(signature, 200)), metric="top-1")
    with pytest.raises(UsageError, match="unknown metric"):
        export(model, signature, tmp_path, options, metric="top-7")


def test_a_model_that_gives_indices_alone_is_held_to_the_originals(tmp_path: Path) -> None:
    signature = dataclasses.replace(vectors(8, 4), outputs=(TensorSpec(name="y", dtype="int64", shape=("batch", 1)),))
    weight = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "layer.weight"], ["scores"], name="layer"),
        helper.make_node("ArgMax", ["scores"], ["y"], axis=1, name="best"),
    ]
    train = noise(signature, 200)
    model = graph(nodes, {"layer.weight": weight}, signature)
    _, int8 = export(model, signature, tmp_path, INT8, data=splits(signature, train))
    assert int8.fidelity[0].agreement is not None
    assert int8.fidelity[0].agreement > 0.95
    train.inputs["x"][0] *= 300.0
    with pytest.raises(GateFailed, match="'y' is the original's in"):
        export(model, signature, tmp_path, INT8, data=splits(signature, train))


def test_a_batch_that_a_squeeze_loses_is_named(tmp_path: Path) -> None:
    signature = Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", 4, 1)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=("batch", 4)),),
    )
    model = alone("Squeeze", signature)
    golden = (dataclasses.replace(noise(signature, 4), expected={"y": noise(signature, 4).inputs["x"][:, :, 0]}),)
    with pytest.raises(GateFailed, match=r"batch=1 y is float32 \[4\].*the batch axis is lost") as caught:
        export(model, signature, tmp_path, ExportOptions(), golden=golden)
    assert "smaller" not in caught.value.hint


def test_what_moves_far_in_a_few_places_only_moves_little_by_its_root_mean_square() -> None:
    """As dynamic int8 does at the padded positions of a text, whose range it takes over the whole batch."""
    moved = np.zeros(1000)
    moved[0] = 5
    assert Movement(0.5).size(moved) == 5
    assert Movement(0.5, is_rms=True).size(moved) < 0.5 < Movement(0.5, is_rms=True).size(np.ones(1000))
    assert Movement(0.5, is_rms=True).size(np.zeros(0)) == 0


@pytest.mark.parametrize(("form", "is_rms"), [("qdq", True), ("qoperator", False), ("float", False)])
def test_close_calls_of_qdq_are_no_dependence_on_neighbours(tmp_path: Path, form: str, is_rms: bool) -> None:
    """What is float between its integers rounds otherwise in another batch; what is all integers or all float may not."""
    model, _ = dense((4, 3))
    path = tmp_path / "made.onnx"
    onnx.save(model, path)
    candidate = dataclasses.replace(candidates.baseline(path), format=VariantFormat.parse(form))
    assert gate._rows(candidate).is_rms is is_rms


@pytest.mark.parametrize("share", [1.0, 0.03])
def test_samples_that_depend_on_their_neighbours_are_refused_and_the_way_out_is_named(
    tmp_path: Path, share: float
) -> None:
    signature = vectors(3, 3)
    weights = {"axes": np.array([0], np.int64), "share": np.array(share, np.float32)}
    nodes = [
        helper.make_node("ReduceMean", ["x", "axes"], ["mean"]),
        helper.make_node("Mul", ["mean", "share"], ["some"]),
        helper.make_node("Sub", ["x", "some"], ["y"]),
    ]
    model = graph(nodes, weights, signature)
    with pytest.raises(GateFailed, match="depend on their neighbours: y moves by") as caught:
        export(model, signature, tmp_path, ExportOptions())
    assert "batch=None" in caught.value.hint
    declared = dataclasses.replace(signature, batch=None)
    (passed,) = export(model, declared, tmp_path, ExportOptions())
    assert passed.variant.id == "fp32"


def test_answers_that_change_from_call_to_call_are_named(tmp_path: Path) -> None:
    signature = vectors(3, 3)
    nodes = [
        helper.make_node("RandomUniformLike", ["x"], ["random"]),
        helper.make_node("Add", ["x", "random"], ["y"]),
    ]
    with pytest.raises(GateFailed, match="from call to call") as caught:
        export(graph(nodes, {}, signature), signature, tmp_path, ExportOptions())
    assert "evaluation mode" in caught.value.hint


def test_a_size_that_does_not_run_is_named(tmp_path: Path) -> None:
    signature = Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", "sequence")),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=("batch", "sequence")),),
        axes={"sequence": Axis(typical=(5, 9))},
    )
    model = alone("Add", signature, weights={"positions": np.zeros(5, np.float32)})
    with pytest.raises(GateFailed, match="sequence=9") as caught:
        export(model, signature, tmp_path, ExportOptions(), golden=(noise(signature, 4, sequence=5),))
    assert "--axis" in caught.value.hint


def test_an_output_whose_size_depends_on_values_is_found(tmp_path: Path) -> None:
    signature = Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", 3)),),
        outputs=(TensorSpec(name="y", dtype="int64", shape=(2, "found")),),
        batch=None,
    )
    nodes = [
        helper.make_node("Relu", ["x"], ["positive"]),
        helper.make_node("NonZero", ["positive"], ["y"]),
    ]
    (passed,) = export(graph(nodes, {}, signature), signature, tmp_path, ExportOptions())
    assert passed.signature.output("y").varies


def test_values_that_are_no_numbers_fail(tmp_path: Path) -> None:
    signature = vectors(3, 3)
    with pytest.raises(GateFailed, match="no numbers"):
        export(alone("Log", signature), signature, tmp_path, ExportOptions())


def test_every_dtype_and_a_batch_that_stands_elsewhere_pass(tmp_path: Path) -> None:
    signature = Signature(
        inputs=(
            TensorSpec(name="a", dtype="float32", shape=(3, "batch")),
            TensorSpec(name="b", dtype="int64", shape=(3, "batch"), below=5),
            TensorSpec(name="c", dtype="bool", shape=()),
        ),
        outputs=(
            TensorSpec(name="sum", dtype="float32", shape=(3, "batch")),
            TensorSpec(name="more", dtype="bool", shape=(3, "batch")),
        ),
    )
    nodes = [
        helper.make_node("Cast", ["b"], ["b_float"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Cast", ["c"], ["c_float"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Add", ["a", "b_float"], ["ab"]),
        helper.make_node("Add", ["ab", "c_float"], ["sum"]),
        helper.make_node("Greater", ["a", "b_float"], ["more"]),
    ]
    (passed,) = export(graph(nodes, {}, signature), signature, tmp_path, ExportOptions())
    assert {one.output for one in passed.fidelity} == {"sum", "more"}


def staged(folder: Path, model: onnx.ModelProto) -> Candidate:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return candidates.baseline(path)


def test_a_specialised_size_and_another_name_fail_the_gate() -> None:
    model, signature = dense((4, 3))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    with pytest.raises(GateFailed, match="where the signature says"):
        check_border(model, signature)
    with pytest.raises(GateFailed, match="the outputs y where the signature says z"):
        check_border(
            dense((4, 3))[0],
            dataclasses.replace(signature, outputs=(dataclasses.replace(signature.outputs[0], name="z"),)),
        )


def test_a_file_that_the_standard_refuses_or_whose_weights_lie_elsewhere_fails(tmp_path: Path) -> None:
    model, signature = dense((4, 3))
    model.graph.node[0].op_type = "NoSuchThing"
    with pytest.raises(GateFailed, match=r"onnx\.checker refuses"):
        check_file(staged(tmp_path, model), signature)
    model, signature = dense((4, 3))
    candidate = staged(tmp_path, model)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../secret.data"
    candidate.files.path.write_bytes(model.SerializeToString())
    with pytest.raises(GateFailed, match="plain file name"):
        check_file(candidate, signature)


def test_a_failed_gate_leaves_nothing_behind(tmp_path: Path) -> None:
    model, signature = dense((8, 64, 1))
    train = noise(signature, 200)
    train.inputs["x"][0] *= 3000.0
    with workbench.staging_beside(tmp_path / "out" / "bundle") as folder:
        assert folder.parent == tmp_path
        with pytest.raises(GateFailed):
            export(model, signature, folder, INT8, data=splits(signature, train))
    assert list(tmp_path.iterdir()) == []


REGRESSION = """
import torch
from torch import nn

def build(spoilt=0.0):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 1))
    with torch.no_grad():
        module[0].bias[0] = spoilt  # the only layer's activations share their steps with it
        module[1].weight[:, 0] = 0.0
        module[1].bias[:] = 5.0
    return module.eval(), (torch.ones(1, 8),)

def blind():
    return build(1e6)
"""


@pytest.mark.slow
@pytest.mark.parametrize("task", [None, "table"])
def test_one_row_of_examples_does_not_blind_the_gate_for_answers_that_do_not_vary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    name = f"regressions_{task}"
    (tmp_path / f"{name}.py").write_text(REGRESSION)
    about = {
        "options": ExportOptions(precisions=("int8",), quantization="dynamic"),
        "task": task,
        "task_options": {"columns": tuple("abcdefgh")} if task else {},
    }
    with pytest.raises(GateFailed, match=r"int8-dynamic has r2( of 'output')? -?0\.\d+ on golden samples") as caught:
        request.export_source(f"{name}:blind", out=tmp_path / "blind", **about)
    assert "loses 1" in str(caught.value)
    assert not (tmp_path / "blind").exists()
    report = request.export_source(f"{name}:build", out=tmp_path / "good", **about)
    assert report.bundle.signature.rows(report.bundle.golden()[0].inputs) == 1
    scores = {score.metric: score.value for score in report.bundle.variant("int8-dynamic").scores}
    assert scores["r2"] > 0.97


def test_integers_beside_real_numbers_are_held_to_the_originals(tmp_path: Path) -> None:
    """The place of the highest of two values that nearly tie says nothing of the values, and is what people read."""
    signature = dataclasses.replace(
        vectors(8, 2),
        outputs=(
            TensorSpec(name="y", dtype="float32", shape=("batch", 2)),
            TensorSpec(name="best", dtype="int64", shape=("batch", 1)),
        ),
    )
    rng = np.random.default_rng(0)
    for twin, passes in ((1e-3, False), (1.0, True)):
        one = rng.standard_normal((8, 1)).astype(np.float32)
        weight = np.concatenate([one, one + twin * rng.standard_normal((8, 1)).astype(np.float32)], axis=1)
        nodes = [
            helper.make_node("MatMul", ["x", "layer.weight"], ["y"], name="layer"),
            helper.make_node("ArgMax", ["y"], ["best"], axis=1, name="best"),
        ]
        model = graph(nodes, {"layer.weight": weight}, signature)
        about = {"data": splits(signature, noise(signature, 200))}
        if passes:
            _, int8 = export(model, signature, tmp_path, INT8, **about)
            assert {one.output: one.agreement for one in int8.fidelity}["best"] > 0.95
        else:
            with pytest.raises(GateFailed, match="'best' is the original's in"):
                export(model, signature, tmp_path, INT8, **about)


class Altered(OnnxOriginal):
    """An original that writes another file than the one that answers."""

    def __init__(self, model: onnx.ModelProto, signature: Signature, written: Path) -> None:
        super().__init__(model, signature)
        self._written = written

    def write(self, folder: Path, *, opset: int) -> Path:
        del opset
        return Path(shutil.copyfile(self._written, folder / "model.onnx"))


def test_a_baseline_that_came_quantized_is_held_to_its_original(tmp_path: Path) -> None:
    (recipe,) = candidates.recipes(INT8)
    made = []
    for seed in (0, 1):
        model, signature = dense((8, 64, 3), seed=seed)
        folder = tmp_path / str(seed)
        folder.mkdir()
        made.append(recipe.make(source_of(folder, model, signature)).files.path)
    quantized = onnx.load(made[0])
    (passed,) = make(
        workbench.of(Altered(quantized, signature, made[0]), tmp_path, opset=20), ExportOptions(), lambda _: None
    )
    assert passed.variant.id == "int8-qdq"
    assert all(score.baseline is None for score in passed.variant.scores)
    with pytest.raises(GateFailed, match="int8-qdq has r2 of 'y'"):
        workbench.of(Altered(quantized, signature, made[1]), tmp_path, opset=20)


def test_an_output_of_the_whole_call_is_one_sample_to_the_gate(tmp_path: Path) -> None:
    signature = dataclasses.replace(
        vectors(8, 3),
        outputs=(
            TensorSpec(name="y", dtype="float32", shape=("batch", 3)),
            TensorSpec(name="sizes", dtype="float32", shape=(3,)),
        ),
    )
    weight = np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "layer.weight"], ["y"], name="layer"),
        helper.make_node("ReduceMax", ["layer.weight", "first"], ["sizes"], keepdims=0),
    ]
    model = graph(nodes, {"layer.weight": weight, "first": np.array([0])}, signature)
    _, int8 = export(model, signature, tmp_path, INT8, data=splits(signature, noise(signature, 200)))
    assert {one.output for one in int8.fidelity} == {"y", "sizes"}


def test_answers_to_pieces_that_cannot_be_joined_are_made_whole(tmp_path: Path) -> None:
    """The columns in which any sample of a call is above 0: as many as the values ask for, and more than one piece."""
    columns = 2**16
    signature = Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", columns)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=("batch", "found")),),
    )
    nodes = [
        helper.make_node("ReduceMax", ["x", "first"], ["highest"], keepdims=0),
        helper.make_node("Greater", ["highest", "zero"], ["above"]),
        helper.make_node("Compress", ["x", "above"], ["y"], axis=1),
    ]
    model = graph(nodes, {"first": np.array([0]), "zero": np.zeros((), np.float32)}, signature)
    x = np.full((40, columns), -1, np.float32)
    x[:, 0] = 1 + np.arange(40)
    x[-1, :3] = 1
    (passed,) = export(model, signature, tmp_path, ExportOptions(), golden=(Samples(inputs={"x": x}),))
    assert passed.signature.output("y").varies
    (golden,) = workbench.answers(OnnxOriginal(model, signature), [Samples(inputs={"x": x})], signature, tmp_path)
    assert golden.expected is not None
    assert np.array_equal(golden.expected["y"], x[:, :3])
    with OnnxRuntimeRunner(model.SerializeToString()) as runner:
        assert np.array_equal(answer(runner, [golden], signature)[0]["y"], x[:, :3])
