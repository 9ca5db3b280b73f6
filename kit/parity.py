"""Do two sets of logits agree: on what, by how much, and what tolerance would have been needed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kit.bundle.records import ParityRecord, Variant
from kit.choices import Precision

Logits = NDArray[np.float32]

FLOAT_RTOL = 1e-4
"""Float variants: largest error allowed, as a share of the largest logit of the reference. float32 sums of a thousand
terms taken in another order differ by some 1e-6 of it; TF32 or a wrong weight by 1e-3 and more."""

HALF_RTOL = 1e-2
"""fp16 variants: the same bar for 11 bits instead of 24. Rounding gives some 1e-3, on a GPU that also adds in fp16 more."""

QUANTIZED_MARGIN = 1.5
"""Quantized variants: how many times the error measured at export a machine may show. Exact integer kernels repeat it;
saturating ones (int8 on x86 without VNNI) exceed it several times over."""

AGREEMENT_SLACK = 0.01
"""Quantized variants: how far top-1 agreement may lie under that measured at export."""


@dataclass(frozen=True, kw_only=True)
class Parity:
    """How a candidate's logits compare to a reference's on the same images.

    Attributes:
        images: How many were compared.
        max_abs_error: Largest absolute difference of a logit.
        max_rel_error: The same as a share of the largest absolute logit of the reference.
        rms_error: Root of the mean squared difference.
        top1_agreement: Share of images on which both choose the same class, 0 to 1.
    """

    images: int
    max_abs_error: float
    max_rel_error: float
    rms_error: float
    top1_agreement: float

    def record(self) -> ParityRecord:
        """Return what the manifest keeps."""
        return ParityRecord(
            images=self.images,
            max_abs_error=self.max_abs_error,
            rms_error=self.rms_error,
            top1_agreement=self.top1_agreement,
        )


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether a parity is good enough, the bar it was held to, and the tolerance that would have been needed."""

    passed: bool
    tolerance: float
    needed: float
    least_agreement: float
    reason: str


def compare(reference: Logits, candidate: Logits) -> Parity:
    """Compare logits `[N, classes]` of a candidate to those of a reference; not-a-number counts as infinite error."""
    difference = np.abs(candidate.astype(np.float64) - reference.astype(np.float64))
    difference = np.where(np.isfinite(difference), difference, np.inf)
    largest = float(np.abs(reference).max())
    return Parity(
        images=len(reference),
        max_abs_error=float(difference.max()),
        max_rel_error=float(difference.max()) / max(largest, 1e-12),
        rms_error=float(np.sqrt(np.mean(difference**2))),
        top1_agreement=float(np.mean(reference.argmax(axis=1) == candidate.argmax(axis=1))),
    )


def judge(parity: Parity, variant: Variant) -> Verdict:
    """Hold a published variant to the bar of its precision."""
    if variant.precision is Precision.FP32:
        return judge_float(parity)
    return judge_half(parity) if variant.precision is Precision.FP16 else judge_quantized(parity, variant.parity)


def judge_float(parity: Parity) -> Verdict:
    """Hold a fp32 variant to FLOAT_RTOL. Agreement may break only where two logits tie within that tolerance."""
    return _judge_error(parity, FLOAT_RTOL)


def judge_half(parity: Parity) -> Verdict:
    """Hold a fp16 variant to HALF_RTOL, likewise."""
    return _judge_error(parity, HALF_RTOL)


def _judge_error(parity: Parity, tolerance: float) -> Verdict:
    passed = parity.max_rel_error <= tolerance
    return Verdict(
        passed=passed,
        tolerance=tolerance,
        needed=parity.max_rel_error,
        least_agreement=0.0,
        reason="" if passed else f"relative error {parity.max_rel_error:.2g} exceeds {tolerance:g}",
    )


def judge_quantized(parity: Parity, published: ParityRecord) -> Verdict:
    """Hold a quantized variant to what it did when it was published, on the same golden samples."""
    tolerance = published.rms_error * QUANTIZED_MARGIN
    least = published.top1_agreement - AGREEMENT_SLACK
    reason = ""
    if parity.rms_error > tolerance:
        reason = f"rms error {parity.rms_error:.3g} exceeds {tolerance:.3g} ({QUANTIZED_MARGIN:g}x that at export)"
    elif parity.top1_agreement < least:
        reason = f"top-1 agreement {parity.top1_agreement:.2%} is under {least:.2%}"
    return Verdict(
        passed=not reason,
        tolerance=tolerance,
        needed=parity.rms_error,
        least_agreement=max(least, 0.0),
        reason=reason,
    )
