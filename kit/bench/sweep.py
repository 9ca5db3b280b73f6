"""Sweeps over an axis: which sizes are worth measuring, where throughput bends, and where one case overtakes another."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from kit.bench import stats
from kit.bench.points import telling
from kit.bench.results import Results, Row, Status
from kit.tensors import Axis

LARGEST = 16384
SLOWEST_CALL_US = 500_000.0
"""Calls that take longer end a sweep, and are not made unless their size was asked for by name."""

_GROWS = 1.05
_KNEE = 0.9


@dataclass(frozen=True, kw_only=True)
class Knee:
    """The smallest batch with nine tenths of the best throughput: more costs latency and brings little.

    `share` is of the best throughput, which `best_size` has.
    """

    case: str
    axis: str
    size: int
    samples_per_second: float
    share: float
    best_size: int
    best_samples_per_second: float


@dataclass(frozen=True, kw_only=True)
class Crossover:
    """Where one case overtakes another along an axis.

    Attributes:
        size: The smallest from which on `overtakes` is surely faster at every size measured; None if larger ones are
            undecided.
        ahead_at: The sizes above `last_slower` at which it is surely faster.
        last_slower: The largest size at which it is surely slower.
    """

    overtakes: str
    overtaken: str
    axis: str
    size: int | None
    ahead_at: tuple[int, ...]
    last_slower: int

    def describe(self) -> str:
        """Return it as a sentence without its full stop."""
        if self.size is not None:
            return (
                f"{self.overtakes} overtakes {self.overtaken} at {self.axis} {self.size:,}; "
                f"it is slower up to {self.axis} {self.last_slower:,}"
            )
        ahead = ", ".join(f"{size:,}" for size in self.ahead_at)
        return (
            f"{self.overtakes} is ahead of {self.overtaken} at {self.axis} {ahead} and slower up to {self.axis} "
            f"{self.last_slower:,}; beyond, the difference is too small to tell"
        )


def doublings(axis: Axis, *, largest: int = LARGEST) -> tuple[int, ...]:
    """Return the sizes to look at along an axis: doubled from its smallest on, up to its largest or to `largest`."""
    most = largest if axis.most is None else min(axis.most, largest)
    size = math.ceil(max(axis.least, 1) / axis.multiple_of) * axis.multiple_of
    found = []
    while size <= most:
        found.append(size)
        size *= 2
    return tuple(found)


def sizes(
    callers: Sequence[Callable[[int], float]],
    *,
    among: Sequence[int],
    until_flat: bool = True,
    deadline_ns: int | None = None,
) -> tuple[tuple[int, ...], ...]:
    """Return the sizes worth measuring, for each case.

    A case whose call fails, or takes SLOWEST_CALL_US, goes no further; the others do.

    Args:
        callers: Of each case, return the time of one call at a size, in microseconds; infinite if it fails.
        among: Sizes to look at, growing.
        until_flat: End after two sizes at which the throughput of no case has grown: for the batch axis.
        deadline_ns: A third of the time until then may be spent looking.
    """
    found: list[list[int]] = [[] for _ in callers]
    best = [0.0] * len(callers)
    out = [False] * len(callers)
    flat = 0
    started = time.perf_counter_ns()
    for size in among:
        if (until_flat and flat >= 2) or all(out):
            break
        grown = False
        for index, call_us in enumerate(callers):
            if out[index]:
                continue
            spent = call_us(size)
            found[index].append(size)
            out[index] = spent >= SLOWEST_CALL_US
            rate = 0.0 if math.isinf(spent) else size / max(spent, 1e-3)
            grown = grown or rate > _GROWS * best[index]
            best[index] = max(rate, best[index])
        flat = 0 if grown else flat + 1
        if deadline_ns is not None and time.perf_counter_ns() - started > (deadline_ns - started) / 3:
            break
    return tuple(tuple(own) for own in found)


def swept_axis(rows: Sequence[Row]) -> str | None:
    """Return the only axis along which rows differ; None if there is none, or more than one."""
    axes = telling([row.sizes for row in rows])
    return axes[0] if len(axes) == 1 and len({row.sizes.get(axes[0]) for row in rows}) > 1 else None


def knees(results: Results) -> tuple[Knee, ...]:
    """Return where each case's throughput bends along the batch axis; needs three batch sizes or more."""
    axis, found = swept_axis(results.rows), []
    for name, rows in _cases(results, axis).items():
        if axis is None or len(rows) < 3 or any(row.samples != row.sizes[axis] for row in rows):
            continue
        rates = {row.sizes[axis]: row.latency.samples_per_second for row in rows if row.latency}
        best_size = max(rates, key=rates.__getitem__)
        bend = next(size for size in sorted(rates) if rates[size] >= _KNEE * rates[best_size])
        found.append(
            Knee(
                case=name,
                axis=axis,
                size=bend,
                samples_per_second=rates[bend],
                share=rates[bend] / rates[best_size],
                best_size=best_size,
                best_samples_per_second=rates[best_size],
            )
        )
    return tuple(found)


def crossovers(results: Results) -> tuple[Crossover, ...]:
    """Return for each variant what overtakes what along the axis that was swept, among its providers and runtimes.

    A difference counts if the 95 % interval of the paired rounds excludes 1, by Holm's correction over all sizes.
    """
    axis = swept_axis(results.rows)
    if axis is None:
        return ()
    cases = list(_cases(results, axis).items())
    found = []
    for index, (one, rows) in enumerate(cases):
        for other, others in cases[index + 1 :]:
            if rows[0].variant == others[0].variant and (crossing := _crossing(axis, one, rows, other, others)):
                found.append(crossing)
    return tuple(found)


def _crossing(axis: str, one: str, rows: Sequence[Row], other: str, others: Sequence[Row]) -> Crossover | None:
    """Return the crossing of two cases; None if one is never behind the other."""
    there = {row.sizes[axis]: row for row in others}
    pairs = [(row, there[row.sizes[axis]]) for row in rows if row.sizes[axis] in there]
    compared = [
        stats.compare(np.array(a.latency.medians_us), np.array(b.latency.medians_us))
        for a, b in pairs
        if a.latency and b.latency and len(a.latency.medians_us) == len(b.latency.medians_us)
    ]
    if len(compared) < len(pairs) or len(pairs) < 2:
        return None
    outcomes = [
        outcome if outcome in {stats.Outcome.FASTER, stats.Outcome.SLOWER} else None
        for outcome in stats.judge(compared)
    ]
    if not {stats.Outcome.FASTER, stats.Outcome.SLOWER} <= set(outcomes):
        return None
    measured = [row.sizes[axis] for row, _ in pairs]
    # FASTER says that `other` is faster than `one`; what wins the largest decided size overtakes.
    winning = [outcome for outcome in outcomes if outcome][-1]
    overtakes, overtaken = (other, one) if winning is stats.Outcome.FASTER else (one, other)
    lost = [size for size, outcome in zip(measured, outcomes, strict=True) if outcome and outcome is not winning]
    won = [size for size, outcome in zip(measured, outcomes, strict=True) if outcome is winning and size > max(lost)]
    sure = [
        size
        for index, size in enumerate(measured)
        if size > max(lost) and all(outcome is winning for outcome in outcomes[index:])
    ]
    return Crossover(
        overtakes=overtakes,
        overtaken=overtaken,
        axis=axis,
        size=min(sure, default=None),
        ahead_at=tuple(won),
        last_slower=max(lost),
    )


def _cases(results: Results, axis: str | None) -> dict[str, list[Row]]:
    """Return the measured rows of each case, by growing size; a fallback is not what it was asked to be."""
    found: dict[str, list[Row]] = {}
    for row in sorted(results.rows, key=lambda row: row.sizes.get(axis or "", 0)):
        if row.latency is not None and row.status is Status.OK:
            found.setdefault(f"{row.variant} {row.place}", []).append(row)
    return found
