"""What auto tries when static int8 loses too much, and what a budget leaves out."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

import exporters
from apps.cli import export_tables
from exporters import AutoOptions, candidates, workbench
from exporters.formats.int8 import StaticInt8
from exporters.options import ExportOptions
from exporters.search import ladder
from exporters.search.ladder import climb, narrow
from exporters.workbench import Workbench
from kit.bench.measure import Plan
from kit.bundle import Bundle
from kit.choices import CalibrationMethod, Precision
from kit.errors import GateFailed, UsageError
from kit.samples import Splits
from tests.helpers.originals import OnnxOriginal, dense, noise
from tests.helpers.outliers import with_outlier, workbench_of
from tests.helpers.points import batch

STATIC = ExportOptions(precisions=("int8",), per_channel=False)


@pytest.fixture(autouse=True)
def _without_nncf(monkeypatch: pytest.MonkeyPatch) -> None:
    """What auto does with it is tested by itself; importing it takes seconds."""
    monkeypatch.setattr("exporters.formats.nncf.is_here", lambda: False)


FAST = Plan(rounds=10, turn_ms=0.5, warmup_ms=1.0, warmup_limit_ms=10.0)


def test_ranges_are_tried_first_and_then_as_few_layers_stay_in_float_as_will_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("exporters.formats.int8.equalize", lambda _: False)  # it would even the outlier out
    model, signature = dense((16, 32, 16, 3))
    bench = workbench_of(with_outlier(model, "layers.1", "layers.3"), signature, tmp_path)
    (recipe,) = candidates.recipes(STATIC)
    done = climb(recipe, bench)
    assert [one.name for one in done.rungs] == [
        "the whole range",
        "ranges by percentile",
        "ranges by mse",
        "ranges by entropy",
        "2 layers in float",
    ]
    assert [one.is_right for one in done.rungs] == [False, False, False, False, True]
    assert done.passed is not None
    record = done.passed.variant.quantization
    assert record is not None
    assert "layers.3" in record.layers_excluded
    assert done.rungs[-1].sqnr_db > done.rungs[0].sqnr_db + 10


def test_a_way_that_is_no_better_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exporters.formats.int8.equalize", lambda _: False)
    model, signature = dense((16, 32, 16, 3))
    bench = workbench_of(with_outlier(model, "layers.1", "layers.3"), signature, tmp_path)
    (recipe,) = candidates.recipes(STATIC)
    done = climb(recipe, bench)
    assert done.passed is not None
    record = done.passed.variant.quantization
    assert record is not None
    assert record.calibration is not None
    kept = record.calibration.method
    noise = {one.name: one.sqnr_db for one in done.rungs}
    best = max(("the whole range", *(f"ranges by {one}" for one in ladder.METHODS)), key=noise.__getitem__)
    assert kept == {"the whole range": "minmax"}.get(best, best.removeprefix("ranges by "))


def test_when_the_time_is_up_what_was_tried_is_told_and_nothing_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("exporters.formats.int8.equalize", lambda _: False)
    model, signature = dense((16, 32, 16, 3))
    bench = workbench_of(with_outlier(model, "layers.1", "layers.3"), signature, tmp_path)
    (recipe,) = candidates.recipes(STATIC)
    over = itertools.chain([False], itertools.repeat(True))
    done = climb(recipe, bench, is_over=lambda: next(over))
    assert (done.passed, done.reason) == (None, "the time was up")
    assert [one.name for one in done.rungs] == ["the whole range", "ranges by percentile"]
    later = climb(recipe, bench, tries_calibrations=False, is_over=lambda: True)
    assert later.passed is None
    assert "the time was up before it was known" in later.reason


def test_ranges_that_were_asked_for_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exporters.formats.int8.equalize", lambda _: False)
    model, signature = dense((16, 32, 16, 3))
    bench = workbench_of(with_outlier(model, "layers.1", "layers.3"), signature, tmp_path)
    recipe = candidates.VariantRecipe(
        id="int8-qdq", format=StaticInt8(per_channel=False, method=CalibrationMethod.ENTROPY)
    )
    done = climb(recipe, bench, tries_calibrations=False)
    assert [one.name for one in done.rungs] == ["the whole range", "2 layers in float"]


def test_auto_climbs_where_no_int8_is_right_and_says_what_it_tried(
    digits: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    climbed: list[str] = []

    def noted(recipe: candidates.VariantRecipe, *_: object, **__: object) -> ladder.Climb:
        climbed.append(recipe.id)
        rungs = (ladder.Rung(variant=recipe.id, name="one"), ladder.Rung(variant=recipe.id, name="other"))
        return ladder.Climb(passed=None, rungs=rungs, reason="nothing helped")

    monkeypatch.setattr("exporters.search.choose.climb", noted)
    honest = candidates.VariantRecipe.make

    def refused(self: candidates.VariantRecipe, *given: Any) -> candidates.Candidate:
        if self.format.precision is Precision.INT8:
            raise GateFailed("it cannot be made")
        return honest(self, *given)

    monkeypatch.setattr(candidates.VariantRecipe, "make", refused)
    done = exporters.export_auto(digits, AutoOptions(points=batch(1), plan=FAST, max_loss=0.9))
    assert climbed == ["int8-qdq"]
    assert [one.name for one in done.rungs] == ["one", "other"]
    reasons = {one.name: one.reason for one in done.judgement.candidates}
    assert reasons["int8-qdq"] == "rejected: nothing helped"


def test_a_budget_leaves_out_what_is_not_begun_in_time(digits: Bundle) -> None:
    done = exporters.export_auto(digits, AutoOptions(points=batch(1), plan=FAST, budget_seconds=1e-6))
    reasons = {one.name: one.reason for one in done.judgement.candidates}
    assert reasons["int8-qdq"] == reasons["fp16"] == "not tried: the budget is used up"
    assert done.report.bundle.manifest.default == "fp32"


def test_a_budget_of_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="longer than nothing"):
        AutoOptions(budget_seconds=0)


def test_what_was_tried_is_shown_with_what_it_brought(capsys: pytest.CaptureFixture[str]) -> None:
    first = ladder.Rung(variant="int8-qdq", name="the whole range", sqnr_db=12.34, seconds=3.2)
    export_tables.rungs_table((first,))
    assert capsys.readouterr().out == ""
    failed = ladder.Rung(variant="int8-qdq", name="ranges by entropy", problem="no [memory] left")
    right = ladder.Rung(variant="int8-qdq", name="2 layers in float", sqnr_db=30.0, is_right=True, seconds=61.0)
    export_tables.rungs_table((first, failed, right))
    shown = capsys.readouterr().out
    assert "int8-qdq, tried" in shown
    assert "12.3" in shown
    assert "loses too much" in shown
    assert "no [memory] left" in shown
    assert "61 s" in shown


def with_rare_value(folder: Path) -> Workbench:
    """A model whose calibration samples hold one value of half a million that reaches further than all others."""
    model, signature = dense((512, 16, 3))
    every = noise(signature, 1424)
    train, validation, test = (every.take(signature, slice(*ends)) for ends in ((0, 1024), (1024, 1224), (1224, 1424)))
    train.inputs["x"][0, 0] = 200
    data = Splits(dataset="noise", train=(train,), validation=(validation,), test=(test,))
    return workbench.of(OnnxOriginal(model, signature), folder, opset=20, data=data, metric="r2", max_loss=1.0)


def test_what_loses_for_sure_gets_narrower_ranges_where_they_pay(tmp_path: Path) -> None:
    bench = with_rare_value(tmp_path)
    (recipe,) = candidates.recipes(ExportOptions(precisions=("int8",)))
    whole = recipe.make(bench.source)
    found, rungs = narrow(recipe, whole, bench)
    assert [one.name for one in rungs] == ["the whole range", "ranges by percentile", "ranges by mse"]
    assert rungs[1].sqnr_db > rungs[2].sqnr_db > rungs[0].sqnr_db, (
        "a value far out of half a million is dear to cut off"
    )
    record = bench.examine(found).variant.quantization
    assert record is not None
    assert record.calibration is not None
    assert record.calibration.method == "percentile"
    assert not whole.files.folder.exists()


def test_no_narrower_ranges_are_begun_when_the_time_is_up(tmp_path: Path) -> None:
    bench = with_rare_value(tmp_path)
    (recipe,) = candidates.recipes(ExportOptions(precisions=("int8",)))
    whole = recipe.make(bench.source)
    over = itertools.chain([False], itertools.repeat(True))
    found, rungs = narrow(recipe, whole, bench, is_over=lambda: next(over))
    assert [one.name for one in rungs] == ["the whole range", "ranges by percentile"]
    assert found is not whole


def test_what_loses_nothing_for_sure_keeps_its_ranges(tmp_path: Path) -> None:
    model, signature = dense((16, 3))
    bench = workbench_of(model, signature, tmp_path, max_loss=0.1)
    (recipe,) = candidates.recipes(ExportOptions(precisions=("int8",)))
    whole = recipe.make(bench.source)
    assert narrow(recipe, whole, bench) == (whole, ())
    assert whole.files.path.is_file()


def test_narrower_ranges_that_cannot_be_made_leave_what_there_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = with_rare_value(tmp_path)
    (recipe,) = candidates.recipes(ExportOptions(precisions=("int8",)))
    whole = recipe.make(bench.source)

    def refused(*_: object, **__: object) -> None:
        raise GateFailed("no room")

    monkeypatch.setattr(candidates.VariantRecipe, "make", refused)
    found, rungs = narrow(recipe, whole, bench)
    assert found is whole
    assert [one.problem for one in rungs] == ["", "no room", "no room"]


def test_what_does_not_run_is_left_to_the_gate(tmp_path: Path) -> None:
    bench = with_rare_value(tmp_path)
    (recipe,) = candidates.recipes(ExportOptions(precisions=("int8",)))
    whole = recipe.make(bench.source)
    whole.files.path.chmod(0o600)
    whole.files.path.write_bytes(b"no model")
    assert narrow(recipe, whole, bench) == (whole, ())
    with pytest.raises(GateFailed):
        bench.examine(whole)


@pytest.mark.parametrize(("calibration", "expected"), [(None, ["int8-qdq"]), (CalibrationMethod.ENTROPY, [])])
def test_auto_narrows_static_int8_of_what_is_not_dense_unless_ranges_were_asked_for(
    digits: Bundle, monkeypatch: pytest.MonkeyPatch, calibration: CalibrationMethod | None, expected: list[str]
) -> None:
    narrowed: list[str] = []

    def noted(recipe: candidates.VariantRecipe, whole: Any, *_: object, **__: object) -> Any:
        narrowed.append(recipe.id)
        return whole, (ladder.Rung(variant=recipe.id, name="noted"),)

    monkeypatch.setattr("exporters.search.choose.narrow", noted)
    monkeypatch.setattr("exporters.search.choose.is_dense", lambda _: False)
    done = exporters.export_auto(digits, AutoOptions(points=batch(1), plan=FAST, calibration=calibration))
    assert narrowed == expected
    assert [one.name for one in done.rungs] == ["noted"] * len(expected)
