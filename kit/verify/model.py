"""Prove a ready .onnx file by running it, and hold one model to another. Needs no data: its seeded golden samples will do.

check_model(kit.ready.find("model.onnx"), runtimes=("onnxruntime", "openvino"))
compare_models(kit.ready.find("model.onnx"), kit.ready.find("other.onnx"))
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kit.bundle import Bundle
from kit.choices import Precision, Provider
from kit.errors import KitError, Unavailable, UsageError
from kit.metrics import Fidelity, FidelityVerdict, fidelity
from kit.runtime import registry
from kit.runtime.base import Runner, RunnerOptions
from kit.samples import Samples, check, count
from kit.system.progress import OnProgress, silent
from kit.tensors import Signature, Sizes, Tensors, TensorSpec
from kit.verify.bundle import answers_of

ROWS_RTOL = 0.1
"""How far a row may move with its neighbours, as a share of the largest value: dynamic quantization finds one range for the
whole batch, which moves rows by a quantization step. Batch statistics move them by about as much as they are."""

_TOLERANCES = {Precision.FP32: fidelity.FLOAT_RTOL, Precision.FP16: fidelity.HALF_RTOL}

_ROWS = (1, 2, 3)
_LENGTHS = (1, 2, 7)
"""Sizes tried beside the usual one, of the batch and of other axes."""


@dataclass(frozen=True, kw_only=True)
class SizeCheck:
    """Whether a model runs at these sizes in a runtime, and gives what its signature says.

    Attributes:
        is_usual: Whether these are the sizes that the model itself, or the user, names: it must run at them.
        not_a_number: Outputs with values that are no numbers, where the original gives none to the same inputs.
    """

    runtime: str
    sizes: dict[str, int]
    is_usual: bool
    problem: str = ""
    not_a_number: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether it ran, and gave numbers wherever the original does."""
        return not self.problem and not self.not_a_number


@dataclass(frozen=True, kw_only=True)
class RuntimeCheck:
    """A model in a runtime.

    Attributes:
        rows_error: How far rows move with their neighbours, as a share of the largest value; of integers, the share of
            values that differ; infinite if numbers become none. None without a batch axis, or if no batch of rows runs.
        fidelity: Against ONNX Runtime's answers on the CPU with optimizations off.
    """

    runtime: str
    provider: Provider
    placement: str = ""
    sizes: tuple[SizeCheck, ...] = ()
    rows_error: float | None = None
    fidelity: tuple[Fidelity, ...] = ()
    verdict: FidelityVerdict | None = None
    problem: str = ""
    unavailable: bool = False

    @property
    def ok(self) -> bool:
        """Whether it runs at the usual sizes, its rows are independent, and its answers are right."""
        usual = [one for one in self.sizes if one.is_usual]
        rows_ok = self.rows_error is None or self.rows_error <= ROWS_RTOL
        return bool(usual) and all(one.ok for one in usual) and rows_ok and (not self.verdict or self.verdict.passed)


@dataclass(frozen=True, kw_only=True)
class ModelCheck:
    """All checks of a model on this machine.

    `batch` is the axis along which samples are independent; None if there is none, or its rows depend on each other.
    """

    bundle: str
    runtimes: tuple[RuntimeCheck, ...]
    samples: int
    source: str
    batch: str | None

    @property
    def ok(self) -> bool:
        """Whether every runtime that can open it here runs it, and there is one."""
        here = [one for one in self.runtimes if not one.unavailable]
        return bool(here) and all(one.ok for one in here)

    @property
    def only_unavailable(self) -> bool:
        """Whether what failed cannot run here at all."""
        failed = [one for one in self.runtimes if not one.ok]
        return bool(failed) and all(one.unavailable for one in failed)


@dataclass(frozen=True, kw_only=True)
class PairCheck:
    """Two models on the same inputs; the outputs that only one of them has are in `only_here` and `only_there`."""

    bundle: str
    against: str
    variant: str
    against_variant: str
    samples: int
    sizes: tuple[dict[str, int], ...]
    source: str
    fidelity: tuple[Fidelity, ...]
    verdict: FidelityVerdict
    only_here: tuple[str, ...] = ()
    only_there: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether both answer the same within the tolerance."""
        return self.verdict.passed


def check_model(
    bundle: Bundle,
    *,
    options: RunnerOptions | None = None,
    runtimes: tuple[str, ...] = (registry.DEFAULT,),
    on_progress: OnProgress = silent,
) -> ModelCheck:
    """Run a model's default variant at several sizes in every runtime, and see whether its rows depend on each other.

    Raises:
        UsageError: A runtime that does not exist.
        BundleInvalid: No inputs were found that the model accepts.
    """
    variant, options = bundle.variant(), options or RunnerOptions()
    golden = bundle.golden()
    checks = []
    for runtime in (
        name for name in registry.chosen(runtimes, bundle) if registry.can_run(name, variant, options.provider)
    ):
        on_progress(runtime)
        try:
            with registry.open_runner(runtime, bundle, variant, options) as runner:
                checks.append(_check_runtime(runner, bundle.signature, runtime, golden, variant.precision))
        except KitError as error:
            checks.append(_not_run(runtime, options, error))
    return ModelCheck(
        bundle=bundle.name,
        runtimes=tuple(checks),
        samples=count(golden, bundle.signature),
        source=golden[0].source,
        batch=bundle.signature.batch,
    )


def compare_models(
    bundle: Bundle,
    against: Bundle,
    *,
    options: RunnerOptions | None = None,
    runtime: str = registry.DEFAULT,
    tolerance: float = fidelity.FLOAT_RTOL,
    samples: Sequence[Samples] | None = None,
) -> PairCheck:
    """Run the default variants of two models on the same inputs, and compare outputs; `against` is taken to be right.

    `tolerance` is the largest error that passes, as a share of the largest value of each output. Without `samples` the
    golden samples of the first are used, at sizes that both take.

    Raises:
        UsageError: They take different inputs, or have no output in common.
        Unavailable, BundleInvalid: One of them does not run.
    """
    ours, theirs = bundle.signature, against.signature
    _refuse_other_inputs(ours, theirs)
    names = {spec.name for spec in ours.outputs}
    common = tuple(spec for spec in theirs.outputs if spec.name in names)
    renamed = {}
    if not common and len(ours.outputs) == len(theirs.outputs):
        renamed = {mine.name: his.name for mine, his in zip(ours.outputs, theirs.outputs, strict=True)}
        common = theirs.outputs
    if not common:
        raise UsageError(f"{bundle.name} and {against.name} have no output in common")
    drawn = bundle.golden()[0] if not samples else None
    groups = tuple(samples or ())
    if drawn is not None:
        groups = tuple(Samples(inputs=drawn.resized(ours, sizes), source=drawn.source) for sizes in _both(ours, theirs))
    check(groups, ours)
    options = options or RunnerOptions()
    with registry.open_runner(runtime, against, against.variant(), options) as runner:
        right = [_only(one, common) for one in answers_of(runner, groups)]
    with registry.open_runner(runtime, bundle, bundle.variant(), options) as runner:
        answers = [_called(one, renamed) for one in answers_of(runner, groups)]
    held = [
        dataclasses.replace(group, expected=one, weights=_called(group.weights, renamed) or None)
        for group, one in zip(groups, right, strict=True)
    ]
    found = fidelity.compare(held, answers)
    shared = {spec.name for spec in common}
    return PairCheck(
        bundle=bundle.name,
        against=against.name,
        variant=bundle.variant().id,
        against_variant=against.variant().id,
        samples=sum(ours.rows(group.inputs) for group in groups),
        sizes=tuple(ours.check(group.inputs) for group in groups),
        source=groups[0].source,
        fidelity=found,
        verdict=fidelity.judge_float(found, tolerance),
        only_here=() if renamed else tuple(spec.name for spec in ours.outputs if spec.name not in shared),
        only_there=() if renamed else tuple(spec.name for spec in theirs.outputs if spec.name not in shared),
    )


def points(signature: Signature) -> list[dict[str, int]]:
    """Return sizes to run a model at: the usual ones first, then each axis at other sizes, one axis at a time."""
    usual = signature.usual_sizes()
    found = [usual]
    for name in signature.dynamic:
        axis = signature.axes[name]
        tried = (*axis.typical, *(_ROWS if name == signature.batch else _LENGTHS))
        possible = dict.fromkeys(size for size in (_nearest(axis.multiple_of, one) for one in tried))
        found += [{**usual, name: size} for size in possible if not axis.problem(size)]
    return [dict(one) for one in dict.fromkeys(tuple(sizes.items()) for sizes in found)]


def _nearest(multiple_of: int, size: int) -> int:
    return math.ceil(size / multiple_of) * multiple_of


def tolerance_of(precision: Precision) -> float:
    """Return how far a ready model may be from its own answers without optimizations: a relative error."""
    return _TOLERANCES.get(precision, ROWS_RTOL)


def _check_runtime(
    runner: Runner, signature: Signature, runtime: str, golden: Sequence[Samples], precision: Precision
) -> RuntimeCheck:
    usual = {(name, size) for name in signature.dynamic for size in signature.axes[name].typical}
    sizes = tuple(
        _run_at(runner, signature, golden[0], point, runtime, is_usual=number == 0 or usual >= set(point.items()))
        for number, point in enumerate(points(signature))
    )
    found = fidelity.compare(golden, answers_of(runner, golden))
    return RuntimeCheck(
        runtime=runtime,
        provider=runner.provider,
        placement=runner.placement.describe() if runner.placement.total else runner.provider.value,
        sizes=sizes,
        rows_error=_rows_error(runner, signature, golden[0], sizes),
        fidelity=found,
        verdict=fidelity.judge_float(found, tolerance_of(precision)),
    )


def _run_at(
    runner: Runner, signature: Signature, samples: Samples, sizes: dict[str, int], runtime: str, *, is_usual: bool
) -> SizeCheck:
    try:
        outputs = runner.run(samples.resized(signature, sizes))
    except Unavailable:
        raise
    except KitError as error:
        return SizeCheck(runtime=runtime, sizes=sizes, is_usual=is_usual, problem=str(error).splitlines()[0])
    problem = next(filter(None, (_wrong(spec, outputs[spec.name], sizes) for spec in signature.outputs)), "")
    expected = samples.expected or {}
    broken = tuple(name for name, array in outputs.items() if _has_nan(array) and not _has_nan(expected.get(name)))
    return SizeCheck(runtime=runtime, sizes=sizes, is_usual=is_usual, problem=problem, not_a_number=broken)


def _has_nan(array: NDArray[Any] | None) -> bool:
    return array is not None and array.dtype.kind == "f" and bool(np.isnan(array).any())


def _wrong(spec: TensorSpec, array: NDArray[Any], sizes: Sizes) -> str:
    """Say how an output differs from its signature; axes that no input has may be of any size."""
    wanted = [sizes.get(size) if isinstance(size, str) else size for size in spec.shape]
    fits = len(wanted) == array.ndim and all(one in {None, size} for one, size in zip(wanted, array.shape, strict=True))
    if str(array.dtype) != spec.dtype or not (fits or spec.varies):
        return f"{spec.name} is {array.dtype} {list(array.shape)}, its signature says {spec.describe()}"
    return ""


def _rows_error(runner: Runner, signature: Signature, samples: Samples, sizes: Iterable[SizeCheck]) -> float | None:
    """Return how far rows of a batch move away from the same rows run alone, as a share of the largest value."""
    several = [
        one.sizes for one in sizes if not one.problem and signature.batch and one.sizes.get(signature.batch, 1) > 1
    ]
    if not several or not any(signature.batch in spec.shape for spec in signature.outputs):
        return None
    point = max(several, key=lambda one: one[str(signature.batch)])
    inputs = samples.resized(signature, point)
    whole = runner.run(inputs)
    try:
        alone = signature.join([runner.run(piece) for piece in signature.split(inputs, 1)])
    except UsageError:  # an output belongs to the whole call: there are no rows to compare
        return None
    specs = [spec for spec in signature.outputs if not spec.varies]
    return max((_moved(whole[spec.name], alone[spec.name]) for spec in specs), default=None)


def _moved(whole: NDArray[Any], alone: NDArray[Any]) -> float:
    if whole.shape != alone.shape:
        return math.inf
    if whole.dtype.kind != "f":
        return float(np.mean(whole != alone)) if whole.size else 0.0
    finite = np.isfinite(alone)
    if not np.array_equal(whole[~finite], alone[~finite], equal_nan=True) or not np.isfinite(whole[finite]).all():
        return math.inf
    right = alone[finite].astype(np.float64)
    scale = float(np.abs(right).max(initial=0.0))
    moved = float(np.abs(whole[finite] - right).max(initial=0.0))
    return moved / max(scale, 1e-12)


def _not_run(runtime: str, options: RunnerOptions, error: KitError) -> RuntimeCheck:
    return RuntimeCheck(
        runtime=runtime,
        provider=options.provider,
        problem=f"{error}. {error.hint}".rstrip(". "),
        unavailable=isinstance(error, Unavailable),
    )


def _refuse_other_inputs(ours: Signature, theirs: Signature) -> None:
    mine = {spec.name: (spec.dtype, len(spec.shape)) for spec in ours.inputs}
    his = {spec.name: (spec.dtype, len(spec.shape)) for spec in theirs.inputs}
    if mine != his:
        raise UsageError(
            f"the two models take different inputs: {_described(ours)}; and {_described(theirs)}",
            hint="compare models whose inputs have the same names, dtypes and ranks",
        )


def _described(signature: Signature) -> str:
    return ", ".join(f"{name} {text}" for name, text in signature.described().items())


def _both(ours: Signature, theirs: Signature) -> list[dict[str, int]]:
    """Return sizes that both models allow: those of the one with fewer dynamic axes, seen from this one."""
    fixed = _fixed(ours, theirs)
    usual = {name: fixed.get(name, size) for name, size in ours.usual_sizes().items()}
    found = [usual]
    if ours.batch in usual and ours.batch not in fixed:
        found.append({**usual, str(ours.batch): 3})
    return found


def _fixed(ours: Signature, theirs: Signature) -> dict[str, int]:
    pairs = (
        (mine, his) for spec in ours.inputs for mine, his in zip(spec.shape, theirs.input(spec.name).shape, strict=True)
    )
    return {mine: his for mine, his in pairs if isinstance(mine, str) and isinstance(his, int)}


def _called(tensors: Tensors | None, names: Mapping[str, str]) -> dict[str, NDArray[Any]]:
    return {names.get(name, name): array for name, array in (tensors or {}).items()}


def _only(answers: Tensors, specs: Sequence[TensorSpec]) -> Mapping[str, NDArray[Any]]:
    return {spec.name: answers[spec.name] for spec in specs}
