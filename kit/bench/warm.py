"""The warm bench: every point in turn, all cases of one in the same interleaved rounds, the baseline twice."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from kit.bench import judging, sweep
from kit.bench.cases import OpenCase, Subject, open_all, prepare
from kit.bench.judging import Group, Timing
from kit.bench.measure import LEAST_ROUNDS, Call, ClosedLoop, LoadShape, Plan, expected_seconds, measure
from kit.bench.meters import EnergyMeter, PeakMemory, energy_meter, steady_energy_uj
from kit.bench.points import described, telling
from kit.bench.queries import Queries
from kit.bench.request import Request
from kit.bench.scenarios import Load, OpenLoop, Scenario
from kit.bench.scores import count_scores
from kit.bundle import Bundle
from kit.choices import Provider
from kit.errors import KitError, UsageError
from kit.system.progress import OnProgress
from kit.tensors import Sizes

_LEAD_MS = 10.0
_SERVER_TURN_MS = 100.0  # queries must have time to queue
_OPENING_SHARE = 0.4  # of a budget, after which nothing more is opened
_SCORES_SHARE = 0.5
_LEAST_ROUNDS = 1.5 * LEAST_ROUNDS  # calls may be slower than they seemed
_PATIENCE_SECONDS = 1.0  # by which one round may exceed a budget


@dataclass(frozen=True)
class _Setting:
    subject: Subject
    plan: Plan
    shape: LoadShape
    load: Load
    most_threads: int

    @property
    def lead_ms(self) -> float:
        """How long a case runs before its turn: a single thread is the caller's own, and has its CPU."""
        return _LEAD_MS if self.most_threads > 1 else 0.0

    def samples(self, sizes: Sizes) -> int:
        return self.load.samples if self.load.scenario is Scenario.OFFLINE else self.subject.rows(sizes)


@dataclass(frozen=True)
class _Probe:
    call_us: float
    renewal_us: float


@dataclass(frozen=True)
class _Point:
    """Sizes, the cases as they are there, and how long those that run take."""

    sizes: dict[str, int]
    cases: list[OpenCase]
    probes: list[_Probe]


@dataclass(frozen=True)
class Warm:
    """What was measured, and what was left out and why."""

    groups: tuple[Group, ...]
    left_out: tuple[str, ...] = ()


def run(
    bundle: Bundle,
    request: Request,
    deadline: int | None,
    on_progress: OnProgress,
    on_estimate: Callable[[float], None],
    on_round: Callable[[], None] = lambda: None,
) -> Warm:
    """Measure every point in turn, all cases of one in the same rounds."""
    subject = Subject.of(bundle)
    points = request.points_of(bundle.signature)
    prepared = prepare(subject, request.cases_of(bundle), names_session=bool(request.cases))
    setting = _setting(subject, request, prepared)
    clock = _Clock(deadline)
    with contextlib.ExitStack() as stack:
        opened = open_all(prepared, stack, time_is_up=clock.is_past(_OPENING_SHARE))
        remarks: tuple[str, ...] = ()
        if request.counts_scores:
            counted = count_scores(
                subject,
                opened,
                on_progress,
                metric=request.metric,
                data_dir=request.data_dir,
                time_is_up=clock.is_past(_SCORES_SHARE),
            )
            opened, remarks = counted.cases, counted.remarks
        on_progress("first calls", 0.0)
        left_out: tuple[str, ...] = ()
        if request.sweep is not None:
            probed = [
                _probe(cases, sizes, setting)
                for sizes, cases in _swept(opened, request.sweep, points[0], setting, deadline)
            ]
        else:
            probed, left_out = _probe_all(opened, points, setting, may_leave_out=request.points is None)
        expected = [_expected(point.probes, setting) for point in probed]
        limit = _limit(request.plan, sum(expected))
        if deadline is None and limit is not None:
            deadline = time.perf_counter_ns() + int(limit * 1e9)
            clock = _Clock(deadline)
        if deadline is not None:
            _check_budget(_least_round(probed, setting), clock.left(), setting)
        on_estimate(sum(expected) if deadline is None else max(clock.left(), _least_round(probed, setting)))
        axes = telling([point.sizes for point in probed])
        groups = []
        for number, point in enumerate(probed):
            label = described(point.sizes, axes)

            def report(share: float, number: int = number, label: str = label) -> None:
                on_round()
                on_progress(label, (number + share) / len(probed))

            until = None
            if deadline is not None:
                share = expected[number] / max(sum(expected[number:]), 1e-9)
                until = time.perf_counter_ns() + int(clock.left() * 1e9 * share)
            cases = [one.at(point.sizes, label) for one in point.cases]
            groups.append(_group(cases, point.sizes, setting, until, report))
    return Warm(tuple(groups), (*remarks, *left_out))


def _setting(subject: Subject, request: Request, prepared: Sequence[OpenCase]) -> _Setting:
    plan, load = request.plan, request.load
    shape: LoadShape = ClosedLoop()
    if load.scenario is Scenario.SERVER and load.rate is not None:
        plan = dataclasses.replace(plan, turn_ms=max(plan.turn_ms, _SERVER_TURN_MS))
        shape = OpenLoop(rate=load.rate, seed=plan.seed)
    return _Setting(subject, plan, shape, load, max((one.case.options.threads for one in prepared), default=1))


class _Clock:
    def __init__(self, deadline_ns: int | None) -> None:
        self._deadline = deadline_ns
        self._whole = self.left()

    def left(self) -> float:
        """Return the seconds until the deadline, 0 at least; endless without one."""
        if self._deadline is None:
            return math.inf
        return max((self._deadline - time.perf_counter_ns()) / 1e9, 0.0)

    def is_past(self, share: float) -> Callable[[], bool]:
        return lambda: self._deadline is not None and self.left() <= (1 - share) * self._whole


def _limit(plan: Plan, expected: float) -> float | None:
    """Return the seconds after which no round is begun, where a plan has a limit and all rounds would take longer."""
    if plan.most_seconds is None or expected <= plan.most_seconds:
        return None
    return max(plan.most_seconds, expected * min(_LEAST_ROUNDS / plan.rounds, 1.0))  # fewer say nothing


def _least_round(probed: Sequence[_Point], setting: _Setting) -> float:
    """Return the seconds of one round of all points, its turns as short as they can be."""
    plan = dataclasses.replace(setting.plan, turn_ms=0.0)
    calls_us = [probe.call_us for point in probed for probe in point.probes]
    return sum(setting.shape.seconds(setting.shape.calls(plan, one), one) for one in calls_us)


def _check_budget(round_seconds: float, left: float, setting: _Setting) -> None:
    """Refuse a budget that waiting alone would exceed by far: queries that come so slowly cannot be hurried."""
    if setting.load.rate is not None and round_seconds > left + _PATIENCE_SECONDS:
        raise UsageError(
            f"one round takes {round_seconds:,.0f} s at {setting.load.rate:g} queries a second, and {left:,.1f} s are left",
            hint=f"give a budget of {math.ceil(LEAST_ROUNDS * round_seconds)} s or more, or a higher rate",
        )


def _probe_all(
    opened: Sequence[OpenCase], points: Sequence[dict[str, int]], setting: _Setting, *, may_leave_out: bool
) -> tuple[list[_Point], tuple[str, ...]]:
    probed: list[_Point] = []
    left_out = []
    for sizes in points:
        if may_leave_out and probed:
            expected_us = _expected_call_us(opened, probed[0], sizes, setting)
            if expected_us > sweep.SLOWEST_CALL_US:
                left_out.append(
                    f"{described(sizes, telling(points))} was left out, for a call takes about {expected_us / 1e6:,.1f} s "
                    "there: name the size to have it measured"
                )
                continue
        probed.append(_probe(opened, sizes, setting))
    return probed, tuple(left_out)


def _expected_call_us(opened: Sequence[OpenCase], first: _Point, sizes: Sizes, setting: _Setting) -> float:
    """Return how long the quickest case takes at other sizes, by those of the first point; timed again if that seems long."""
    growth = setting.subject.rows(sizes) / setting.subject.rows(first.sizes)
    quickest_us = growth * min((probe.call_us for probe in first.probes), default=0.0)
    if quickest_us <= sweep.SLOWEST_CALL_US:
        return quickest_us
    return growth * min(_best_call_us(one, first.sizes) for one in opened if one.runner is not None)


def _probe(opened: Sequence[OpenCase], sizes: dict[str, int], setting: _Setting) -> _Point:
    """Run each case at a point, where its first call may compile, allocate, or fail; a case that fails is out there."""
    cases: list[OpenCase] = []
    probes: list[_Probe] = []
    for one in opened:
        if one.runner is None:
            cases.append(one)
            continue
        try:
            with PeakMemory() as memory:
                call_us = _second_call_us(Queries(one, sizes, setting.load).call)
            probes.append(_Probe(call_us, _renewal_us(one, sizes, setting)))
        except KitError as error:
            cases.append(one.failed(error))
            continue
        cases.append(one.changed(memory_bytes=(one.row.memory_bytes or 0) + memory.added_bytes))
    base = judging.baseline_index(cases)
    if base is not None:  # its twin takes as long
        probes.append(probes[sum(one.runner is not None for one in cases[:base])])
    return _Point(sizes, cases, probes)


def _expected(probes: Sequence[_Probe], setting: _Setting) -> float:
    return expected_seconds(
        [one.call_us for one in probes],
        setting.plan,
        setting.shape,
        renewal_us=[one.renewal_us for one in probes],
        lead_ms=setting.lead_ms,
    )


def _renewal_us(case: OpenCase, sizes: Sizes, setting: _Setting) -> float:
    queries = Queries(case, sizes, setting.load)
    started = time.perf_counter_ns()
    queries.renew()
    queries.close()
    return (time.perf_counter_ns() - started) / 1e3


def _second_call_us(call: Call) -> float:
    call()
    started = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - started) / 1e3


def _swept(
    opened: Sequence[OpenCase], axis: str, base: dict[str, int], setting: _Setting, deadline: int | None
) -> list[tuple[dict[str, int], list[OpenCase]]]:
    """Return the points of a sweep, each with the cases that are worth measuring there."""
    signature = setting.subject.bundle.signature
    running = [one for one in opened if one.runner is not None]
    is_batch = axis == signature.batch
    offline = is_batch and setting.load.scenario is Scenario.OFFLINE
    largest = min(sweep.LARGEST, setting.load.samples) if offline else sweep.LARGEST
    among = sweep.doublings(signature.axes[axis], largest=largest)
    callers = [partial(_swept_call_us, one, axis, base) for one in running]
    found = sweep.sizes(callers, among=among, until_flat=is_batch, deadline_ns=deadline)
    own = dict(zip((id(one) for one in running), found, strict=True))
    every = sorted({size for sizes in found for size in sizes}) or list(among[:1])
    # A case that does not run at all says so once, at the smallest size.
    return [({**base, axis: size}, [one for one in opened if size in own.get(id(one), (every[0],))]) for size in every]


def _swept_call_us(case: OpenCase, axis: str, base: Sizes, size: int) -> float:
    return _best_call_us(case, {**base, axis: size})


def _best_call_us(case: OpenCase, sizes: Sizes) -> float:
    """Return the best of three calls, in microseconds; infinite if it fails, which is said when it is measured."""
    try:
        call = Queries(case, sizes, Load()).call
        return min(_second_call_us(call) for _ in range(3))
    except KitError:
        return math.inf


def _group(
    cases: list[OpenCase], sizes: Sizes, setting: _Setting, deadline: int | None, on_round: Callable[[float], None]
) -> Group:
    """Measure all cases of one point, and the baseline once more; a case that fails meanwhile is out."""
    failures: dict[int, KitError] = {}
    with contextlib.ExitStack() as stack:
        queries: list[Queries] = []
        for index, one in enumerate(cases):
            if one.runner is None:
                continue
            try:
                queries.append(Queries(one, sizes, setting.load))
            except KitError as error:  # it ran a moment ago, but there is no room left for its buffers
                cases[index] = one.failed(error)
                continue
            stack.callback(queries[-1].close)
        running = [index for index, one in enumerate(cases) if one.runner is not None]
        base = judging.baseline_index(cases)
        if base is not None:
            try:
                queries.append(Queries(cases[base], sizes, setting.load, own=True))
                stack.callback(queries[-1].close)
            except KitError:  # no room for a twin: the control then has nothing to compare
                pass
        slow = [one.case.row.ran_on not in {None, Provider.CPU} for one in queries]
        meters = [energy_meter(one.case.row.ran_on or Provider.CPU, one.case.case.options.device_id) for one in queries]
        timings = measure(
            [one.call for one in queries],
            setting.plan,
            renewals=[one.renew for one in queries],
            shape=setting.shape,
            deadline_ns=deadline,
            meters=[_no_meter if is_slow else meter for meter, is_slow in zip(meters, slow, strict=True)],
            lead_ms=setting.lead_ms,
            on_round=on_round,
            on_failure=failures.__setitem__,
        )
        on_gpu = [place for place in range(len(running)) if slow[place] and place not in failures]
        steady = {place: _steady(queries[place], meters[place], place, failures) for place in on_gpu}
    places = {index: place for place, index in enumerate(running)}
    measured = []
    for index, one in enumerate(cases):
        place = places.get(index)
        if place is None or place in failures:
            out = one if place is None else one.failed(failures[place])
            measured.append(Timing(_loaded(out, setting).row, one.name, None))
            continue
        latency = judging.latency(timings[place], setting.samples(sizes), openings=queries[place].openings)
        energy = steady[place] if slow[place] else timings[place].energy_uj()
        row = _loaded(one, setting).changed(latency=latency, energy_uj=energy).row
        measured.append(Timing(row, one.name, timings[place]))
    if base is not None and places[base] not in failures:
        has_twin = len(timings) > len(running) and len(running) not in failures
        twin_timings = timings[-1] if has_twin else None
        return Group(tuple(measured), measured[base], twin_timings)
    return Group(tuple(measured), next((one for one in measured if one.timings is not None), None), None)


def _steady(query: Queries, meter: EnergyMeter, place: int, failures: dict[int, KitError]) -> float | None:
    """Return the energy of a call by a counter that is too slow for a turn; a call that fails is noted."""
    try:
        return steady_energy_uj(query.call, meter)
    except KitError as error:
        failures[place] = error
        return None


def _no_meter() -> None:
    """Stand in for a counter that is too slow to be read in every turn."""


def _loaded(case: OpenCase, setting: _Setting) -> OpenCase:
    load = setting.load
    offline = load.scenario is Scenario.OFFLINE
    return case.changed(scenario=load.scenario, offered_rate=load.rate, query_samples=load.samples if offline else 0)
