"""`--precision auto`: make every variant, keep those that are right, and make the fastest of them the default.

The gate has two keys: accuracy on the validation split, and speed measured by the bench on this machine, for the batch sizes
and threads that were named. What loses accuracy is not published; what is right but not faster is, and says so: on another
machine `kit tune` may choose otherwise.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

from exporters import candidates, workbench
from exporters.candidates import Plan
from exporters.formats import pixel
from exporters.gate import Passed
from exporters.options import DEFAULT_MAX_DROP_POINTS, DEFAULT_OPSET, ExportOptions
from exporters.search import trial
from exporters.workbench import ExportReport, OnStep, Workbench
from kit import bundle as bundles
from kit import tuning
from kit.bench.measure import Plan as BenchPlan
from kit.bundle import Bundle
from kit.choices import CalibrationMethod, Precision, QuantizationScheme, VariantFormat
from kit.errors import GateFailed, UsageError
from kit.runtime.base import RunnerOptions
from kit.system import machine
from kit.tuning import Judgement


@dataclass(frozen=True, kw_only=True)
class AutoOptions:
    """What to choose by.

    Attributes:
        max_drop_points: Largest loss of top-1 against fp32, in percentage points.
        batch_sizes: Images in one call, each measured.
        threads: Threads one operator may use.
        calibration: How static int8 makes ranges of what its samples showed; None for the whole range.
        calibration_samples: Training images those ranges are drawn from; None for 1,024.
        opset: ONNX operator set.
        seed: Of the draw of the calibration images.
        plan: How long to measure.
    """

    max_drop_points: float = DEFAULT_MAX_DROP_POINTS
    batch_sizes: tuple[int, ...] = (1, 64)
    threads: int = 1
    calibration: CalibrationMethod | None = None
    calibration_samples: int | None = None
    opset: int = DEFAULT_OPSET
    seed: int = 0
    plan: BenchPlan = field(default_factory=BenchPlan)

    def __post_init__(self) -> None:
        """Refuse what cannot be measured."""
        if not self.batch_sizes or min(self.batch_sizes) < 1:
            raise UsageError("batch sizes must be 1 or more")
        if not self.max_drop_points >= 0:
            raise UsageError(f"the allowed drop must not be negative, found {self.max_drop_points}")
        RunnerOptions(threads=self.threads)  # refuses too many

    def candidates(self) -> tuple[Plan, ...]:
        """Return everything that can be made, the plainest first."""
        common = ExportOptions(
            precisions=(Precision.FP16, Precision.INT8, Precision.INT4),
            formats=(VariantFormat.QDQ, VariantFormat.QOPERATOR, VariantFormat.PIXEL),
            calibration=self.calibration,
            calibration_samples=self.calibration_samples,
            opset=self.opset,
            seed=self.seed,
        )
        only_int8 = dataclasses.replace(common, precisions=(Precision.INT8,), formats=(VariantFormat.QDQ,))
        per_tensor = dataclasses.replace(only_int8, per_channel=False)
        dynamic = dataclasses.replace(
            only_int8,
            formats=None,
            calibration=None,
            calibration_samples=None,
            quantization=QuantizationScheme.DYNAMIC,
        )
        return (*candidates.plans(common), *candidates.plans(per_tensor), *candidates.plans(dynamic))


@dataclass(frozen=True, kw_only=True)
class AutoReport:
    """What was published, and why.

    Attributes:
        judgement: All candidates with their reasons, those that were rejected before they were measured too.
    """

    report: ExportReport
    judgement: Judgement


def export_auto(
    bundle: Bundle,
    options: AutoOptions,
    *,
    data_dir: Path | None = None,
    on_step: OnStep = lambda _: None,
) -> AutoReport:
    """Export a trained bundle in every way there is, and make the fastest right one its default.

    Raises:
        UsageError, DatasetUnavailable, GateFailed: As for `export_bundle`; one candidate that fails is no failure.
    """
    bundles.refuse_unwritable(bundle)
    bench = workbench.for_bundle(bundle, opset=options.opset, data_dir=data_dir, on_step=on_step)
    passed, rejected = _make(bench, options, on_step)
    on_step("measuring")
    entries = tuple((one.variant, one.data) for one in passed)
    results = trial.measure(
        bundle,
        entries,
        batch_sizes=options.batch_sizes,
        threads=options.threads,
        plan=options.plan,
        on_step=on_step,
    )
    judgement = tuning.judge(results)
    on_step("publishing")
    published = bundles.publish(
        bundle,
        entries,
        tools=machine.tool_versions(),
        default=judgement.winner.rows[0].variant,
        withdrawn=tuple(one.name for one in rejected),
    )
    everyone = dataclasses.replace(judgement, candidates=(*judgement.candidates, *rejected))
    return AutoReport(report=ExportReport(bundle=published, passed=passed), judgement=everyone)


def _make(
    bench: Workbench, options: AutoOptions, on_step: OnStep
) -> tuple[tuple[Passed, ...], tuple[tuning.Candidate, ...]]:
    """Make what can be made; return what passed the gate, fp32 first, and what did not, with the reason."""
    passed, rejected = [bench.fp32], []
    for plan in options.candidates():
        if plan.format is VariantFormat.PIXEL and (reason := pixel.refusal(bench.source.model)):
            rejected.append(tuning.Candidate(name=plan.id, reason=f"not for this model: {reason}"))
            continue
        on_step(f"{plan.id}: make")
        try:
            candidate = plan.make(bench.source)
            on_step(f"{plan.id}: checks")
            passed.append(bench.examine(candidate, options.max_drop_points))
        except GateFailed as error:
            rejected.append(
                tuning.Candidate(name=plan.id, reason=f"rejected: {str(error).removeprefix(f'{plan.id} ')}")
            )
    return tuple(passed), tuple(rejected)
