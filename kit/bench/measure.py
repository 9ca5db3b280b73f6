"""Clocks: contestants that take turns in interleaved rounds of random order. Knows callables, not models.

Interleaving spreads the machine's drift over all contestants alike; the garbage collector is off while the clock runs.
"""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from kit.errors import KitError, UsageError

T = TypeVar("T")
Call = Callable[[], object]
Renew = Callable[[], Call]
Clock = Callable[[], int]
"""Nanoseconds since some fixed moment, as `time.perf_counter_ns` gives them."""

LEAST_ROUNDS = 10
"""Fewer say too little about their own spread for an interval to mean anything."""

ROUNDS_PER_OPENING = 4
"""After so many rounds contestants are renewed, where they can be."""

MOST_ROUNDS = 5000
_GLANCE_SECONDS = 0.002
_GLANCES = 100
_QUIET_SHARE = 0.25
_SPIN_SECONDS = 0.025  # how long a pool of ONNX Runtime was seen to spin after its last call
_FRESH_SHARE = 0.5  # of a turn: how long a renewed contestant runs before its next turn
_SETTLED_WITHIN = 0.02
_WARMUP_SHARE = 0.2  # of a budget; the rest is for rounds
_ROUNDS_IN_BUDGET = 30  # turns are cut short until this many rounds fit


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long to measure.

    Attributes:
        rounds: How often each contestant has its turn.
        turn_ms: Time of one turn; at least `least_calls` calls are made however long they take.
        warmup_ms: Time each contestant runs at least before anything is recorded.
        warmup_limit_ms: And at most, where its latency does not settle.
        budget_seconds: Time for everything, in place of a number of rounds; None: as many rounds as `rounds` says.
        most_seconds: Without a budget: if all rounds would take longer, as many as fit, and enough for a verdict.
        seed: Of the order within each round, and of the arrivals in the Server scenario.
    """

    rounds: int = 100
    turn_ms: float = 6.0
    warmup_ms: float = 100.0
    warmup_limit_ms: float = 1000.0
    least_calls: int = 2
    budget_seconds: float | None = None
    most_seconds: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rounds < LEAST_ROUNDS or self.least_calls < 1:
            raise UsageError(f"a plan needs {LEAST_ROUNDS} rounds or more, with 1 call or more in each")
        if self.budget_seconds is not None and not self.budget_seconds > 0:
            raise UsageError(f"a budget must be longer than nothing, found {self.budget_seconds:g} s")


@dataclass(frozen=True)
class Turn:
    """What one turn gave.

    Attributes:
        latencies_us: Of each call by itself, float64 `[calls]`.
        mean_us: Of calls timed in one go, without a clock between them.
        calls: All calls that were made, those that were not timed included.
        energy_uj: Drawn meanwhile; None where the machine does not tell.
        service_us: Mean time from the start of an answer to its end, where latency is counted from an earlier moment.
    """

    latencies_us: NDArray[np.float64]
    mean_us: float
    calls: int
    energy_uj: float | None = None
    service_us: float | None = None


@dataclass(frozen=True)
class Warmup:
    """How a contestant was warmed up: the latency at the end, the time it took, whether it had stopped falling."""

    call_us: float
    spent_ms: float
    settled: bool


@dataclass(frozen=True)
class Timings:
    """All turns of one contestant, in the order of the rounds."""

    turns: tuple[Turn, ...]
    warmup: Warmup

    @property
    def calls(self) -> int:
        """Calls that have a latency of their own, in all."""
        return sum(len(turn.latencies_us) for turn in self.turns)

    def pooled_us(self) -> NDArray[np.float64]:
        """Return all latencies, `[calls]`."""
        return np.concatenate([turn.latencies_us for turn in self.turns])

    def medians_us(self) -> NDArray[np.float64]:
        """Return the median of each round, `[rounds]`."""
        return np.array([np.median(turn.latencies_us) for turn in self.turns])

    def means_us(self) -> NDArray[np.float64]:
        """Return the mean of a call timed in one go of each round, `[rounds]`."""
        return np.array([turn.mean_us for turn in self.turns])

    def mean_us(self) -> float:
        """Return the mean of a call timed in one go, the median over rounds."""
        return float(np.median(self.means_us()))

    def service_us(self) -> float | None:
        """Return the time an answer takes once it has begun, the median over rounds; None where latency is just that."""
        found = [turn.service_us for turn in self.turns if turn.service_us is not None]
        return float(np.median(found)) if found else None

    def energy_uj(self) -> float | None:
        """Return the energy of one call; None where the machine does not tell."""
        drawn = [turn.energy_uj for turn in self.turns if turn.energy_uj is not None]
        calls = sum(turn.calls for turn in self.turns if turn.energy_uj is not None)
        return sum(drawn) / calls if calls else None


@runtime_checkable
class SelfTimed(Protocol):
    """A call that times itself, because the way to it takes longer than it does: a model in a browser's page."""

    def __call__(self) -> object:
        """Make one call."""

    def times_us(self, calls: int) -> NDArray[np.float64]:
        """Make about so many calls; return their latencies, each a mean of some if the clock is too coarse for one."""


class LoadShape(Protocol):
    """How calls follow each other within a turn."""

    def calls(self, plan: Plan, call_us: float) -> int:
        """Return how many calls fill a turn, when one takes that long."""

    def seconds(self, calls: int, call_us: float) -> float:
        """Return how long a turn of so many calls lasts."""

    def turn(self, call: Call, calls: int, number: int, clock: Clock) -> Turn:
        """Make about that many calls in round `number` and time them."""


@dataclass(frozen=True)
class ClosedLoop:
    """Each call starts when the one before has ended.

    A turn times half of its calls one by one, and the other half in one go, where the clock is read only twice. Where a turn
    has room for a few calls only, they are timed one by one: two readings of the clock are nothing beside them.
    """

    few: int = 8

    def calls(self, plan: Plan, call_us: float) -> int:
        """Return as many as fit, but no fewer than the plan's least."""
        return max(plan.least_calls, round(plan.turn_ms * 1e3 / max(call_us, 1e-3)))

    def seconds(self, calls: int, call_us: float) -> float:
        """Return the time of the calls."""
        return calls * call_us / 1e6

    def turn(self, call: Call, calls: int, number: int, clock: Clock) -> Turn:  # noqa: ARG002 - every round is alike
        """Make `calls` calls."""
        if isinstance(call, SelfTimed):
            latencies = call.times_us(calls)
            return Turn(latencies, float(latencies.mean()), calls)
        if calls < self.few:
            latencies = _one_by_one(call, calls, clock)
            return Turn(latencies, float(latencies.mean()), calls)
        call()  # brings back the weights that the contestant before pushed out of the caches
        latencies = _one_by_one(call, calls // 2, clock)
        rest = range(calls - len(latencies))
        started = clock()
        for _ in rest:
            call()
        return Turn(latencies, (clock() - started) / 1e3 / len(rest), calls + 1)


def measure(
    contestants: Sequence[Call],
    plan: Plan,
    *,
    renewals: Sequence[Renew] = (),
    shape: LoadShape | None = None,
    deadline_ns: int | None = None,
    meters: Sequence[Callable[[], float | None]] = (),
    lead_ms: float = 0.0,
    on_round: Callable[[float], None] = lambda _: None,
    on_failure: Callable[[int, KitError], None] | None = None,
    clock: Clock = time.perf_counter_ns,
) -> tuple[Timings, ...]:
    """Time each contestant over the same rounds.

    Args:
        contestants: What to call; each call is one latency.
        plan: How long.
        renewals: Of each contestant, give a call for the next ROUNDS_PER_OPENING rounds; without them all stay as they are.
        shape: How calls follow each other; ClosedLoop without it.
        deadline_ns: When to stop, by `clock`, however many rounds are done (one at least); None: after `plan.rounds`.
        meters: Of each contestant, read the energy drawn so far in microjoules, or give None; no energy without them.
        lead_ms: With more than one thread: before each turn wait until the threads of the last one are quiet, and then let the
            contestant run for so long, so that its own have found their CPUs; 0 for neither.
        on_round: Told the share that is done, 0 to 1.
        on_failure: Told who raised a KitError, and which: that contestant takes no further turns, its timings end there, and
            the others go on. Without it the error is raised.
        clock: Reads the time.
    """
    shape = shape or ClosedLoop()
    stand = _Stand(list(contestants), plan, clock, on_failure)
    available_ms = None if deadline_ns is None else max((deadline_ns - clock()) / 1e6, 0.0) / max(len(contestants), 1)
    warmups = [stand.warm_up(index, available_ms) for index in range(len(contestants))]
    turn_ms = plan.turn_ms
    if deadline_ns is not None:
        share_ms = max((deadline_ns - clock()) / 1e6, 0.0) / max(len(contestants), 1)
        # Short budgets shorten the turns, and those that have room for more than MOST_ROUNDS lengthen them.
        turn_ms = max(min(turn_ms, share_ms / _ROUNDS_IN_BUDGET), share_ms / MOST_ROUNDS)
    counts = [shape.calls(replace(plan, turn_ms=turn_ms), one.call_us) for one in warmups]

    def turn_of(index: int, number: int) -> Turn:
        if renewals and number > 0 and number % ROUNDS_PER_OPENING == 0:
            stand.calls[index] = renewals[index]()
            _window(stand.calls[index], _FRESH_SHARE * turn_ms, clock)
        call = stand.calls[index]
        if lead_ms > 0:
            wait_until_quiet()
            _window(call, lead_ms, clock)
        meter = meters[index] if meters else _no_meter
        before = meter()
        done = shape.turn(call, counts[index], number, clock)
        after = meter()
        return done if before is None or after is None else replace(done, energy_uj=after - before)

    turns = interleave(
        lambda index, number: stand.unless_failed(index, lambda: turn_of(index, number)),
        len(contestants),
        plan,
        deadline_ns=deadline_ns,
        on_round=on_round,
        clock=clock,
    )
    return tuple(
        Timings(tuple(turn for turn in own if turn is not None), warmup)
        for own, warmup in zip(turns, warmups, strict=True)
    )


class _Stand:
    def __init__(
        self, calls: list[Call], plan: Plan, clock: Clock, on_failure: Callable[[int, KitError], None] | None
    ) -> None:
        self.calls = calls
        self._plan, self._clock, self._on_failure = plan, clock, on_failure
        self._failed: set[int] = set()

    def warm_up(self, index: int, available_ms: float | None) -> Warmup:
        found = self.unless_failed(index, lambda: warm_up(self.calls[index], self._plan, available_ms, self._clock))
        return found or Warmup(call_us=0.0, spent_ms=0.0, settled=False)

    def unless_failed(self, index: int, task: Callable[[], T]) -> T | None:
        if index in self._failed:
            return None
        try:
            return task()
        except KitError as error:
            if self._on_failure is None:
                raise
            self._failed.add(index)
            self._on_failure(index, error)
            return None


def wait_until_quiet(cpu_ns: Callable[[], int] = time.process_time_ns) -> None:
    """Sleep until the other threads of this process have stopped working, 0.2 s at most.

    Pools of threads go on spinning when their work is done: they would take the CPUs from the next contestant.
    """
    for _ in range(_GLANCES):
        before = cpu_ns()
        time.sleep(_GLANCE_SECONDS)
        if cpu_ns() - before < _QUIET_SHARE * _GLANCE_SECONDS * 1e9:
            return


def _no_meter() -> None:
    """Stand in where no energy is wanted."""


def expected_seconds(
    call_us: Sequence[float],
    plan: Plan,
    shape: LoadShape,
    *,
    renewal_us: Sequence[float] = (),
    lead_ms: float = 0.0,
) -> float:
    """Return how long `measure` will take for contestants whose calls, and renewals, take that long."""
    rounds = sum(shape.seconds(shape.calls(plan, one), one) for one in call_us) * plan.rounds
    for one in renewal_us:
        rounds += (one / 1e6 + _FRESH_SHARE * plan.turn_ms / 1e3) * (plan.rounds // ROUNDS_PER_OPENING)
    if lead_ms > 0:
        rounds += plan.rounds * sum(_SPIN_SECONDS + max(lead_ms / 1e3, one / 1e6) for one in call_us)
    # Half as much again: a window of the warm-up ends after the call that exceeds it, and latency has to settle.
    return rounds + len(call_us) * 1.5 * plan.warmup_ms / 1e3


def interleave(
    turn_of: Callable[[int, int], T],
    contestants: int,
    plan: Plan,
    *,
    deadline_ns: int | None,
    on_round: Callable[[float], None],
    clock: Clock,
) -> list[list[T]]:
    """Give each contestant a turn in every round, in random order; `turn_of(contestant, round)` takes it."""
    turns: list[list[T]] = [[] for _ in range(contestants)]
    shuffle = random.Random(plan.seed).shuffle
    order = list(range(contestants))
    rounds = plan.rounds if deadline_ns is None else MOST_ROUNDS
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    started = clock()
    longest = 0
    try:
        for number in range(rounds):
            began = clock()
            if deadline_ns is not None and number > 0 and began + longest > deadline_ns:
                break
            shuffle(order)
            for index in order:
                turns[index].append(turn_of(index, number))
            longest = max(longest, clock() - began)
            by_time = 0.0 if deadline_ns is None else (clock() - started) / max(deadline_ns - started, 1)
            on_round(min(max((number + 1) / rounds, by_time), 1.0))
    finally:
        if collecting:
            gc.enable()
    return turns


def warm_up(call: Call, plan: Plan, available_ms: float | None, clock: Clock) -> Warmup:
    """Call until the latency has stopped falling: the median of a window is within 2 % of the window before it.

    A window is a quarter of `warmup_ms`. First calls compile kernels, fill caches and raise the clock; how long that takes
    differs by orders of magnitude between runtimes.
    """
    limit_ms = plan.warmup_limit_ms
    if available_ms is not None:
        limit_ms = min(limit_ms, _WARMUP_SHARE * available_ms)
    least_ms = min(plan.warmup_ms, limit_ms)
    started = clock()
    window = _window(call, least_ms / 4, clock)
    while True:
        following = _window(call, least_ms / 4, clock)
        spent_ms = (clock() - started) / 1e6
        settled = following >= window * (1 - _SETTLED_WITHIN)
        if (settled and spent_ms >= least_ms) or spent_ms >= limit_ms:
            return Warmup(call_us=following / 1e3, spent_ms=spent_ms, settled=settled)
        window = following


def _window(call: Call, milliseconds: float, clock: Clock) -> float:
    """Return the median latency, in nanoseconds, of the calls that fit into that time; of one at least."""
    if isinstance(call, SelfTimed):
        one_us = float(np.median(call.times_us(1)))
        return 1e3 * float(np.median(call.times_us(max(1, round(milliseconds * 1e3 / max(one_us, 1.0))))))
    latencies: list[int] = []
    deadline = clock() + int(milliseconds * 1e6)
    while not latencies or clock() < deadline:
        started = clock()
        call()
        latencies.append(clock() - started)
    return statistics.median(latencies)


def _one_by_one(call: Call, count: int, clock: Clock) -> NDArray[np.float64]:
    latencies = np.empty(count, np.int64)
    for index in range(count):
        started = clock()
        call()
        latencies[index] = clock() - started
    return latencies / 1e3
