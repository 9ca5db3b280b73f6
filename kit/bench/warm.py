"""The warm bench: every batch size in turn, all contestants of one in the same interleaved rounds, the baseline twice."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from kit.bench import judging, sweep
from kit.bench.contestants import Contestant
from kit.bench.entries import Entry, Field, OnProgress, count_accuracy, open_entries, pixels
from kit.bench.judging import Group, Measured
from kit.bench.measure import Call, ClosedLoop, LoadShape, Plan, Timings, expected_seconds, measure
from kit.bench.meters import PeakMemory, energy_meter
from kit.bench.request import Request
from kit.bench.scenarios import Load, OpenLoop, Scenario
from kit.bundle import Bundle
from kit.errors import KitError
from kit.spec import Provider

_LEAD_MS = 10.0
_SERVER_TURN_MS = 100.0  # queries must have time to queue


@dataclass(frozen=True)
class _Setting:
    """What stays the same for all batch sizes: the plan, the load shape, and the samples of a query."""

    plan: Plan
    shape: LoadShape
    load: Load
    field: Field

    @property
    def lead_ms(self) -> float:
        """How long a contestant runs before its turn: a single thread is the caller's own, and has its CPU."""
        return _LEAD_MS if self.field.threads > 1 else 0.0

    def samples(self, batch_size: int) -> int:
        return self.load.samples if self.load.scenario is Scenario.OFFLINE else batch_size


def groups(
    bundle: Bundle,
    field: Field,
    request: Request,
    deadline: int | None,
    on_progress: OnProgress,
    on_estimate: Callable[[float], None],
) -> list[Group]:
    """Measure every batch size in turn, all contestants of one in the same rounds."""
    plan, load = request.plan, request.load
    shape: LoadShape = ClosedLoop()
    if load.scenario is Scenario.SERVER and load.rate is not None:
        plan = dataclasses.replace(plan, turn_ms=max(plan.turn_ms, _SERVER_TURN_MS))
        shape = OpenLoop(rate=load.rate, seed=plan.seed)
    setting = _Setting(plan, shape, load, field)
    with contextlib.ExitStack() as stack:
        opened = open_entries(bundle, field, stack)
        opened = count_accuracy(bundle, opened, request.data_dir, on_progress)
        on_progress("first calls", 0.0)
        sizes = request.sizes
        if request.sweep:
            sizes = sweep.sizes(partial(_best_calls, bundle, opened), deadline)
        opened, probes = _probe(bundle, opened, sizes, setting)
        expected = sum(
            expected_seconds(
                [one.call_us for one in group],
                plan,
                shape,
                renewal_us=[one.renewal_us for one in group],
                lead_ms=setting.lead_ms,
            )
            for group in probes
        )
        left = expected if deadline is None else max((deadline - time.perf_counter_ns()) / 1e9, 0.0)
        on_estimate(left)
        found = []
        for number, size in enumerate(sizes):

            def report(share: float, number: int = number, size: int = size) -> None:
                on_progress(f"batch {size}", (number + share) / len(sizes))

            until = None
            if deadline is not None:
                now = time.perf_counter_ns()
                until = now + max(deadline - now, 0) // (len(sizes) - number)
            found.append(_group(bundle, opened, size, setting, until, report))
    return found


@dataclass(frozen=True)
class _Probe:
    """How long one call takes, and opening the model anew."""

    call_us: float
    renewal_us: float


def _probe(
    bundle: Bundle, opened: list[Entry], sizes: Sequence[int], setting: _Setting
) -> tuple[list[Entry], list[list[_Probe]]]:
    """Run each contestant at each batch size; return the entries, and for each size how long they take.

    The first call of a batch size may compile, allocate, or fail; one that fails leaves the field.
    """
    probed: list[Entry] = []
    probes: list[list[_Probe]] = [[] for _ in sizes]
    for entry in opened:
        if entry.runner is None:
            probed.append(entry)
            continue
        try:
            with PeakMemory() as memory:
                times = [
                    _second_call_us(Contestant(bundle, setting.field, entry, size, setting.load).call) for size in sizes
                ]
            renewals = [_renewal_us(bundle, entry, size, setting) for size in sizes]
        except KitError as error:
            probed.append(entry.failed(error))
            continue
        for group, call_us, renewal_us in zip(probes, times, renewals, strict=True):
            group.append(_Probe(call_us, renewal_us))
        used = (entry.row.memory_bytes or 0) + memory.added_bytes
        probed.append(Entry(dataclasses.replace(entry.row, memory_bytes=used), entry.runner))
    base = judging.baseline_index(probed)
    if base is not None:  # its twin takes as long
        place = sum(entry.runner is not None for entry in probed[:base])
        for group in probes:
            group.append(group[place])
    return probed, probes


def _renewal_us(bundle: Bundle, entry: Entry, size: int, setting: _Setting) -> float:
    contestant = Contestant(bundle, setting.field, entry, size, setting.load)
    started = time.perf_counter_ns()
    contestant.renew()
    contestant.close()
    return (time.perf_counter_ns() - started) / 1e3


def _second_call_us(call: Call) -> float:
    call()
    started = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - started) / 1e3


def _best_calls(bundle: Bundle, opened: list[Entry], size: int) -> list[float]:
    """Return the best of three calls of each contestant that runs, in microseconds."""
    batch = pixels(bundle, size)
    found = []
    for entry in opened:
        if entry.runner is not None:
            with contextlib.suppress(KitError):  # a batch it cannot run is found out, and said, when it is measured
                run = partial(entry.runner.run, batch)
                found.append(min(_second_call_us(run) for _ in range(3)))
    return found


def _group(
    bundle: Bundle,
    opened: list[Entry],
    size: int,
    setting: _Setting,
    deadline: int | None,
    on_round: Callable[[float], None],
) -> Group:
    """Measure all contestants of one batch size, and the baseline once more."""
    running = [entry for entry in opened if entry.runner is not None]
    base = judging.baseline_index(opened)
    stand = [Contestant(bundle, setting.field, entry, size, setting.load) for entry in running]
    if base is not None:
        stand.append(Contestant(bundle, setting.field, opened[base], size, setting.load, own=True))
    with contextlib.ExitStack() as stack:
        for one in stand:
            stack.callback(one.close)
        timings = measure(
            [one.call for one in stand],
            setting.plan,
            renewals=[one.renew for one in stand],
            shape=setting.shape,
            deadline_ns=deadline,
            meters=[energy_meter(one.entry.row.ran_on or Provider.CPU, setting.field.device_id) for one in stand],
            lead_ms=setting.lead_ms,
            on_round=on_round,
        )
    found = iter(zip(timings, stand, strict=True))
    measured = tuple(
        _measured(entry, size, next(found) if entry.runner is not None else None, setting) for entry in opened
    )
    twin = timings[-1] if timings else None
    return Group(measured, measured[base] if base is not None else None, twin)


def _measured(entry: Entry, size: int, found: tuple[Timings, Contestant] | None, setting: _Setting) -> Measured:
    offline = setting.load.scenario is Scenario.OFFLINE
    row = dataclasses.replace(
        entry.row,
        batch_size=size,
        scenario=setting.load.scenario,
        offered_rate=setting.load.rate,
        query_samples=setting.load.samples if offline else 0,
    )
    if found is None:
        return Measured(row, entry.name, None)
    timings, contestant = found
    latency = judging.latency(timings, setting.samples(size), openings=contestant.openings)
    row = dataclasses.replace(row, latency=latency, energy_uj=timings.energy_uj())
    return Measured(row, entry.name, timings)
