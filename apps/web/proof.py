"""What travels in a page to prove it: golden samples and raw items as bytes, and what each variant is held to."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kit.bundle import Bundle, Variant
from kit.metrics import fidelity
from kit.runtime import registry
from kit.runtime.base import RunnerOptions, run_in_batches
from kit.samples import Samples
from kit.tensors import Tensors
from kit.verify import prove

MOST_BYTES = 8 * 2**20
"""Of the samples in a page: enough to prove a model, not more than a page should weigh."""


@dataclass(frozen=True, kw_only=True)
class Proof:
    """Bytes, where in them each tensor lies, and by variant and output what its answers may differ by."""

    data: bytes
    described: dict[str, Any]
    promises: dict[str, dict[str, Any]]


def proof_of(bundle: Bundle, variants: Sequence[Variant]) -> Proof:
    """Prove variants here, and gather what a page needs to prove them elsewhere.

    Raises:
        VerifyFailed: One does not answer as its bundle promises.
        KitError: It does not run here.
    """
    golden = bundle.golden()
    kept = _within(bundle, golden)
    answers = {one.id: _answers(bundle, one, golden) for one in variants}
    for one in variants:
        prove(bundle, one, golden, answers[one.id])
    packer = _Packer()
    groups = [
        {part: packer.named(getattr(one, part) or {}) for part in ("inputs", "expected", "weights")} for one in kept
    ]
    items = bundle.items()
    described_items = [
        {"raw": raw, "tensors": packer.named(tensors)}
        for raw, tensors in (zip(items.raw, items.tensors, strict=True) if items else ())
    ]
    promises = {one.id: _promise(bundle, one, kept, whole=kept == list(golden)) for one in variants}
    return Proof(data=b"".join(packer.parts), described={"groups": groups, "items": described_items}, promises=promises)


def _answers(bundle: Bundle, variant: Variant, groups: Sequence[Samples]) -> list[Tensors]:
    with registry.open_runner(registry.DEFAULT, bundle, variant, RunnerOptions()) as runner:
        return [run_in_batches(runner, one.inputs) for one in groups]


def _promise(bundle: Bundle, variant: Variant, kept: Sequence[Samples], *, whole: bool) -> dict[str, Any]:
    """Return the error and agreement by output: the manifest's, or of fewer samples those found here."""
    found = variant.fidelity if whole else fidelity.compare(kept, _answers(bundle, variant, kept))
    return {one.output: {"rms": one.rms_error, "agreement": one.agreement or 0.0} for one in found}


def _within(bundle: Bundle, groups: Sequence[Samples]) -> list[Samples]:
    """Return as many samples as fit into MOST_BYTES, one at least."""
    kept: list[Samples] = []
    rest = MOST_BYTES
    for one in groups:
        rows = bundle.signature.rows(one.inputs)
        size = sum(array.nbytes for part in (one.inputs, one.expected or {}) for array in part.values())
        if size <= rest:
            kept.append(one)
        elif bundle.signature.batch is not None and not kept:
            kept.append(one.take(bundle.signature, slice(0, max(1, rows * rest // size))))
            break
        elif not kept:
            kept.append(dataclasses.replace(one))
            break
        rest -= size
    return kept


class _Packer:
    """Lays arrays one behind the other, each at a multiple of 8 bytes."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self._at = 0

    def named(self, tensors: Tensors) -> dict[str, Any]:
        """Return where the tensors lie, by name."""
        return {name: self._placed(array) for name, array in tensors.items()}

    def _placed(self, array: NDArray[Any]) -> Mapping[str, Any]:
        data = np.ascontiguousarray(array).tobytes()
        place = self._at
        padding = -len(data) % 8
        self.parts.extend(itertools.chain((data,), (bytes(padding),) if padding else ()))
        self._at += len(data) + padding
        return {"dtype": array.dtype.name, "dims": list(array.shape), "at": place, "size": len(data)}
