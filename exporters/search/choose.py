"""`--precision auto`: make every variant, keep those that are right, and make the fastest of them the default.

The gate has two keys: the bars on the validation split, and speed measured by the bench on this machine, for the sizes and
threads that were named. What loses more than is allowed is not published; what is right but not faster is, and says so: on
another machine `kit tune` may choose otherwise.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

import onnx

from exporters import candidates, pipeline
from exporters.candidates import VariantRecipe
from exporters.formats.int8 import FEW_BITS, usual_bits
from exporters.formats.weights import has_products
from exporters.gate import Passed
from exporters.options import DEFAULT_OPSET, ExportOptions
from exporters.search import trial
from exporters.workbench import ExportReport, Workbench, for_bundle, staging_beside
from kit import bundle as bundles
from kit import tuning
from kit.bench.measure import Plan
from kit.bundle import Bundle
from kit.choices import CalibrationMethod, Precision, QuantizationScheme, VariantFormat
from kit.errors import GateFailed, UsageError
from kit.metrics import Metric
from kit.runtime.base import RunnerOptions
from kit.samples import Splits
from kit.system import machine
from kit.system.progress import OnProgress, silent
from kit.tensors import Signature
from kit.tuning import Judgement

_BATCHES = (1, 64)


@dataclass(frozen=True, kw_only=True)
class AutoOptions:
    """What to choose by.

    Attributes:
        max_loss: Largest loss against the baseline, in the unit of the metric; None for the metric's own bar.
        points: Sizes of the axes, each measured; None for batches of 1 and 64, as far as the model takes them.
        threads: Threads one operator may use.
        calibration: How static int8 makes ranges of what its samples showed; None for the whole range.
        calibration_samples: Training samples those ranges are drawn from; None for 1,024.
        opset: ONNX operator set.
        seed: Of the draw of the calibration samples.
        plan: How long to measure.
    """

    max_loss: float | None = None
    points: tuple[dict[str, int], ...] | None = None
    threads: int = 1
    calibration: CalibrationMethod | None = None
    calibration_samples: int | None = None
    opset: int = DEFAULT_OPSET
    seed: int = 0
    plan: Plan = field(default_factory=Plan)

    def __post_init__(self) -> None:
        """Refuse what cannot be measured."""
        if self.points is not None and not self.points:
            raise UsageError("there is no size to measure at", hint="name sizes, or leave them out")
        if self.max_loss is not None and not self.max_loss >= 0:
            raise UsageError(f"the allowed loss must not be negative, found {self.max_loss}")
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
        """Return everything that can be made of a model, the plainest first.

        Where int8 weights have 8 bits there is one of 7 as well, for runtimes that saturate on CPUs without VNNI.
        """
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
        everything = [common, per_tensor, dynamic]
        if usual_bits(model) > FEW_BITS:
            everything.insert(1, dataclasses.replace(only_int8, weight_bits=FEW_BITS))
        if has_products(model):
            everything.append(dataclasses.replace(dynamic, quantization=QuantizationScheme.WEIGHTS))
        return tuple(recipe for options in everything for recipe in candidates.recipes(options))


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
            on_progress=on_progress,
        )
        passed, rejected = _make(bench, options, on_progress)
        on_progress("measuring")
        entries = pipeline.staged(bundle, passed)
        results = trial.measure(
            bundle.name,
            bench.signature,
            bench.golden,
            entries,
            folder,
            points=points,
            threads=options.threads,
            plan=options.plan,
            on_progress=on_progress,
        )
        judgement = tuning.judge(results)
        on_progress("publishing")
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
    bench: Workbench, options: AutoOptions, on_progress: OnProgress
) -> tuple[tuple[Passed, ...], tuple[tuning.Contender, ...]]:
    """Make what can be made; return what passed the gate, the baseline first, and what did not, with the reason."""
    passed, rejected = [bench.baseline], []
    for recipe in options.recipes(bench.source.model):
        if recipe.id == bench.baseline.variant.id:
            continue
        if reason := recipe.format.refusal(bench.source.model):
            rejected.append(tuning.Contender(name=recipe.id, reason=f"not for this model: {reason}"))
            continue
        on_progress(f"{recipe.id}: make")
        try:
            candidate = recipe.make(bench.source, recipe.format.unable(bench.source.model))
            on_progress(f"{recipe.id}: checks")
            passed.append(bench.examine(candidate))
        except (GateFailed, UsageError) as error:
            reason = str(error).removeprefix(f"{recipe.id} ")
            rejected.append(tuning.Contender(name=recipe.id, reason=f"rejected: {reason}"))
    return tuple(passed), tuple(rejected)
