"""Which layer is to blame, and the fewest that are left in float."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import onnx
import pytest

from exporters import candidates, workbench
from exporters.bars import Bar
from exporters.options import ExportOptions
from exporters.pipeline import make
from exporters.search import blame as search
from exporters.search.blame import blame, blame_bundle, fewest_excluded
from kit import metrics
from kit.bundle import Bundle
from kit.errors import GateFailed, UsageError
from kit.samples import Samples
from tests.helpers.originals import OnnxOriginal, convolution, dense, noise
from tests.helpers.outliers import with_outlier, workbench_of

DYNAMIC = {"precisions": ("int8",), "quantization": "dynamic", "per_channel": False}


def test_the_layer_to_blame_is_found_and_the_fewest_are_left_in_float(tmp_path: Path) -> None:
    model, signature = dense((16, 32, 16, 3))
    sound = workbench_of(model, signature, tmp_path, max_loss=0.05)
    (recipe,) = candidates.recipes(ExportOptions(**DYNAMIC))
    assert fewest_excluded(recipe, sound) == ()
    bench = workbench_of(with_outlier(model, "layers.1", "layers.3"), signature, tmp_path)
    found = blame(recipe, bench)
    own = {row.layer: row.own_sqnr_db for row in found.rows}
    assert list(own) == ["layers.1", "layers.3", "layers.5"]
    assert min(own, key=own.__getitem__) == "layers.3"
    guilty = found.rows[1]
    assert guilty.alone is not None
    assert guilty.without is not None
    assert found.together is not None
    assert (found.together.metric, found.samples) == ("top-1", "200 samples of noise validation")
    assert guilty.alone.loss > 0.04 > guilty.without.loss
    assert guilty.without_sqnr_db > found.sqnr_db + 10
    assert fewest_excluded(recipe, bench) == ("layers.3",)
    assert [item.name for item in tmp_path.iterdir() if item.name.startswith("int8")] == []


def test_two_bad_layers_are_found_together(tmp_path: Path) -> None:
    model, signature = dense((16, 32, 16, 16, 3))
    model = with_outlier(with_outlier(model, "layers.1", "layers.3"), "layers.5", "layers.7")
    bench = workbench_of(model, signature, tmp_path)
    (recipe,) = candidates.recipes(ExportOptions(**DYNAMIC, exclude_layers=("auto",)))
    assert fewest_excluded(recipe, bench) == ("layers.3", "layers.7")


def test_of_many_layers_those_that_lose_most_are_left_out_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "_FEW_LAYERS", 3)
    model, signature = dense((16, 32, 16, 16, 3))
    model = with_outlier(with_outlier(model, "layers.1", "layers.3"), "layers.5", "layers.7")
    bench = workbench_of(model, signature, tmp_path)
    (recipe,) = candidates.recipes(ExportOptions(**DYNAMIC, exclude_layers=("auto",)))
    said: list[str] = []
    assert fewest_excluded(recipe, bench, lambda what, *_: said.append(what)) == ("layers.3", "layers.7")
    assert len(said) == 1 + 4 + 2


@pytest.mark.parametrize("needed", [1, 2, 3, 4, 7, 13, 19, 20])
def test_the_fewest_of_the_first_layers_are_found_in_a_few_trials(needed: int) -> None:
    order = tuple(f"layers.{number}" for number in range(20))
    trials: list[int] = []

    def tried(chosen: tuple[str, ...]) -> search.Result:
        trials.append(len(chosen))
        return search.Result(0.0, (), excess=1.0 if len(chosen) < needed else 0.0)

    assert search._fewest_first(order, tried) == (order[:needed] if needed < 20 else ())
    assert len(trials) <= 9


@pytest.mark.parametrize("count", [4, 20, 200, 2000])
def test_the_worst_layers_are_found_in_a_number_of_trials_that_does_not_grow_with_the_network(count: int) -> None:
    names = [f"layers.{number}" for number in range(count)]
    bad = {f"layers.{count // 3}": 9.0, f"layers.{count - 1}": 5.0}
    trials: list[tuple[str, ...]] = []

    def alone(some: tuple[str, ...]) -> tuple[float, float]:
        trials.append(some)
        return sum(bad.get(name, 0.0) for name in some), sum(bad.get(name, 0.01) for name in some)

    order = search._worst_first(names, alone)
    assert order[:2] == list(bad)
    assert sorted(order) == sorted(names)
    assert len(trials) <= min(2 * count, search._MOST_ALONE)


def test_exclude_layer_auto_makes_what_it_found(tmp_path: Path) -> None:
    model, signature = dense((16, 32, 16, 3))
    bench = workbench_of(with_outlier(model, "layers.1", "layers.3"), signature, tmp_path)
    options = ExportOptions(**DYNAMIC, exclude_layers=("auto",), max_loss=0.03)
    _, passed = make(bench, options, lambda _: None)
    record = passed.variant.quantization
    assert record is not None
    assert record.layers_excluded == ("layers.3",)


def test_without_labels_the_original_and_the_golden_samples_decide(tmp_path: Path) -> None:
    """A regression: one output, no labels, nothing that looks for classes."""
    model, signature = dense((16, 32, 16, 1))
    original = OnnxOriginal(with_outlier(model, "layers.1", "layers.3"), signature)
    bench = workbench.of(original, tmp_path, opset=20, golden=(noise(signature, 50),))
    (recipe,) = candidates.recipes(ExportOptions(**DYNAMIC))
    found = blame(recipe, bench)
    assert found.samples == "50 golden samples"
    assert found.together is not None
    assert found.together.metric == "r2"
    assert [row.layer for row in found.rows if row.alone and row.alone.loss > 0.05] == ["layers.3"]
    assert fewest_excluded(recipe, bench) == ("layers.3",)


def test_bars_that_no_exclusion_meets_are_said(tmp_path: Path) -> None:
    model, signature = dense((16, 32, 3))
    bench = workbench_of(model, signature, tmp_path)
    never = Bar(metric=metrics.find("max-error"), max_loss=1e-9)
    proof = dataclasses.replace(bench.proof, bars=(never,))
    held = bench.proof.data.validation
    values = {"validation": (never.values(held, [held[0].expected], signature),)}
    bench = dataclasses.replace(bench, proof=proof, baseline=dataclasses.replace(bench.baseline, values=values))
    (recipe,) = candidates.recipes(ExportOptions(**DYNAMIC))
    with pytest.raises(GateFailed, match="even with all layers but one"):
        fewest_excluded(recipe, bench)


def test_a_single_layer_leaves_nothing_to_tell_apart(tmp_path: Path) -> None:
    model, signature = dense((16, 3))
    (recipe,) = candidates.recipes(ExportOptions(**DYNAMIC))
    with pytest.raises(UsageError, match="nothing to tell apart"):
        blame(recipe, workbench_of(model, signature, tmp_path))


@pytest.mark.parametrize("form", ["png", "svg"])
def test_the_blame_is_drawn(tmp_path: Path, form: str) -> None:
    from exporters.search.blame_picture import draw

    model, signature = dense((16, 32, 16, 3))
    (recipe,) = candidates.recipes(ExportOptions(**DYNAMIC))
    drawn = draw(blame(recipe, workbench_of(model, signature, tmp_path)), form=form)
    assert drawn.startswith(b"\x89PNG" if form == "png" else b"<svg")
    if form == "svg":
        assert b"layers.3" in drawn
        assert b"top-1 lost against the baseline, points" in drawn


def test_blame_of_a_bundle_is_the_blame_of_what_would_be_exported(quantized: Bundle) -> None:
    found = blame_bundle(quantized, ExportOptions(precisions=("int8",)))
    assert found.variant == "int8-qdq"
    assert all(row.own_sqnr_db > 20 for row in found.rows)
    assert all(row.alone_sqnr_db > found.sqnr_db for row in found.rows)


def test_weights_beside_the_graph_are_no_obstacle(tmp_path: Path) -> None:
    model, signature = dense((64, 64, 32, 8))
    (tmp_path / "source").mkdir()
    onnx.save(model, tmp_path / "source" / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=256)
    samples: tuple[Samples, ...] = (noise(signature, 60),)
    original = OnnxOriginal(tmp_path / "source" / "m.onnx", signature)
    bench = workbench.of(original, tmp_path, opset=20, golden=samples)
    (recipe,) = candidates.recipes(ExportOptions(**DYNAMIC))
    found = blame(recipe, bench)
    assert all(math.isfinite(row.own_sqnr_db) and row.own_sqnr_db > 20 for row in found.rows)
    assert np.isfinite(found.sqnr_db)


def test_int4_finds_its_exclusions_among_the_layers_it_can_quantize(tmp_path: Path) -> None:
    bench = workbench_of(*convolution(), tmp_path, max_loss=0.5)
    (recipe,) = candidates.recipes(ExportOptions(precisions=("int4",), exclude_layers=("auto",)))
    assert fewest_excluded(recipe, bench) == ("conv",)
