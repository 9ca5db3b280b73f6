"""Compare: a loss that is more than noise fails, noise does not."""

from __future__ import annotations

import base64
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from kit.bench import results, stats
from kit.bench.compare import Limits, compare
from kit.bench.measure import Plan
from kit.bench.results import Results, Row, Status
from kit.bench.run import Request, bench
from kit.bundle import Bundle
from kit.choices import Provider
from kit.errors import BadInput, UsageError
from kit.metrics import Better, Score
from kit.system import serial
from tests.conftest import ROOT, Kit
from tests.helpers.points import batch

QUICK = Plan(rounds=10, turn_ms=0.5, warmup_ms=1.0)


@pytest.fixture
def run(digits: Bundle) -> Results:
    """A real run whose noise is replaced by a fixed one, so that no test depends on this machine's mood."""
    found = bench(
        digits, Request(providers=(Provider.CPU,), variants=("fp32", "int8-qdq"), points=batch(1), plan=QUICK)
    )
    return scaled(found, 1.0, seed=0)


def scaled(results: Results, factor: float, *, seed: int) -> Results:
    rng = np.random.default_rng(seed)

    def change(row: Row) -> Row:
        assert row.latency is not None
        medians = tuple((50.0 * factor * np.exp(rng.normal(0, 0.02, 30))).tolist())
        return dataclasses.replace(row, latency=dataclasses.replace(row.latency, medians_us=medians))

    return dataclasses.replace(results, rows=tuple(change(row) for row in results.rows))


def flipped(results: Results, count: int) -> Results:
    """Make `count` samples wrong that were right."""

    def change(row: Row) -> Row:
        assert row.score is not None
        right = np.unpackbits(np.frombuffer(base64.b64decode(row.right), np.uint8), count=row.score.samples)
        right[np.flatnonzero(right)[:count]] = 0
        bits = base64.b64encode(np.packbits(right).tobytes()).decode()
        score = dataclasses.replace(row.score, value=int(right.sum()) / row.score.samples)
        return dataclasses.replace(row, right=bits, scores=(score, *row.scores[1:]))

    return dataclasses.replace(results, rows=tuple(change(row) for row in results.rows))


def test_the_bench_keeps_what_a_comparison_needs(digits: Bundle) -> None:
    found = bench(digits, Request(providers=(Provider.CPU,), variants=("fp32",), points=batch(1), plan=QUICK))
    (row,) = found.rows
    assert row.latency is not None
    assert row.score is not None
    assert len(row.latency.medians_us) == 10
    bits = np.unpackbits(np.frombuffer(base64.b64decode(row.right), np.uint8), count=row.score.samples)
    assert int(bits.sum()) == row.score.correct


def test_noise_is_no_loss(run: Results) -> None:
    failures = sum(compare(run, scaled(run, 1.0, seed=seed), Limits(slower=0.0)).lost for seed in range(1, 101))
    assert failures <= 5


def test_a_slowdown_beyond_the_limit_is_a_loss_and_one_within_is_not(run: Results) -> None:
    assert compare(run, scaled(run, 1.10, seed=1), Limits(slower=0.05)).lost
    assert not compare(run, scaled(run, 1.03, seed=1), Limits(slower=0.05)).lost
    faster = compare(run, scaled(run, 0.8, seed=1), Limits())
    assert not faster.lost
    assert {change.outcome for change in faster.changes} == {stats.Outcome.FASTER}


def test_lost_samples_are_counted_one_by_one(run: Results) -> None:
    worse = compare(run, flipped(run, 8), Limits(drop_points=0.1))
    assert worse.lost
    assert {(c.flips.lost, c.flips.gained) for c in worse.changes if c.flips} == {(8, 0)}
    assert not compare(run, flipped(run, 3), Limits(drop_points=0.1)).lost, "three flips can be chance"
    assert not compare(run, flipped(run, 8), Limits(drop_points=5.0)).lost


def scored(results: Results, **fields: object) -> Results:
    """Give every row one score, of a metric that is not right or wrong."""
    known = {"metric": "rmse", "dataset": "d", "split": "test", "samples": 400, "better": Better.LOWER, "unit": "mm"}
    score = Score(**{**known, "value": 1.0, **fields})
    rows = tuple(dataclasses.replace(row, scores=(score,), right="") for row in results.rows)
    return dataclasses.replace(results, rows=rows)


def test_other_metrics_are_compared_by_their_interval_and_their_direction(run: Results) -> None:
    before = scored(run, baseline=1.0, low=-0.05, high=0.05)
    worse = scored(run, value=1.3, baseline=1.0, low=0.25, high=0.35)
    better = scored(run, value=0.7, baseline=1.0, low=-0.35, high=-0.25)
    vague = scored(run, value=1.3, baseline=1.0, low=-0.1, high=0.7)
    limits = Limits(loss=0.1)
    assert compare(before, worse, limits).lost
    assert compare(before, worse, limits).changes[0].scores[0].loss == pytest.approx(0.3)
    assert not compare(before, better, limits).lost
    assert not compare(before, vague, limits).lost, "the interval holds no loss at all as well"
    assert not compare(before, worse, Limits(loss=0.4)).lost
    assert (
        compare(before, scored(run, value=1.005, baseline=1.0, low=0.0049, high=0.0051), Limits(loss=0.0)).lost is False
    )


def test_a_metric_without_interval_is_compared_by_its_value(run: Results) -> None:
    whole = {"metric": "mine:map", "better": Better.HIGHER, "unit": ""}
    before, after = scored(run, value=0.70, **whole), scored(run, value=0.60, **whole)
    assert compare(before, after, Limits(loss=0.05)).lost
    assert compare(before, after, Limits(loss=0.05)).changes[0].scores[0].margin is None
    assert not compare(before, after, Limits(loss=0.2)).lost
    other = scored(run, value=0.10, dataset="another", **whole)
    found = compare(before, other, Limits())
    assert found.incomplete
    assert not found.lost, "other samples say nothing"
    (change,) = found.changes[0].scores
    assert change.missing == "mine:map: on 400 samples of another test, in the older run on 400 samples of d test"


def test_the_sign_test_is_exact() -> None:
    assert stats.lost_by_chance(0, 0) == 1.0
    assert stats.lost_by_chance(5, 0) == pytest.approx(1 / 32)
    assert stats.lost_by_chance(3, 3) == pytest.approx(42 / 64)


def test_a_row_that_vanished_is_told_with_its_reason(run: Results) -> None:
    first, second = run.rows
    gone = dataclasses.replace(first, latency=None, status=Status.UNAVAILABLE, reason="no driver")
    found = compare(run, dataclasses.replace(run, rows=(gone, second)), Limits())
    assert found.incomplete
    assert not found.lost
    assert "no driver" in found.changes[0].missing
    assert compare(run, dataclasses.replace(run, rows=(second,)), Limits()).changes[0].missing == "not in the newer run"


def with_rounds(results: Results, count: int) -> Results:
    def change(row: Row) -> Row:
        assert row.latency is not None
        return dataclasses.replace(
            row, latency=dataclasses.replace(row.latency, medians_us=row.latency.medians_us[:count])
        )

    return dataclasses.replace(results, rows=tuple(change(row) for row in results.rows))


def test_a_few_rounds_decide_nothing(run: Results) -> None:
    slow = scaled(run, 2.0, seed=1)
    for base, new in ((run, with_rounds(slow, 1)), (with_rounds(run, 1), slow), (run, with_rounds(slow, 9))):
        found = compare(base, new, Limits())
        assert not found.lost
        assert found.incomplete
        assert "too few rounds" in found.changes[0].missing
    assert compare(run, with_rounds(slow, 10), Limits()).lost


def test_a_fallback_is_not_compared_with_what_it_stands_in_for(run: Results) -> None:
    def moved(results: Results, *, fell_back: bool) -> Results:
        rows = [
            dataclasses.replace(
                row,
                provider=Provider.CUDA,
                ran_on=Provider.CPU if fell_back else Provider.CUDA,
                status=Status.FALLBACK if fell_back else Status.OK,
                reason="no driver" if fell_back else "",
            )
            for row in results.rows
        ]
        return dataclasses.replace(results, rows=(*results.rows, *rows))

    found = compare(moved(run, fell_back=False), moved(run, fell_back=True), Limits())
    assert [bool(change.missing) for change in found.changes] == [False, False, True, True]
    assert "no driver" in found.changes[2].missing
    assert not compare(moved(run, fell_back=True), moved(run, fell_back=True), Limits()).incomplete


def test_different_bundles_are_refused_unless_told(run: Results) -> None:
    other = dataclasses.replace(run, rows=tuple(dataclasses.replace(row, bundle="another") for row in run.rows))
    with pytest.raises(UsageError, match="different bundles"):
        compare(run, other, Limits())
    assert not compare(run, other, Limits(), any_bundle=True).lost


def test_different_machines_are_refused_unless_told(run: Results) -> None:
    elsewhere = dataclasses.replace(run, machine=dataclasses.replace(run.machine, cpu="another"))
    with pytest.raises(UsageError, match="different machines"):
        compare(run, elsewhere, Limits())
    assert not compare(run, elsewhere, Limits(), any_machine=True).lost


def test_exit_codes_of_the_command(kit_inside: Kit, run: Results, tmp_path: Path) -> None:
    run.save(tmp_path / "base.json")
    scaled(run, 1.0, seed=3).save(tmp_path / "same.json")
    scaled(run, 1.3, seed=3).save(tmp_path / "slow.json")
    dataclasses.replace(run, rows=run.rows[:1]).save(tmp_path / "less.json")
    assert kit_inside("compare", "base.json", "same.json").returncode == 0
    slow = kit_inside("compare", "base.json", "slow.json")
    assert slow.returncode == 1
    assert "LOST: SLOWER" in slow.stdout
    assert kit_inside("compare", "base.json", "slow.json", "--fail-if-slower", "50%").returncode == 0
    assert kit_inside("compare", "base.json", "less.json").returncode == 3
    assert kit_inside("compare", "base.json", "missing.json").returncode == 4
    assert kit_inside("compare", "base.json", "same.json", "--fail-if-slower", "fast").returncode == 2
    forgotten = kit_inside("compare", "base.json", "slow.json", "--fail-if-slower", "5")
    assert forgotten.returncode == 2
    assert "did you mean 5%" in forgotten.stderr
    assert json.loads(kit_inside("compare", "base.json", "slow.json", "--json").stdout)["lost"] is True


@pytest.mark.parametrize("limit", [{"slower": np.nan}, {"drop_points": np.nan}, {"loss": np.nan}, {"slower": np.inf}])
def test_a_limit_that_is_no_number_allows_nothing(limit: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="must be a number"):
        Limits(**limit)


def test_a_metric_that_the_newer_run_lacks_is_no_silent_success(run: Results, tmp_path: Path, kit_inside: Kit) -> None:
    gone = dataclasses.replace(run, rows=tuple(dataclasses.replace(row, scores=(), right="") for row in run.rows))
    found = compare(run, gone, Limits())
    (change, _) = found.changes
    assert not change.missing
    first = change.scores[0]
    assert (first.new, first.loss, first.missing) == (None, None, "top-1: not in the newer run")
    assert found.incomplete
    assert not found.lost
    assert not compare(gone, run, Limits()).incomplete, "a metric more is no loss"
    run.save(tmp_path / "base.json")
    gone.save(tmp_path / "new.json")
    said = kit_inside("compare", "base.json", "new.json")
    assert said.returncode == 3
    assert "not in the newer run" in " ".join(said.stdout.split())


@pytest.mark.parametrize(
    ("right", "problem"), [("!!", "no base64"), ("AA=", "no base64"), ("AA==", "right has 1 bytes"), ("é", "no base64")]
)
def test_bits_of_right_samples_fit_the_score(tmp_path: Path, right: str, problem: str) -> None:
    found = results.load(ROOT / "tests" / "fixtures" / "results-2.json")
    row = found.rows[0]
    score = Score(metric="top-1", dataset="d", split="test", samples=10**9, value=0.5, unit="%")
    with pytest.raises(ValueError, match=problem):
        dataclasses.replace(row, right=right, scores=(score,))
    plain = json.loads(found.to_json())
    plain["rows"][0] |= {"right": right, "scores": [serial.encode(score)]}
    path = tmp_path / "results.json"
    path.write_text(json.dumps(plain))
    with pytest.raises(BadInput, match=problem):
        results.load(path)


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 100_000,
        b"\xff",
        b'{"kind": "kit-bench", "schema_version": 3, "seed": NaN}',
        b'{"kind": "kit-bench", "schema_version": 2, "arguments": {"batch_sizes": 3}, "rows": []}',
        b'{"kind": "kit-bench", "schema_version": 2, "arguments": {}, "rows": [{"batch_size": 1, "accuracy": {"images": 0}}]}',
    ],
)
def test_files_that_hold_no_results_are_told(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "results.json"
    path.write_bytes(content)
    with pytest.raises(BadInput, match="results"):
        results.load(path)
