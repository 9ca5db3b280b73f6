"""What must hold before anything is published: the file, its sizes, fidelity to the original, and the metric's bar.

A failed gate raises GateFailed with the figures; nothing was written. Cheap checks come first, and the metric's bar is met on
the validation split before the test split is looked at.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx

from exporters import staging
from exporters.bars import Bar, hold, power
from exporters.candidates import Candidate
from exporters.formats import counting
from exporters.graph.rules import domains_of, least_onnxruntime, opset_of
from exporters.sizes import Movement, check_sizes
from kit.bundle import Staged, graph_file
from kit.bundle.manifest import Needs, Variant
from kit.choices import Precision, VariantFormat
from kit.errors import BundleInvalid, GateFailed, KitError, UsageError
from kit.metrics import Fidelity, FidelityVerdict, Score, Values
from kit.metrics.fidelity import FLOAT_RTOL, HALF_RTOL, compare, judge_float, judge_quantized
from kit.runtime import trial
from kit.runtime.base import Runner
from kit.runtime.onnxruntime import OnnxRuntimeRunner
from kit.samples import SEEDED, Samples, Splits, count
from kit.system.wording import percent
from kit.tensors import Signature, Tensors

ANSWER_BYTES = 4 * 2**20
"""Inputs and outputs of one call when samples are answered: what lies between them takes many times as much."""

LEAST_EQUAL = 0.95
"""Share of values that must be equal in a quantized variant's outputs of integers and truth values."""

# Dynamic quantization finds one range for the whole batch, so its rows may move by a quantization step, and what lies at padded
# positions by far; the bars see what of it matters, and the baseline's rows were seen not to depend on each other. What is
# float between the integers of QDQ rounds otherwise in a batch of another size: a value on the border of two integers goes
# over, and a close call is decided otherwise, as of one letter in a line. Weight-only kernels differ between one row and
# several.
_ROWS = {
    VariantFormat.DYNAMIC: Movement(0.5, is_rms=True),
    VariantFormat.QDQ: Movement(0.2, is_rms=True),
    VariantFormat.WEIGHT_ONLY: Movement(0.02),
}
_GOLDEN = "golden"
_NOISE_HINT = (
    "nothing was published; these are drawn samples, which a model may never meet: give its own with --data FILE"
)
_SPLIT_HINT = (
    "nothing was published; allow more with --max-loss, or try another --precision, --format or --quantization"
)
_ORIGINAL_HINT = (
    "nothing was published; ONNX Runtime computes the file otherwise here with its optimizations than without them"
)


@dataclass(frozen=True, kw_only=True)
class Proof:
    """What a candidate is held to; samples hold the original's answers.

    Attributes:
        bars: Metrics on the data, the first is the one that the variants are known by.
        golden_bars: Metrics on the golden samples.
    """

    signature: Signature
    golden: tuple[Samples, ...]
    data: Splits | None
    bars: tuple[Bar, ...]
    golden_bars: tuple[Bar, ...]

    @property
    def is_noise_beside_data(self) -> bool:
        """Whether the golden samples were drawn, and there are data that say more."""
        return self.data is not None and all(group.source == SEEDED for group in self.golden)

    def splits(self) -> Iterator[tuple[str, str, tuple[Samples, ...], tuple[Bar, ...]]]:
        """Give the key, name, samples and bars of each set of samples in turn, the golden ones first."""
        # If they are noise beside data, they count only if the data cannot decide: no model is quantized for noise.
        # Their bars compare with the original: right answers, which some of them have, are not what those are for.
        blind = tuple(dataclasses.replace(group, targets=None) for group in self.golden)
        yield _GOLDEN, "golden samples", blind, self.golden_bars
        if self.data is not None:
            yield self.data.validation_name, self.data.dataset, self.data.validation, self.bars
            yield "test", self.data.dataset, self.data.test, self.bars


@dataclass(frozen=True, kw_only=True)
class Passed:
    """A candidate that met every check.

    Attributes:
        folder: Where its files wait, until they are moved into the bundle.
        signature: What it takes and gives, with the outputs that were seen to vary.
        fidelity: Against the original, on the test split if there is data, else on the golden samples.
        samples: What `fidelity` was measured on, such as "mnist test".
        verdict: How a float variant was judged by it; None for a quantized one.
        values: What each bar's metric gave, by split: the baseline for the next candidate.
    """

    variant: Variant
    folder: Path
    signature: Signature
    fidelity: tuple[Fidelity, ...]
    samples: str
    verdict: FidelityVerdict | None
    values: Mapping[str, tuple[Values | None, ...]] = field(repr=False)
    remarks: tuple[str, ...] = ()

    @property
    def staged(self) -> Staged:
        """Return it as bundles take it."""
        return Staged(variant=self.variant, folder=self.folder)

    def remarked(self, said: str) -> Passed:
        """Return it with one more remark; as it is if nothing is said."""
        return dataclasses.replace(self, remarks=(*self.remarks, said)) if said else self


def examine(candidate: Candidate, proof: Proof, *, baseline: Passed | None) -> Passed:
    """Run every check on a candidate; `baseline` is None for that one itself.

    Raises:
        GateFailed: A check said no; the message holds the figures.
    """
    path = candidate.files.path
    needs = check_file(candidate, proof.signature)
    if baseline is not None:
        check_survives(candidate, proof.signature)
    try:
        with OnnxRuntimeRunner(path, binds=False) as runner:
            signature = check_sizes(
                runner, proof.signature, proof.golden, name=candidate.id, allowed=_rows(candidate), graph=path
            )
            passed = _measured(candidate, proof, signature, runner, needs, baseline)
    except GateFailed:
        raise
    except KitError as error:
        raise GateFailed(f"{candidate.id}: {error}", hint=error.hint) from error
    trial.remember(passed.variant)
    return passed


def _measured(
    candidate: Candidate, proof: Proof, signature: Signature, runner: Runner, needs: Needs, baseline: Passed | None
) -> Passed:
    """Compare and hold on each set of samples in turn; the next one is only looked at if this one holds."""
    by_split: dict[str, tuple[Fidelity, ...]] = {}
    values: dict[str, tuple[Values | None, ...]] = {}
    scores: list[Score] = []
    remarks: list[str] = []
    undecided: list[str] = []
    samples, verdict = "", None
    for key, dataset, groups, bars in proof.splits():
        answers = answer(runner, groups, signature)
        check_numbers(candidate.id, answers, f"{dataset} {key}" if key != _GOLDEN else dataset)
        if key != _validation(proof):
            by_split[key] = compare(groups, answers)
            samples = dataset if key == _GOLDEN else f"{dataset} {key}"
            verdict = judge(candidate, by_split[key], count(groups, signature), samples)
            if verdict is None and not (key == _GOLDEN and proof.is_noise_beside_data):
                _hold_to_equality(candidate.id, _unseen(by_split[key], proof, signature), samples)
        hint = _NOISE_HINT if any(group.source == SEEDED for group in groups) else _SPLIT_HINT
        values[key] = tuple(bar.values(groups, answers, signature) for bar in bars)
        if key == _GOLDEN and proof.is_noise_beside_data:
            continue
        if baseline is None and _is_quantized(candidate):
            _hold_to_original(candidate.id, bars, values[key], groups, signature, dataset=dataset, split=key)
        held = _held(candidate, bars, values[key], baseline, dataset=dataset, split=key, hint=hint)
        scores += [score for _, score in held]
        undecided += [remark for bar, score in held if (remark := power(bar, score))]
        if key != _GOLDEN and _saw_all_of(candidate, proof, groups):
            remarks.append(
                f"{dataset} {key} is what its ranges were made of, for want of other samples: give more data to be sure"
            )
    if undecided and proof.is_noise_beside_data:
        about = {"dataset": "golden samples", "split": _GOLDEN, "hint": _NOISE_HINT}
        scores += [score for _, score in _held(candidate, proof.golden_bars, values[_GOLDEN], baseline, **about)]
    if _is_quantized(candidate):
        _hold_to_promise(candidate.id, by_split[_GOLDEN], proof.golden)
    remarks = [*undecided, *remarks]
    if candidate.quantization is not None:
        remarks.append(counting.remark(staging.read(candidate.files.path), candidate.quantization))
    said = tuple(dict.fromkeys(filter(None, remarks)))
    variant = Variant(
        id=candidate.id,
        precision=candidate.precision,
        format=candidate.format,
        graph=candidate.files.graph,
        data=candidate.files.data,
        needs=needs,
        fidelity=by_split[_GOLDEN],
        scores=_one_for_each(scores),
        quantization=candidate.quantization,
        remarks=said,
    )
    return Passed(
        variant=variant,
        folder=candidate.files.folder,
        signature=signature,
        fidelity=by_split.get("test", by_split[_GOLDEN]),
        samples=samples,
        verdict=verdict,
        values=values,
        remarks=said,
    )


def _held(
    candidate: Candidate,
    bars: Sequence[Bar],
    values: Sequence[Values | None],
    baseline: Passed | None,
    *,
    dataset: str,
    split: str,
    hint: str,
) -> list[tuple[Bar, Score]]:
    """Hold what the bars' metrics gave to the baseline's; return each bar that says something with its score."""
    before = None if baseline is None else baseline.values.get(split)
    held = []
    for place, (bar, found) in enumerate(zip(bars, values, strict=True)):
        base = None if before is None else before[place]
        if found is None or (base is None and (baseline is not None or not bar.metric.needs_targets)):
            continue  # it says nothing of these samples; and against itself the baseline need not be scored
        held.append((bar, hold(bar, found, base, name=candidate.id, dataset=dataset, split=split, hint=hint)))
    return held


def _hold_to_promise(name: str, found: Sequence[Fidelity], golden: Sequence[Samples]) -> None:
    """Refuse what `kit verify` would: figures on the golden samples that answers of zeros would reach."""
    verdict = judge_quantized(found, found, stored=golden)
    if not verdict.passed:
        seeded = any(group.source == SEEDED for group in golden)
        said = verdict.reason.replace("its manifest promises", "it has")
        raise GateFailed(f"{name}: {said} on golden samples", hint=_NOISE_HINT if seeded else _SPLIT_HINT)


def _saw_all_of(candidate: Candidate, proof: Proof, groups: Sequence[Samples]) -> bool:
    """Whether a candidate was calibrated with the very samples that it is scored on."""
    is_calibrated = candidate.quantization is not None and candidate.quantization.calibration is not None
    train = proof.data.train if proof.data is not None else None
    if not is_calibrated or train is None or len(train) != len(groups):
        return False
    return all(
        np.array_equal(one.inputs[name], other.inputs[name])
        for one, other in zip(train, groups, strict=True)
        for name in one.inputs
    )


def _validation(proof: Proof) -> str:
    """Return the key of the validation split, on which fidelity is not compared; empty without data."""
    return proof.data.validation_name if proof.data is not None else ""


def _unseen(found: Sequence[Fidelity], proof: Proof, signature: Signature) -> list[Fidelity]:
    """Return the outputs that no metric sees: those without real numbers, and all of them if there is no bar."""
    return [one for one in found if not proof.golden_bars or not signature.output(one.output).is_float]


def _hold_to_original(
    name: str,
    bars: Sequence[Bar],
    values: Sequence[Values | None],
    groups: Sequence[Samples],
    signature: Signature,
    *,
    dataset: str,
    split: str,
) -> None:
    """Hold a baseline that came quantized to the original itself: to others it is what they may lose against."""
    own = [group.expected or {} for group in groups]
    for bar, found in zip(bars, values, strict=True):
        exact = None if found is None else bar.values(groups, own, signature)
        if found is not None and exact is not None:
            hold(bar, found, exact, name=name, dataset=dataset, split=split, hint=_ORIGINAL_HINT)


def _hold_to_equality(name: str, found: Sequence[Fidelity], what: str) -> None:
    for one in found:
        if one.agreement is not None and not one.agreement >= LEAST_EQUAL:
            raise GateFailed(
                f"{name}: {one.output!r} is the original's in {percent(one.agreement, 1)} of its values on {what}, less than "
                f"{percent(LEAST_EQUAL)}",
                hint=_SPLIT_HINT,
            )


def _one_for_each(scores: Sequence[Score]) -> tuple[Score, ...]:
    """Return one score for each metric and split: of several outputs the one that lost most."""
    worst: dict[tuple[str, str], Score] = {}
    for score in scores:
        key = (score.metric, score.split)
        if key not in worst or score.loss > worst[key].loss:
            worst[key] = score
    return tuple(worst.values())


def _rows(candidate: Candidate) -> Movement:
    usual = Movement(HALF_RTOL if candidate.precision is Precision.FP16 else FLOAT_RTOL)
    return _ROWS.get(candidate.format, usual)


def answer(runner: Runner, groups: Sequence[Samples], signature: Signature) -> list[Tensors]:
    """Run every group of samples, in batches bounded by bytes if its outputs can be joined."""
    joins = all(signature.batch in spec.shape and not spec.varies for spec in signature.outputs)
    return [_joined(runner, group, signature) if joins else runner.run(group.inputs) for group in groups]


def _joined(runner: Runner, group: Samples, signature: Signature) -> Tensors:
    rows = signature.rows_within(ANSWER_BYTES, signature.sizes(group.inputs))
    pieces = [runner.run(piece) for piece in signature.split(group.inputs, rows)]
    try:
        return signature.join(pieces)
    except UsageError:  # the size of an output depends on the values, and was not seen to
        return runner.run(group.inputs)


def check_file(candidate: Candidate, signature: Signature) -> Needs:
    """Hold a file to the ONNX standard, to its own folder, and to the signature's names, dtypes and shapes.

    Raises:
        GateFailed: It does not hold.
    """
    path = candidate.files.path
    try:
        graph_file.weights_beside(path)
        onnx.checker.check_model(str(path), full_check=True)
    except BundleInvalid as error:
        raise GateFailed(f"{candidate.id}: {error}", hint=error.hint) from error
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise GateFailed(f"{candidate.id}: onnx.checker refuses the graph: {error}") from error
    model = staging.read(path)
    check_border(model, signature)
    return Needs(
        opset=opset_of(model),
        ir_version=int(model.ir_version),
        onnxruntime=least_onnxruntime(model),
        domains=domains_of(model),
    )


def check_border(model: onnx.ModelProto, signature: Signature) -> None:
    """Raise GateFailed unless a graph has the signature's inputs and outputs, in their order, and no size of them is fixed."""
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    for kind, values, specs in (
        ("inputs", inputs, signature.inputs),
        ("outputs", list(model.graph.output), signature.outputs),
    ):
        if [value.name for value in values] != [spec.name for spec in specs]:
            found, wanted = ", ".join(value.name for value in values), ", ".join(spec.name for spec in specs)
            raise GateFailed(f"the graph has the {kind} {found} where the signature says {wanted}")
        for value, spec in zip(values, specs, strict=True):
            tensor = value.type.tensor_type
            dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)).name
            dims = [dim.dim_param or dim.dim_value for dim in tensor.shape.dim] if tensor.HasField("shape") else None
            fits = dims is None or (
                len(dims) == len(spec.shape)
                and all(
                    isinstance(dim, str) or dim <= 0 or dim == size for dim, size in zip(dims, spec.shape, strict=True)
                )
            )
            if dtype != spec.dtype or not fits:
                raise GateFailed(
                    f"{spec.name} is {dtype} [{', '.join(map(str, dims or ()))}] in the graph, where the signature says "
                    f"{spec.describe()}"
                )


def check_survives(candidate: Candidate, signature: Signature) -> None:
    """Try a file that a converter made in a process of its own, which ONNX Runtime may end (microsoft/onnxruntime#15494).

    Raises:
        GateFailed: It did, or does not answer.
    """
    files = candidate.files
    size_bytes = sum(one.stat().st_size for one in (files.path, *graph_file.weights_beside(files.path)))
    try:
        trial.survives(files.path, "onnxruntime", signature=signature, size_bytes=size_bytes)
    except BundleInvalid as error:
        raise GateFailed(
            f"{candidate.id}: {error}", hint="nothing was published; leave this --precision or --format out"
        ) from error


def check_numbers(name: str, answers: Sequence[Tensors], what: str) -> None:
    """Raise GateFailed if an answer holds a value that is no number."""
    for outputs in answers:
        for output, array in outputs.items():
            if array.dtype.kind == "f" and np.isnan(array).any():
                raise GateFailed(f"{name} gives values of {output!r} that are no numbers, on {what}")


def _is_quantized(candidate: Candidate) -> bool:
    return candidate.precision not in {Precision.FP32, Precision.FP16} or candidate.format is not VariantFormat.FLOAT


def judge(candidate: Candidate, found: Sequence[Fidelity], samples: int, what: str) -> FidelityVerdict | None:
    """Hold a float variant to the tolerance of its precision; None for a quantized one, which the bars judge.

    Raises:
        GateFailed: It differs more.
    """
    if _is_quantized(candidate):
        if any(not math.isfinite(one.rms_error) for one in found):
            raise GateFailed(f"{candidate.id} gives answers of another shape or size than the original on {what}")
        return None
    verdict = judge_float(found, FLOAT_RTOL if candidate.precision is Precision.FP32 else HALF_RTOL)
    if not verdict.passed:
        agreements = [one.agreement for one in found if one.agreement is not None]
        also = f", agreement {percent(min(agreements), 2)}" if agreements else ""
        raise GateFailed(f"{candidate.id} does not agree with the original on {samples} {what}: {verdict.reason}{also}")
    return verdict
