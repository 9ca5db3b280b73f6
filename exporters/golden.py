"""Golden samples: those that travel in a bundle, so that it can be proved on a machine without data."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from kit import samples as sampling
from kit.samples import Samples, Splits
from kit.tensors import Axis, Signature

MOST_BYTES = 8 * 2**20
"""Of inputs and outputs of all golden samples together, unless two of them are larger."""

_MOST_GROUPS = 3
_MOST_ALONE = 256  # groups of a data set: a model without a batch axis has one for each sample
_ALONE_ABOVE_BYTES = 16 * 2**20  # one sample of this size is enough


def golden_of(
    signature: Signature, *, golden: Sequence[Samples] | None, examples: Sequence[Samples] | None, data: Splits | None
) -> tuple[Samples, ...]:
    """Return the given samples, else some of the data's validation split, else samples drawn to fit the signature.

    Inputs that came with the model stand before drawn ones.

    Raises:
        UsageError: The given ones do not fit the signature.
    """
    if golden is not None:
        sampling.check(golden, signature, name="golden samples")
        return tuple(golden)
    if data is not None:
        return tuple(_some(data.validation, signature, f"{data.dataset} {data.validation_name}"))
    drawn = [
        sampling.seeded(signature, sizes=sizes, seed=place) for place, sizes in enumerate(typical_sizes(signature))
    ]
    return (*(examples or ()), *drawn)


def typical_sizes(signature: Signature) -> list[dict[str, int]]:
    """Return two or three typical combinations of sizes, with as many samples each as fit; one if only the batch varies."""
    others = [axis for axis in signature.dynamic if axis != signature.batch]
    count = min(_MOST_GROUPS, max((len(_typical(signature.axes[axis])) for axis in others), default=1))
    combinations = []
    for place in range(count):
        sizes = {axis: (typical := _typical(signature.axes[axis]))[min(place, len(typical) - 1)] for axis in others}
        if signature.batch is not None:
            sizes[signature.batch] = 1
            sizes[signature.batch] = _rows(signature, sizes, MOST_BYTES // count)
        combinations.append(sizes)
    return combinations


def _typical(axis: Axis) -> tuple[int, ...]:
    if axis.typical:
        return axis.typical
    further = axis.usual + axis.multiple_of
    return (axis.usual,) if axis.problem(further) else (axis.usual, further)


def _rows(signature: Signature, sizes: dict[str, int], most_bytes: int) -> int:
    assert signature.batch is not None  # the callers looked
    axis = signature.axes[signature.batch]
    least = 1 if signature.nbytes({**sizes, signature.batch: 1}) > _ALONE_ABOVE_BYTES else 2
    rows = sampling.within(most_bytes, signature, sizes, least=least)
    rows = min(rows, axis.most or rows) // axis.multiple_of * axis.multiple_of
    return max(rows, math.ceil(max(axis.least, 1) / axis.multiple_of) * axis.multiple_of)


def _some(groups: Sequence[Samples], signature: Signature, source: str) -> list[Samples]:
    found: list[Samples] = []
    left = MOST_BYTES
    for group in groups:
        sizes = signature.sizes(group.inputs)
        one = signature.nbytes({**sizes, signature.batch: 1} if signature.batch is not None else sizes)
        if found and one > left:
            continue
        rows = signature.rows(group.inputs)
        if signature.batch is not None:
            rows = min(rows, _rows(signature, sizes, max(left, 1)))
        taken = group.take(signature, slice(0, rows)) if signature.batch is not None else group
        found.append(dataclasses.replace(taken, expected=None, source=group.source or source))
        left -= rows * one
        if len(found) == _MOST_ALONE or left <= 0:
            break
    return found
