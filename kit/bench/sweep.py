"""The batch sweep: which sizes are worth measuring, where throughput bends, and where one contestant overtakes another."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from kit.bench import stats
from kit.bench.results import Results, Row, Status

LARGEST = 16384
SLOWEST_CALL_US = 500_000.0
_GROWS = 1.05
_KNEE = 0.9


@dataclass(frozen=True, kw_only=True)
class Knee:
    """The smallest batch with nine tenths of the best throughput: more costs latency and brings little.

    Attributes:
        best_batch: Where the throughput was highest.
        share: Of the best throughput, at the knee.
    """

    contestant: str
    batch_size: int
    images_per_second: float
    share: float
    best_batch: int
    best_images_per_second: float


@dataclass(frozen=True, kw_only=True)
class Crossover:
    """Where one contestant overtakes another.

    Attributes:
        overtakes: Who is faster from `batch_size` on.
        overtaken: Who is faster below.
        batch_size: The smallest batch from which on `overtakes` is surely faster at every size measured; None where larger
            ones are undecided.
        ahead_at: The batches above `last_slower` at which it is surely faster.
        last_slower: The largest batch at which it is surely slower.
    """

    overtakes: str
    overtaken: str
    batch_size: int | None
    ahead_at: tuple[int, ...]
    last_slower: int

    def describe(self) -> str:
        """Return it as a sentence without its full stop."""
        if self.batch_size is not None:
            return (
                f"{self.overtakes} overtakes {self.overtaken} at batch {self.batch_size}; "
                f"it is slower up to batch {self.last_slower}"
            )
        ahead = ", ".join(map(str, self.ahead_at))
        return (
            f"{self.overtakes} is ahead of {self.overtaken} at batch {ahead} and slower up to batch {self.last_slower}; "
            "beyond, the difference is too small to tell"
        )


def sizes(
    callers: Sequence[Callable[[int], float]], *, largest: int = LARGEST, deadline_ns: int | None = None
) -> tuple[tuple[int, ...], ...]:
    """Return the powers of two worth measuring, for each contestant: until nobody's throughput has grown for two doublings.

    One whose call fails, or takes SLOWEST_CALL_US, goes no further; the others do.

    Args:
        callers: Of each contestant, return the time of one call at a batch size, in microseconds; infinite where it fails.
        largest: No batch is larger.
        deadline_ns: A third of the time until then may be spent looking.
    """
    found: list[list[int]] = [[] for _ in callers]
    best = [0.0] * len(callers)
    out = [False] * len(callers)
    flat = 0
    started = time.perf_counter_ns()
    size = 1
    while size <= largest and flat < 2 and not all(out):
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
        size *= 2
    return tuple(tuple(own) for own in found)


def knees(results: Results) -> tuple[Knee, ...]:
    """Return where each contestant's throughput bends; needs three batch sizes or more."""
    found = []
    for name, rows in _contestants(results).items():
        if len(rows) < 3:
            continue
        rates = {row.batch_size: row.latency.images_per_second for row in rows if row.latency}
        best_batch = max(rates, key=rates.__getitem__)
        batch = next(size for size in sorted(rates) if rates[size] >= _KNEE * rates[best_batch])
        found.append(
            Knee(
                contestant=name,
                batch_size=batch,
                images_per_second=rates[batch],
                share=rates[batch] / rates[best_batch],
                best_batch=best_batch,
                best_images_per_second=rates[best_batch],
            )
        )
    return tuple(found)


def crossovers(results: Results) -> tuple[Crossover, ...]:
    """Return for each variant who overtakes whom as batches grow, among its providers and runtimes.

    A difference counts where the 95 % interval of the paired rounds excludes 1, by Holm's correction over all sizes.
    """
    contestants = list(_contestants(results).items())
    found = []
    for index, (one, rows) in enumerate(contestants):
        for other, others in contestants[index + 1 :]:
            if rows[0].variant == others[0].variant and (crossing := _crossing(one, rows, other, others)):
                found.append(crossing)
    return tuple(found)


def _crossing(one: str, rows: Sequence[Row], other: str, others: Sequence[Row]) -> Crossover | None:
    """Return the crossing of two contestants; None where one is never behind the other."""
    there = {row.batch_size: row for row in others}
    pairs = [(row, there[row.batch_size]) for row in rows if row.batch_size in there]
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
    batches = [row.batch_size for row, _ in pairs]
    # FASTER says that `other` is faster than `one`; whoever wins the largest decided batch overtakes.
    winning = [outcome for outcome in outcomes if outcome][-1]
    overtakes, overtaken = (other, one) if winning is stats.Outcome.FASTER else (one, other)
    lost = [batch for batch, outcome in zip(batches, outcomes, strict=True) if outcome and outcome is not winning]
    won = [batch for batch, outcome in zip(batches, outcomes, strict=True) if outcome is winning and batch > max(lost)]
    sure = [
        batch
        for index, batch in enumerate(batches)
        if batch > max(lost) and all(outcome is winning for outcome in outcomes[index:])
    ]
    return Crossover(
        overtakes=overtakes,
        overtaken=overtaken,
        batch_size=min(sure, default=None),
        ahead_at=tuple(won),
        last_slower=max(lost),
    )


def _contestants(results: Results) -> dict[str, list[Row]]:
    """Return the measured rows of each contestant, by growing batch size; a fallback is not what it was asked to be."""
    found: dict[str, list[Row]] = {}
    for row in sorted(results.rows, key=lambda row: row.batch_size):
        if row.latency is not None and row.status is Status.OK:
            found.setdefault(f"{row.variant} {row.place}", []).append(row)
    return found
