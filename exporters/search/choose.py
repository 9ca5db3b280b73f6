"""`--precision auto`: make every variant that may pay, keep those that are right, and make the fastest of them the default.

The gate has two keys: the bars on the validation split, and speed measured by the bench on this machine, for the sizes and
threads that were named. What loses more than is allowed is not published; what is right but not faster is, and says so: on
another machine `kit tune` may choose otherwise. Where static int8 loses too much, what may help is tried, from the simplest on
(exporters.search.ladder). With a budget the most promising comes first, and what is not begun in time is left out.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx

from exporters import candidates, pipeline
from exporters.candidates import VariantRecipe
from exporters.formats import nncf
from exporters.formats.base import is_convolutional, is_dense
from exporters.formats.int8 import usual_bits
from exporters.formats.weights import has_products
from exporters.gate import Passed
from exporters.options import DEFAULT_OPSET, ExportOptions, check_fine_tuning
from exporters.search import fine_tuning, trial
from exporters.search.ladder import Rung, climb, narrow
from exporters.workbench import ExportReport, Workbench, for_bundle, staging_beside
from kit import bundle as bundles
from kit import tuning
from kit.bench.measure import Plan
from kit.bundle import Bundle
from kit.choices import FEW_BITS, CalibrationMethod, Precision, QuantizationScheme, VariantFormat
from kit.errors import GateFailed, UsageError
from kit.metrics import Metric, fidelity
from kit.runtime.base import RunnerOptions
from kit.runtime.onnxruntime import saturates
from kit.samples import Splits
from kit.system import machine
from kit.system.progress import OnProgress, silent
from kit.tensors import Signature
from kit.tuning import Judgement

_BATCHES = (1, 64)
_CLIMBS = "int8-qdq"
_MAKING_SHARE = 0.7  # of a budget; the rest is for measuring
_MEASURING_SECONDS = 120.0  # where nobody gives a budget, and calls are so long that all rounds would take longer


@dataclass(frozen=True, kw_only=True)
class AutoOptions:
    """What to choose by.

    Attributes:
        max_loss: Largest loss against the baseline, in the unit of the metric; None for the metric's own bar.
        points: Sizes of the axes, each measured; None for batches of 1 and 64, as far as the model takes them.
        threads: Threads one operator may use.
        calibration: How static int8 makes ranges of what its samples showed; None for the whole range.
        calibration_samples: Training samples those ranges are drawn from; None for 1,024.
        fine_tune_seconds: Train the weights for so long before int8 or int4 is made of them, for each number of bits; None for
            not at all.
        opset: ONNX operator set.
        seed: Of the draw of the calibration samples.
        budget_seconds: Time for all of it: what is not begun in time is left out; None for as long as it takes.
        plan: How long to measure.
    """

    max_loss: float | None = None
    points: tuple[dict[str, int], ...] | None = None
    threads: int = 1
    calibration: CalibrationMethod | None = None
    calibration_samples: int | None = None
    fine_tune_seconds: float | None = None
    opset: int = DEFAULT_OPSET
    seed: int = 0
    budget_seconds: float | None = None
    plan: Plan = field(default_factory=lambda: Plan(most_seconds=_MEASURING_SECONDS))

    def __post_init__(self) -> None:
        """Refuse what cannot be measured."""
        if self.points is not None and not self.points:
            raise UsageError("there is no size to measure at", hint="name sizes, or leave them out")
        if self.max_loss is not None and not self.max_loss >= 0:
            raise UsageError(f"the allowed loss must not be negative, found {self.max_loss}")
        if self.budget_seconds is not None and not self.budget_seconds > 0:
            raise UsageError(f"a budget must be longer than nothing, found {self.budget_seconds:g} s")
        check_fine_tuning(self.fine_tune_seconds)
        RunnerOptions(threads=self.threads)  # refuses too many

    def measured_at(self, signature: Signature) -> tuple[dict[str, int], ...]:
        """Return the sizes to measure at.

        Raises:
            UsageError: The model has no such axis or size.
        """
        if self.points is not None:
            return tuple(signature.usual_sizes(**point) for point in self.points)
        if signature.batch is None:
            return (signature.usual_sizes(),)
        axis = signature.axes[signature.batch]
        sizes = [size for size in _BATCHES if not axis.problem(size)] or [axis.usual]
        return tuple(signature.usual_sizes(**{signature.batch: size}) for size in sizes)

    def recipes(self, model: onnx.ModelProto) -> tuple[VariantRecipe, ...]:
        """Return everything that may pay for a model, the plainest first.

        Integer operators, the pixel format and one scale for a layer are for networks of dense layers alone: others they make
        less right, and no faster. Ranges found in each call are for networks whose weights are mostly no convolutions.
        Where int8 weights have 8 bits there is a variant of 7 as well, for runtimes that saturate on CPUs without VNNI.
        """
        of_dense = is_dense(model)
        formats = (VariantFormat.QDQ, VariantFormat.QOPERATOR, VariantFormat.PIXEL) if of_dense else None
        common = ExportOptions(
            precisions=(Precision.FP16, Precision.INT8, Precision.INT4),
            formats=formats,
            calibration=self.calibration,
            calibration_samples=self.calibration_samples,
            opset=self.opset,
            seed=self.seed,
        )
        only_int8 = dataclasses.replace(common, precisions=(Precision.INT8,), formats=None)
        everything = [common]
        if usual_bits(model) > FEW_BITS:
            everything.append(dataclasses.replace(only_int8, weight_bits=FEW_BITS))
        if of_dense:
            everything.append(dataclasses.replace(only_int8, per_channel=False))
        if not is_convolutional(model):
            dynamic = dataclasses.replace(only_int8, calibration=None, calibration_samples=None)
            everything.append(dataclasses.replace(dynamic, quantization=QuantizationScheme.DYNAMIC))
        if has_products(model):
            weights = dataclasses.replace(only_int8, calibration=None, calibration_samples=None)
            everything.append(dataclasses.replace(weights, quantization=QuantizationScheme.WEIGHTS))
        made = tuple(recipe for options in everything for recipe in candidates.recipes(options))
        if not nncf.is_here():
            return made
        return (*made, VariantRecipe(id="int8-nncf", format=nncf.NncfInt8(seed=self.seed)))


@dataclass(frozen=True, kw_only=True)
class AutoReport:
    """What was published, and why.

    Attributes:
        judgement: All candidates with their reasons, those that were rejected before they were measured too.
        rungs: What was tried where static int8 lost too much.
    """

    report: ExportReport
    judgement: Judgement
    rungs: tuple[Rung, ...] = ()


def export_auto(
    bundle: Bundle,
    options: AutoOptions,
    *,
    data: Splits | None = None,
    data_dir: Path | None = None,
    metric: str | Metric | None = None,
    on_progress: OnProgress = silent,
) -> AutoReport:
    """Export a bundle of any model in every way there is, and make the fastest right one its default.

    Raises:
        UsageError, GateFailed: As for `export_bundle`; one candidate that fails is no failure.
    """
    bundles.refuse_unwritable(bundle)
    budget = _Budget(options.budget_seconds)
    points = options.measured_at(bundle.signature)
    with staging_beside(bundle.folder) as folder:
        bench = for_bundle(
            bundle,
            folder,
            opset=options.opset,
            data=data,
            data_dir=data_dir,
            metric=metric,
            max_loss=options.max_loss,
            fine_tune_seconds=options.fine_tune_seconds,
            on_progress=on_progress,
        )
        made = _make(bench, options, budget, on_progress)
        passed, rejected = made.passed, made.rejected
        on_progress("measuring")
        entries = pipeline.staged(bundle, passed)
        needless = _needless(passed)
        results = trial.measure(
            bundle.name,
            bench.signature,
            bench.golden,
            tuple(one for one in entries if one.variant.id not in needless),
            folder,
            points=points,
            threads=options.threads,
            plan=budget.plan(options.plan),
            on_progress=on_progress,
        )
        errors = {one.variant.id: fidelity.deviation(one.variant.fidelity) for one in passed}
        judgement = tuning.judge(results, errors=errors)
        on_progress("publishing")
        published = bundles.publish(
            bundle,
            entries,
            tools=machine.tool_versions(),
            default=judgement.winner.rows[0].variant,
            withdrawn=tuple(one.name for one in rejected),
        )
    others = tuple(tuning.Contender(name=name, reason=f"published: {tuning.NEEDLESS}") for name in needless)
    everyone = dataclasses.replace(judgement, candidates=(*judgement.candidates, *others, *rejected))
    return AutoReport(report=ExportReport(bundle=published, passed=passed), judgement=everyone, rungs=made.rungs)


def _needless(passed: Sequence[Passed]) -> tuple[str, ...]:
    """Return what is published for other machines alone: 7 bits beside 8, where 8 do not saturate."""
    if saturates():
        return ()
    bits = [(one.variant, one.variant.quantization.weight_bits) for one in passed if one.variant.quantization]
    full = {variant.format for variant, count in bits if count > FEW_BITS}
    return tuple(variant.id for variant, count in bits if count == FEW_BITS and variant.format in full)


class _Budget:
    def __init__(self, seconds: float | None) -> None:
        self._seconds, self._started = seconds, time.monotonic()

    def is_over(self) -> bool:
        """Whether nothing more may be begun, for the sake of what must be measured."""
        return self._seconds is not None and time.monotonic() - self._started > _MAKING_SHARE * self._seconds

    def plan(self, plan: Plan) -> Plan:
        """Return the plan for what is left; a share of the whole is, even if making took longer."""
        if self._seconds is None:
            return plan
        left = self._seconds - (time.monotonic() - self._started)
        most = max(left, (1 - _MAKING_SHARE) * self._seconds)
        return dataclasses.replace(plan, most_seconds=min(most, plan.most_seconds or most))


@dataclass(frozen=True)
class _Made:
    """What passed the gate, the baseline first and the plainest before others, and what did not, with the reason."""

    passed: tuple[Passed, ...]
    rejected: tuple[tuning.Contender, ...]
    rungs: tuple[Rung, ...]


def _make(bench: Workbench, options: AutoOptions, budget: _Budget, on_progress: OnProgress) -> _Made:
    recipes = [one for one in options.recipes(bench.source.model) if one.id != bench.baseline.variant.id]
    passed: dict[str, Passed] = {}
    reasons: dict[str, str] = {}
    failed: set[str] = set()
    rungs: tuple[Rung, ...] = ()
    climbs_on = bench
    narrows = options.calibration is None and not is_dense(bench.source.model)
    for recipe in sorted(recipes, key=_promise):
        if reason := recipe.format.refusal(bench.source.model):
            reasons[recipe.id] = f"not for this model: {reason}"
            continue
        if budget.is_over():
            reasons[recipe.id] = "not tried: the budget is used up"
            continue
        at, said = fine_tuning.better(recipe, bench, on_progress)
        climbs_on = at if recipe.id == _CLIMBS else climbs_on
        on_progress(f"{recipe.id}: make")
        try:
            candidate = recipe.make(at.source, recipe.format.unable(at.source.model))
            if narrows and recipe.id == _CLIMBS and not budget.is_over():
                candidate, rungs = narrow(recipe, candidate, at, is_over=budget.is_over, on_progress=on_progress)
            on_progress(f"{recipe.id}: checks")
            passed[recipe.id] = bench.examine(candidate).remarked(said)
        except (GateFailed, UsageError) as error:
            failed.add(recipe.id)
            reasons[recipe.id] = f"rejected: {str(error).removeprefix(f'{recipe.id} ')}"
    # Integers in memory alone are no faster: what computes in them is worth a climb all the same.
    computes = [one for one in passed.values() if one.variant.format is not VariantFormat.WEIGHT_ONLY]
    has_int8 = any(one.variant.precision is Precision.INT8 for one in computes)
    climber = next((one for one in recipes if one.id == _CLIMBS and one.id in failed), None)
    if climber is not None and not has_int8 and not budget.is_over():
        found = climb(
            climber,
            climbs_on,
            tries_calibrations=options.calibration is None,
            is_over=budget.is_over,
            on_progress=on_progress,
        )
        rungs = found.rungs
        if found.passed is not None:
            passed[climber.id] = found.passed
        elif len(rungs) > 1:
            reasons[climber.id] = f"rejected: {found.reason}"
    order = [one.id for one in recipes]
    return _Made(
        passed=(bench.baseline, *(passed[name] for name in order if name in passed)),
        rejected=tuple(tuning.Contender(name=name, reason=reasons[name]) for name in order if name not in passed),
        rungs=rungs,
    )


def _promise(recipe: VariantRecipe) -> tuple[bool, bool]:
    """Order recipes by what one may hope for: int8 first, and what is only for other machines last."""
    return recipe.format.precision is not Precision.INT8, getattr(recipe.format, "weight_bits", None) is not None
