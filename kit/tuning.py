"""Choose what runs a bundle best on this machine, by measuring it: variants, runtimes and session options.

Who calls whom: `tune` checks the variants on their golden samples, benches those that hold in every runtime on one thread,
benches the best of them again under other session options, and keeps what won (kit.runtime.choice) for `load`. `judge` is
the rule by which candidates win, which `kit export --precision auto` goes by as well.

The rule. Speed is the geometric mean, over the batch sizes, of how many times as fast as the baseline a candidate is: fp32 in
ONNX Runtime on one thread. A candidate can win that is FASTER at one size or more and SLOWER at none. Among those within 2 %
of the fastest the first in the order they were named wins: the plainest. Where none can win the baseline stays.
"""

from __future__ import annotations

import dataclasses
import math
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from kit import parity
from kit.bench.entries import Contender
from kit.bench.measure import Plan
from kit.bench.request import Request
from kit.bench.results import Results, Row
from kit.bench.run import bench
from kit.bench.stats import SAME_WITHIN, Outcome
from kit.bundle import Bundle, GoldenSamples
from kit.bundle.records import Variant
from kit.choices import Goal, Precision, Provider, VariantFormat
from kit.errors import CheckFailed, KitError, UsageError
from kit.runtime import choice as tuned
from kit.runtime import registry
from kit.runtime.base import RunnerOptions, logits_of
from kit.runtime.choice import Choice
from kit.system.machine import this_machine

OnProgress = Callable[[str, float], None]
BATCH_SIZES = {Goal.LATENCY: 1, Goal.THROUGHPUT: 64}
RUNTIMES = ("onnxruntime", "openvino")
"""Those that need no torch: a deployment machine has none."""

DEFAULT_MAX_DROP_POINTS = 0.3
_FINALISTS = 2
_PLAINEST = (
    VariantFormat.FLOAT,
    VariantFormat.QDQ,
    VariantFormat.QOPERATOR,
    VariantFormat.PIXEL,
    VariantFormat.DYNAMIC,
    VariantFormat.WEIGHT_ONLY,
)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """Something that could be chosen, and what was found.

    Attributes:
        rows: As measured, one for each batch size; empty where it was refused before.
        reason: In words: `1.7x faster, -0.01 points`, or why it is out.
        speed: How many times as fast as the baseline; None where that is not known.
        can_win: Whether it is FASTER somewhere and SLOWER nowhere; the baseline itself can.
    """

    name: str
    rows: tuple[Row, ...] = ()
    reason: str = ""
    speed: float | None = None
    can_win: bool = False


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """Candidates in the order they were named, and who won."""

    candidates: tuple[Candidate, ...]
    winner: Candidate
    remark: str = ""


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """What `tune` did."""

    choice: Choice
    judgement: Judgement
    results: Results


def judge(results: Results, *, full_names: bool = False) -> Judgement:
    """Find the winner among the contestants of a run that fp32 on the CPU was part of.

    Args:
        results: Of that run.
        full_names: Name runtime and session options even where all have the same.

    Raises:
        CheckFailed: The baseline itself could not be measured.
    """
    named: dict[str, list[Row]] = {}
    is_one_way = not full_names and len({(row.runtime, row.session) for row in results.rows}) == 1
    for row in results.rows:
        named.setdefault(row.variant if is_one_way else _name(row), []).append(row)
    candidates = tuple(_candidate(name, tuple(rows)) for name, rows in named.items())
    able = [one for one in candidates if one.can_win and one.speed is not None]
    if not able:
        reasons = "; ".join(dict.fromkeys(row.reason for row in results.rows if row.reason))
        raise CheckFailed(f"nothing could be measured: {reasons or 'there are no rows'}", hint="kit doctor")
    best = max(one.speed or 0.0 for one in able)
    winner = next(one for one in able if (one.speed or 0.0) >= best * (1 - SAME_WITHIN))
    remark = ""
    if any(row.verdict and row.verdict.outcome is Outcome.BASELINE for row in winner.rows):
        flags = " ".join(this_machine().cpu_flags) or "none known"
        vnni = "" if any("vnni" in flag for flag in this_machine().cpu_flags) else "; without VNNI, INT8 gains little"
        remark = f"fp32 stays: nothing that is right is faster here (the CPU's instruction sets: {flags}{vnni})"
    return Judgement(candidates=candidates, winner=winner, remark=remark)


def tune(
    bundle: Bundle,
    *,
    goal: Goal = Goal.LATENCY,
    batch_size: int | None = None,
    most_threads: int | None = None,
    max_drop_points: float = DEFAULT_MAX_DROP_POINTS,
    plan: Plan | None = None,
    on_progress: OnProgress = lambda _what, _share: None,
) -> Tuned:
    """Measure, choose and remember.

    Args:
        bundle: With two variants or more, or one that can be run in several ways.
        goal: What for.
        batch_size: Images in one call; None for 1 or, for throughput, 64.
        most_threads: No more than so many, nor than CPUs may be used here.
        max_drop_points: Variants that lost more top-1 against fp32 when they were published are left out.
        plan: How long to measure.
        on_progress: Told what is being done, and its share of all.

    Raises:
        UsageError: There is no fp32 variant to compare with.
        BundleInvalid: A file of it is missing or altered.
        CheckFailed: Nothing could be measured.
        StorageUnavailable: The choice cannot be kept.
    """
    size, plan = batch_size or BATCH_SIZES[goal], plan or Plan()
    cpus = this_machine().cpus_to_use
    most_threads = min(most_threads or cpus, cpus)
    tuned.check_writable()
    on_progress("checking the golden samples", 0.0)
    fields, refused = _right(bundle, max_drop_points)
    first = judge(
        _measure(bundle, fields, size, plan, lambda what, share: on_progress(what, 0.05 + 0.45 * share)),
        full_names=True,
    )
    ranked = sorted((one for one in first.candidates if one.speed), key=lambda one: -(one.speed or 0.0))
    finalists = [next(one for one in fields if _shows(one, found)) for found in ranked[:_FINALISTS]]
    second = [fields[0], *_ways(finalists, most_threads)]
    results = _measure(bundle, second, size, plan, lambda what, share: on_progress(what, 0.5 + 0.5 * share))
    final = judge(results, full_names=True)
    losers = tuple(one for one in first.candidates if one.name not in {found.name for found in final.candidates})
    judgement = dataclasses.replace(final, candidates=(*final.candidates, *losers, *refused))
    winner = final.winner.rows[0]
    contender = next(one for one in second if _shows(one, final.winner))
    comparison = winner.verdict.comparison if winner.verdict else None
    choice = Choice(
        variant=winner.variant,
        runtime=winner.runtime,
        options=contender.options,
        goal=goal,
        batch_size=size,
        p50_us=winner.latency.p50_us if winner.latency else math.nan,
        speedup=comparison.speedup if comparison else 1.0,
        low=comparison.low if comparison else 1.0,
        high=comparison.high if comparison else 1.0,
        measured=datetime.now(UTC).isoformat(timespec="seconds"),
        runtime_version=tuned.runtime_version(winner.runtime),
    )
    tuned.remember(bundle, choice)
    return Tuned(choice=choice, judgement=judgement, results=results)


def _right(bundle: Bundle, max_drop_points: float) -> tuple[list[Contender], tuple[Candidate, ...]]:
    """Return who does here what was promised when it was published, fp32 in ONNX Runtime first, and why others are out."""
    golden = bundle.golden()
    right, refused = [], []
    for runtime in (name for name in RUNTIMES if registry.is_here(name)):
        for variant in sorted(bundle.variants, key=_plainness):
            if not registry.can_run(runtime, variant):
                continue
            lost = variant.accuracy.drop_points if variant.accuracy else 0.0
            problem = f"it loses {lost:.2f} points" if lost > max_drop_points else ""
            problem = problem or _problem(bundle, variant, runtime, golden)
            if problem:
                refused.append(Candidate(name=f"{variant.id} in {runtime}", reason=f"out: {problem}"))
            else:
                right.append(Contender(variant=variant.id, runtime=runtime, options=RunnerOptions()))
    first = bundle.variant(right[0].variant) if right and right[0].runtime == registry.DEFAULT else None
    if first is None or first.precision is not Precision.FP32:
        raise UsageError(
            f"bundle {bundle.name!r} has no fp32 variant that holds here, to compare the others with",
            hint=f"kit verify {bundle.name}; kit export {bundle.name}",
        )
    return right, tuple(refused)


def _problem(bundle: Bundle, variant: Variant, runtime: str, golden: GoldenSamples) -> str:
    """Say what keeps a variant from doing here what it did when it was published; empty where nothing does."""
    bundle.read(variant.artifact)  # a damaged bundle is no bundle to choose from: what is damaged must be mended
    try:
        with registry.open_runner(runtime, bundle, variant, RunnerOptions()) as runner:
            found = parity.compare(golden.logits, logits_of(runner, golden.pixels))
    except KitError as error:
        return str(error)
    return parity.judge(found, variant).reason


def _plainness(variant: Variant) -> tuple[int, bool, int]:
    precisions = list(Precision)
    return precisions.index(variant.precision), bool(variant.domains), _PLAINEST.index(variant.format)


def _ways(finalists: Sequence[Contender], most_threads: int) -> list[Contender]:
    """Return the finalists under other session options, the plainest first; some change nothing for some runtimes."""
    threads, count = [1], 2
    while count < most_threads:
        threads.append(count)
        count *= 2
    threads += [most_threads] if most_threads > 1 else []
    ways = []
    for one in finalists:
        options = [RunnerOptions(threads=number) for number in dict.fromkeys(threads)]
        if one.runtime == registry.DEFAULT:
            options += [RunnerOptions(threads=number, spinning=False) for number in threads if number > 1]
            options += [
                RunnerOptions(arena=True),
                RunnerOptions(prepacking=False),
                RunnerOptions(optimization="extended"),
            ]
        ways += [dataclasses.replace(one, options=way) for way in options]
    return ways


def _measure(bundle: Bundle, fields: Sequence[Contender], size: int, plan: Plan, on_progress: OnProgress) -> Results:
    request = Request(contenders=tuple(dict.fromkeys(fields)), batch_sizes=(size,), plan=plan, counts_accuracy=False)
    return bench(bundle, request, on_progress=on_progress)


def _shows(contender: Contender, candidate: Candidate) -> bool:
    row = candidate.rows[0]
    return (row.variant, row.runtime, row.session) == (
        contender.variant,
        contender.runtime,
        contender.options.describe_session(),
    )


def _name(row: Row) -> str:
    return f"{row.variant} in {row.runtime}" + (f", {row.session}" if row.session else "")


def _candidate(name: str, rows: tuple[Row, ...]) -> Candidate:
    """Say how a contestant did against the baseline."""
    verdicts = [row.verdict for row in rows]
    found = [one.comparison for one in verdicts if one is not None and one.comparison is not None]
    outcomes = {one.outcome for one in verdicts if one is not None}
    if outcomes == {Outcome.BASELINE}:
        return Candidate(name=name, rows=rows, reason="the baseline", speed=1.0, can_win=True)
    if len(found) < len(rows):
        reason = next((row.reason for row in rows if row.reason), "not measured long enough")
        return Candidate(name=name, rows=rows, reason=reason)
    speed = math.exp(sum(math.log(one.speedup) for one in found) / len(found))
    return Candidate(
        name=name,
        rows=rows,
        reason=_reason(rows, speed, outcomes),
        speed=speed,
        can_win=Outcome.FASTER in outcomes and Outcome.SLOWER not in outcomes,
    )


def _reason(rows: tuple[Row, ...], speed: float, outcomes: set[Outcome]) -> str:
    row = rows[0]
    if Outcome.FASTER in outcomes and Outcome.SLOWER in outcomes:
        parts = [
            f"{_times(one.verdict.comparison.speedup)} at batch {one.batch_size}"
            for one in rows
            if one.verdict and one.verdict.comparison
        ]
        said = " and ".join(parts)
    elif Outcome.FASTER in outcomes or Outcome.SLOWER in outcomes:
        said = _times(speed)
    else:
        said = "SAME here" if outcomes == {Outcome.SAME} else "no sure difference"
    if (
        row.precision is Precision.FP16
        and row.ran_on is Provider.CPU
        and platform.machine().lower() in {"x86_64", "amd64"}
    ):
        said += ": runs as fp32"
    if row.accuracy is not None and row.precision is not Precision.FP32:
        said += f", top-1 {0.0 - row.accuracy.drop_points:+.2f} points"
    return said


def _times(speed: float) -> str:
    return f"{speed:.2f}x faster" if speed >= 1 else f"{1 / speed:.2f}x slower"
