"""Prove a bundle on this machine: its files, the way in, and every variant against the original's stored answers.

    result = verify(kit.find("mnist-mlp"), runtimes=("onnxruntime", "openvino"))
    result.ok, [check.problem for check in result.variants]

Needs neither data nor the framework the model came from. If that framework is here and a plug rebuilds the original, the
original is compared with its stored answers as well. kit.verify.model proves a ready .onnx file, and compares two models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kit import metrics
from kit.bundle import Bundle, renewed, with_fresh
from kit.bundle.manifest import FileRef, Variant
from kit.choices import Precision, Provider
from kit.errors import KitError, PackageMissing, Unavailable, UsageError
from kit.metrics import Better, Fidelity, FidelityVerdict, Metric, Score, fidelity
from kit.runtime import registry
from kit.runtime.base import Runner, RunnerOptions, run_in_batches
from kit.samples import Samples, count
from kit.system.progress import OnProgress, silent
from kit.tasks import registry as tasks
from kit.tasks.base import Task, scored_output
from kit.tensors import Tensors

FLOAT_WAY_IN = 1e-6
"""How far a float that a raw item becomes may lie from the stored one; integers must be equal."""


@dataclass(frozen=True, kw_only=True)
class FileCheck:
    """One file of the bundle and whether its bytes are what the manifest says."""

    file: str
    ok: bool
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class WayIn:
    """Whether raw items become the tensors here that they became where the bundle was made.

    Attributes:
        problems: What each item that went wrong became.
        unavailable: Why they could not be encoded at all; empty if they were.
    """

    task: str
    items: int
    problems: tuple[str, ...] = ()
    unavailable: str = ""
    fix: str = ""

    @property
    def ok(self) -> bool:
        """Whether nothing went wrong; what could not be checked here is no failure."""
        return not self.problems


@dataclass(frozen=True, kw_only=True)
class MetricFigure:
    """What the task's metric says of a variant and of the original on the golden samples, which have targets.

    `published` is what it said on a data set of the task when the variant was published; None if that is not known.
    """

    metric: str
    value: float
    original: float
    samples: int
    better: Better
    unit: str
    published: Score | None = None


@dataclass(frozen=True, kw_only=True)
class VariantCheck:
    """One variant in one runtime on the golden samples; verdict is None if it could not run, and `problem` says why.

    Attributes:
        figure: Of the task's metric; None if the golden samples have no targets.
        unavailable: Whether it could not run for want of something on this machine.
    """

    variant: str
    runtime: str
    provider: Provider
    placement: str = ""
    fidelity: tuple[Fidelity, ...] = ()
    verdict: FidelityVerdict | None = None
    figure: MetricFigure | None = None
    problem: str = ""
    unavailable: bool = False

    @property
    def ok(self) -> bool:
        """Whether it ran and agreed."""
        return self.verdict is not None and self.verdict.passed


@dataclass(frozen=True, kw_only=True)
class OriginalCheck:
    """The original itself, rebuilt and run here, against its stored answers."""

    name: str
    fidelity: tuple[Fidelity, ...]
    verdict: FidelityVerdict

    @property
    def ok(self) -> bool:
        """Whether it answers as it did when the bundle was made."""
        return self.verdict.passed


@dataclass(frozen=True, kw_only=True)
class Verification:
    """All checks of a bundle on this machine.

    Attributes:
        way_in: None if no raw items travel in the bundle.
        original: None if it cannot be rebuilt here.
        samples: Golden samples, over all groups.
        reference: What the stored answers are of, such as `module Net` or `ONNX Runtime`.
        remarks: What was not checked, and why.
    """

    bundle: str
    files: tuple[FileCheck, ...]
    way_in: WayIn | None = None
    original: OriginalCheck | None = None
    variants: tuple[VariantCheck, ...] = ()
    samples: int = 0
    sizes: tuple[dict[str, int], ...] = ()
    golden_source: str = ""
    reference: str = ""
    remarks: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether everything holds and there was something to check."""
        return bool(self.variants) and self._rest_ok and all(check.ok for check in self.variants)

    @property
    def only_unavailable(self) -> bool:
        """Whether all that is missing is a runtime or provider that cannot run here."""
        failed = [check for check in self.variants if not check.ok]
        return self._rest_ok and bool(failed) and all(check.unavailable for check in failed)

    @property
    def _rest_ok(self) -> bool:
        others = (*self.files, self.way_in, self.original)
        return all(check.ok for check in others if check is not None)


def verify(
    bundle: Bundle,
    *,
    options: RunnerOptions | None = None,
    runtimes: tuple[str, ...] = (registry.DEFAULT,),
    on_progress: OnProgress = silent,
) -> Verification:
    """Check files, way in, golden samples and every variant in every runtime; what fails is in the result, not raised.

    `runtimes` are names, or `all`.

    Raises:
        UsageError: A runtime that does not exist.
    """

    def checked(now: Bundle) -> Verification:
        return _verify(now, options or RunnerOptions(), runtimes, on_progress)

    found = with_fresh(bundle, checked)
    now = None if found.ok else renewed(bundle)
    return found if now is None else checked(now)


def _verify(bundle: Bundle, options: RunnerOptions, runtimes: tuple[str, ...], on_progress: OnProgress) -> Verification:
    wanted = registry.chosen(runtimes, bundle)
    on_progress("hashes")
    files = tuple(_check_file(bundle, ref) for ref in dict.fromkeys(bundle.manifest.files()))
    intact = {check.file for check in files if check.ok}
    if bundle.manifest.golden.file.file not in intact:
        return Verification(bundle=bundle.name, files=files)
    golden = bundle.golden()
    task, remarks = _task(bundle)
    on_progress("way in")
    way_in = _way_in(bundle, task, intact, remarks)
    metric, output = _metric(task, golden), scored_output(task, bundle.signature)
    checks = []
    for runtime in wanted:
        for variant in (one for one in bundle.variants if registry.can_run(runtime, one)):
            on_progress(f"{variant.id} in {runtime}")
            checks.append(_check_variant(bundle, variant, runtime, golden, metric, output, options))
    if registry.ALL in runtimes and any(check.ok for check in checks):
        # `all` is what there is: a runtime that is not here, or cannot rebuild the original, is said and is no failure.
        remarks += [f"{check.variant} in {check.runtime}: {check.problem}" for check in checks if check.unavailable]
        checks = [check for check in checks if not check.unavailable]
    on_progress("original")
    original = _original(bundle, golden, intact, remarks)
    return Verification(
        bundle=bundle.name,
        files=files,
        way_in=way_in,
        original=original,
        variants=tuple(checks),
        samples=count(golden, bundle.signature),
        sizes=tuple(bundle.signature.sizes(group.inputs) for group in golden),
        golden_source=bundle.manifest.golden.source or golden[0].source,
        reference=reference_name(bundle),
        remarks=tuple(remarks),
    )


def reference_name(bundle: Bundle) -> str:
    """Return what answered the golden samples, in words: a ready .onnx was answered by ONNX Runtime itself."""
    original = bundle.manifest.original
    if original is None:
        return "the original's stored answers"
    if original.kind == "onnx":
        return f"the stored answers of ONNX Runtime to {original.name}"
    return f"the stored answers of the {original.kind} {original.name}"


def _check_file(bundle: Bundle, ref: FileRef) -> FileCheck:
    try:
        bundle.check(ref, anew=True)
    except KitError as error:
        return FileCheck(file=ref.file, ok=False, problem=str(error))
    return FileCheck(file=ref.file, ok=True)


def _task(bundle: Bundle) -> tuple[Task | None, list[str]]:
    try:
        return tasks.task_of(bundle), []
    except Exception as error:  # noqa: BLE001 - a plug may raise anything, and the other checks go on
        name = bundle.manifest.task.name if bundle.manifest.task else "tensors"
        return None, [f"the task {name} cannot be opened here, only tensors were checked: {_sentence(error)}"]


def _way_in(bundle: Bundle, task: Task | None, intact: set[str], remarks: list[str]) -> WayIn | None:
    ref, named = bundle.manifest.golden.items, bundle.manifest.task
    if ref is None or named is None or ref.file not in intact:
        return None
    items = bundle.items()
    if items is None:
        return None
    if task is None:
        return WayIn(task=named.name, items=len(items.raw), unavailable="the task cannot be opened here")
    problems = []
    for number, (raw, tensors) in enumerate(zip(items.raw, items.tensors, strict=True), start=1):
        try:
            made = task.encode([task.item(raw)])
        except Unavailable as error:
            remarks.append(f"the way in was not checked: {_sentence(error)}")
            return WayIn(task=task.name, items=len(items.raw), unavailable=str(error), fix=error.hint)
        except Exception as error:  # noqa: BLE001 - a plug may raise anything, and the other checks go on
            problems.append(f"item {number}: {type(error).__name__}: {error}")
            continue
        problems += [f"item {number}: {problem}" for problem in differences(tensors, made)]
    return WayIn(task=task.name, items=len(items.raw), problems=tuple(problems))


def differences(expected: Tensors, made: Tensors) -> list[str]:
    """Say how tensors differ from those they should be: exactly for integers, by more than FLOAT_WAY_IN for floats."""
    problems = [f"{name} is not made" for name in expected if name not in made]
    problems += [f"{name} is made, and no input" for name in made if name not in expected]
    for name in (name for name in expected if name in made):
        if problem := _difference(expected[name], np.asarray(made[name])):
            problems.append(f"{name}{problem}")
    return problems


def _difference(expected: NDArray[Any], made: NDArray[Any]) -> str:
    if expected.dtype != made.dtype or expected.shape != made.shape:
        return (
            f" becomes {made.dtype} {list(made.shape)} here, and became {expected.dtype} {list(expected.shape)} when "
            "the bundle was made"
        )
    if expected.dtype.kind == "f":
        apart = ~np.isclose(made, expected, rtol=0, atol=FLOAT_WAY_IN, equal_nan=True)
    else:
        apart = made != expected
    if not apart.any():
        return ""
    first = tuple(int(place) for place in np.argwhere(apart)[0]) if expected.ndim else ()
    return f" differs in {int(apart.sum())} of {expected.size} values: {made[first]} for {expected[first]} at {list(first)}"


def _metric(task: Task | None, golden: Sequence[Samples]) -> Metric | None:
    if task is None or not all(group.targets for group in golden):
        return None
    known = (metrics.find(name) for name in task.metrics if name in metrics.names())
    return next((metric for metric in known if metric.needs_targets), None)


def _figure(
    metric: Metric | None,
    answers: Sequence[Tensors],
    golden: Sequence[Samples],
    bundle: Bundle,
    variant: Variant,
    output: str | None,
) -> MetricFigure | None:
    if metric is None:
        return None
    try:
        ours, theirs = (
            metrics.evaluate(metric, one, golden, signature=bundle.signature, output=output)
            for one in (answers, [group.expected or {} for group in golden])
        )
    except UsageError:  # the metric is not for these outputs, which fidelity has judged
        return None
    return MetricFigure(
        metric=metric.name,
        value=ours.whole,
        original=theirs.whole,
        samples=ours.samples,
        better=metric.better,
        unit=metric.unit,
        published=variant.score(metric.name),
    )


def _check_variant(
    bundle: Bundle,
    variant: Variant,
    runtime: str,
    golden: Sequence[Samples],
    metric: Metric | None,
    output: str | None,
    options: RunnerOptions,
) -> VariantCheck:
    try:
        with registry.open_runner(runtime, bundle, variant, options) as runner:
            answers = answers_of(runner, golden)
            provider = runner.provider
            placement = runner.placement.describe() if runner.placement.total else provider.value
    except KitError as error:
        return VariantCheck(
            variant=variant.id,
            runtime=runtime,
            provider=options.provider,
            problem=_sentence(error),
            unavailable=isinstance(error, Unavailable),
        )
    found = fidelity.compare(golden, answers)
    verdict = fidelity.judge(found, variant.precision, variant.fidelity, stored=golden)
    return VariantCheck(
        variant=variant.id,
        runtime=runtime,
        provider=provider,
        placement=placement,
        fidelity=found,
        verdict=verdict,
        figure=_figure(metric, answers, golden, bundle, variant, output),
        problem=verdict.reason,
    )


def answers_of(runner: Runner, groups: Sequence[Samples]) -> list[Tensors]:
    """Return a runner's answers to every group of samples, run in pieces bounded by bytes."""
    return [run_in_batches(runner, group.inputs) for group in groups]


def _original(bundle: Bundle, golden: Sequence[Samples], intact: set[str], remarks: list[str]) -> OriginalCheck | None:
    record, baseline = bundle.manifest.original, bundle.baseline
    if record is None or record.weights is None or record.weights.file not in intact or baseline is None:
        return None
    try:
        if not registry.can_run("pytorch", baseline):
            return None
        with registry.open_runner("pytorch", bundle, baseline, RunnerOptions()) as runner:
            found = fidelity.compare(golden, answers_of(runner, golden))
    except PackageMissing:  # the stored answers are made for machines without its framework
        return None
    except Exception as error:  # noqa: BLE001 - a plug may raise anything, and the other checks stand
        remarks.append(f"the original was not asked: {_sentence(error)}")
        return None
    return OriginalCheck(
        name=f"{record.kind} {record.name}",
        fidelity=found,
        verdict=fidelity.judge(found, Precision.FP32, ()),
    )


def _sentence(error: Exception) -> str:
    if isinstance(error, KitError):
        return f"{error}. {error.hint}".rstrip(". ")
    return f"{type(error).__name__}: {error}"
