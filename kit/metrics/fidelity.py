"""Fidelity: does a variant answer as the original does, output by output, and what tolerance would have been needed.

Every comparison is written so that a value that is no number fails it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kit.choices import Precision
from kit.samples import Samples
from kit.system.wording import percent
from kit.tensors import Tensors, row_slices

FLOAT_RTOL = 1e-4
"""Float variants: largest error allowed, as a share of the largest value of the reference. float32 sums of a thousand
terms taken in another order differ by some 1e-6 of it; TF32 or a wrong weight by 1e-3 and more."""

HALF_RTOL = 1e-2
"""fp16 variants: the same bar for 11 bits instead of 24. Rounding gives some 1e-3, on a GPU that also adds in fp16 more."""

BFLOAT_RTOL = 3e-2
"""float32 computed in bfloat16: the same bar for 8 bits."""

BFLOAT_COSINE = 0.999
"""And the least cosine to the reference: rounding leaves 0.9999 and more."""

QUANTIZED_MARGIN = 1.5
"""Quantized variants: how many times the error measured at export a machine may show. Exact integer kernels repeat it;
saturating ones (int8 on x86 without VNNI) exceed it several times over."""

AGREEMENT_SLACK = 0.01
"""Quantized variants: how far top-1 agreement may lie under that measured at export; one place in any case."""

CLOSE_CALLS = 0.25
"""Or this share of the places that did not agree then. They were close calls, which another machine's rounding decides anew:
the highest values along a row of a map of text are that for half of all rows, however right the map is."""

_ROUNDING = 1e-9  # 53/54 - 1/54 is not 52/54
_RANGES = {
    "max_abs_error": (0.0, math.inf),
    "rms_error": (0.0, math.inf),
    "max_rel_error": (0.0, math.inf),
    "cosine": (-1.0, 1.0),
    "agreement": (0.0, 1.0),
}


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """How one output compares to the original's on the same samples.

    Attributes:
        max_rel_error: The largest absolute difference as a share of the largest absolute value of the reference.
        cosine: Of all values together; None for outputs that hold no real numbers, or are all zero.
        agreement: Share of samples with the same highest value, for outputs of two axes or more; the share of equal
            values for outputs of integers and truth values. What is no number agrees with nothing.
        is_exact: The output holds integers or truth values.
        places: Where it was compared for `agreement`: a word of a sentence is one, for an output that has a row for
            each; 0 if nobody counted.
    """

    output: str
    samples: int
    max_abs_error: float
    rms_error: float
    max_rel_error: float | None = None
    cosine: float | None = None
    agreement: float | None = None
    is_exact: bool = False
    places: int = 0

    def __post_init__(self) -> None:
        # with figures that are no numbers or out of range, anything would pass
        for name, (least, most) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise ValueError(f"{name} of {self.output!r} is {value:g}, and not between {least:g} and {most:g}")


@dataclass(frozen=True, kw_only=True)
class FidelityVerdict:
    """Whether a fidelity is good enough, the bar it was held to, and the tolerance that would have been needed."""

    passed: bool
    tolerance: float
    needed: float
    reason: str


def compare(groups: Sequence[Samples], answers: Sequence[Tensors]) -> tuple[Fidelity, ...]:
    """Compare a candidate's answers, a group each, to what the samples expect, output by output."""
    names = list(groups[0].expected or {})
    return tuple(_compare(name, _pairs(name, groups, answers)) for name in names)


def compare_tensors(expected: Tensors, answers: Tensors) -> tuple[Fidelity, ...]:
    """Compare the answers to one call."""
    return compare([Samples(inputs={}, expected=expected)], [answers])


@dataclass(frozen=True, eq=False)
class _Pair:
    """A reference and a candidate as float64; what does not count is 0 in both. `counts` is None if all values do."""

    reference: NDArray[np.float64]
    candidate: NDArray[np.float64]
    counts: NDArray[np.bool_] | None
    is_exact: bool


def _pairs(name: str, groups: Sequence[Samples], answers: Sequence[Tensors]) -> Iterator[_Pair]:
    """Give each group in pieces: what is computed of a value takes many times its room."""
    for group, outputs in zip(groups, answers, strict=True):
        assert group.expected is not None  # whoever compares has asked the original
        reference, candidate = group.expected[name], outputs[name]
        counts = (group.weights or {}).get(name)
        if reference.shape != candidate.shape:
            yield _pair(reference, np.full(reference.shape, np.nan), None)
        elif reference.ndim < 2:
            yield _pair(reference, candidate, counts)
        else:
            counts = None if counts is None else np.broadcast_to(counts, reference.shape)
            for rows in row_slices(reference.shape) if len(reference) else [slice(None)]:
                yield _pair(reference[rows], candidate[rows], None if counts is None else counts[rows])


def _pair(reference: NDArray[Any], candidate: NDArray[Any], weights: NDArray[Any] | None) -> _Pair:
    is_exact = reference.dtype.kind != "f"
    ones, others = reference.astype(np.float64), candidate.astype(np.float64)
    if weights is None:
        return _Pair(ones, others, None, is_exact)
    counts: NDArray[np.bool_] = np.broadcast_to(weights, reference.shape) != 0
    return _Pair(np.where(counts, ones, 0.0), np.where(counts, others, 0.0), counts, is_exact)


def _compare(name: str, pairs: Iterable[_Pair]) -> Fidelity:
    largest = squares = above = one_square = other_square = product = agreeing = 0.0
    size = rows = places = 0
    is_exact = has_classes = False
    for number, pair in enumerate(pairs):
        reference, candidate = pair.reference, pair.candidate
        with np.errstate(invalid="ignore", over="ignore"):
            difference: NDArray[np.float64] = np.abs(candidate - reference)
        same = np.asarray(
            (reference == candidate) | (np.isnan(reference) & np.isnan(candidate))
        )  # infinities may be equal
        difference = np.asarray(np.where(same, 0.0, np.where(np.isfinite(difference), difference, np.inf)))
        finite = np.isfinite(reference) & np.isfinite(candidate)
        one, other = np.where(finite, reference, 0.0), np.where(finite, candidate, 0.0)
        largest = max(largest, float(np.abs(one).max(initial=0.0)))
        above = max(above, float(difference.max(initial=0.0)))
        with np.errstate(over="ignore"):
            squares += float((difference**2).sum())
        with np.errstate(over="ignore", invalid="ignore"):
            one_square += float((one**2).sum())
            other_square += float((other**2).sum())
            product += float((one * other).sum())
        if number == 0:
            is_exact, has_classes = pair.is_exact, reference.ndim >= 2 and reference.shape[-1] > 1
        size += difference.size if pair.counts is None else int(pair.counts.sum())
        rows += len(reference) if reference.ndim else 1
        agreed, of = _agreeing(pair, same)
        agreeing, places = agreeing + agreed, places + of
    both_zero = one_square == 0 and other_square == 0
    cosine = _cosine(product, one_square, other_square)
    return Fidelity(
        output=name,
        samples=max(rows, 1),
        max_abs_error=above,
        max_rel_error=above / max(largest, 1e-12),
        rms_error=math.sqrt(squares / max(size, 1)),
        cosine=None if is_exact or both_zero else cosine,
        agreement=agreeing / max(places, 1) if is_exact or has_classes else None,
        is_exact=is_exact,
        places=places,
    )


def _cosine(product: float, one_square: float, other_square: float) -> float:
    """Return a cosine from sums of squares; 0 if one side is nothing, -1 if the squares are too large to tell."""
    scale = math.sqrt(one_square) * math.sqrt(other_square)
    if not math.isfinite(product) or not math.isfinite(scale):
        return -1.0
    return max(-1.0, min(1.0, product / scale)) if scale > 0 else 0.0


def _agreeing(pair: _Pair, same: NDArray[np.bool_]) -> tuple[float, int]:
    """Return how many places agree, and of how many: values of integers, else rows by their highest value."""
    reference, candidate = pair.reference, pair.candidate
    if pair.is_exact or reference.ndim < 2 or reference.size == 0:
        counts = np.ones(same.shape, bool) if pair.counts is None else pair.counts
        return float((same & counts).sum()), int(counts.sum())
    is_number = ~np.isnan(candidate).any(axis=-1) | same.all(axis=-1)
    agrees = np.asarray((reference.argmax(axis=-1) == candidate.argmax(axis=-1)) & is_number)
    counted = np.ones(agrees.shape, bool) if pair.counts is None else np.asarray(pair.counts.any(axis=-1))
    return float((agrees & counted).sum()), int(counted.sum())


def deviation(found: Sequence[Fidelity]) -> float:
    """Return how far answers are off: rms error as a share of the largest value, of the worst output; endless if unknown."""
    shares = []
    for one in found:
        largest = one.max_abs_error / one.max_rel_error if one.max_rel_error else 1.0
        shares.append(one.rms_error / largest if largest > 0 else one.rms_error)
    return max(shares, default=math.inf)


def judge(
    found: Sequence[Fidelity], precision: Precision, published: Sequence[Fidelity], *, stored: Sequence[Samples] = ()
) -> FidelityVerdict:
    """Hold a published variant to the bar of its precision: quantized ones to what they did when they were published.

    With the golden samples as `stored`, a quantized variant must promise more than answers of zeros would.
    """
    if precision is Precision.FP32:
        return judge_float(found, FLOAT_RTOL)
    if precision is Precision.FP16:
        return judge_float(found, HALF_RTOL)
    return judge_quantized(found, published, stored=stored)


def judge_float(found: Sequence[Fidelity], tolerance: float) -> FidelityVerdict:
    """Hold float outputs to a relative error, and outputs of integers to equality but for ties within it."""
    needed, reason = 0.0, ""
    for one in found:
        relative = math.inf if one.max_rel_error is None else one.max_rel_error
        if one.is_exact and math.isfinite(relative) and (one.agreement or 0.0) >= 1 - AGREEMENT_SLACK:
            continue  # an index whose scores tie within the tolerance
        if not relative <= tolerance and not reason:
            reason = f"{one.output}: relative error {relative:.2g} exceeds {tolerance:g}"
        needed = max(needed, relative)
    return FidelityVerdict(passed=not reason, tolerance=tolerance, needed=needed, reason=reason)


def judge_bfloat(found: Sequence[Fidelity]) -> FidelityVerdict:
    """Hold a float variant that was computed in bfloat16 to a relative error, the cosine, and the highest values."""
    verdict = judge_float(found, BFLOAT_RTOL)
    for one in found:
        slack = max(AGREEMENT_SLACK, 1 / one.places) if one.places else AGREEMENT_SLACK
        if verdict.passed and one.cosine is not None and not one.cosine >= BFLOAT_COSINE:
            return dataclasses.replace(verdict, passed=False, reason=f"{one.output}: cosine {one.cosine:.4f}")
        if verdict.passed and one.agreement is not None and not one.agreement >= 1 - slack - _ROUNDING:
            return dataclasses.replace(
                verdict, passed=False, reason=f"{one.output}: agreement {percent(one.agreement, 2)}"
            )
    return verdict


def judge_quantized(
    found: Sequence[Fidelity], published: Sequence[Fidelity], *, stored: Sequence[Samples] = ()
) -> FidelityVerdict:
    """Hold a quantized variant to what it did when it was published, on the same golden samples.

    A promise comes from a manifest, which anybody can write: one that lacks a figure, or that answers of zeros would keep,
    is refused.
    """
    promised = {one.output: one for one in published}
    tolerance = needed = 0.0
    reason = ""
    for one in found:
        before = promised.get(one.output)
        if problem := _empty_promise(one, before, stored):
            reason = reason or f"{one.output}: its manifest promises {problem}"
        if before is None:
            continue
        allowed = before.rms_error * QUANTIZED_MARGIN
        if one.rms_error >= needed:
            tolerance, needed = allowed, one.rms_error
        if not (one.rms_error <= allowed < math.inf) and not reason:
            reason = (
                f"{one.output}: rms error {one.rms_error:.3g} exceeds {allowed:.3g} "
                f"({QUANTIZED_MARGIN:g}x that at export)"
            )
        # Of few places, one is more than the slack.
        slack = AGREEMENT_SLACK if one.is_exact or not one.places else max(AGREEMENT_SLACK, 1 / one.places)
        if not one.is_exact:
            slack = max(slack, CLOSE_CALLS * (1 - (before.agreement or 0.0)))
        least = (before.agreement or 0.0) - slack - _ROUNDING
        if one.agreement is not None and not one.agreement >= least and not reason:
            reason = f"{one.output}: agreement {percent(one.agreement, 2)} is under {percent(least, 2)}"
    return FidelityVerdict(passed=not reason, tolerance=tolerance, needed=needed, reason=reason)


def _empty_promise(found: Fidelity, promise: Fidelity | None, stored: Sequence[Samples]) -> str:
    """Say how a promise is none, such as `nothing`; empty if it is one."""
    if promise is None:
        return "nothing"
    if found.agreement is not None and promise.agreement is None:
        return "nothing of its agreement"
    if found.is_exact:
        return "" if promise.agreement or not found.places else "not one equal value"
    size = _size(found.output, stored) if stored else math.inf
    if not promise.rms_error <= size:
        return f"an rms error of {promise.rms_error:.3g}, and the answers themselves have {size:.3g}"
    return ""


def _size(output: str, stored: Sequence[Samples]) -> float:
    """Return the root of the mean square of an output's stored answers, without what does not count or is not finite."""
    squares, count = 0.0, 0
    for pair in _pairs(output, stored, [group.expected or {} for group in stored]):
        finite = np.where(np.isfinite(pair.reference), pair.reference, 0.0)
        with np.errstate(over="ignore"):
            squares += float((finite**2).sum())
        count += finite.size if pair.counts is None else int(pair.counts.sum())
    return math.sqrt(squares / max(count, 1))
