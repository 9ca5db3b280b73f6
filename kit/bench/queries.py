"""Queries: a case at one point as calls that can be renewed, by opening the model anew.

Where a model's weights come to lie in memory is decided when it is opened, and lasts as long as it stays open. On a machine
whose second-level cache they just fill, two sessions of one file were seen to differ by 8 % for good (docs/benchmarking.md):
more rounds only make that surer. Opened anew every few rounds, the luck of one opening becomes noise like any other
(Curtsinger and Berger 2013, Stabilizer, ASPLOS).
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kit.bench.cases import OpenCase
from kit.bench.measure import Call
from kit.bench.meters import return_freed_memory
from kit.bench.scenarios import Load, Scenario
from kit.choices import Mode
from kit.errors import KitError, Unavailable
from kit.runtime.base import Runner
from kit.tensors import Sizes, Tensors

_SLOW_SECONDS = 1.0
_MOST_BALLAST_BYTES = 16 * 2**20


class _Asked:
    """A query of a runner that is measured by more than its calls."""

    def __init__(self, runner: Any, inputs: Tensors) -> None:
        self._runner = runner
        self._inputs = inputs

    def __call__(self) -> None:
        self._runner.run(self._inputs)


class Overlapping(_Asked):
    """A query of a runner that answers several at once, such as a server, by `answered_at`."""

    def at(self, due_ns: Sequence[int], clock: Callable[[], int]) -> NDArray[np.int64]:
        """Return the latencies in nanoseconds of queries that are due at these moments."""
        found: NDArray[np.int64] = self._runner.answered_at(self._inputs, due_ns, clock)
        return found


class SelfTiming(_Asked):
    """A query of a runner that times itself, by `times_us`: see kit.bench.measure.SelfTimed."""

    def times_us(self, calls: int) -> NDArray[np.float64]:
        """Return the latencies of about so many calls."""
        found: NDArray[np.float64] = self._runner.times_us(self._inputs, calls)
        return found


class Queries:
    """The queries of a case with an open runner, at one point; with `own` it opens its own at once, for a twin.

    Attributes:
        call: The query, as the model is open now.
        openings: How often it was opened.
    """

    def __init__(self, case: OpenCase, sizes: Sizes, load: Load, *, own: bool = False) -> None:
        assert case.runner is not None  # the caller looked
        self.case = case
        self._sizes, self._load = sizes, load
        self._inputs = case.subject.inputs(sizes)
        self._own: Runner | None = None
        self._renewable = not getattr(case.runner, "slow_to_open", False)
        self.openings = 1
        self._random = random.Random(f"{case.name} {sorted(sizes.items())} {own}")
        self.call = self._first = self._query(case.runner)
        if own and self._renewable:
            self.renew()
            self.openings = 1

    def renew(self) -> Call:
        """Open the model anew and return its query; one that is slow to open, or fails to, stays as it was."""
        if not self._renewable:
            return self.call
        self.close()
        self.call = self._first
        return_freed_memory()
        # The system hands out the pages that were freed last: some of them, now here, now there, are kept from the model.
        ballast = np.ones(self._random.randrange(_MOST_BALLAST_BYTES), np.uint8)
        started = time.perf_counter()
        try:
            self._own = self.case.open()
            query = self._query(self._own)
            query()
        except KitError:  # memory has run out, for instance
            self._renewable = False
            self.close()
            return self.call
        finally:
            del ballast
        self.call = query
        self._renewable = time.perf_counter() - started < _SLOW_SECONDS
        self.openings += 1
        return self.call

    def close(self) -> None:
        """Close the runner it has opened itself."""
        if self._own is not None:
            self._own.close()
            self._own = None

    def _query(self, runner: Runner) -> Call:
        inputs = {name: array.copy() for name, array in self._inputs.items()}  # inputs have their place in memory too
        if hasattr(runner, "times_us"):
            if self.case.row.mode == Mode.DEVICE or self._load.scenario in {Scenario.OFFLINE, Scenario.SERVER}:
                raise Unavailable(
                    f"{runner.runtime} times one call after the other alone",
                    hint="leave --mode and --scenario out for it",
                )
            return SelfTiming(runner, inputs)
        if self.case.row.mode == Mode.DEVICE:
            bound = runner.bind(self._sizes)
            bound.copy_in(*inputs.values())
            return bound.compute
        if self._load.scenario is Scenario.SERVER and hasattr(runner, "answered_at"):
            return Overlapping(runner, inputs)
        if self._load.scenario is not Scenario.OFFLINE:
            return partial(runner.run, inputs)
        signature, rows = self.case.subject.bundle.signature, self.case.subject.rows(self._sizes)
        whole, rest = divmod(self._load.samples, rows)
        parts = [inputs] * whole + ([signature.take(inputs, slice(0, rest))] if rest else [])

        def query() -> None:
            for part in parts:
                runner.run(part)

        return query
