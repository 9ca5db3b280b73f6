"""Two results files, an older and a newer one: what was lost, and is it more than noise.

Speed: the difference of the mean log-medians of two independent runs (Welch), compared with the allowed slowdown; the rows of
a table share one error rate (Holm). Scores: the same samples in both runs. A metric that is right or wrong is compared sample
by sample, and judged by the exact sign test (McNemar), never by two percentages; any other by the interval that came with it.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kit import metrics
from kit.bench import stats
from kit.bench.measure import LEAST_ROUNDS
from kit.bench.results import Latency, Results, Row
from kit.bench.scenarios import Scenario
from kit.bench.stats import Comparison, Outcome
from kit.choices import Mode, Provider
from kit.errors import UsageError
from kit.metrics import Better, Score

Key = tuple[str, str, Provider, tuple[tuple[str, int], ...], int, Mode, str, Scenario, float | None]

_Z = 1.96  # of a 95 % interval


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a newer run may lose.

    Attributes:
        slower: Share of latency, such as 0.05.
        drop_points: Percentage points of a metric that is a share, such as top-1.
        loss: Of any other metric, in its unit; None for what the metric allows by itself.
    """

    slower: float = 0.05
    drop_points: float = 0.1
    loss: float | None = None

    def __post_init__(self) -> None:
        # What is no number would allow everything.
        if not all(0 <= limit < math.inf for limit in (self.slower, self.drop_points, self.loss or 0.0)):
            raise UsageError("a limit must be a number, and not negative", hint="give 0 to allow no loss at all")

    def allowed(self, score: Score) -> float:
        """Return how much of a metric may be lost, in the unit of its value."""
        if score.unit == "%":
            return self.drop_points / 100
        if self.loss is not None:
            return self.loss
        return metrics.find(score.metric).allowed_loss if score.metric in metrics.names() else 0.0


@dataclass(frozen=True, kw_only=True)
class Flips:
    """Samples that one run only has right."""

    samples: int
    lost: int
    gained: int
    p_value: float

    @property
    def drop_points(self) -> float:
        """Percentage points lost; negative for a gain."""
        return 100.0 * (self.lost - self.gained) / self.samples


@dataclass(frozen=True, kw_only=True)
class ScoreChange:
    """One metric of a row in both runs, on the same samples.

    Attributes:
        unit: Of base, new and loss; `%` for shares of 1.
        new: None if the newer run has no value on these samples.
        loss: Negative for a gain; None if it is not known.
        margin: How far the loss may be off, half of a 95 % interval; None if that is not known.
        flips: Samples that changed, if the metric is right or wrong and both runs counted it.
        worse: A significant loss beyond the limit; of a metric without interval, any loss beyond it.
        missing: Why there is no newer value.
    """

    metric: str
    unit: str
    base: float
    new: float | None
    loss: float | None
    margin: float | None
    flips: Flips | None
    worse: bool
    missing: str = ""


@dataclass(frozen=True, kw_only=True)
class Change:
    """One row of both runs.

    Attributes:
        at: What the sizes are called in the older run.
        speed: Newer against older: above 1 is faster. None if one of them has no latency.
        outcome: Of `speed`, without the limit.
        slower: A significant loss of speed beyond the limit.
        missing: Why there is no speed: the newer run did not measure it, or not in a way that can be compared.
    """

    variant: str
    runtime: str
    provider: Provider
    sizes: dict[str, int]
    at: str
    threads: int
    base_p50_us: float | None
    new_p50_us: float | None
    speed: Comparison | None
    outcome: Outcome | None
    scores: tuple[ScoreChange, ...]
    slower: bool
    missing: str = ""

    @property
    def worse(self) -> bool:
        """Whether a score was lost beyond the limit."""
        return any(one.worse for one in self.scores)

    @property
    def flips(self) -> Flips | None:
        """Samples that changed, of the first metric that is right or wrong."""
        return next((one.flips for one in self.scores if one.flips), None)


@dataclass(frozen=True, kw_only=True)
class Regression:
    """All rows of the older run, and whether anything was lost."""

    changes: tuple[Change, ...]
    limits: Limits

    @property
    def lost(self) -> bool:
        """Whether speed or a score was lost beyond the limits."""
        return any(change.slower or change.worse for change in self.changes)

    @property
    def incomplete(self) -> bool:
        """Whether the newer run lacks a row of the older one, or a metric of a row."""
        return any(change.missing or any(one.missing for one in change.scores) for change in self.changes)


def compare(
    base: Results, new: Results, limits: Limits, *, any_machine: bool = False, any_bundle: bool = False
) -> Regression:
    """Compare a newer run to an older one, row by row.

    `any_machine` and `any_bundle` accept runs of different machines, and of bundles of different names.

    Raises:
        UsageError: The machines or the bundles differ, or nothing in the older run can be compared.
    """
    if base.machine.fingerprint != new.machine.fingerprint and not any_machine:
        raise UsageError(
            f"the runs are from different machines: {base.machine.describe()}  and  {new.machine.describe()}",
            hint="measure both on one machine, or accept any machine",
        )
    names = [sorted({row.bundle for row in results.rows}) for results in (base, new)]
    if names[0] != names[1] and all(names) and not any_bundle:
        raise UsageError(
            f"the runs are of different bundles: {', '.join(names[0])}  and  {', '.join(names[1])}",
            hint="measure the same one, or accept any bundle",
        )
    before = {_key(row): row for row in base.rows if row.latency is not None}
    after = {_key(row): row for row in new.rows}
    if not before:
        raise UsageError(
            "the older run measured no latency that could be compared",
            hint="make one: kit bench BUNDLE --json base.json",
        )
    pairs = [(row, after.get(key)) for key, row in before.items()]
    problems = [_problem(row, other) for row, other in pairs]
    logs = [None if problem else _difference(*pair) for pair, problem in zip(pairs, problems, strict=True)]
    # log(base / new) is below -log(1 + limit) when the newer is slower beyond the limit: turn both round.
    limit = math.log1p(limits.slower)
    sure = iter(stats.holm([_turned(log).exceeds(limit) for log in logs if log]))
    speeds = [stats.as_speedup(log) if log else None for log in logs]
    outcomes = iter(stats.judge([speed for speed in speeds if speed]))
    changes = []
    for (row, other), speed, problem in zip(pairs, speeds, problems, strict=True):
        changes.append(
            Change(
                variant=row.variant,
                runtime=row.runtime,
                provider=row.provider,
                sizes=row.sizes,
                at=row.point,
                threads=row.threads,
                base_p50_us=row.latency.p50_us if row.latency else None,
                new_p50_us=other.latency.p50_us if other and other.latency else None,
                speed=speed,
                outcome=next(outcomes) if speed else None,
                scores=_scores(row, other, limits),
                slower=next(sure) if speed else False,
                missing=problem,
            )
        )
    return Regression(changes=tuple(changes), limits=limits)


def _key(row: Row) -> Key:
    how = (row.mode, row.session, row.scenario, row.offered_rate)
    return row.variant, row.runtime, row.provider, tuple(sorted(row.sizes.items())), row.threads, *how


def _difference(base: Row, new: Row | None) -> stats.Estimate:
    assert base.latency is not None  # `_problem` looked
    assert new is not None
    assert new.latency is not None
    return stats.difference(_log_median(base.latency), _log_median(new.latency))


def _log_median(latency: Latency) -> stats.Estimate:
    return stats.estimate(stats.by_opening(np.log(np.array(latency.medians_us))))


def _turned(log: stats.Estimate) -> stats.Estimate:
    return stats.Estimate(mean=-log.mean, error=log.error, freedom=log.freedom)


def _problem(row: Row, other: Row | None) -> str:
    if other is None:
        return "not in the newer run"
    if other.latency is None:
        return f"{other.status}: {other.reason}"
    if row.ran_on is not other.ran_on:
        return f"it ran on {other.ran_on}, in the older run on {row.ran_on}" + (
            f": {other.reason}" * bool(other.reason)
        )
    rounds = min(len(one.latency.medians_us) for one in (row, other) if one.latency)
    if rounds < LEAST_ROUNDS:
        return f"too few rounds ({rounds}) to tell: measure longer"
    return ""


def _scores(base: Row, new: Row | None, limits: Limits) -> tuple[ScoreChange, ...]:
    if new is None:
        return ()
    found = {(one.metric, one.dataset, one.split, one.samples): one for one in new.scores}
    changes = []
    for before in base.scores:
        now = found.get((before.metric, before.dataset, before.split, before.samples))
        if now is None:
            changes.append(_without(before, [one for one in new.scores if one.metric == before.metric]))
            continue
        is_first = before is base.score and now is new.score
        flips = _flips(base, new, before.samples) if is_first else None
        changes.append(_change(before, now, flips, limits.allowed(now)))
    return tuple(changes)


def _without(before: Score, others: Sequence[Score]) -> ScoreChange:
    missing = f"{before.metric}: not in the newer run"
    if others:
        on = ", ".join(_samples(one) for one in others)
        missing = f"{before.metric}: on {on}, in the older run on {_samples(before)}"
    return ScoreChange(
        metric=before.metric,
        unit=before.unit,
        base=before.value,
        new=None,
        loss=None,
        margin=None,
        flips=None,
        worse=False,
        missing=missing,
    )


def _samples(score: Score) -> str:
    return f"{score.samples:,} samples of {score.dataset} {score.split}"


def _change(before: Score, now: Score, flips: Flips | None, allowed: float) -> ScoreChange:
    loss = before.value - now.value if now.better is Better.HIGHER else now.value - before.value
    margin = _margin(before, now)
    if flips is not None:
        worse = not flips.drop_points / 100 <= allowed and flips.p_value < stats.ERROR_RATE
    else:
        worse = not loss <= allowed and (margin is None or not loss <= margin)
    return ScoreChange(
        metric=now.metric,
        unit=now.unit,
        base=before.value,
        new=now.value,
        loss=loss,
        margin=margin,
        flips=flips,
        worse=worse,
    )


def _margin(before: Score, now: Score) -> float | None:
    """Return half the interval of the change, as if the runs were independent; None if none is known."""
    reaches = []
    for one in (before, now):
        if (interval := one.loss_interval) is not None:
            reaches.append((interval[1] - interval[0]) / 2)
        elif one.unit == "%":  # a share varies by v (1 - v) at most (Bhatia and Davis 2000)
            reaches.append(_Z * math.sqrt(one.value * (1 - one.value) / one.samples))
    return math.hypot(*reaches) if reaches else None


def _flips(base: Row, new: Row, samples: int) -> Flips | None:
    if not base.right or not new.right:
        return None
    before, now = _right(base, samples), _right(new, samples)
    lost, gained = int((before & ~now).sum()), int((~before & now).sum())
    return Flips(samples=samples, lost=lost, gained=gained, p_value=stats.lost_by_chance(lost, gained))


def _right(row: Row, samples: int) -> NDArray[np.bool_]:
    packed = np.frombuffer(base64.b64decode(row.right), np.uint8)
    return np.unpackbits(packed, count=samples).astype(bool)
