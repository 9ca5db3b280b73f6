"""The warm bench: every batch size in turn, all contestants of one in the same interleaved rounds, the baseline twice."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from kit.bench import judging, sweep
from kit.bench.contestants import Contestant
from kit.bench.entries import Entry, Field, OnProgress, count_accuracy, open_entries
from kit.bench.judging import Group, Measured
from kit.bench.measure import LEAST_ROUNDS, Call, ClosedLoop, LoadShape, Plan, expected_seconds, measure
from kit.bench.meters import PeakMemory, energy_meter, steady_energy_uj
from kit.bench.request import Request
from kit.bench.results import Row
from kit.bench.scenarios import Load, OpenLoop, Scenario
from kit.bundle import Bundle
from kit.choices import Provider
from kit.errors import KitError, UsageError

_LEAD_MS = 10.0
_SERVER_TURN_MS = 100.0  # queries must have time to queue
_OPENING_SHARE = 0.4  # of a budget, after which nothing more is opened
_ACCURACY_SHARE = 0.5
_PATIENCE_SECONDS = 1.0  # by which one round may exceed a budget


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
        return _LEAD_MS if self.field.most_threads > 1 else 0.0

    def samples(self, batch_size: int) -> int:
        return self.load.samples if self.load.scenario is Scenario.OFFLINE else batch_size


def groups(
    bundle: Bundle,
    field: Field,
    request: Request,
    deadline: int | None,
    on_progress: OnProgress,
    on_estimate: Callable[[float], None],
    on_round: Callable[[], None] = lambda: None,
) -> list[Group]:
    """Measure every batch size in turn, all contestants of one in the same rounds."""
    plan, load = request.plan, request.load
    shape: LoadShape = ClosedLoop()
    if load.scenario is Scenario.SERVER and load.rate is not None:
        plan = dataclasses.replace(plan, turn_ms=max(plan.turn_ms, _SERVER_TURN_MS))
        shape = OpenLoop(rate=load.rate, seed=plan.seed)
    setting = _Setting(plan, shape, load, field)
    clock = _Clock(deadline)
    with contextlib.ExitStack() as stack:
        opened = open_entries(bundle, field, stack, time_is_up=clock.is_past(_OPENING_SHARE))
        if request.counts_accuracy:
            opened = count_accuracy(
                bundle, opened, request.data_dir, on_progress, time_is_up=clock.is_past(_ACCURACY_SHARE)
            )
        on_progress("first calls", 0.0)
        fields = [(size, opened) for size in request.sizes]
        if request.sweep:
            fields = _swept(bundle, opened, setting, deadline)
        probed = [(size, *_probe(bundle, standing, size, setting)) for size, standing in fields]
        expected = [_expected(probes, setting) for _, _, probes in probed]
        if deadline is not None:
            _check_budget(_least_round(probed, setting), clock.left(), setting)
        on_estimate(sum(expected) if deadline is None else max(clock.left(), _least_round(probed, setting)))
        found = []
        for number, (size, standing, _) in enumerate(probed):

            def report(share: float, number: int = number, size: int = size) -> None:
                on_round()
                on_progress(f"batch {size}", (number + share) / len(probed))

            until = None
            if deadline is not None:
                share = expected[number] / max(sum(expected[number:]), 1e-9)
                until = time.perf_counter_ns() + int(clock.left() * 1e9 * share)
            found.append(_group(bundle, standing, size, setting, until, report))
    return found


class _Clock:
    """What is left of a budget."""

    def __init__(self, deadline_ns: int | None) -> None:
        self._deadline = deadline_ns
        self._whole = self.left()

    def left(self) -> float:
        """Return the seconds until the deadline, 0 at least; endless without one."""
        if self._deadline is None:
            return math.inf
        return max((self._deadline - time.perf_counter_ns()) / 1e9, 0.0)

    def is_past(self, share: float) -> Callable[[], bool]:
        """Return a function that tells whether that share of the budget is spent."""
        return lambda: self._deadline is not None and self.left() <= (1 - share) * self._whole


def _least_round(probed: Sequence[tuple[int, list[Entry], list[_Probe]]], setting: _Setting) -> float:
    """Return the seconds of one round of all batch sizes, its turns as short as they can be."""
    plan = dataclasses.replace(setting.plan, turn_ms=0.0)
    calls_us = [probe.call_us for _, _, probes in probed for probe in probes]
    return sum(setting.shape.seconds(setting.shape.calls(plan, one), one) for one in calls_us)


def _check_budget(round_seconds: float, left: float, setting: _Setting) -> None:
    """Refuse a budget that waiting alone would exceed by far: queries that come so slowly cannot be hurried."""
    if setting.load.rate is not None and round_seconds > left + _PATIENCE_SECONDS:
        raise UsageError(
            f"one round takes {round_seconds:,.0f} s at {setting.load.rate:g} queries a second, and {left:,.1f} s are left",
            hint=f"use --budget {math.ceil(LEAST_ROUNDS * round_seconds)}s or more, or a higher --rate",
        )


@dataclass(frozen=True)
class _Probe:
    """How long one call takes, and opening the model anew."""

    call_us: float
    renewal_us: float


def _probe(bundle: Bundle, opened: Sequence[Entry], size: int, setting: _Setting) -> tuple[list[Entry], list[_Probe]]:
    """Run each contestant at a batch size; return the entries as they stand there, and how long those that run take.

    The first call of a batch size may compile, allocate, or fail; one that fails is out at this size.
    """
    standing: list[Entry] = []
    probes: list[_Probe] = []
    for entry in opened:
        if entry.runner is None:
            standing.append(entry)
            continue
        try:
            with PeakMemory() as memory:
                call_us = _second_call_us(Contestant(bundle, entry, size, setting.load).call)
            probes.append(_Probe(call_us, _renewal_us(bundle, entry, size, setting)))
        except KitError as error:
            standing.append(entry.failed(error))
            continue
        used = (entry.row.memory_bytes or 0) + memory.added_bytes
        standing.append(Entry(dataclasses.replace(entry.row, memory_bytes=used), entry.runner, entry.options))
    base = judging.baseline_index(standing)
    if base is not None:  # its twin takes as long
        probes.append(probes[sum(entry.runner is not None for entry in standing[:base])])
    return standing, probes


def _expected(probes: Sequence[_Probe], setting: _Setting) -> float:
    """Return the seconds that all rounds of a batch size take."""
    return expected_seconds(
        [one.call_us for one in probes],
        setting.plan,
        setting.shape,
        renewal_us=[one.renewal_us for one in probes],
        lead_ms=setting.lead_ms,
    )


def _renewal_us(bundle: Bundle, entry: Entry, size: int, setting: _Setting) -> float:
    contestant = Contestant(bundle, entry, size, setting.load)
    started = time.perf_counter_ns()
    contestant.renew()
    contestant.close()
    return (time.perf_counter_ns() - started) / 1e3


def _second_call_us(call: Call) -> float:
    call()
    started = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - started) / 1e3


def _swept(
    bundle: Bundle, opened: Sequence[Entry], setting: _Setting, deadline: int | None
) -> list[tuple[int, list[Entry]]]:
    """Return the batch sizes of a sweep, each with those that are worth measuring there."""
    running = [entry for entry in opened if entry.runner is not None]
    offline = setting.load.scenario is Scenario.OFFLINE
    largest = min(sweep.LARGEST, setting.load.samples) if offline else sweep.LARGEST
    callers = [partial(_best_call_us, bundle, entry) for entry in running]
    found = sweep.sizes(callers, largest=largest, deadline_ns=deadline)
    own = dict(zip((id(entry) for entry in running), found, strict=True))
    every = sorted({size for sizes in found for size in sizes}) or [1]
    # One that does not run at all says so once, at the smallest batch.
    return [(size, [entry for entry in opened if size in own.get(id(entry), (every[0],))]) for size in every]


def _best_call_us(bundle: Bundle, entry: Entry, size: int) -> float:
    """Return the best of three calls, in microseconds; infinite where it fails, which is said when it is measured."""
    assert entry.runner is not None  # the caller looked
    try:
        run = Contestant(bundle, entry, size, Load()).call
        return min(_second_call_us(run) for _ in range(3))
    except KitError:
        return math.inf


def _group(
    bundle: Bundle,
    standing: Sequence[Entry],
    size: int,
    setting: _Setting,
    deadline: int | None,
    on_round: Callable[[float], None],
) -> Group:
    """Measure all contestants of one batch size, and the baseline once more; who fails meanwhile leaves the field."""
    failures: dict[int, KitError] = {}
    with contextlib.ExitStack() as stack:
        contestants: list[Contestant] = []
        standing = list(standing)
        for index, entry in enumerate(standing):
            if entry.runner is None:
                continue
            try:
                contestants.append(Contestant(bundle, entry, size, setting.load))
            except KitError as error:  # it ran a moment ago, but there is no room left for its buffers
                standing[index] = entry.failed(error)
                continue
            stack.callback(contestants[-1].close)
        running = [index for index, entry in enumerate(standing) if entry.runner is not None]
        base = judging.baseline_index(standing)
        if base is not None:
            contestants.append(Contestant(bundle, standing[base], size, setting.load, own=True))
            stack.callback(contestants[-1].close)
        slow = [one.entry.row.ran_on not in {None, Provider.CPU} for one in contestants]
        meters = [energy_meter(one.entry.row.ran_on or Provider.CPU, setting.field.device_id) for one in contestants]
        timings = measure(
            [one.call for one in contestants],
            setting.plan,
            renewals=[one.renew for one in contestants],
            shape=setting.shape,
            deadline_ns=deadline,
            meters=[_no_meter if is_slow else meter for meter, is_slow in zip(meters, slow, strict=True)],
            lead_ms=setting.lead_ms,
            on_round=on_round,
            on_failure=failures.__setitem__,
        )
        steady = {
            place: steady_energy_uj(one.call, meters[place])
            for place, one in enumerate(contestants)
            if slow[place] and place not in failures and place < len(running)
        }
    places = {index: place for place, index in enumerate(running)}
    measured = []
    for index, entry in enumerate(standing):
        place = places.get(index)
        if place is None or place in failures:
            out = entry if place is None else entry.failed(failures[place])
            measured.append(Measured(_sized(out, size, setting), entry.name, None))
            continue
        latency = judging.latency(timings[place], setting.samples(size), openings=contestants[place].openings)
        energy = steady[place] if slow[place] else timings[place].energy_uj()
        row = dataclasses.replace(_sized(entry, size, setting), latency=latency, energy_uj=energy)
        measured.append(Measured(row, entry.name, timings[place]))
    if base is not None and places[base] not in failures:
        twin_timings = timings[-1] if len(running) not in failures else None
        return Group(tuple(measured), measured[base], twin_timings)
    return Group(tuple(measured), next((one for one in measured if one.timings is not None), None), None)


def _no_meter() -> None:
    """Stand in for a counter that is too slow to be read in every turn."""


def _sized(entry: Entry, size: int, setting: _Setting) -> Row:
    offline = setting.load.scenario is Scenario.OFFLINE
    return dataclasses.replace(
        entry.row,
        batch_size=size,
        scenario=setting.load.scenario,
        offered_rate=setting.load.rate,
        query_samples=setting.load.samples if offline else 0,
    )
