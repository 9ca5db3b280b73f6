"""The bench: interleaved, judged with care, honest about what did not run. No test here looks at how fast anything is."""

from __future__ import annotations

import dataclasses
import json
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kit import metrics, ready
from kit.bench import results, stats, warm
from kit.bench.cases import Case, Subject, open_all, prepare
from kit.bench.measure import LEAST_ROUNDS, Plan
from kit.bench.points import batches
from kit.bench.queries import Queries
from kit.bench.results import Status
from kit.bench.run import Request, bench
from kit.bench.scenarios import Load
from kit.bench.stats import Comparison, Outcome, compare, judge
from kit.bundle import Bundle
from kit.choices import Mode, Provider
from kit.errors import BadInput, StorageUnavailable, UsageError
from kit.runtime.base import RunnerOptions
from kit.system.machine import this_machine
from tests.helpers import noise
from tests.helpers.bundles import overwrite
from tests.helpers.points import batch, fixed_model

FIXTURES = Path(__file__).parent / "fixtures"
QUICK = Plan(rounds=10, turn_ms=0.5, warmup_ms=1.0)
FALLBACK = RunnerOptions(allow_fallback=True)


def test_the_interval_covers_the_true_ratio() -> None:
    covered = 0
    for seed in range(200):
        logs = noise.series("all at once", seed, 100)
        found = compare(np.exp(logs[:, 0]), 0.5 * np.exp(logs[:, 1]))
        covered += found.low <= 2.0 <= found.high
    assert covered / 200 > 0.92


def test_an_opening_counts_once_however_many_rounds_it_lasts() -> None:
    assert stats.by_opening(np.arange(100.0)).tolist() == [4 * opening + 1.5 for opening in range(25)]
    assert len(stats.by_opening(np.arange(20.0))) == 10  # a short run keeps ten
    assert len(stats.by_opening(np.arange(10.0))) == 10
    lucky = np.repeat(np.random.default_rng(0).normal(0, 0.03, 25), 4)
    found = compare(np.exp(lucky), np.ones(100))
    assert found.high / found.low > 1.02  # 25 draws, not 100


def test_resembling_neighbours_are_kept_together() -> None:
    rng = np.random.default_rng(0)
    independent = rng.normal(0, 1, 400)
    walk = np.convolve(rng.normal(0, 1, 430), np.ones(10) / 10, mode="valid")[:400]
    assert stats.block_length(independent) <= 3
    assert stats.block_length(walk) >= 10


@pytest.mark.parametrize(("freedom", "expected"), [(3, 3.182), (5, 2.571), (29, 2.045), (1000, 1.962)])
def test_the_quantile_is_students(freedom: int, expected: float) -> None:
    assert stats._student_quantile(0.975, freedom) == pytest.approx(expected, rel=0.015)
    assert stats._student_p_value(expected, freedom) == pytest.approx(0.05, abs=0.002)


def test_slower_is_the_mirror_of_faster() -> None:
    logs = noise.series("drift", 0, 30)
    one, other = np.exp(logs[:, 0]), 0.8 * np.exp(logs[:, 1])
    assert judge([compare(one, other), compare(other, one)]) == [Outcome.FASTER, Outcome.SLOWER]


def test_within_two_percent_is_the_same_and_in_between_is_inconclusive() -> None:
    def seen(low: float, high: float, p: float) -> Comparison:
        return Comparison(speedup=(low * high) ** 0.5, low=low, high=high, p_value=p)

    found = judge([seen(1.005, 1.015, 0.0005), seen(0.97, 1.08, 0.4), seen(1.2, 1.3, 0.0005), seen(0.7, 0.8, 0.0005)])
    assert found == [Outcome.SAME, Outcome.INCONCLUSIVE, Outcome.FASTER, Outcome.SLOWER]


def test_a_limit_shortens_a_run_and_leaves_rounds_enough_for_a_verdict() -> None:
    assert warm._limit(Plan(), 1e6) is None
    assert warm._limit(Plan(most_seconds=60), 59) is None
    assert warm._limit(Plan(most_seconds=60), 100) == 60
    assert warm._limit(Plan(most_seconds=60, rounds=100), 10_000) == 10_000 * 1.5 * LEAST_ROUNDS / 100
    assert warm._limit(Plan(most_seconds=60, rounds=LEAST_ROUNDS), 10_000) == 10_000


def test_a_table_shares_one_error_rate() -> None:
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == [True, False, False, True]
    assert stats.holm([]) == []
    close = [Comparison(speedup=1.1, low=1.01, high=1.2, p_value=0.04)] * 3
    assert judge(close) == [Outcome.INCONCLUSIVE] * 3


def test_every_variant_and_batch_is_a_row_that_says_where_it_ran(digits: Bundle) -> None:
    found = bench(digits, Request(providers=(Provider.CPU,), points=batch(1, 7), plan=QUICK))
    assert [(row.variant, row.sizes["batch"]) for row in found.rows] == [
        (variant, size) for size in (1, 7) for variant in ("fp32", "int8-qdq", "int8-dynamic")
    ]
    for row in found.rows:
        assert row.status is Status.OK
        assert row.ran_on is Provider.CPU
        assert row.placement.startswith("cpu ")
        assert row.sha256 == digits.variant(row.variant).graph.sha256
        assert row.samples == row.sizes["batch"]
        assert row.at == f"batch {row.samples}"
        assert row.latency is not None
        assert row.latency.p50_us <= row.latency.p90_us <= row.latency.max_us
        assert row.latency.low_us <= row.latency.high_us
        assert row.verdict is not None
        assert row.verdict.baseline == "fp32 onnxruntime cpu"


def test_scores_are_counted_now_if_data_is_at_hand(digits: Bundle) -> None:
    found = bench(digits, Request(providers=(Provider.CPU,), points=batch(1), plan=QUICK))
    for row in found.rows:
        published = digits.variant(row.variant).score()
        assert row.score_source == "live"
        assert row.score is not None
        assert published is not None
        for name in ("metric", "dataset", "samples", "value", "worse", "improved"):
            assert getattr(row.score, name) == getattr(published, name)


def test_a_bundle_without_data_keeps_the_manifests_figures(tiny: Bundle) -> None:
    (row,) = bench(tiny, Request(providers=(Provider.CPU,), points=batch(3), plan=QUICK)).rows
    assert row.score is None
    assert row.score_source == ""


@pytest.mark.usefixtures("no_cuda")
def test_cuda_that_cannot_run_is_a_row_with_reason_and_never_a_latency(tiny: Bundle) -> None:
    found = bench(tiny, Request(providers=(Provider.CUDA, Provider.CPU), points=batch(1), plan=QUICK))
    refused, measured_row = found.rows
    assert refused.status is Status.UNAVAILABLE
    assert refused.latency is None
    assert refused.reason
    assert refused.fix
    assert measured_row.status is Status.OK


@pytest.mark.usefixtures("no_cuda")
def test_a_fallback_is_stamped_on_its_row(tiny: Bundle) -> None:
    found = bench(tiny, Request(providers=(Provider.CUDA,), runner=FALLBACK, points=batch(1), plan=QUICK))
    (row,) = found.rows
    assert row.status is Status.FALLBACK
    assert (row.provider, row.ran_on) == (Provider.CUDA, Provider.CPU)
    assert row.latency is not None


def test_an_altered_file_is_a_failed_row(tiny: Bundle) -> None:
    path = tiny.path(tiny.variant().graph)
    overwrite(path, bytes(path.stat().st_size))
    (row,) = bench(tiny, Request(providers=(Provider.CPU,), points=batch(1), plan=QUICK)).rows
    assert row.status is Status.FAILED
    assert "altered" in row.reason


def test_results_read_back_as_they_were_written(digits: Bundle, tmp_path: Path) -> None:
    found = bench(digits, Request(providers=(Provider.CPU,), points=batch(1), plan=QUICK))
    found.save(tmp_path / "results.json")
    assert results.load(tmp_path / "results.json") == found
    assert [item.name for item in tmp_path.glob("*.json")] == ["results.json"]


@pytest.mark.parametrize("version", [1, 2])
def test_results_of_earlier_versions_are_read(version: int) -> None:
    found = results.load(FIXTURES / f"results-{version}.json")
    old = json.loads((FIXTURES / f"results-{version}.json").read_text())
    assert found.schema_version == results.SCHEMA_VERSION
    assert [(row.variant, row.sizes, row.samples) for row in found.rows] == [
        (row["variant"], {"batch": row["batch_size"]}, row["batch_size"]) for row in old["rows"]
    ]
    assert [row.point for row in found.rows] == ["batch 1", "batch 1", "batch 64", "batch 64"]
    for row, before in zip(found.rows, old["rows"], strict=True):
        assert row.score is not None
        assert (row.score.metric, row.score.unit, row.score.samples) == ("top-1", "%", before["accuracy"]["images"])
        assert row.score.correct == before["accuracy"]["correct"]
        assert row.right == before["correct_images"]
        assert row.score_source == "live"
        assert row.latency is not None
        assert row.latency.samples_per_second == before["latency"]["images_per_second"]
    assert [row.score.worse for row in found.rows if row.score] == [None, 0, None, 0]
    assert found.remarks() == ()


def test_results_with_impossible_figures_are_refused(tiny: Bundle, tmp_path: Path) -> None:
    good = bench(tiny, Request(providers=(Provider.CPU,), points=batch(1), plan=QUICK)).to_json()
    for place, value in (("p50_us", -1.0), ("calls", "many"), ("rounds", 1.5), ("status", "splendid")):
        data = json.loads(good)
        (data["rows"][0] if place == "status" else data["rows"][0]["latency"])[place] = value
        (tmp_path / "bad.json").write_text(json.dumps(data))
        with pytest.raises(BadInput, match=place):
            results.load(tmp_path / "bad.json")
    data = json.loads(good)
    data["rows"][0]["latency"]["medians_us"][0] = 1e300
    (tmp_path / "bad.json").write_text(json.dumps(data))
    with pytest.raises(BadInput, match="thirty years"):
        results.load(tmp_path / "bad.json")


def test_the_baseline_stands_in_twice_and_shows_the_noise_of_the_run(digits: Bundle) -> None:
    found = bench(digits, Request(providers=(Provider.CPU,), points=batch(1, 4), plan=QUICK))
    assert [(control.contestant, control.sizes) for control in found.controls] == [
        ("fp32 onnxruntime cpu", {"batch": 1}),
        ("fp32 onnxruntime cpu", {"batch": 4}),
    ]
    assert all(control.comparison for control in found.controls)
    assert found.conditions is not None


def test_models_are_opened_anew_but_for_those_that_take_long(digits: Bundle) -> None:
    found = bench(digits, Request(providers=(Provider.CPU,), points=batch(1), plan=replace(QUICK, rounds=12)))
    assert [row.latency.openings for row in found.rows if row.latency] == [3, 3, 3]


def test_a_slow_opener_and_one_that_fails_to_open_again_stay_as_they_are(tiny: Bundle) -> None:
    with ExitStack() as stack:
        (case,) = open_all(prepare(Subject.of(tiny), [Case(variant="fp32")]), stack)
        queries = Queries(case, {"batch": 2}, Load())
        first = queries.call
        assert queries.renew() is not first
        overwrite(tiny.path(tiny.variant().graph), b"")  # it cannot be opened again
        assert queries.renew() is first
        assert queries.renew() is first
        queries.call()
        case.runner.slow_to_open = True
        slow = Queries(case, {"batch": 2}, Load(), own=True)
        assert slow.renew() is slow.renew()
        assert slow.openings == 1


def test_a_run_too_short_for_ten_rounds_gives_no_verdict(digits: Bundle) -> None:
    plan = Plan(budget_seconds=0.001)
    found = bench(digits, Request(providers=(Provider.CPU,), points=batch(1), plan=plan))
    outcomes = [row.verdict.outcome for row in found.rows if row.verdict]
    assert outcomes == [Outcome.BASELINE, Outcome.INCONCLUSIVE, Outcome.INCONCLUSIVE]
    assert found.rows[1].verdict is not None
    assert found.rows[1].verdict.describe() == "INCONCLUSIVE"


def test_it_says_how_long_it_will_take_before_it_measures(tiny: Bundle) -> None:
    said: list[object] = []
    bench(
        tiny,
        Request(providers=(Provider.CPU,), points=batch(1), plan=QUICK),
        on_estimate=said.append,
        on_progress=lambda what, _share: said.append(what),
    )
    estimate = next(index for index, one in enumerate(said) if isinstance(one, float))
    assert "batch 1" not in said[:estimate]
    assert "batch 1" in said[estimate:]


def test_more_threads_than_cpus_are_said(tiny: Bundle) -> None:
    many = this_machine().cpus_to_use + 1
    found = bench(
        tiny, Request(providers=(Provider.CPU,), points=batch(1), runner=RunnerOptions(threads=many), plan=QUICK)
    )
    assert any("more threads" in remark for remark in found.remarks())


def test_what_is_no_results_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    for content in ("{", "[]", '{"kind": "other"}', json.dumps({"kind": "kit-bench", "schema_version": 99})):
        path.write_text(content)
        with pytest.raises(BadInput):
            results.load(path)
    with pytest.raises(BadInput):
        results.load(tmp_path / "missing.json")


def test_results_that_cannot_be_written_are_an_error(tiny: Bundle, tmp_path: Path) -> None:
    found = bench(tiny, Request(providers=(Provider.CPU,), points=batch(1), plan=QUICK))
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageUnavailable):
        found.save(tmp_path / "file" / "results.json")


def test_requests_that_measure_nothing_are_refused(tiny: Bundle) -> None:
    with pytest.raises(UsageError, match="no point"):
        Request(points=())
    with pytest.raises(UsageError, match="batch cannot have this size"):
        bench(tiny, Request(providers=(Provider.CPU,), points=batch(0), plan=QUICK))
    with pytest.raises(UsageError, match="no axis 'width'"):
        bench(tiny, Request(providers=(Provider.CPU,), points=({"width": 3},), plan=QUICK))
    with pytest.raises(UsageError, match="no axis 'width'"):
        bench(tiny, Request(providers=(Provider.CPU,), sweep="width", plan=QUICK))
    with pytest.raises(UsageError):
        Plan(rounds=1)


def test_two_inputs_two_outputs_and_two_axes_are_measured_like_any(duo: Bundle) -> None:
    points = ({"batch": 2, "sequence": 5}, {"batch": 2, "sequence": 16})
    asked = Request(providers=(Provider.CPU,), runtimes=("onnxruntime", "openvino"), points=points, plan=QUICK)
    found = bench(duo, asked)
    assert [(row.runtime, row.sizes, row.samples, row.at) for row in found.rows] == [
        (runtime, sizes, 2, f"sequence {sizes['sequence']}") for sizes in points for runtime in asked.runtimes
    ]
    assert all(row.status is Status.OK and row.latency for row in found.rows), [row.reason for row in found.rows]
    assert all(row.score is None for row in found.rows)
    device = bench(duo, dataclasses.replace(asked, modes=(Mode.DEVICE,), runtimes=("onnxruntime",)))
    assert all(row.status is Status.OK and row.latency for row in device.rows), [row.reason for row in device.rows]


def test_a_ready_model_of_fixed_sizes_is_measured_at_its_one_size(tmp_path: Path) -> None:
    (tmp_path / "plain.onnx").write_bytes(fixed_model())
    model = ready.find(tmp_path / "plain.onnx")
    found = bench(model, Request(providers=(Provider.CPU,), plan=QUICK))
    (row,) = found.rows
    assert (row.variant, row.status, row.sizes, row.samples, row.point) == ("model", Status.OK, {}, 1, "its one size")
    assert row.score is None
    assert row.verdict is not None
    assert row.verdict.outcome is Outcome.BASELINE
    with pytest.raises(UsageError, match="no axis"):
        bench(model, Request(providers=(Provider.CPU,), points=batch(8), plan=QUICK))
    with pytest.raises(UsageError, match="no batch axis"):
        batches(model.signature, [8])


def test_a_users_metric_is_counted_if_handed_over_and_never_because_a_manifest_names_it(
    digits: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_metric.py").write_text("def surest(outputs, samples):\n    return outputs['logits'].max(axis=1)\n")
    monkeypatch.chdir(tmp_path)
    strange = dataclasses.replace(digits.variant("fp32").scores[0], metric="own_metric:surest")
    variants = tuple(dataclasses.replace(one, scores=(strange,)) for one in digits.variants)
    named = dataclasses.replace(digits, manifest=dataclasses.replace(digits.manifest, variants=variants))
    asked = Request(providers=(Provider.CPU,), points=batch(1), plan=QUICK)
    found = bench(named, asked)
    assert {(row.score.metric, row.score_source) for row in found.rows if row.score} == {
        ("own_metric:surest", "manifest")
    }
    assert "own_metric" not in sys.modules
    counted = bench(named, dataclasses.replace(asked, metric=metrics.find("own_metric:surest")))
    assert {(row.score.metric, row.score_source) for row in counted.rows if row.score} == {
        ("own_metric:surest", "live")
    }
    assert counted.rows[1].score is not None
    assert counted.rows[1].score.loss_interval is not None


@pytest.mark.gpu
def test_cuda_is_measured_beside_the_cpu(tiny: Bundle) -> None:
    found = bench(tiny, Request(providers=(Provider.CPU, Provider.CUDA), points=batch(1, 64), plan=QUICK))
    assert {row.ran_on for row in found.rows} == {Provider.CPU, Provider.CUDA}
    assert all(row.status is Status.OK for row in found.rows)
