"""From timings to rows: percentiles, the verdict against the baseline, and the baseline against itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kit.bench import stats
from kit.bench.cases import OpenCase
from kit.bench.measure import LEAST_ROUNDS, Timings
from kit.bench.results import Control, Latency, Row, Verdict
from kit.choices import Provider

_FALLING = 0.03


@dataclass(frozen=True)
class Timing:
    """A row of one point, its case's name, and its timings if it was measured."""

    row: Row
    name: str
    timings: Timings | None


@dataclass(frozen=True)
class Group:
    """All rows of one point, in the order of the table, measured in the same rounds, and the baseline's twin.

    `baseline` is the one that the others are compared with; None if nothing was measured.
    """

    rows: tuple[Timing, ...]
    baseline: Timing | None
    twin: Timings | None


def baseline_index(cases: Sequence[OpenCase]) -> int | None:
    """Return which case the others are compared with: the bundle's baseline in ONNX Runtime on the CPU, or what is nearest.

    That is its baseline in another runtime on the CPU, else the first case that runs.
    """
    running = [index for index, case in enumerate(cases) if case.runner is not None]
    elsewhere = [
        index
        for index in running
        if cases[index].row.variant == cases[index].subject.bundle.manifest.baseline
        and cases[index].row.provider is Provider.CPU
    ]
    usual = [index for index in elsewhere if cases[index].is_baseline]
    return next(iter([*usual, *elsewhere, *running]), None)


def latency(timings: Timings, samples: int, *, openings: int = 1) -> Latency:
    """Summarise the turns of one case whose calls answer `samples` samples each."""
    pooled, medians = timings.pooled_us(), timings.medians_us()
    percentiles = np.percentile(pooled, np.arange(101))
    low, high = stats.median_interval(medians)
    mean_us = timings.mean_us()
    slowest_us, quickest_us = reversed(stats.median_interval(timings.means_us()))
    centre = float(np.median(medians))
    return Latency(
        calls=timings.calls,
        rounds=len(timings.turns),
        p50_us=float(percentiles[50]),
        p90_us=float(percentiles[90]),
        p95_us=float(percentiles[95]),
        p99_us=float(percentiles[99]) if timings.calls >= stats.LEAST_CALLS_FOR_P99 else None,
        max_us=float(pooled.max()),
        low_us=low,
        high_us=high,
        samples_per_second=samples * 1e6 / max(mean_us, 1e-3),
        medians_us=tuple(round(value, 3) for value in medians.tolist()),
        mean_us=mean_us,
        noise=1.4826 * float(np.median(np.abs(medians - centre))) / max(centre, 1e-3),
        percentiles_us=tuple(round(value, 3) for value in percentiles.tolist()),
        openings=openings,
        service_us=timings.service_us(),
        samples_per_second_low=None if slowest_us is None else samples * 1e6 / max(slowest_us, 1e-3),
        samples_per_second_high=None if quickest_us is None else samples * 1e6 / max(quickest_us, 1e-3),
        warmup_ms=round(timings.warmup.spent_ms, 1),
        # A noisy machine may look unsettled; what counts is whether the rounds went on falling.
        settled=timings.warmup.settled or (_drift(timings) or 0.0) > -_FALLING,
    )


def judge(groups: Sequence[Group]) -> tuple[Row, ...]:
    """Compare each measured row with the baseline at its point, with one error rate for the whole table."""
    pairs = [(one, group.baseline) for group in groups for one in group.rows]
    comparisons = {
        index: found
        for index, (one, base) in enumerate(pairs)
        if base is not None and one is not base and (found := _compare(base.timings, one.timings)) is not None
    }
    outcomes = dict(zip(comparisons, stats.judge(list(comparisons.values())), strict=True))
    rows = []
    for index, (one, base) in enumerate(pairs):
        verdict = None
        if base is not None and one.timings is not None:
            otherwise = stats.Outcome.BASELINE if one is base else stats.Outcome.INCONCLUSIVE  # too few rounds
            outcome = outcomes.get(index, otherwise)
            verdict = Verdict(outcome=outcome, baseline=base.name, comparison=comparisons.get(index))
        rows.append(dataclasses.replace(one.row, verdict=verdict))
    return tuple(rows)


def controls(groups: Sequence[Group]) -> tuple[Control, ...]:
    """Compare each baseline with its twin, as strictly as the rows with the baseline."""
    found = [
        Control(
            contestant=group.baseline.name,
            sizes=group.baseline.row.sizes,
            at=group.baseline.row.at,
            outcome=stats.Outcome.INCONCLUSIVE,
            comparison=_compare(group.baseline.timings, group.twin),
            drift=_drift(group.baseline.timings),
        )
        for group in groups
        if group.baseline is not None and group.baseline.timings is not None
    ]
    outcomes = iter(stats.judge([control.comparison for control in found if control.comparison]))
    return tuple(
        dataclasses.replace(control, outcome=next(outcomes)) if control.comparison else control for control in found
    )


def _compare(base: Timings | None, one: Timings | None) -> stats.Comparison | None:
    if base is None or one is None or len(base.turns) < LEAST_ROUNDS:
        return None
    return stats.compare(base.medians_us(), one.medians_us())


def _drift(timings: Timings) -> float | None:
    medians = timings.medians_us()
    third = len(medians) // 3
    if third < 3:
        return None
    return float(np.median(medians[-third:]) / np.median(medians[:third]) - 1)
