"""What travels in a page to prove it: golden samples and raw items as bytes, and what each variant is held to."""

from __future__ import annotations

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


def proof_of(bundle: Bundle, variants: Sequence[Variant], *, with_items: bool) -> Proof:
    """Prove variants here, and gather what a page needs to prove them elsewhere; raw items only where it reads them.

    Raises:
        VerifyFailed: One does not answer as its bundle promises.
        KitError: It does not run here.
    """
    golden = bundle.golden()
    kept = _within(bundle, golden)
    is_whole = len(kept) == len(golden) and all(one is other for one, other in zip(kept, golden, strict=True))
    promises = {}
    for one in variants:
        prove(bundle, one, golden, _answers(bundle, one, golden))
        found = one.fidelity if is_whole else fidelity.compare(kept, _answers(bundle, one, kept))
        promises[one.id] = {by.output: {"rms": by.rms_error, "agreement": by.agreement or 0.0} for by in found}
    packer = _Packer()
    groups = [
        {part: packer.named(getattr(one, part) or {}) for part in ("inputs", "expected", "weights")} for one in kept
    ]
    items = bundle.items() if with_items else None
    described = [
        {"raw": raw, "tensors": packer.named(tensors)}
        for raw, tensors in (zip(items.raw, items.tensors, strict=True) if items else ())
    ]
    return Proof(data=b"".join(packer.parts), described={"groups": groups, "items": described}, promises=promises)


def _answers(bundle: Bundle, variant: Variant, groups: Sequence[Samples]) -> list[Tensors]:
    with registry.open_runner(registry.DEFAULT, bundle, variant, RunnerOptions()) as runner:
        return [run_in_batches(runner, one.inputs) for one in groups]


def _within(bundle: Bundle, groups: Sequence[Samples]) -> list[Samples]:
    """Return the groups that fit into MOST_BYTES together; if not even the first does, as much of it as fits."""
    kept: list[Samples] = []
    rest = MOST_BYTES
    for one in groups:
        if (size := _bytes_of(one)) <= rest:
            kept.append(one)
            rest -= size
    if kept or bundle.signature.batch is None:
        return kept or list(groups[:1])
    first, rows = groups[0], bundle.signature.rows(groups[0].inputs)
    return [first.take(bundle.signature, slice(0, max(1, rows * MOST_BYTES // _bytes_of(first))))]


def _bytes_of(group: Samples) -> int:
    return sum(array.nbytes for part in (group.inputs, group.expected or {}) for array in part.values())


class _Packer:
    """Lays arrays one behind the other, each at a multiple of 8 bytes."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self._at = 0

    def named(self, tensors: Tensors) -> dict[str, Any]:
        return {name: self._placed(array) for name, array in tensors.items()}

    def _placed(self, array: NDArray[Any]) -> Mapping[str, Any]:
        data = np.ascontiguousarray(array).tobytes()
        place = self._at
        padding = -len(data) % 8
        self.parts += [data, bytes(padding)]
        self._at += len(data) + padding
        return {"dtype": array.dtype.name, "dims": list(array.shape), "at": place, "size": len(data)}
