"""A bundle on this machine: opened, measured together, judged, written into rows.

Who calls whom: `bench` opens the field (entries), counts accuracy where labelled data is at hand, times one call of each
contestant at each batch size to say how long it will take, then measures all contestants of a batch size in the same
interleaved rounds (measure, in the load shape of the scenario) and judges them (judging). `Request.cold` and
`Request.profile` ask for another kind of figure about the same field.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from kit import machine
from kit.bench import cold, judging, profile, sweep
from kit.bench.conditions import Watch
from kit.bench.entries import Entry, Field, OnProgress, count_accuracy, open_entries, pixels
from kit.bench.judging import Group, Measured
from kit.bench.measure import Call, ClosedLoop, LoadShape, Plan, Timings, expected_seconds, measure
from kit.bench.meters import PeakMemory, energy_meter
from kit.bench.results import KIND, SCHEMA_VERSION, Control, Results
from kit.bench.scenarios import Load, OpenLoop, Scenario
from kit.bundle import Bundle
from kit.errors import KitError, UsageError
from kit.runtime import providers, registry
from kit.spec import Provider

_SERVER_TURN_MS = 100.0  # queries must have time to queue


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to measure.

    Attributes:
        providers: Where; None for every provider that works here.
        variants: Ids; None for all.
        runtimes: Names of kit.runtime.registry, or `all`.
        batch_sizes: Samples in one call; None for what suits the scenario.
        sweep: Double the batch size until throughput no longer grows.
        load: How queries arrive.
        threads: Threads one operator may use.
        device_id: Index of the GPU.
        allow_fallback: Measure on the CPU what cannot run where it was asked to, and mark those rows.
        data_dir: Where labelled data lies.
        plan: How long.
        cold: Measure fresh processes, from their start to the first prediction, and nothing else.
        profile: Measure where the time goes, by node, and write traces into this folder; nothing else.
    """

    providers: tuple[Provider, ...] | None = None
    variants: tuple[str, ...] | None = None
    runtimes: tuple[str, ...] = (registry.DEFAULT,)
    batch_sizes: tuple[int, ...] | None = None
    sweep: bool = False
    load: Load = dataclasses.field(default_factory=Load)
    threads: int = 1
    device_id: int = 0
    allow_fallback: bool = False
    data_dir: Path | None = None
    plan: Plan = dataclasses.field(default_factory=Plan)
    cold: bool = False
    profile: Path | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be measured, or would change nothing."""
        if self.batch_sizes is not None and (not self.batch_sizes or min(self.batch_sizes) < 1):
            raise UsageError("batch sizes must be 1 or more")
        if self.sweep and self.batch_sizes is not None:
            raise UsageError("a sweep chooses its batch sizes itself", hint="leave the others out")
        special = [name for name, wanted in (("cold", self.cold), ("profile", self.profile is not None)) if wanted]
        if len(special) > 1:
            raise UsageError("--cold and --profile are two kinds of figures", hint="ask for one at a time")
        if special and self.load.scenario is not Scenario.SINGLE_STREAM:
            raise UsageError(f"--{special[0]} knows no load shape", hint="leave --scenario out")
        if self.cold and (self.sweep or self.batch_sizes not in {None, (1,)}):
            raise UsageError("--cold measures the first prediction, of one sample", hint="leave --batch-size out")
        if self.profile is not None and self.sweep:
            raise UsageError("--profile needs batch sizes by name", hint="use --batch-size 1 or another")
        if self.sweep and self.load.scenario is Scenario.SERVER:
            raise UsageError("a sweep looks for throughput; the Server scenario has the rate it is given")

    @property
    def sizes(self) -> tuple[int, ...]:
        """Batch sizes by name, or those of the scenario."""
        return self.batch_sizes or self.load.default_batch_sizes()

    def described(self) -> dict[str, str]:
        """Return what was asked, as the results keep it; without folders, which are this machine's."""
        budget = self.plan.budget_seconds
        return {
            "providers": " ".join(self.providers) if self.providers else "auto",
            "variants": " ".join(self.variants) if self.variants else "all",
            "runtimes": " ".join(self.runtimes),
            "batch_sizes": "sweep" if self.sweep else " ".join(map(str, self.sizes)),
            "scenario": str(self.load.scenario),
            "rate": f"{self.load.rate:g}" if self.load.rate else "",
            "threads": str(self.threads),
            "device_id": str(self.device_id),
            "allow_fallback": str(self.allow_fallback),
            "rounds": str(self.plan.rounds),
            "turn_ms": f"{self.plan.turn_ms:g}",
            "budget_seconds": f"{budget:g}" if budget else "",
            "kind": "cold" if self.cold else "profile" if self.profile is not None else "warm",
        }


def bench(
    bundle: Bundle,
    request: Request,
    *,
    on_progress: OnProgress = lambda _what, _share: None,
    on_estimate: Callable[[float], None] = lambda _: None,
) -> Results:
    """Measure a bundle.

    Args:
        bundle: With one exported variant or more.
        request: What to measure.
        on_progress: Told what is being done and the share done of all, 0 to 1.
        on_estimate: Told once how many seconds the measuring will take.

    Raises:
        UsageError: A variant that the bundle does not have, or none exported yet.
    """
    budget = request.plan.budget_seconds
    deadline = None if budget is None else time.perf_counter_ns() + int(budget * 1e9)
    field = _field(bundle, request)
    watch = Watch(request.device_id if Provider.CPU not in field.providers or len(field.providers) > 1 else None)
    on_progress("opening", 0.0)
    held: tuple[Control, ...] = ()
    if request.cold:
        rows = cold.rows(bundle, field, request.plan, deadline, on_progress, on_estimate)
    elif request.profile is not None:
        rows = profile.rows(bundle, field, request.sizes, request.profile, on_progress)
    else:
        groups = _warm(bundle, field, request, deadline, on_progress, on_estimate)
        rows, held = judging.judge(groups), judging.controls(groups)
    return Results(
        schema_version=SCHEMA_VERSION,
        kind=KIND,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=machine.this_machine(),
        tools=machine.tool_versions(),
        seed=request.plan.seed,
        arguments={"bundle": bundle.name, **request.described()},
        rows=rows,
        controls=held,
        conditions=watch.conditions(),
    )


def _field(bundle: Bundle, request: Request) -> Field:
    ids = dict.fromkeys(request.variants or (variant.id for variant in bundle.variants))
    wanted = request.providers or providers.working(device_id=request.device_id)
    if not wanted:
        providers.require(Provider.CPU)
    return Field(
        variants=tuple(bundle.variant(variant_id) for variant_id in ids) or (bundle.variant(),),
        runtimes=registry.chosen(request.runtimes),
        providers=wanted,
        threads=request.threads,
        device_id=request.device_id,
        allow_fallback=request.allow_fallback,
    )


@dataclass(frozen=True)
class _Setting:
    """What stays the same for all batch sizes: the plan, the load shape, and the samples of a query."""

    plan: Plan
    shape: LoadShape
    load: Load
    device_id: int

    def samples(self, batch_size: int) -> int:
        return self.load.samples if self.load.scenario is Scenario.OFFLINE else batch_size


def _warm(
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
    setting = _Setting(plan, shape, load, field.device_id)
    with contextlib.ExitStack() as stack:
        opened = open_entries(bundle, field, stack)
        opened = count_accuracy(bundle, opened, request.data_dir, on_progress)
        on_progress("first calls", 0.0)
        sizes = request.sizes
        if request.sweep:
            sizes = sweep.sizes(partial(_best_calls, bundle, opened), deadline)
        opened, calls = _probe(bundle, opened, sizes, setting)
        expected = sum(expected_seconds(group, plan, shape) for group in calls)
        left = expected if deadline is None else max((deadline - time.perf_counter_ns()) / 1e9, 0.0)
        on_estimate(left)
        groups = []
        for number, size in enumerate(sizes):

            def report(share: float, number: int = number, size: int = size) -> None:
                on_progress(f"batch {size}", (number + share) / len(sizes))

            until = None
            if deadline is not None:
                now = time.perf_counter_ns()
                until = now + max(deadline - now, 0) // (len(sizes) - number)
            groups.append(_group(bundle, opened, size, setting, until, report))
    return groups


def _call(bundle: Bundle, entry: Entry, size: int, load: Load) -> Call:
    """Return one query of a contestant that runs."""
    assert entry.runner is not None  # the caller looked
    batch = pixels(bundle, size)
    if load.scenario is not Scenario.OFFLINE:
        return partial(entry.runner.run, batch)
    runner = entry.runner
    parts = [batch[: min(size, load.samples - start)] for start in range(0, load.samples, size)]

    def query() -> None:
        for part in parts:
            runner.run(part)

    return query


def _probe(
    bundle: Bundle, opened: list[Entry], sizes: Sequence[int], setting: _Setting
) -> tuple[list[Entry], list[list[float]]]:
    """Run each contestant at each batch size twice; return the entries, and for each size the calls' microseconds.

    The first call of a batch size may compile, allocate, or fail; one that fails leaves the field.
    """
    probed: list[Entry] = []
    calls: list[list[float]] = [[] for _ in sizes]
    for entry in opened:
        if entry.runner is None:
            probed.append(entry)
            continue
        try:
            with PeakMemory() as memory:
                times = [_second_call_us(_call(bundle, entry, size, setting.load)) for size in sizes]
        except KitError as error:
            probed.append(entry.failed(error))
            continue
        for group, one in zip(calls, times, strict=True):
            group.append(one)
        used = (entry.row.memory_bytes or 0) + memory.added_bytes
        probed.append(Entry(dataclasses.replace(entry.row, memory_bytes=used), entry.runner))
    base = judging.baseline_index(probed)
    if base is not None:  # its twin takes as long
        place = sum(entry.runner is not None for entry in probed[:base])
        for group in calls:
            group.append(group[place])
    return probed, calls


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
    stand = [*running, opened[base]] if base is not None else []
    timings = list(
        measure(
            [_call(bundle, entry, size, setting.load) for entry in stand],
            setting.plan,
            shape=setting.shape,
            deadline_ns=deadline,
            meters=[energy_meter(entry.row.ran_on or Provider.CPU, setting.device_id) for entry in stand],
            on_round=on_round,
        )
    )
    twin = timings.pop() if timings else None
    found = iter(timings)
    measured = tuple(
        _measured(entry, size, next(found) if entry.runner is not None else None, setting) for entry in opened
    )
    return Group(measured, measured[base] if base is not None else None, twin)


def _measured(entry: Entry, size: int, timings: Timings | None, setting: _Setting) -> Measured:
    offline = setting.load.scenario is Scenario.OFFLINE
    row = dataclasses.replace(
        entry.row,
        batch_size=size,
        scenario=setting.load.scenario,
        offered_rate=setting.load.rate,
        query_samples=setting.load.samples if offline else 0,
    )
    if timings is not None:
        found = judging.latency(timings, setting.samples(size))
        row = dataclasses.replace(row, latency=found, energy_uj=timings.energy_uj())
    return Measured(row, entry.name, timings)
