"""Choose what runs a bundle best on this machine, by measuring it: variants, runtimes and session options.

    done = tune(find("mnist-mlp"), goal=Goal.THROUGHPUT)
    done.choice.describe()  # "int8-qdq in onnxruntime, 2 threads"

Variants that answer here as they did when they were published are measured in every runtime on one thread, and the best of them
again with other session options. What wins is kept (kit.runtime.choice).

The rule. Speed is the geometric mean, over the points, of how many times as fast as the baseline a contender is: the bundle's
baseline variant in ONNX Runtime on one thread. A contender can win that is FASTER at one point or more and SLOWER at none.
Of those within 5 % of the fastest the one wins whose answers are closest to the original's, and of several ways to run it that
are within 2 % of each other the first in the order they were named: the plainest. If none can win the baseline stays.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from kit import metrics
from kit.bench.cases import Case
from kit.bench.measure import LEAST_ROUNDS, ClosedLoop, Plan, expected_seconds
from kit.bench.request import Request
from kit.bench.results import Results, Row
from kit.bench.run import bench
from kit.bench.scores import published
from kit.bench.stats import SAME_WITHIN, Outcome
from kit.bundle import Bundle, Variant
from kit.choices import FEW_BITS, Goal, Precision, Provider, VariantFormat
from kit.errors import CheckFailed, KitError, UsageError
from kit.metrics import fidelity
from kit.runtime import choice as tuned
from kit.runtime import registry
from kit.runtime.base import RunnerOptions, run_in_batches
from kit.runtime.choice import Choice
from kit.runtime.onnxruntime import saturates
from kit.samples import Samples
from kit.system.machine import this_machine
from kit.system.progress import OnProgress, silent
from kit.system.wording import times
from kit.verify import judged

BATCH_SIZES = {Goal.LATENCY: 1, Goal.THROUGHPUT: 64}
RUNTIMES = ("onnxruntime", "openvino", "litert", "mnn")
"""Those that need no torch: a deployment machine has none."""

NEAR = 0.05
"""Share of speed for which nobody should give up accuracy."""

_SAME_ERROR = 0.01
NEEDLESS = "its 7 bits are for CPUs that saturate with 8, and this one does not"

_FINALISTS = 2
_USUAL_SECONDS = 240.0  # at most, where calls are long
_GLANCE_ROUNDS, _GLANCE_SHARE = 20, 0.3  # to find the finalists: a ranking needs no intervals
_PLAINEST = (
    VariantFormat.FLOAT,
    VariantFormat.QDQ,
    VariantFormat.QOPERATOR,
    VariantFormat.PIXEL,
    VariantFormat.DYNAMIC,
    VariantFormat.WEIGHT_ONLY,
)


@dataclass(frozen=True, kw_only=True)
class Contender:
    """Something that could be chosen, and what was found.

    Attributes:
        rows: As measured, one for each point; empty if it was refused before.
        reason: In words: `FASTER 1.70x [1.66, 1.74], top-1 0.01 points worse`, or why it is out.
        speed: How many times as fast as the baseline; None if that is not known.
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

    candidates: tuple[Contender, ...]
    winner: Contender
    remark: str = ""


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """What `tune` did."""

    choice: Choice
    judgement: Judgement
    results: Results


def judge(results: Results, *, errors: Mapping[str, float] | None = None, full_names: bool = False) -> Judgement:
    """Find the winner among the cases of a run that the baseline was part of.

    `errors` are those of each variant's answers (`fidelity.deviation`); None: all are equally close to the original.

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
    near = [one for one in able if (one.speed or 0.0) >= best * (1 - (NEAR if errors else SAME_WITHIN))]
    off = {one.name: _off(one, errors or {}) for one in near}
    closest = [one for one in near if off[one.name] <= min(off.values()) * (1 + _SAME_ERROR)]
    best = max(one.speed or 0.0 for one in closest)
    winner = next(one for one in closest if (one.speed or 0.0) >= best * (1 - SAME_WITHIN))
    remark = ""
    if any(row.verdict and row.verdict.outcome is Outcome.BASELINE for row in winner.rows):
        flags = " ".join(this_machine().cpu_flags) or "none known"
        vnni = "" if any("vnni" in flag for flag in this_machine().cpu_flags) else "; without VNNI, INT8 gains little"
        stays = winner.rows[0].variant
        remark = f"{stays} stays: nothing that is right is much faster here (the CPU's instruction sets: {flags}{vnni})"
    return Judgement(candidates=candidates, winner=winner, remark=remark)


def _off(contender: Contender, errors: Mapping[str, float]) -> float:
    """Return how far a contender's answers are off; what computes float32 in fewer bits is further than anyone has counted."""
    row = contender.rows[0]
    return math.inf if "bf16" in row.session else errors.get(row.variant, math.inf)


def tune(
    bundle: Bundle,
    *,
    goal: Goal = Goal.LATENCY,
    sizes: Mapping[str, int] | None = None,
    most_threads: int | None = None,
    max_loss: float | None = None,
    budget_seconds: float | None = None,
    plan: Plan | None = None,
    on_progress: OnProgress = silent,
) -> Tuned:
    """Measure, choose and remember.

    Args:
        bundle: With two variants or more, or one that can be run in several ways.
        goal: What for.
        sizes: Of axes in one call; without the batch 1 or, for throughput, 64, and other axes as they usually are.
        most_threads: No more than so many, nor than CPUs may be used here.
        max_loss: Variants are left out that lost more of their metric against the baseline when they were published, in the
            metric's unit (0.003 for 0.3 points); None for what the metric allows.
        budget_seconds: Time for measuring; None for 20 rounds of all and 100 of the finalists, or what fits into 4 minutes.
            Session options for which there is no time are left out, numbers of threads never.
        plan: How long to measure each of the two times, in place of a budget.
        on_progress: Told what is being done, and its share of all.

    Raises:
        UsageError: There is no baseline that works here, or the model has no such axis or size.
        BundleInvalid: A file of it is missing or altered.
        CheckFailed: Nothing could be measured.
        StorageUnavailable: The choice cannot be kept.
    """
    point = _point(bundle, goal, sizes or {})
    seconds = budget_seconds or _USUAL_SECONDS
    glance = plan or Plan(rounds=_GLANCE_ROUNDS, least_calls=1, most_seconds=_GLANCE_SHARE * seconds)
    plan = plan or Plan(most_seconds=(1 - _GLANCE_SHARE) * seconds)
    cpus = this_machine().cpus_to_use
    most_threads = min(most_threads or cpus, cpus)
    tuned.check_writable()
    on_progress("checking the golden samples", 0.0)
    cases, refused = _right(bundle, max_loss)
    first = judge(
        _measure(bundle, cases, point, glance, _within(on_progress, 0.05, 0.05 + _GLANCE_SHARE)),
        full_names=True,
    )
    ranked = sorted((one for one in first.candidates if one.rows and one.rows[0].latency), key=_p50_us)
    finalists = [(next(case for case in cases if _shows(case, one)), _p50_us(one)) for one in ranked[:_FINALISTS]]
    baseline_us = next((_p50_us(one) for one in ranked if _shows(cases[0], one)), 0.0)
    ways, late = _in_time(finalists, most_threads, plan, _least_seconds(plan, baseline_us))
    second = [cases[0], *ways]
    results = _measure(bundle, second, point, plan, _within(on_progress, 0.05 + _GLANCE_SHARE, 1.0))
    errors = {one.id: fidelity.deviation(one.fidelity) for one in bundle.variants}
    final = judge(results, errors=errors, full_names=True)
    losers = tuple(one for one in first.candidates if one.name not in {found.name for found in final.candidates})
    judgement = dataclasses.replace(final, candidates=(*final.candidates, *losers, *late, *refused))
    winner = final.winner.rows[0]
    comparison = winner.verdict.comparison if winner.verdict else None
    choice = Choice(
        variant=winner.variant,
        runtime=winner.runtime,
        options=next(case for case in second if _shows(case, final.winner)).options,
        goal=goal,
        sizes=point,
        p50_us=winner.latency.p50_us if winner.latency else math.nan,
        speedup=comparison.speedup if comparison else 1.0,
        low=comparison.low if comparison else 1.0,
        high=comparison.high if comparison else 1.0,
        measured=datetime.now(UTC).isoformat(timespec="seconds"),
        runtime_version=tuned.runtime_version(winner.runtime),
    )
    tuned.remember(bundle, choice)
    return Tuned(choice=choice, judgement=judgement, results=results)


def _p50_us(contender: Contender) -> float:
    latency = contender.rows[0].latency
    return latency.p50_us if latency else math.inf


def _within(on_progress: OnProgress, begin: float, end: float) -> OnProgress:
    def report(what: str, share: float | None = None, /) -> None:
        on_progress(what, begin if share is None else begin + (end - begin) * share)

    return report


def _point(bundle: Bundle, goal: Goal, sizes: Mapping[str, int]) -> dict[str, int]:
    signature = bundle.signature
    wanted = dict(sizes)
    if signature.batch is not None and signature.batch not in wanted:
        axis, usual = signature.axes[signature.batch], BATCH_SIZES[goal]
        wanted[signature.batch] = axis.usual if axis.problem(usual) else usual
    return signature.usual_sizes(**wanted)


def _right(bundle: Bundle, max_loss: float | None) -> tuple[list[Case], tuple[Contender, ...]]:
    """Return what does here what was promised when it was published, the baseline first, and why others are out."""
    golden = bundle.golden()
    right, refused = [], []
    for runtime in (name for name in RUNTIMES if registry.is_here(name)):
        for variant in sorted(bundle.variants, key=lambda one: (one.id != bundle.manifest.baseline, *_plainness(one))):
            if not registry.can_run(runtime, variant):
                continue
            problem = _needless(bundle, variant) or _lost(variant, max_loss)
            problem = problem or _problem(bundle, variant, runtime, golden)
            if problem:
                refused.append(Contender(name=f"{variant.id} in {runtime}", reason=f"out: {problem}"))
            else:
                right.append(Case(variant=variant.id, runtime=runtime))
                if (
                    runtime == registry.BF16_RUNTIME
                    and variant.precision is Precision.FP32
                    and _bears_bf16(bundle, variant, golden)
                ):
                    right.append(Case(variant=variant.id, runtime=runtime, options=RunnerOptions(bf16=True)))
    if not right or (right[0].variant, right[0].runtime) != (bundle.manifest.baseline, registry.DEFAULT):
        baseline = bundle.manifest.baseline
        raise UsageError(
            f"bundle {bundle.name!r} has no baseline that works here, to compare the others with"
            + (f": {baseline}" if baseline else ""),
            hint=f"kit verify {bundle.name}; kit export {bundle.name}",
        )
    return right, tuple(refused)


def _needless(bundle: Bundle, variant: Variant) -> str:
    """Say why a variant of 7 bits has nothing to win here, where one of 8 is no slower; empty otherwise."""
    own = variant.quantization
    if own is None or own.weight_bits != FEW_BITS or variant.precision is not Precision.INT8 or saturates():
        return ""
    others = [one for one in bundle.variants if one.format is variant.format and one.precision is variant.precision]
    has_more = any(one.quantization is not None and one.quantization.weight_bits > FEW_BITS for one in others)
    return NEEDLESS if has_more else ""


def _lost(variant: Variant, max_loss: float | None) -> str:
    score = next(iter(published(variant)), None)
    if score is None:
        return ""
    allowed = max_loss
    if allowed is None:
        allowed = metrics.find(score.metric).allowed_loss if score.metric in metrics.names() else math.inf
    return f"{score.metric} {score.change()}" if not score.loss <= allowed else ""


def _problem(bundle: Bundle, variant: Variant, runtime: str, golden: Sequence[Samples]) -> str:
    """Say what keeps a variant from doing here what it did when it was published; empty if nothing does."""
    bundle.model(variant)  # a damaged bundle is no bundle to choose from: it must be mended first
    try:
        with registry.open_runner(runtime, bundle, variant, RunnerOptions()) as runner:
            answers = [run_in_batches(runner, group.inputs) for group in golden]
    except KitError as error:
        return str(error)
    return judged(bundle, variant, golden, answers).reason


def _bears_bf16(bundle: Bundle, variant: Variant, golden: Sequence[Samples]) -> bool:
    """Whether this CPU computes in bfloat16, and the golden samples are answered well enough with it."""
    try:
        with registry.open_runner(registry.BF16_RUNTIME, bundle, variant, RunnerOptions(bf16=True)) as runner:
            answers = [run_in_batches(runner, group.inputs) for group in golden]
    except KitError:
        return False
    return fidelity.judge_bfloat(fidelity.compare(golden, answers)).passed


def _plainness(variant: Variant) -> tuple[int, bool, int]:
    precisions = list(Precision)
    return precisions.index(variant.precision), bool(variant.needs.domains), _PLAINEST.index(variant.format)


def _in_time(
    finalists: Sequence[tuple[Case, float]], most_threads: int, plan: Plan, spent: float
) -> tuple[list[Case], tuple[Contender, ...]]:
    """Return the ways to run the finalists that there is time to measure, every number of threads at least, and the others.

    Args:
        finalists: And the microseconds of a call.
        most_threads: Of a way.
        plan: How long to measure.
        spent: Seconds that the baseline takes.
    """
    every = [[(way, call_us) for way in _ways(one, most_threads)] for one, call_us in finalists]
    left = (math.inf if plan.most_seconds is None else plan.most_seconds) - spent
    late: list[Case] = []
    for same in itertools.zip_longest(*every):  # the plainest of each before others
        for way, call_us in filter(None, same):
            left -= _least_seconds(plan, call_us)
            if left < 0 and not _is_plain(way.options):
                late.append(way)
    ways = [way for own in every for way, _ in own]
    others = (
        Contender(
            name=_named(way.variant, way.runtime, way.options.describe_session()),
            reason="not tried: the budget is used up",
        )
        for way in late
    )
    return [way for way in ways if way not in late], tuple(others)


def _is_plain(options: RunnerOptions) -> bool:
    """Whether nothing is asked for but threads and bfloat16, which change speed by more than all the rest."""
    return options == RunnerOptions(threads=options.threads, bf16=options.bf16)


def _least_seconds(plan: Plan, call_us: float) -> float:
    return expected_seconds([call_us], dataclasses.replace(plan, rounds=LEAST_ROUNDS), ClosedLoop())


def _ways(finalist: Case, most_threads: int) -> list[Case]:
    """Return a finalist under other session options, the plainest first; some change nothing for some runtimes."""
    threads, count = [1], 2
    while count < most_threads:
        threads.append(count)
        count *= 2
    threads += [most_threads] if most_threads > 1 else []
    options = [RunnerOptions(threads=number, bf16=finalist.options.bf16) for number in dict.fromkeys(threads)]
    if finalist.runtime == registry.DEFAULT:
        options += [RunnerOptions(threads=number, spinning=False) for number in threads if number > 1]
        options += [
            RunnerOptions(arena=True),
            RunnerOptions(prepacking=False),
            RunnerOptions(optimization="extended"),
        ]
    return [dataclasses.replace(finalist, options=way) for way in options]


def _measure(
    bundle: Bundle, cases: Sequence[Case], point: dict[str, int], plan: Plan, on_progress: OnProgress
) -> Results:
    request = Request(cases=tuple(cases), points=(point,), plan=plan, counts_scores=False)
    return bench(bundle, request, on_progress=on_progress)


def _shows(case: Case, contender: Contender) -> bool:
    row = contender.rows[0]
    return (row.variant, row.runtime, row.session) == (case.variant, case.runtime, case.options.describe_session())


def _name(row: Row) -> str:
    return _named(row.variant, row.runtime, row.session)


def _named(variant: str, runtime: str, session: str) -> str:
    return f"{variant} in {runtime}" + (f", {session}" if session else "")


def _candidate(name: str, rows: tuple[Row, ...]) -> Contender:
    verdicts = [row.verdict for row in rows]
    found = [one.comparison for one in verdicts if one is not None and one.comparison is not None]
    outcomes = {one.outcome for one in verdicts if one is not None}
    if outcomes == {Outcome.BASELINE}:
        return Contender(name=name, rows=rows, reason="the baseline", speed=1.0, can_win=True)
    if len(found) < len(rows):
        reason = next((row.reason for row in rows if row.reason), "not measured long enough")
        return Contender(name=name, rows=rows, reason=reason)
    speed = math.exp(sum(math.log(one.speedup) for one in found) / len(found))
    return Contender(
        name=name,
        rows=rows,
        reason=_reason(rows, speed, outcomes),
        speed=speed,
        can_win=Outcome.FASTER in outcomes and Outcome.SLOWER not in outcomes,
    )


def _reason(rows: tuple[Row, ...], speed: float, outcomes: set[Outcome]) -> str:
    row = rows[0]
    if len(rows) == 1 and row.verdict is not None:
        said = row.verdict.describe()
    elif Outcome.FASTER in outcomes and Outcome.SLOWER in outcomes:
        parts = [
            f"{one.verdict.outcome} {times(one.verdict.comparison.speedup)} at {one.point}"
            for one in rows
            if one.verdict and one.verdict.comparison
        ]
        said = " and ".join(parts)
    else:
        sure = next((one for one in (Outcome.FASTER, Outcome.SLOWER) if one in outcomes), None)
        said = f"{sure or (Outcome.SAME if outcomes == {Outcome.SAME} else Outcome.INCONCLUSIVE)} {times(speed)}"
    if (
        row.precision is Precision.FP16
        and row.ran_on is Provider.CPU
        and platform.machine().lower() in {"x86_64", "amd64"}
    ):
        said += ": runs as fp32"
    if row.score is not None and row.score.baseline is not None:
        said += f", {row.score.metric} {row.score.change()}"
    return said
