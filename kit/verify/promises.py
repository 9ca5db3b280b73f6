"""Whether answers to the golden samples are what they should be on this machine."""

from __future__ import annotations

from collections.abc import Sequence

from kit.bundle import Bundle, Variant
from kit.errors import VerifyFailed
from kit.metrics import fidelity
from kit.metrics.fidelity import FidelityVerdict
from kit.ready import ReadyModel
from kit.samples import Samples
from kit.tensors import Tensors
from kit.verify.model import tolerance_of


def judged(bundle: Bundle, variant: Variant, golden: Sequence[Samples], answers: Sequence[Tensors]) -> FidelityVerdict:
    """Hold answers to what the manifest promises of a variant.

    A ready model promises nothing: it is held to its own answers without optimizations, as `kit verify model.onnx` does.
    """
    found = fidelity.compare(golden, answers)
    if isinstance(bundle, ReadyModel):
        return fidelity.judge_float(found, tolerance_of(variant.precision))
    return fidelity.judge(found, variant.precision, variant.fidelity, stored=golden)


def prove(bundle: Bundle, variant: Variant, golden: Sequence[Samples], answers: Sequence[Tensors]) -> None:
    """Refuse a variant that does not answer here as it did where it was made.

    Raises:
        VerifyFailed: The message says what differs.
    """
    verdict = judged(bundle, variant, golden, answers)
    if not verdict.passed:
        raise VerifyFailed(
            f"{bundle.name} does not give here what its bundle promises: {verdict.reason}",
            hint=f"look at it: kit verify {bundle.origin}",
        )
