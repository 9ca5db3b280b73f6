"""Load shapes, named as MLPerf Inference names them (Reddi et al. 2020, arXiv 1911.02549): how queries arrive.

- SingleStream: one query at a time, the next when the one before is answered.
- MultiStream: the same, with several samples in each query (8, unless told otherwise).
- Offline: all samples are there at once, served in batches; what counts is throughput.
- Server: queries arrive by themselves at a given rate, at random (a Poisson process), whether or not the one before is
  answered. A latency runs from the moment a query was due, so that a stall is charged to every query that had to wait
  for it, and not only to the one that met it (no coordinated omission).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from kit.bench.measure import Call, Clock, Plan, Turn
from kit.errors import UsageError
from kit.tensors import Axis

SAMPLES_IN_MULTISTREAM = 8
OFFLINE_SAMPLES = 4096
OFFLINE_BATCH = 64
_LEAD_NS = 5_000_000  # to set up what sends queries that overlap

LEAST_QUERIES = 20
"""In one turn of the Server scenario: fewer would say nothing about waiting."""


class Scenario(StrEnum):
    """How queries arrive."""

    SINGLE_STREAM = "SingleStream"
    MULTI_STREAM = "MultiStream"
    OFFLINE = "Offline"
    SERVER = "Server"


@dataclass(frozen=True, kw_only=True)
class Load:
    """A scenario with its figures: `rate` in queries a second (Server alone), `samples` in the one query of Offline."""

    scenario: Scenario = Scenario.SINGLE_STREAM
    rate: float | None = None
    samples: int = OFFLINE_SAMPLES

    def __post_init__(self) -> None:
        if self.scenario is Scenario.SERVER and self.rate is None:
            raise UsageError(
                "the Server scenario needs the rate at which queries arrive", hint="give one, such as 1000 a second"
            )
        if self.scenario is not Scenario.SERVER and self.rate is not None:
            raise UsageError(
                f"a rate says nothing in the {self.scenario} scenario", hint="use it in the scenario Server"
            )
        if self.rate is not None and not 0 < self.rate < float("inf"):
            raise UsageError(f"a rate must be above 0 queries a second, found {self.rate:g}")
        if self.samples < 1:
            raise UsageError(f"Offline needs 1 sample or more, found {self.samples}")

    def batch_sizes(self, axis: Axis | None = None) -> tuple[int, ...]:
        """Return what is measured unless batch sizes are named; `axis` is the batch, whose typical sizes suit one stream."""
        return {
            Scenario.SINGLE_STREAM: (axis.typical if axis else ()) or (1, 64),
            Scenario.MULTI_STREAM: (SAMPLES_IN_MULTISTREAM,),
            Scenario.OFFLINE: (OFFLINE_BATCH,),
            Scenario.SERVER: (1,),
        }[self.scenario]


@dataclass(frozen=True)
class OpenLoop:
    """Queries that are due at random moments, at `rate` a second on average, answered one after the other.

    All contestants meet the same arrivals in the same round. A turn starts with an empty queue and lasts until the last of
    its queries is answered.
    """

    rate: float
    seed: int = 0
    sleep: Callable[[float], None] = time.sleep

    def calls(self, plan: Plan, call_us: float) -> int:  # noqa: ARG002 - queries come however long an answer takes
        """Return how many queries come in a turn, LEAST_QUERIES at least."""
        return max(LEAST_QUERIES, round(self.rate * plan.turn_ms / 1e3))

    def seconds(self, calls: int, call_us: float) -> float:
        """Return the time in which so many queries come, or are answered where that takes longer."""
        return calls * max(1 / self.rate, call_us / 1e6)

    def turn(self, call: Call, calls: int, number: int, clock: Clock) -> Turn:
        """Answer that many queries; `mean_us` is the time from one answer to the next."""
        due = self.arrivals(calls, number)
        latencies = np.empty(len(due), np.int64)
        serving = 0
        call()  # warms the caches, as in the closed loop
        together = getattr(call, "at", None)  # of a server, which answers several queries at once
        if together is not None:
            return self._together(together, due, clock)
        started = clock()
        for index, moment in enumerate(due):
            self._wait(started + int(moment), clock)
            began = clock()
            call()
            ended = clock()
            serving += ended - began
            latencies[index] = ended - started - int(moment)
        spent = clock() - started
        return Turn(latencies / 1e3, spent / 1e3 / len(due), len(due) + 1, service_us=serving / 1e3 / len(due))

    def _together(
        self, at: Callable[[list[int], Clock], NDArray[np.int64]], due: NDArray[np.float64], clock: Clock
    ) -> Turn:
        started = clock() + _LEAD_NS
        latencies = at([started + int(moment) for moment in due], clock)
        spent = clock() - started
        return Turn(latencies / 1e3, spent / 1e3 / len(due), len(due) + 1, service_us=float(latencies.mean()) / 1e3)

    def arrivals(self, count: int, number: int) -> NDArray[np.float64]:
        """Draw the moments in nanoseconds, `[count]`, at which the queries of round `number` are due."""
        rng = np.random.default_rng((self.seed, number))
        return np.cumsum(rng.exponential(1e9 / self.rate, count))

    def _wait(self, moment: int, clock: Clock) -> None:
        """Sleep while there is time, then watch the clock: a sleep ends some 100 us late."""
        ahead = moment - clock()
        if ahead > 2_000_000:
            self.sleep((ahead - 1_000_000) / 1e9)
        while clock() < moment:
            pass
