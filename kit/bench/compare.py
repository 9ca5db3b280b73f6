"""Two results files, an older and a newer one: what was lost, and is it more than noise.

Speed: the difference of the mean log-medians of two independent runs (Welch), held against the allowed slowdown; the rows of
a table share one error rate (Holm). Accuracy: the same test images in both runs, so that flips are counted one by one and
judged by the exact sign test (McNemar), never by two percentages.
"""

from __future__ import annotations

import base64
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kit.bench import stats
from kit.bench.measure import LEAST_ROUNDS
from kit.bench.results import Latency, Results, Row
from kit.bench.scenarios import Scenario
from kit.bench.stats import Comparison, Outcome
from kit.choices import Mode, Provider
from kit.errors import UsageError

Key = tuple[str, str, Provider, int, int, Mode, str, Scenario, float | None]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a newer run may lose.

    Attributes:
        slower: Share of latency, such as 0.05.
        drop_points: Percentage points of top-1.
    """

    slower: float = 0.05
    drop_points: float = 0.1

    def __post_init__(self) -> None:
        """Refuse limits below nothing."""
        if self.slower < 0 or self.drop_points < 0:
            raise UsageError("a limit must not be negative", hint="give 0 to allow no loss at all")


@dataclass(frozen=True, kw_only=True)
class Flips:
    """Test images read correctly by one run only."""

    images: int
    lost: int
    gained: int
    p_value: float

    @property
    def drop_points(self) -> float:
        """Percentage points lost; negative for a gain."""
        return 100.0 * (self.lost - self.gained) / self.images


@dataclass(frozen=True, kw_only=True)
class Change:
    """One row of both runs.

    Attributes:
        speed: Newer against older: above 1 is faster. None where one of them has no latency.
        outcome: In words, without the limit.
        flips: None where the two runs did not count the same images.
        slower: A significant loss of speed beyond the limit.
        worse: A significant loss of accuracy beyond the limit.
        missing: Why there is no speed: the newer run did not measure it, or not in a way that can be compared.
    """

    variant: str
    runtime: str
    provider: Provider
    batch_size: int
    threads: int
    base_p50_us: float | None
    new_p50_us: float | None
    speed: Comparison | None
    outcome: Outcome | None
    flips: Flips | None
    slower: bool
    worse: bool
    missing: str = ""


@dataclass(frozen=True, kw_only=True)
class Regression:
    """All rows of the older run, and whether anything was lost."""

    changes: tuple[Change, ...]
    limits: Limits

    @property
    def lost(self) -> bool:
        """Whether speed or accuracy was lost beyond the limits."""
        return any(change.slower or change.worse for change in self.changes)

    @property
    def incomplete(self) -> bool:
        """Whether the newer run lacks a row of the older one."""
        return any(change.missing for change in self.changes)


def compare(
    base: Results, new: Results, limits: Limits, *, any_machine: bool = False, any_bundle: bool = False
) -> Regression:
    """Compare a newer run to an older one, row by row.

    Args:
        base: The older run.
        new: The newer run.
        limits: What it may lose.
        any_machine: Compare figures of different machines all the same.
        any_bundle: Compare figures of bundles of different names all the same.

    Raises:
        UsageError: The machines or the bundles differ, or nothing in the older run can be compared.
    """
    if base.machine.fingerprint != new.machine.fingerprint and not any_machine:
        raise UsageError(
            f"the runs are from different machines: {base.machine.describe()}  and  {new.machine.describe()}",
            hint="measure both on one machine, or accept it with --any-machine",
        )
    names = [sorted({row.bundle for row in results.rows}) for results in (base, new)]
    if names[0] != names[1] and all(names) and not any_bundle:
        raise UsageError(
            f"the runs are of different bundles: {', '.join(names[0])}  and  {', '.join(names[1])}",
            hint="measure the same one, or accept it with --any-bundle",
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
        flips = _flips(row, other)
        changes.append(
            Change(
                variant=row.variant,
                runtime=row.runtime,
                provider=row.provider,
                batch_size=row.batch_size,
                threads=row.threads,
                base_p50_us=row.latency.p50_us if row.latency else None,
                new_p50_us=other.latency.p50_us if other and other.latency else None,
                speed=speed,
                outcome=next(outcomes) if speed else None,
                flips=flips,
                slower=next(sure) if speed else False,
                worse=bool(flips and flips.drop_points > limits.drop_points and flips.p_value < stats.ERROR_RATE),
                missing=problem,
            )
        )
    return Regression(changes=tuple(changes), limits=limits)


def _key(row: Row) -> Key:
    how = (row.mode, row.session, row.scenario, row.offered_rate)
    return row.variant, row.runtime, row.provider, row.batch_size, row.threads, *how


def _difference(base: Row, new: Row | None) -> stats.Estimate:
    """Estimate log(base / new) of two independent runs."""
    assert base.latency is not None  # `_problem` looked
    assert new is not None
    assert new.latency is not None
    return stats.difference(_log_median(base.latency), _log_median(new.latency))


def _log_median(latency: Latency) -> stats.Estimate:
    return stats.estimate(stats.by_opening(np.log(np.array(latency.medians_us))))


def _turned(log: stats.Estimate) -> stats.Estimate:
    return stats.Estimate(mean=-log.mean, error=log.error, freedom=log.freedom)


def _problem(row: Row, other: Row | None) -> str:
    """Return why the speed of two rows cannot be compared; empty when it can."""
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


def _flips(base: Row, new: Row | None) -> Flips | None:
    """Count the images on which the two runs differ, if they counted the same ones."""
    if new is None or base.accuracy is None or new.accuracy is None:
        return None
    same = (base.accuracy.dataset, base.accuracy.split, base.accuracy.images)
    if same != (new.accuracy.dataset, new.accuracy.split, new.accuracy.images):
        return None
    if not base.correct_images or not new.correct_images:
        return None
    before, now = _right(base), _right(new)
    lost, gained = int((before & ~now).sum()), int((~before & now).sum())
    return Flips(images=len(before), lost=lost, gained=gained, p_value=stats.lost_by_chance(lost, gained))


def _right(row: Row) -> NDArray[np.bool_]:
    assert row.accuracy is not None  # the caller looked
    packed = np.frombuffer(base64.b64decode(row.correct_images), np.uint8)
    return np.unpackbits(packed, count=row.accuracy.images).astype(bool)
