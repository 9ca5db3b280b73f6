"""Points: the sizes at which a model is measured, and what they are called."""

from __future__ import annotations

from collections.abc import Sequence

from kit.errors import UsageError
from kit.tensors import Signature, Sizes

FIXED = "its one size"
"""What the only point of a model without dynamic axes is called."""


def described(sizes: Sizes, axes: Sequence[str] | None = None) -> str:
    """Return `batch 8, sequence 128`, of all axes or of some."""
    return ", ".join(f"{axis} {size:,}" for axis, size in sizes.items() if axes is None or axis in axes) or FIXED


def telling(points: Sequence[Sizes]) -> tuple[str, ...]:
    """Return the axes that tell points apart; of points that are alike, the first axis, which is the batch if there is one."""
    axes = tuple(dict.fromkeys(axis for point in points for axis in point))
    differing = tuple(axis for axis in axes if len({point.get(axis) for point in points}) > 1)
    return differing or axes[:1]


def batches(signature: Signature, counts: Sequence[int]) -> tuple[dict[str, int], ...]:
    """Return a point for each number of samples in one call.

    Raises:
        UsageError: One call of this model answers a fixed number of samples.
    """
    if signature.batch is None:
        others = f"its axes are: {', '.join(signature.dynamic)}" if signature.dynamic else "all its sizes are fixed"
        raise UsageError("the model has no batch axis: its samples in one call are fixed", hint=others)
    return tuple({signature.batch: count} for count in dict.fromkeys(counts))


def points(
    signature: Signature, given: Sequence[Sizes] | None, usual_batches: Sequence[int]
) -> tuple[dict[str, int], ...]:
    """Return the size of every axis at every point.

    Each of `given` has the sizes of some axes; None stands for one point without any. A point without a size of the
    batch is measured at each of `usual_batches` that the axis can have.

    Raises:
        UsageError: An axis that does not exist, or a size that it cannot have.
    """
    batch = signature.batch
    found = []
    for point in given or ({},):
        if batch is None or batch in point:
            found.append(signature.usual_sizes(**point))
            continue
        axis = signature.axes[batch]
        able = [size for size in usual_batches if not axis.problem(size)] or [axis.usual]
        found += [signature.usual_sizes(**{batch: size, **point}) for size in able]
    return tuple(point for place, point in enumerate(found) if point not in found[:place])
