"""A bundle's variants on this machine's providers: opened, measured together, judged, written into rows.

Who calls whom: `bench` opens a runner for each variant and provider (one that cannot run becomes a row that says why),
counts accuracy where labelled data is at hand, then times all runners of one batch size in the same interleaved rounds
(measure) and judges them (stats).
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kit import data as datasets
from kit import machine
from kit.accuracy import accuracy
from kit.bench import stats
from kit.bench.measure import Plan, Timings, measure
from kit.bench.results import KIND, SCHEMA_VERSION, Latency, Results, Row, Status, Verdict
from kit.bundle import Bundle
from kit.data import Split
from kit.errors import KitError, Unavailable, UsageError
from kit.runtime import providers, registry
from kit.runtime.base import Runner, RunnerOptions, logits_of
from kit.runtime.onnxruntime import OnnxRuntimeRunner
from kit.spec import Accuracy, Precision, Provider, Variant

OnProgress = Callable[[str, float], None]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to measure.

    Attributes:
        providers: Where; None for every provider that works here.
        variants: Ids; None for all.
        runtimes: Names of kit.runtime.registry, or `all`.
        batch_sizes: Images in one call.
        threads: Threads one operator may use.
        device_id: Index of the GPU.
        allow_fallback: Measure on the CPU what cannot run where it was asked to, and mark those rows.
        data_dir: Where labelled data lies.
        plan: How long.
    """

    providers: tuple[Provider, ...] | None = None
    variants: tuple[str, ...] | None = None
    runtimes: tuple[str, ...] = (registry.DEFAULT,)
    batch_sizes: tuple[int, ...] = (1, 64)
    threads: int = 1
    device_id: int = 0
    allow_fallback: bool = False
    data_dir: Path | None = None
    plan: Plan = dataclasses.field(default_factory=Plan)

    def __post_init__(self) -> None:
        """Refuse what cannot be measured."""
        if not self.batch_sizes or min(self.batch_sizes) < 1:
            raise UsageError("batch sizes must be 1 or more")

    def described(self) -> dict[str, str]:
        """Return what was asked, as the results keep it; without the data folder, which is this machine's."""
        return {
            "providers": " ".join(self.providers) if self.providers else "auto",
            "variants": " ".join(self.variants) if self.variants else "all",
            "runtimes": " ".join(self.runtimes),
            "batch_sizes": " ".join(map(str, self.batch_sizes)),
            "threads": str(self.threads),
            "device_id": str(self.device_id),
            "allow_fallback": str(self.allow_fallback),
            "rounds": str(self.plan.rounds),
            "turn_ms": f"{self.plan.turn_ms:g}",
        }


@dataclass(frozen=True)
class _Entry:
    """A variant on a provider: an open runner, or the reason there is none, and the row it fills."""

    row: Row
    runner: Runner | None


@dataclass(frozen=True)
class _Measured:
    """A row and, if it was measured, its timings."""

    row: Row
    timings: Timings | None


def bench(bundle: Bundle, request: Request, *, on_progress: OnProgress = lambda _what, _share: None) -> Results:
    """Measure a bundle.

    Args:
        bundle: With one exported variant or more.
        request: What to measure.
        on_progress: Told what is being done and the share done of all, 0 to 1.

    Raises:
        UsageError: A variant that the bundle does not have, or none exported yet.
    """
    ids = dict.fromkeys(request.variants or (variant.id for variant in bundle.variants))
    variants = [bundle.variant(variant_id) for variant_id in ids] or [bundle.variant()]
    wanted = request.providers or providers.working(device_id=request.device_id)
    if not wanted:
        providers.require(Provider.CPU)
    on_progress("opening", 0.0)
    with contextlib.ExitStack() as stack:
        entries = [
            _open(bundle, variant, runtime, provider, request, stack)
            for provider in wanted
            for runtime in registry.chosen(request.runtimes)
            for variant in variants
            if registry.can_run(runtime, variant)
        ]
        entries = _count_accuracy(bundle, entries, request, on_progress)
        measured: list[_Measured] = []
        for number, size in enumerate(request.batch_sizes):

            def report(rounds: int, number: int = number, size: int = size) -> None:
                share = (number + rounds / request.plan.rounds) / len(request.batch_sizes)
                on_progress(f"batch {size}", share)

            measured += _measure_group(entries, _pixels(bundle, size), request.plan, report)
    return Results(
        schema_version=SCHEMA_VERSION,
        kind=KIND,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=machine.this_machine(),
        tools=machine.tool_versions(),
        seed=request.plan.seed,
        arguments={"bundle": bundle.name, **request.described()},
        rows=_judge(measured),
    )


def _open(
    bundle: Bundle,
    variant: Variant,
    runtime: str,
    provider: Provider,
    request: Request,
    stack: contextlib.ExitStack,
) -> _Entry:
    """Open a runner, strict about its provider; what cannot run becomes a row that says why."""
    row = Row(
        bundle=bundle.name,
        variant=variant.id,
        precision=variant.precision,
        sha256=variant.artifact.sha256,
        size_bytes=variant.artifact.size_bytes,
        runtime=runtime,
        provider=provider,
        batch_size=0,
        threads=request.threads,
        mode="host",
        status=Status.OK,
        accuracy=variant.accuracy,
        accuracy_source="manifest" if variant.accuracy else "",
    )
    options = RunnerOptions(
        provider=provider,
        threads=request.threads,
        device_id=request.device_id,
        allow_fallback=request.allow_fallback,
    )
    try:
        runner = stack.enter_context(registry.open_runner(runtime, bundle, variant, options))
    except KitError as error:
        status = Status.UNAVAILABLE if isinstance(error, Unavailable) else Status.FAILED
        return _Entry(dataclasses.replace(row, status=status, reason=str(error), fix=error.hint), None)
    fell_back = bool(runner.fallback_reason)
    row = dataclasses.replace(
        row,
        status=Status.FALLBACK if fell_back else Status.OK,
        reason=runner.fallback_reason,
        ran_on=runner.provider,
        placement=runner.placement.describe() if runner.placement.total else runner.provider.value,
    )
    return _Entry(row, runner)


def _count_accuracy(bundle: Bundle, entries: list[_Entry], request: Request, on_progress: OnProgress) -> list[_Entry]:
    """Replace the manifest's accuracy by one counted now, where the test images are at hand."""
    training = bundle.manifest.training
    dataset = datasets.at_hand(training.dataset, data_dir=request.data_dir) if training else None
    if dataset is None or not any(entry.runner for entry in entries):
        return entries
    on_progress(f"accuracy on {len(dataset.test):,} images", 0.0)
    baseline = _fp32_logits(bundle, dataset.test)
    return [_with_accuracy(entry, dataset.name, dataset.test, baseline) for entry in entries]


def _fp32_logits(bundle: Bundle, test: Split) -> NDArray[np.float32] | None:
    """Compute what flips are counted against, even where fp32 itself is not measured."""
    for variant in bundle.variants:
        if variant.precision is Precision.FP32:
            with OnnxRuntimeRunner(bundle.read(variant.artifact)) as runner:
                return logits_of(runner, test.images)
    return None


def _with_accuracy(entry: _Entry, name: str, test: Split, baseline: NDArray[np.float32] | None) -> _Entry:
    if entry.runner is None:
        return entry
    logits = logits_of(entry.runner, test.images)
    found: Accuracy = accuracy(logits, test.labels, dataset=name, split="test", baseline=baseline)
    right = base64.b64encode(np.packbits(logits.argmax(axis=1) == test.labels).tobytes()).decode()
    row = dataclasses.replace(entry.row, accuracy=found, accuracy_source="live", correct_images=right)
    return _Entry(row, entry.runner)


def _pixels(bundle: Bundle, size: int) -> NDArray[np.uint8]:
    """Return real inputs, the golden samples repeated: a batch uint8 `[size, *input shape]`."""
    golden = bundle.golden().pixels
    return np.ascontiguousarray(golden[np.arange(size) % len(golden)])


def _measure_group(
    entries: list[_Entry], pixels: NDArray[np.uint8], plan: Plan, on_round: Callable[[int], None]
) -> list[_Measured]:
    """Time all open runners on the same batch, in the same rounds."""
    running = [entry.runner for entry in entries if entry.runner is not None]
    timings = iter(measure([partial(runner.run, pixels) for runner in running], plan, on_round=on_round))
    measured = []
    for entry in entries:
        row = dataclasses.replace(entry.row, batch_size=len(pixels))
        found = next(timings) if entry.runner is not None else None
        if found is not None:
            row = dataclasses.replace(row, latency=_latency(found, len(pixels)))
        measured.append(_Measured(row, found))
    return measured


def _latency(timings: Timings, batch_size: int) -> Latency:
    pooled = timings.pooled_us()
    p50, p90, p95, p99 = (float(value) for value in np.percentile(pooled, [50, 90, 95, 99]))
    low, high = stats.median_interval(timings.medians_us())
    return Latency(
        calls=timings.calls,
        rounds=len(timings.rounds_us),
        p50_us=p50,
        p90_us=p90,
        p95_us=p95,
        p99_us=p99 if timings.calls >= stats.LEAST_CALLS_FOR_P99 else None,
        max_us=float(pooled.max()),
        low_us=low,
        high_us=high,
        images_per_second=batch_size * 1e6 / p50,
        medians_us=tuple(round(value, 3) for value in timings.medians_us().tolist()),
    )


def _judge(measured: list[_Measured]) -> tuple[Row, ...]:
    """Compare each measured row to the baseline of its batch size, with one error rate for the whole table."""
    pairs = [(one, _baseline(one, measured)) for one in measured]
    comparisons = {
        index: stats.compare(base.timings.medians_us(), one.timings.medians_us())
        for index, (one, base) in enumerate(pairs)
        if base is not None and base is not one and base.timings is not None and one.timings is not None
    }
    outcomes = dict(zip(comparisons, stats.judge(list(comparisons.values())), strict=True))
    rows = []
    for index, (one, base) in enumerate(pairs):
        verdict = None
        if base is not None and one.timings is not None:
            name = f"{base.row.variant} {base.row.runtime} {base.row.ran_on}"
            outcome = outcomes.get(index, stats.Outcome.BASELINE)
            verdict = Verdict(outcome=outcome, baseline=name, comparison=comparisons.get(index))
        rows.append(dataclasses.replace(one.row, verdict=verdict))
    return tuple(rows)


def _baseline(one: _Measured, measured: list[_Measured]) -> _Measured | None:
    """Return the fp32 row on the CPU of the same batch size; else the first row that was measured."""
    same = [other for other in measured if other.row.batch_size == one.row.batch_size and other.timings is not None]
    best = [o for o in same if o.row.precision is Precision.FP32 and o.row.provider is Provider.CPU]
    return next(iter(best or same), None)
