"""Clocks: contestants timed call by call, in interleaved rounds of random order. Knows callables, not models.

Interleaving spreads the machine's drift over all contestants alike; the garbage collector is off while a call is timed.
"""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kit.errors import UsageError

Call = Callable[[], object]

LEAST_ROUNDS = 10
"""Fewer say too little about their own spread for an interval to mean anything."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long to measure.

    Attributes:
        rounds: How often each contestant has its turn.
        turn_ms: Time of one turn; at least `least_calls` calls are made however long they take.
        warmup_ms: Time each contestant runs before anything is recorded.
        least_calls: In a turn.
        seed: Of the order within each round.
    """

    rounds: int = 30
    turn_ms: float = 20.0
    warmup_ms: float = 200.0
    least_calls: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse a plan with nothing in it."""
        if self.rounds < LEAST_ROUNDS or self.least_calls < 1:
            raise UsageError(f"a plan needs {LEAST_ROUNDS} rounds or more, with 1 call or more in each")


@dataclass(frozen=True)
class Timings:
    """Latencies in microseconds, float64 `[calls]`, one array for each round."""

    rounds_us: tuple[NDArray[np.float64], ...]

    @property
    def calls(self) -> int:
        """Recorded calls in all."""
        return sum(len(turn) for turn in self.rounds_us)

    def pooled_us(self) -> NDArray[np.float64]:
        """Return all latencies, `[calls]`."""
        return np.concatenate(self.rounds_us)

    def medians_us(self) -> NDArray[np.float64]:
        """Return the median of each round, `[rounds]`."""
        return np.array([np.median(turn) for turn in self.rounds_us])


def measure(
    contestants: Sequence[Call], plan: Plan, *, on_round: Callable[[int], None] = lambda _: None
) -> tuple[Timings, ...]:
    """Time each contestant over the same rounds.

    Args:
        contestants: What to call; each call is one latency.
        plan: How long.
        on_round: Told how many rounds are done.
    """
    counts = [_calls_for(call, plan) for call in contestants]
    turns: list[list[NDArray[np.float64]]] = [[] for _ in contestants]
    shuffle = random.Random(plan.seed).shuffle
    order = list(range(len(contestants)))
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for done in range(1, plan.rounds + 1):
            shuffle(order)
            for index in order:
                turns[index].append(_turn(contestants[index], counts[index]))
            on_round(done)
    finally:
        if collecting:
            gc.enable()
    return tuple(Timings(tuple(rounds)) for rounds in turns)


def _calls_for(call: Call, plan: Plan) -> int:
    """Warm a contestant up and return how many of its calls fill a turn."""
    clock = time.perf_counter_ns
    latencies: list[int] = []
    deadline = clock() + int(plan.warmup_ms * 1e6)
    while len(latencies) < plan.least_calls or clock() < deadline:
        started = clock()
        call()
        latencies.append(clock() - started)
    typical = statistics.median(latencies[len(latencies) // 2 :])
    return max(plan.least_calls, round(plan.turn_ms * 1e6 / max(typical, 1)))


def _turn(call: Call, count: int) -> NDArray[np.float64]:
    clock = time.perf_counter_ns
    latencies = np.empty(count, np.int64)
    call()  # brings back the weights that the contestant before pushed out of the caches
    for index in range(count):
        started = clock()
        call()
        latencies[index] = clock() - started
    return latencies / 1e3
