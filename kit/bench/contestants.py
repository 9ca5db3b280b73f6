"""Who is timed: an entry of the field as calls that can be renewed, by opening the model anew.

Where a model's weights come to lie in memory is decided when it is opened, and lasts as long as it stays open. On a machine
whose second-level cache they just fill, two sessions of one file were seen to differ by 8 % for good (docs/benchmarking.md):
more rounds only make that surer. Opened anew every few rounds, the luck of one opening becomes noise like any other
(Curtsinger and Berger 2013, Stabilizer, ASPLOS).
"""

from __future__ import annotations

import random
import time
from functools import partial

import numpy as np

from kit.bench.entries import Entry, pixels
from kit.bench.measure import Call
from kit.bench.meters import return_freed_memory
from kit.bench.scenarios import Load, Scenario
from kit.bundle import Bundle
from kit.choices import Mode
from kit.errors import KitError
from kit.runtime import registry
from kit.runtime.base import Runner

_SLOW_SECONDS = 1.0
_MOST_BALLAST_BYTES = 16 * 2**20


class Contestant:
    """A running entry at one batch size.

    Args:
        bundle: Gives the pixels and the file.
        entry: With an open runner.
        size: Samples in one call.
        load: Decides what a query is.
        own: Open a runner of its own at once, and leave the entry's alone: for a twin.

    Attributes:
        call: The query, as the model is open now.
        openings: How often it was opened.
    """

    def __init__(self, bundle: Bundle, entry: Entry, size: int, load: Load, *, own: bool = False) -> None:
        assert entry.runner is not None  # the caller looked
        self.entry = entry
        self._bundle, self._load = bundle, load
        self._batch = pixels(bundle, size)
        self._own: Runner | None = None
        self._renewable = not getattr(entry.runner, "slow_to_open", False)
        self.openings = 1
        self._random = random.Random(f"{entry.name} {size} {own}")
        self.call = self._first = self._query(entry.runner)
        if own and self._renewable:
            self.renew()
            self.openings = 1

    def renew(self) -> Call:
        """Open the model anew and return its query; one that took long to open, or does not any more, stays as it was."""
        if not self._renewable:
            return self.call
        self.close()
        self.call = self._first
        return_freed_memory()
        # The system hands out the pages that were freed last: some of them, now here, now there, are kept from the model.
        ballast = np.ones(self._random.randrange(_MOST_BALLAST_BYTES), np.uint8)
        started = time.perf_counter()
        row = self.entry.row
        variant = self._bundle.variant(row.variant)
        try:
            self._own = registry.open_runner(row.runtime, self._bundle, variant, self.entry.options)
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
        batch, size = self._batch.copy(), len(self._batch)  # the pixels have their place in memory too
        if self.entry.row.mode == Mode.DEVICE:
            bound = runner.bind(batch.shape)
            bound.copy_in(batch)
            return bound.compute
        if self._load.scenario is not Scenario.OFFLINE:
            return partial(runner.run, batch)
        parts = [batch[: min(size, self._load.samples - start)] for start in range(0, self._load.samples, size)]

        def query() -> None:
            for part in parts:
                runner.run(part)

        return query
