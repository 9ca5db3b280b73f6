"""The batch sweep: which sizes are worth measuring, where throughput bends, and where one contestant overtakes another."""

from __future__ import annotations

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
        batch_size: The smallest batch from which on `overtakes` is faster at every size; None: it never is.
        last_slower: The largest batch at which it is slower; between the two the difference is not sure.
    """

    overtakes: str
    overtaken: str
    batch_size: int | None
    last_slower: int | None


def sizes(calls_us: Callable[[int], Sequence[float]], deadline_ns: int | None = None) -> tuple[int, ...]:
    """Return the powers of two worth measuring: until no contestant's throughput has grown for two doublings.

    Args:
        calls_us: Returns the time of one call of each contestant at a batch size, in microseconds.
        deadline_ns: A third of the time until then may be spent looking.
    """
    found: list[int] = []
    best: list[float] = []
    flat = 0
    started = time.perf_counter_ns()
    size = 1
    while size <= LARGEST and flat < 2:
        times = calls_us(size)
        found.append(size)
        rates = [size / max(one, 1e-3) for one in times]
        best = best or [0.0] * len(rates)
        grown = any(rate > _GROWS * known for rate, known in zip(rates, best, strict=False))
        best = [max(pair) for pair in zip(rates, best, strict=False)]
        flat = 0 if grown else flat + 1
        if max(times, default=SLOWEST_CALL_US) >= SLOWEST_CALL_US:
            break
        if deadline_ns is not None and time.perf_counter_ns() - started > (deadline_ns - started) / 3:
            break
        size *= 2
    return tuple(found)


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
    won = [
        batch
        for batch, outcome in zip(batches, outcomes, strict=True)
        if outcome is winning and batch > max(lost, default=0)
    ]
    return Crossover(
        overtakes=overtakes,
        overtaken=overtaken,
        batch_size=min(won, default=None),
        last_slower=max(lost, default=None),
    )


def _contestants(results: Results) -> dict[str, list[Row]]:
    """Return the measured rows of each contestant, by growing batch size; a fallback is not what it was asked to be."""
    found: dict[str, list[Row]] = {}
    for row in sorted(results.rows, key=lambda row: row.batch_size):
        if row.latency is not None and row.status is Status.OK:
            found.setdefault(f"{row.variant} {row.runtime} {row.ran_on or row.provider}", []).append(row)
    return found
