"""Verify: a bundle does here what its manifest promises, or says what does not hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from kit import bundle as bundles
from kit import ready
from kit.bundle import Bundle, Items, find
from kit.bundle.golden import golden_bytes
from kit.bundle.manifest import TaskRef
from kit.choices import Provider
from kit.errors import BadInput, BundleInvalid, UsageError
from kit.metrics.fidelity import compare_tensors, judge_float
from kit.runtime.base import RunnerOptions
from kit.samples import SEEDED, Samples, seeded
from kit.system.packages import version
from kit.tasks.tensors import PlainTensors
from kit.tensors import Axis, Signature, Tensors, TensorSpec
from kit.verify import check_model, compare_models, verify
from kit.verify.bundle import differences
from kit.verify.model import points
from tests import graphs
from tests.helpers.bundles import overwrite, staged
from tests.helpers.onnx_files import scores
from tests.helpers.plugs import install


def test_a_fresh_bundle_holds_and_its_original_answers_as_it_did(digits: Bundle) -> None:
    result = verify(digits)
    assert result.ok, result
    assert [check.variant for check in result.variants] == ["fp32", "int8-qdq", "int8-dynamic"]
    for check in result.variants:
        assert check.verdict is not None
        assert check.verdict.needed <= check.verdict.tolerance
        assert check.figure is not None
        assert (check.figure.metric, check.figure.samples) == ("top-1", 256)
        assert abs(check.figure.value - check.figure.original) <= 0.02
    assert result.original is not None
    assert result.original.ok
    assert "mlp" in result.original.name
    assert result.samples == 256


def test_several_inputs_outputs_and_sizes_are_compared_output_by_output(duo: Bundle) -> None:
    result = verify(duo, runtimes=("onnxruntime", "onnx-reference"))
    assert result.ok, result
    assert {one.output for check in result.variants for one in check.fidelity} == {"scores", "vectors"}
    assert {sizes["sequence"] for sizes in result.sizes} == {5, 16}
    assert all(check.figure is None for check in result.variants), "nobody knows what would be right"


def test_an_altered_variant_fails_and_the_others_are_still_checked(digits: Bundle) -> None:
    path = digits.path(digits.variant("int8-qdq").graph)
    overwrite(path, path.read_bytes()[:-1] + b"x")
    result = verify(digits)
    assert not result.ok
    assert [check.file for check in result.files if not check.ok] == [path.name]
    assert [check.variant for check in result.variants if not check.ok] == ["int8-qdq"]


def test_weights_that_changed_with_a_matching_hash_are_still_found(digits: Bundle, tmp_path: Path) -> None:
    """A manifest rewritten to fit wrong weights passes the hashes; the stored answers do not."""
    variant = digits.variant("fp32")
    model = onnx.load_from_string(digits.read(variant.graph))
    weight = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 2)
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.01), weight.name))
    wrong = staged(tmp_path / "wrong", variant, model.SerializeToString())
    result = verify(bundles.publish(digits, (wrong,), tools={}))
    assert all(check.ok for check in result.files)
    failed = next(check for check in result.variants if check.variant == "fp32")
    assert not failed.ok
    assert failed.verdict is not None
    assert failed.verdict.needed > failed.verdict.tolerance


def test_an_int8_file_that_its_manifest_promises_nothing_of_does_not_hold(digits: Bundle, tmp_path: Path) -> None:
    variant = digits.variant("int8-qdq")
    model = onnx.load_from_string(digits.read(variant.graph))
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.INT8:
            tensor.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(tensor), tensor.name))
    (figures,) = variant.fidelity
    anything = dataclasses.replace(variant, fidelity=(dataclasses.replace(figures, rms_error=1e300, agreement=0.0),))
    wrong = staged(tmp_path / "wrong", anything, model.SerializeToString())
    result = verify(bundles.publish(digits, (wrong,), tools={}))
    assert all(check.ok for check in result.files)
    (failed,) = (check for check in result.variants if not check.ok)
    assert failed.variant == "int8-qdq"
    assert "its manifest promises an rms error of" in failed.problem


def test_stored_answers_that_the_original_does_not_give_are_found_where_it_can_be_rebuilt(digits: Bundle) -> None:
    """int8 alone is left: only the original can tell that the answers it was compared with are not its own."""
    turned = [
        dataclasses.replace(
            group, expected={name: values[::-1].copy() for name, values in (group.expected or {}).items()}
        )
        for group in digits.golden()
    ]
    content = golden_bytes(turned)
    ref = bundles.file_ref(content, "golden", ".npz")
    (digits.folder / ref.file).write_bytes(content)
    record = dataclasses.replace(digits.manifest.golden, file=ref)
    result = verify(Bundle(digits.folder, dataclasses.replace(digits.manifest, golden=record)))
    assert all(check.ok for check in result.files)
    assert result.original is not None
    assert not result.original.ok
    assert not result.original.verdict.needed < 0.1
    assert not result.ok


def test_without_golden_samples_nothing_is_claimed(digits: Bundle) -> None:
    digits.path(digits.manifest.golden.file).unlink()
    result = verify(digits)
    assert not result.ok
    assert result.variants == ()


def test_a_bundle_without_variants_is_not_called_fine(digits: Bundle) -> None:
    bare = Bundle(digits.folder, dataclasses.replace(digits.manifest, variants=(), default=None, baseline=None))
    assert not verify(bare).ok


@pytest.mark.usefixtures("no_cuda")
def test_a_provider_that_cannot_run_is_told_apart_from_a_failure(digits: Bundle) -> None:
    result = verify(digits, options=RunnerOptions(provider=Provider.CUDA))
    assert not result.ok
    assert result.only_unavailable
    assert all(check.verdict is None for check in result.variants)


def test_a_runtime_that_is_not_for_this_model_is_left_out_of_all(duo: Bundle) -> None:
    result = verify(duo, runtimes=("all",))
    assert result.ok, result
    assert "pytorch" not in {check.runtime for check in result.variants}
    assert not verify(duo, runtimes=("pytorch",)).ok


def test_not_a_number_is_infinitely_wrong() -> None:
    reference = {"logits": np.array([[1.0, 2.0]], np.float32)}
    broken = {"logits": np.array([[np.nan, 2.0]], np.float32)}
    found = compare_tensors(reference, broken)
    assert found[0].max_abs_error == np.inf
    assert not judge_float(found, 1e-4).passed


class Words(PlainTensors):
    """Words of three letters or fewer, as a package of somebody else's might encode them."""

    name = "words@1"
    shift = 0

    def encode(self, items: Sequence[Any]) -> Tensors:
        if any(not isinstance(item, str) for item in items):
            raise BadInput("no word")
        ids = np.array([[ord(letter) + self.shift for letter in item.ljust(3)] for item in items], np.int64)
        return {"ids": ids, "lengths": np.array([len(item) for item in items], np.float32)}

    def item(self, raw: Any) -> Any:
        return raw


class Shifted(Words):
    """The same package in another version, which encodes words otherwise."""

    shift = 1


class Broken(Words):
    """A plug with a defect."""

    def encode(self, items: Sequence[Any]) -> Tensors:
        raise RuntimeError(f"cannot encode {items}")


@pytest.fixture
def words(tmp_path: Path) -> Bundle:
    """A bundle with raw items and no variant."""
    signature = Signature(
        inputs=(
            TensorSpec(name="ids", dtype="int64", shape=("batch", 3)),
            TensorSpec(name="lengths", dtype="float32", shape=("batch",)),
        ),
        outputs=(TensorSpec(name="score", dtype="float32", shape=("batch",)),),
    )
    group = seeded(signature, sizes={"batch": 2})
    task = Words()
    return bundles.create(
        tmp_path / "words",
        name="words",
        signature=signature,
        golden=[dataclasses.replace(group, expected={"score": np.zeros(2, np.float32)})],
        tools={},
        task=task,
        items=Items(raw=["cat", "ox"], tensors=tuple(task.encode([word]) for word in ("cat", "ox"))),
    )


@pytest.mark.parametrize(
    ("kind", "problem"),
    [("Words", None), ("Shifted", "ids differs in 3 of 3 values"), ("Broken", "RuntimeError: cannot encode")],
)
def test_raw_items_must_become_the_tensors_they_became(
    words: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, problem: str | None
) -> None:
    install(tmp_path / "site", monkeypatch, group="kit.tasks", name="words", target=f"{__name__}:{kind}")
    way_in = verify(words).way_in
    assert way_in is not None
    assert (way_in.task, way_in.items) == ("words@1", 2)
    assert way_in.ok == (problem is None)
    if problem:
        assert problem in way_in.problems[0]
        assert len(way_in.problems) == 2


def test_a_task_that_nobody_knows_leaves_everything_else_running(duo: Bundle) -> None:
    manifest = dataclasses.replace(duo.manifest, task=TaskRef(name="divination@1"))
    result = verify(Bundle(duo.folder, manifest))
    assert result.ok
    assert any("divination@1" in remark for remark in result.remarks)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        ({"a": np.array([1, 2], np.int64), "b": np.array([0.5 + 5e-7], np.float32)}, None),
        ({"a": np.array([1, 3], np.int64), "b": np.array([0.5], np.float32)}, "a differs in 1 of 2 values: 3 for 2"),
        ({"a": np.array([1, 2], np.int64), "b": np.array([0.5 + 5e-6], np.float32)}, "b differs"),
        ({"a": np.array([1, 2], np.int32), "b": np.array([0.5], np.float32)}, "a becomes int32 [2] here"),
        ({"a": np.array([1, 2], np.int64)}, "b is not made"),
        ({"a": np.array([1, 2], np.int64), "b": np.array([np.nan], np.float32)}, "b differs"),
    ],
)
def test_integers_must_be_equal_and_floats_nearly(made: Mapping[str, Any], words: str | None) -> None:
    stored: dict[str, Any] = {"a": np.array([1, 2], np.int64), "b": np.array([0.5], np.float32)}
    found = differences(stored, made)
    assert found == [] if words is None else words in found[0]


def test_a_ready_model_runs_at_several_sizes_and_its_rows_are_independent(tmp_path: Path) -> None:
    result = check_model(ready.find(scores(tmp_path / "scores.onnx")), runtimes=("onnxruntime", "onnx-reference"))
    assert result.ok, result
    assert result.source.startswith(SEEDED)
    for one in result.runtimes:
        assert one.rows_error == pytest.approx(0, abs=1e-5)
        assert {size.sizes["batch"] for size in one.sizes} >= {1, 2, 3}
        assert len({size.sizes["sequence"] for size in one.sizes}) > 2


def test_rows_that_depend_on_each_other_are_found_even_where_a_signature_calls_them_independent(tmp_path: Path) -> None:
    model = ready.find(scores(tmp_path / "scores.onnx", rows_depend=True))
    assert model.signature.batch is None
    claimed = dataclasses.replace(model.manifest, signature=dataclasses.replace(model.signature, batch="batch"))
    result = check_model(dataclasses.replace(model, manifest=claimed))
    assert not result.ok
    assert result.runtimes[0].rows_error is not None
    assert result.runtimes[0].rows_error > 0.1


def ready_of(nodes: list[onnx.NodeProto], dtype: str, folder: Path) -> ready.ReadyModel:
    """A ready model of `x [batch, 3]` that a signature says is independent along its batch, whatever it does."""
    model = graphs.make(nodes, [("x", "float32", ["batch", 3])], [("y", dtype, ["batch", 3])])
    path = folder / "model.onnx"
    onnx.save(model, path)
    found = ready.find(path)
    assert isinstance(found, ready.ReadyModel)
    claimed = dataclasses.replace(found.manifest, signature=dataclasses.replace(found.signature, batch="batch"))
    return dataclasses.replace(found, manifest=claimed)


def test_rows_that_are_no_numbers_in_company_and_are_alone_depend_on_it(tmp_path: Path) -> None:
    """sqrt(1 - rows) is 0 for a row alone, and no number for several."""
    nodes = [
        graphs.node("Shape", "x", "rows", start=0, end=1),
        graphs.node("Cast", "rows", "count", to=onnx.TensorProto.FLOAT),
        graphs.node("Constant", "", "one", value_float=1.0),
        graphs.node("Sub", "one count", "left"),
        graphs.node("Sqrt", "left", "root"),
        graphs.node("Add", "x root", "y"),
    ]
    model = ready_of(nodes, "float32", tmp_path)
    alone = seeded(model.signature, sizes={"batch": 1})
    model = dataclasses.replace(model, samples=(dataclasses.replace(alone, expected={"y": alone.inputs["x"]}),))
    (checked,) = check_model(model).runtimes
    assert checked.rows_error == np.inf
    assert not checked.ok
    for one in checked.sizes:
        assert one.not_a_number == (("y",) if one.sizes["batch"] > 1 else ())
        assert one.ok == (one.sizes["batch"] == 1)


def test_rows_of_integers_are_held_to_be_independent_too(tmp_path: Path) -> None:
    nodes = [
        graphs.node("Shape", "x", "rows", start=0, end=1),
        graphs.node("Cast", "x", "whole", to=onnx.TensorProto.INT64),
        graphs.node("Add", "whole rows", "y"),
    ]
    (checked,) = check_model(ready_of(nodes, "int64", tmp_path)).runtimes
    assert checked.rows_error == 1.0
    assert not checked.ok


def test_values_without_weight_do_not_count_between_two_models(tmp_path: Path) -> None:
    one, other = ready.find(scores(tmp_path / "one.onnx")), ready.find(scores(tmp_path / "other.onnx", seed=1))
    inputs = {"ids": np.ones((2, 3), np.int64), "mask": np.array([[0, 0, 0], [1, 1, 1]], np.int64)}
    padded = Samples(inputs=inputs, weights={"scores": np.array([[1], [0]], np.float32)})
    assert compare_models(one, other, samples=[padded]).ok
    assert not compare_models(one, other, samples=[dataclasses.replace(padded, weights=None)]).ok


def test_a_model_of_one_size_is_run_at_that(tmp_path: Path) -> None:
    result = check_model(ready.find(scores(tmp_path / "scores.onnx", fixed=True)))
    assert result.ok
    assert [size.sizes for size in result.runtimes[0].sizes] == [{}]
    assert result.runtimes[0].rows_error is None


def test_sizes_to_try_keep_to_the_bounds() -> None:
    signature = Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", "height")),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=("batch",)),),
        axes={"batch": Axis(most=2), "height": Axis(least=32, multiple_of=32, typical=(64, 96))},
    )
    tried = points(signature)
    assert tried[0] == {"batch": 1, "height": 64}
    assert {one["batch"] for one in tried} == {1, 2}
    assert {one["height"] for one in tried} == {32, 64, 96}


def test_a_model_is_compared_with_another(tmp_path: Path) -> None:
    one = ready.find(scores(tmp_path / "one.onnx"))
    same = ready.find(scores(tmp_path / "same.onnx"))
    other = ready.find(scores(tmp_path / "other.onnx", factor=1.01))
    assert compare_models(one, same).ok
    apart = compare_models(other, one)
    assert not apart.ok
    assert apart.verdict.needed == pytest.approx(0.01, rel=0.01)
    assert compare_models(other, one, tolerance=0.02).ok
    assert [found.output for found in apart.fidelity] == ["scores"]


def test_a_fixed_model_is_compared_with_a_dynamic_one_at_its_size(tmp_path: Path) -> None:
    fixed, free = ready.find(scores(tmp_path / "fixed.onnx", fixed=True)), ready.find(scores(tmp_path / "free.onnx"))
    assert compare_models(free, fixed).sizes == ({"batch": 2, "sequence": 4},)
    assert compare_models(free, fixed).ok
    assert compare_models(fixed, free).ok


def test_given_samples_are_what_is_compared_on(tmp_path: Path) -> None:
    one, other = ready.find(scores(tmp_path / "one.onnx")), ready.find(scores(tmp_path / "other.onnx", seed=1))
    silent = Samples(inputs={"ids": np.ones((2, 3), np.int64), "mask": np.zeros((2, 3), np.int64)}, source="silence")
    assert compare_models(one, other, samples=[silent]).ok, "no word counts: both say nothing"
    assert not compare_models(one, other).ok


def test_models_with_other_inputs_are_not_compared(tmp_path: Path, tiny: Bundle) -> None:
    with pytest.raises(UsageError, match="take different inputs"):
        compare_models(ready.find(scores(tmp_path / "one.onnx")), tiny)


def test_a_model_that_no_inputs_suit_says_so(tmp_path: Path) -> None:
    model = ready.find(scores(tmp_path / "one.onnx"))
    assert isinstance(model, ready.ReadyModel)
    with pytest.raises(BundleInvalid, match="no inputs"):
        check_model(dataclasses.replace(model, samples=(), problem="it wants more"))


def test_the_published_bundle_holds_in_every_runtime_that_is_here() -> None:
    result = verify(find("mnist-mlp"), runtimes=("onnxruntime", *(["openvino"] if version("openvino") else [])))
    assert result.ok, result
