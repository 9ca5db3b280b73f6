"""Choosing by measurement: the rule, auto, and what kit tune remembers."""

from __future__ import annotations

import dataclasses
import json
import math
import platform
import re
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import exporters
import kit
from exporters import AutoOptions
from exporters.formats.base import Source
from kit import ready, tuning
from kit.bench.measure import Plan
from kit.bench.request import Request
from kit.bench.results import Results, Row, Verdict
from kit.bench.run import bench
from kit.bench.stats import Comparison, Outcome
from kit.bundle import Bundle, open_folder, publish
from kit.bundle.manifest import Quantization
from kit.choices import Goal, Precision, Provider
from kit.errors import BadInput, BundleInvalid, CheckFailed, UsageError
from kit.metrics import Better, Score, fidelity
from kit.runtime import choice as tuned
from kit.runtime.base import RunnerOptions
from kit.runtime.choice import Choice
from kit.system import machine
from kit.tensors import Tensors
from tests.conftest import Kit
from tests.helpers.bundles import overwrite, staged
from tests.helpers.points import batch, fixed_model


@pytest.fixture(autouse=True)
def _without_nncf(monkeypatch: pytest.MonkeyPatch) -> None:
    """What auto does with it is tested by itself; importing it takes seconds."""
    monkeypatch.setattr("exporters.formats.nncf.is_here", lambda: False)


FAST = Plan(rounds=10, turn_ms=0.5, warmup_ms=1.0, warmup_limit_ms=10.0)


def choice(variant: str = "int8-qdq", **changes: object) -> Choice:
    made = Choice(
        variant=variant,
        runtime="onnxruntime",
        options=RunnerOptions(threads=1, arena=True),
        goal=Goal.LATENCY,
        sizes={"batch": 1},
        p50_us=12.0,
        speedup=2.0,
        low=1.9,
        high=2.1,
        measured="2026-11-24T00:00:00+00:00",
        runtime_version=tuned.runtime_version("onnxruntime"),
    )
    return dataclasses.replace(made, **changes)


@pytest.fixture
def measured(digits: Bundle) -> Results:
    """A real run whose verdicts the tests write themselves: what is tested is the rule, not this machine's speed."""
    request = Request(providers=(Provider.CPU,), points=batch(1, 2), plan=FAST, counts_scores=False)
    return bench(digits, request)


def only_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every finalist one of ONNX Runtime, whichever runtime is fastest on this machine."""
    monkeypatch.setattr(tuning, "RUNTIMES", ("onnxruntime",))


def judged(results: Results, **verdicts: tuple[tuple[Outcome, float], tuple[Outcome, float]]) -> Results:
    """Return the run with these outcomes and speedups, for batch 1 and 2, of the variants other than fp32."""

    def of(row: Row) -> Row:
        if row.variant == "fp32":
            return dataclasses.replace(row, verdict=Verdict(outcome=Outcome.BASELINE, baseline="fp32"))
        outcome, speedup = verdicts[row.variant.replace("-", "_")][row.samples - 1]
        found = Comparison(speedup=speedup, low=speedup, high=speedup, p_value=0.0)
        return dataclasses.replace(row, verdict=Verdict(outcome=outcome, baseline="fp32", comparison=found))

    return dataclasses.replace(results, rows=tuple(of(row) for row in results.rows))


FASTER, SLOWER, SAME = Outcome.FASTER, Outcome.SLOWER, Outcome.SAME


def test_the_fastest_wins_that_is_slower_nowhere(measured: Results) -> None:
    found = tuning.judge(
        judged(measured, int8_qdq=((FASTER, 2.0), (SAME, 1.0)), int8_dynamic=((FASTER, 9.0), (SLOWER, 0.9)))
    )
    assert found.winner.name == "int8-qdq"
    reasons = {one.name: one.reason for one in found.candidates}
    assert reasons["fp32"] == "the baseline"
    assert re.fullmatch(r"FASTER 1\.41x, top-1 (the same|[\d.]+ points (worse|better))", reasons["int8-qdq"])
    assert "FASTER 9.00x at batch 1 and SLOWER 0.90x at batch 2" in reasons["int8-dynamic"]
    assert found.winner.speed == pytest.approx(math.sqrt(2))
    assert found.remark == ""


def test_of_equals_the_plainer_wins_and_where_nothing_is_faster_fp32_stays_and_says_so(measured: Results) -> None:
    close = judged(measured, int8_qdq=((FASTER, 2.0), (FASTER, 2.0)), int8_dynamic=((FASTER, 2.02), (FASTER, 2.02)))
    assert tuning.judge(close).winner.name == "int8-qdq"
    slow = tuning.judge(
        judged(measured, int8_qdq=((SLOWER, 0.5), (SAME, 1.0)), int8_dynamic=((SAME, 1.0), (SAME, 1.0)))
    )
    assert slow.winner.name == "fp32"
    assert "fp32 stays" in slow.remark
    assert {one.name: one.reason for one in slow.candidates}["int8-dynamic"].startswith("SAME 1.00x")


def test_of_those_that_are_about_as_fast_the_closest_to_the_original_wins(measured: Results) -> None:
    def found(qdq: float, dynamic: float, errors: dict[str, float]) -> str:
        close = judged(
            measured, int8_qdq=((FASTER, qdq), (FASTER, qdq)), int8_dynamic=((FASTER, dynamic), (FASTER, dynamic))
        )
        return tuning.judge(close, errors={"fp32": 0.0, **errors}).winner.name

    assert found(2.0, 2.06, {"int8-qdq": 0.01, "int8-dynamic": 0.02}) == "int8-qdq"
    assert found(2.0, 2.2, {"int8-qdq": 0.01, "int8-dynamic": 0.02}) == "int8-dynamic"
    assert found(2.06, 2.0, {"int8-qdq": 0.02, "int8-dynamic": 0.01}) == "int8-dynamic"
    assert found(2.0, 2.01, {"int8-qdq": 0.01, "int8-dynamic": 0.01}) == "int8-qdq"  # of equals the plainer
    assert found(1.03, 1.04, {"int8-qdq": 0.01, "int8-dynamic": 0.01}) == "fp32"  # not for so little


def test_how_far_answers_are_off_is_a_share_of_their_size() -> None:
    expected = {"y": np.array([[1.0, -10.0]], np.float32), "z": np.array([[1.0, 0.0]], np.float32)}
    answers = {"y": np.array([[1.0, -9.0]], np.float32), "z": np.array([[1.0, 0.0]], np.float32)}
    found = fidelity.compare_tensors(expected, answers)
    assert fidelity.deviation(found) == pytest.approx(math.sqrt(0.5) / 10)
    assert fidelity.deviation(()) == math.inf


def test_what_was_not_measured_cannot_win_and_nothing_measured_is_an_error(measured: Results) -> None:
    rows = tuple(dataclasses.replace(row, verdict=None, reason="no such provider") for row in measured.rows)
    with pytest.raises(CheckFailed, match="no such provider"):
        tuning.judge(dataclasses.replace(measured, rows=rows))


def test_a_choice_is_remembered_and_load_uses_it_unless_something_is_asked_for(digits: Bundle, choices: Path) -> None:
    assert tuned.choice_for(digits) is None
    tuned.remember(digits, choice())
    assert choices.is_file()
    assert tuned.choice_for(digits) == choice()
    with kit.load(digits.folder) as engine:
        assert engine.choice == choice()
        found = engine.predict(digits.golden()[0].inputs["pixels"][:2])
    assert (found.variant, found.runtime) == ("int8-qdq", "onnxruntime")
    for asked in ({"variant": "fp32"}, {"provider": "cpu"}, {"threads": 1}):
        with kit.load(digits.folder, **asked) as engine:
            assert engine.choice is None
            assert engine.variant.id == "fp32"
    assert tuned.forget(digits)
    assert not tuned.forget(digits)
    with kit.load(digits.folder) as engine:
        assert engine.variant.id == "fp32"


def test_another_runtime_can_be_chosen(digits: Bundle) -> None:
    version = tuned.runtime_version("openvino")
    tuned.remember(digits, choice(runtime="openvino", options=RunnerOptions(), runtime_version=version))
    with kit.load(digits.folder) as engine:
        assert engine.runtime == "openvino"
        (golden,) = digits.golden()
        found = engine.predict(golden.inputs["pixels"])
    assert golden.expected is not None
    assert (found.labels == golden.expected["logits"].argmax(axis=1)).mean() > 0.98


def test_a_choice_is_forgotten_with_what_it_was_made_of(digits: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    tuned.remember(digits, choice())
    other = dataclasses.replace(machine.this_machine(), cpu="another CPU")
    with monkeypatch.context() as patch:
        patch.setattr(machine, "this_machine", lambda: other)
        assert tuned.choice_for(digits) is None
    assert tuned.choice_for(digits) is not None
    tuned.remember(digits, choice(runtime_version="onnxruntime 1.0.0"))
    assert tuned.choice_for(digits) is None
    tuned.remember(digits, choice())
    exporters.export_bundle(digits, exporters.ExportOptions(precisions=("fp16",)))  # other variants to choose from
    assert tuned.choice_for(open_folder(digits.folder)) is None


@pytest.mark.parametrize(
    "content", ["", "[]", "[" * 100_000, '{"kind": "x"}', '{"kind": "kit-tuning", "version": 9, "choices": {}}']
)
def test_a_broken_store_keeps_nobody_from_predicting(digits: Bundle, choices: Path, content: str) -> None:
    choices.parent.mkdir(parents=True)
    choices.write_text(content)
    with kit.load(digits.folder) as engine:
        assert engine.choice is None
    with pytest.raises(BadInput, match=r"tuning\.json"):
        tuned.remember(digits, choice())
    assert choices.read_text() == content


@pytest.mark.slow
def test_tune_measures_chooses_and_remembers(digits: Bundle) -> None:
    done = tuning.tune(digits, most_threads=2, plan=FAST)
    assert tuned.choice_for(digits) == done.choice
    named = {one.name for one in done.judgement.candidates}
    assert {"fp32 in onnxruntime, 1 thread", "int8-qdq in onnxruntime, 1 thread"} <= named
    assert any("openvino" in name for name in named)
    chosen = done.judgement.winner.rows[0]
    assert (chosen.variant, chosen.runtime) == (done.choice.variant, done.choice.runtime)
    assert chosen.session == done.choice.options.describe_session()
    with kit.load(digits.folder) as engine:
        assert engine.choice == done.choice


def test_session_options_of_a_finalist_in_onnx_runtime_are_tried(
    digits: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_onnxruntime(monkeypatch)
    named = [one.name for one in tuning.tune(digits, most_threads=2, plan=FAST).judgement.candidates]
    for way in ("2 threads", "2 threads, no spinning", "1 thread, no prepacking", "1 thread, arena"):
        assert any(name.endswith(f" in onnxruntime, {way}") for name in named), way


def test_session_options_that_a_budget_has_no_time_for_are_left_out_and_threads_never(
    digits: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_onnxruntime(monkeypatch)
    done = tuning.tune(digits, most_threads=2, budget_seconds=1.0)
    late = [one.name for one in done.judgement.candidates if one.reason == "not tried: the budget is used up"]
    measured = {row.session for row in done.results.rows}
    assert late
    assert {"1 thread", "2 threads"} <= measured
    assert not [name for name in late if name.endswith((", 1 thread", ", 2 threads"))]


def test_a_variant_that_is_wrong_here_or_lost_too_much_is_left_out(digits: Bundle) -> None:
    lossy = digits.variant("int8-qdq")
    worse = dataclasses.replace(
        lossy,
        scores=tuple(dataclasses.replace(one, worse=20, improved=0) for one in lossy.scores if one.split == "test"),
    )
    variants = tuple(worse if one.id == "int8-qdq" else one for one in digits.variants)
    bundle = dataclasses.replace(digits, manifest=dataclasses.replace(digits.manifest, variants=variants))
    done = tuning.tune(bundle, most_threads=1, plan=FAST)
    reasons = {one.name: one.reason for one in done.judgement.candidates}
    assert "points worse" in reasons["int8-qdq in onnxruntime"]
    assert done.choice.variant != "int8-qdq"


def test_seven_bits_beside_eight_are_no_contender_where_eight_do_not_saturate(
    digits: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = digits.variant("int8-qdq")
    assert few.quantization is not None
    full = dataclasses.replace(few, quantization=dataclasses.replace(few.quantization, weight_bits=8))
    both = publish(digits, [staged(tmp_path, full, digits.read(few.graph), name="int8-qdq-8-bit")], tools={})
    for is_saturating in (False, True):
        monkeypatch.setattr(tuning, "saturates", lambda found=is_saturating: found)
        cases, refused = tuning._right(both, None)
        reasons = {one.name.partition(" in ")[0]: one.reason for one in refused}
        assert ("7 bits are for CPUs that saturate" in reasons.get("int8-qdq", "")) is not is_saturating
        assert ("int8-qdq" in {one.variant for one in cases}) is is_saturating
        assert "int8-qdq" in {one.variant for one in tuning._right(digits, None)[0]}  # alone it stays


def test_a_damaged_bundle_is_not_tuned_and_the_line_that_mends_it_is_said(digits: Bundle, choices: Path) -> None:
    path = digits.path(digits.variant("int8-dynamic").graph)
    overwrite(path, path.read_bytes()[:-1] + b"x")
    with pytest.raises(BundleInvalid, match="was altered") as caught:
        tuning.tune(digits, most_threads=1, plan=FAST)
    assert caught.value.hint.endswith("--precision int8 --quantization dynamic")
    assert not choices.exists()


def test_a_runtime_that_is_wrong_here_cannot_win(digits: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    from kit.runtime.openvino import OpenVinoRunner

    honest = OpenVinoRunner.run

    def wrong(self: OpenVinoRunner, tensors: Tensors) -> dict[str, np.ndarray]:
        return {name: -array for name, array in honest(self, tensors).items()}

    monkeypatch.setattr(OpenVinoRunner, "run", wrong)
    done = tuning.tune(digits, most_threads=1, plan=FAST)
    reasons = {one.name: one.reason for one in done.judgement.candidates}
    assert reasons["fp32 in openvino"].startswith("out: logits: relative error")
    assert reasons["int8-qdq in openvino"].startswith("out: ")
    assert done.choice.runtime != "openvino"


def test_every_candidate_stands_once(digits: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    only_onnxruntime(monkeypatch)
    names = [one.name for one in tuning.tune(digits, most_threads=1, plan=FAST).judgement.candidates]
    assert len(names) == len(set(names))
    assert all(", 1 thread" in name for name in names)


def test_what_cannot_be_kept_is_said_before_anything_is_measured(digits: Bundle, choices: Path) -> None:
    choices.parent.mkdir(parents=True)
    choices.write_text("[]")
    steps: list[str] = []
    with pytest.raises(BadInput):
        tuning.tune(digits, on_progress=lambda what, _: steps.append(what))
    assert steps == []


def test_choices_of_other_machines_in_a_shared_folder_stay_and_do_no_harm(digits: Bundle, choices: Path) -> None:
    tuned.remember(digits, choice())
    held = json.loads(choices.read_text())
    other = {"variant": "fp32", "options": {"threads": 10_000}}
    held["choices"]["another machine"] = other
    choices.write_text(json.dumps(held))
    assert tuned.choice_for(digits) == choice()
    tuned.remember(digits, choice(variant="fp32"))
    assert json.loads(choices.read_text())["choices"]["another machine"] == other


def test_a_runtime_that_does_not_load_any_more_gives_way_to_the_default(
    digits: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = tuned.runtime_version("openvino")
    tuned.remember(digits, choice(runtime="openvino", options=RunnerOptions(), runtime_version=version))
    monkeypatch.setitem(sys.modules, "openvino", None)
    with kit.load(digits.folder) as engine:
        assert (engine.choice, engine.runtime, engine.variant.id) == (None, "onnxruntime", "fp32")


def test_a_baseline_that_is_wrong_here_leaves_nothing_to_compare_with(digits: Bundle) -> None:
    (promised,) = digits.variant("int8-qdq").fidelity
    better = dataclasses.replace(promised, rms_error=0.0)
    variants = tuple(
        dataclasses.replace(one, fidelity=(better,)) if one.id == "int8-qdq" else one for one in digits.variants
    )
    manifest = dataclasses.replace(digits.manifest, variants=variants, baseline="int8-qdq")
    with pytest.raises(UsageError, match="no baseline that works here, to compare the others with: int8-qdq"):
        tuning.tune(dataclasses.replace(digits, manifest=manifest), most_threads=1, plan=FAST)


def test_any_axis_has_a_size_of_its_own_and_the_plainest_stays(duo: Bundle) -> None:
    done = tuning.tune(duo, goal=Goal.THROUGHPUT, sizes={"sequence": 16}, most_threads=1, plan=FAST)
    assert done.choice.sizes == {"batch": 64, "sequence": 16}
    assert tuned.choice_for(duo) == done.choice
    with pytest.raises(UsageError, match="no axis 'width'"):
        tuning.tune(duo, sizes={"width": 3}, plan=FAST)


def test_a_ready_model_is_tuned_by_runtimes_and_session_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "plain.onnx").write_bytes(fixed_model())
    model = ready.find(tmp_path / "plain.onnx")
    named = {one.name for one in tuning.tune(model, most_threads=1, plan=FAST).judgement.candidates}
    assert "model in onnxruntime, 1 thread" in named
    assert any("openvino" in name for name in named)
    only_onnxruntime(monkeypatch)
    done = tuning.tune(model, most_threads=1, plan=FAST)
    named = {one.name for one in done.judgement.candidates}
    assert {"model in onnxruntime, 1 thread", "model in onnxruntime, 1 thread, arena"} <= named
    assert (done.choice.variant, done.choice.sizes) == ("model", {})
    assert tuned.choice_for(model) == done.choice


def test_the_command_shows_chooses_and_forgets(kit_inside: Kit, digits: Bundle) -> None:
    name = str(digits.folder)
    assert "Nothing is chosen" in kit_inside("tune", name, "--show").stderr
    tuned.remember(digits, choice())
    assert "int8-qdq in onnxruntime, 1 thread, arena" in kit_inside("tune", name, "--show").stdout
    assert '"variant": "int8-qdq"' in kit_inside("tune", name, "--show", "--json").stdout
    assert kit_inside("tune", name, "--forget").returncode == 0
    assert tuned.choice_for(digits) is None


@pytest.mark.slow
def test_auto_publishes_what_is_right_and_makes_the_winner_the_default(digits: Bundle) -> None:
    options = AutoOptions(points=batch(1), max_loss=0.01, plan=FAST)
    done = exporters.export_auto(digits, options)
    bundle = done.report.bundle
    assert bundle.manifest.default == done.judgement.winner.name
    ids = {variant.id for variant in bundle.variants}
    assert {"fp32", "fp16", "int8-qdq", "int8-qoperator", "int8-pixel", "int8-qdq-per-tensor", "int4"} <= ids
    reasons = {one.name: one.reason for one in done.judgement.candidates}
    assert set(reasons) >= ids - {"int8-dynamic"}
    assert all(reasons.values())
    if platform.machine().lower() in {"x86_64", "amd64"}:
        assert "runs as fp32" in reasons["fp16"]


@pytest.mark.slow
def test_auto_leaves_out_what_loses_too_much(digits: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from exporters.formats.weights import WeightOnly

    honest = WeightOnly.make

    def broken(self: WeightOnly, source: Source, exclude: tuple[str, ...], target: Path) -> Quantization | None:
        made = honest(self, source, exclude, target)
        model = onnx.load(target)
        scales = next(tensor for tensor in model.graph.initializer if "scale" in tensor.name)
        scales.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scales) * np.float32(-1), scales.name))
        onnx.save(model, target)
        return made

    monkeypatch.setattr(WeightOnly, "make", broken)
    fp32 = digits.variant("fp32")
    earlier = publish(digits, [staged(tmp_path, fp32, digits.read(fp32.graph), name="int4")], tools={})
    assert "int4" in {variant.id for variant in earlier.variants}
    done = exporters.export_auto(earlier, AutoOptions(points=batch(1), plan=FAST, max_loss=0.01))
    assert "int4" not in {variant.id for variant in done.report.bundle.variants}
    (reason,) = [one.reason for one in done.judgement.candidates if one.name == "int4"]
    assert reason.startswith("rejected: ")
    assert done.judgement.winner.name != "int4"


def test_a_ready_quantized_model_is_held_to_its_own_answers(digits: Bundle, tmp_path: Path) -> None:
    (tmp_path / "model_int8.onnx").write_bytes(digits.read(digits.variant("int8-qdq").graph))
    model = ready.find(tmp_path / "model_int8.onnx")
    assert model.variant().fidelity == ()
    assert model.variant().precision is Precision.INT8
    done = tuning.tune(model, most_threads=1, plan=FAST)
    assert done.choice.variant == "model"


def test_points_of_a_metric_that_is_no_share_are_refused(duo: Bundle, tmp_path: Path, kit_inside: Kit) -> None:
    score = Score(metric="rmse", dataset="d", split="test", samples=4, value=1.0, better=Better.LOWER, unit="mm")
    first = dataclasses.replace(duo.variants[0], scores=(score,))
    scored = publish(duo, [staged(tmp_path, first, duo.read(first.graph), name=first.id)], tools={})
    said = kit_inside("tune", str(scored.folder), "--max-drop", "1")
    assert said.returncode == 2
    assert "rmse is none, and its unit is mm" in said.stderr
    assert "--max-loss" in said.stderr
