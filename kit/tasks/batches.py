"""One sample at a time becomes the input of a model: stacked along its batch axis, wherever that stands, or alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kit.errors import UsageError
from kit.samples import Samples
from kit.tensors import Signature, TensorSpec

MOST_BYTES = 2**30
"""Of the inputs that a data set is read into: of a larger one, samples are drawn."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelledArrays:
    """Samples of a data set, all of one shape, without the batch.

    Attributes:
        labels: int64; None if the data set has none.
        source: What they are and what was passed over.
    """

    arrays: Sequence[NDArray[Any]]
    labels: NDArray[np.int64] | None
    source: str


def batch_rank(spec: TensorSpec, signature: Signature) -> tuple[int | None, int]:
    """Return which axis of an input is the batch, and how many axes it has."""
    return (spec.shape.index(signature.batch) if signature.batch in spec.shape else None), len(spec.shape)


def has_rows_first(spec: TensorSpec, signature: Signature) -> bool:
    """Whether the samples lie along the first axis of a tensor: the batch axis, or an axis of size 1 for the only sample."""
    if not spec.shape:
        return False
    first = spec.shape[0]
    if first == signature.batch:
        return True
    if isinstance(first, int):
        return first == 1 and signature.batch is None
    if first not in signature.dynamic:  # exporters call the batch of an output as they like
        return True
    return signature.batch is None and any(one.shape[0] == first for one in signature.inputs if one.shape)


def stacked(arrays: Sequence[NDArray[Any]], batch: int | None, rank: int) -> NDArray[Any]:
    """Stack samples along the batch axis; without one, the only sample with as many axes as the input has.

    Raises:
        UsageError: There are several samples and no batch axis, or samples of several shapes, or none.
    """
    if not arrays:
        raise UsageError("there is nothing to predict", hint="give one item or more")
    if batch is None:
        if len(arrays) > 1:
            raise UsageError("this model takes one item in a call", hint="predict them one by one")
        return arrays[0].reshape((1,) * (rank - arrays[0].ndim) + arrays[0].shape)
    if len({array.shape for array in arrays}) > 1:
        shapes = ", ".join(sorted({str(list(array.shape)) for array in arrays}))
        raise UsageError(f"items of different shapes cannot share a call: {shapes}")
    return np.stack(arrays, axis=batch)


def as_input(spec: TensorSpec, found: LabelledArrays, batch: int | None, rank: int) -> tuple[Samples, ...]:
    """Return a data set as samples of an input: one group, or one for each sample without a batch axis."""
    if batch is not None:
        targets = None if found.labels is None else {"labels": found.labels}
        return (Samples(inputs={spec.name: stacked(found.arrays, batch, rank)}, targets=targets, source=found.source),)
    return tuple(
        Samples(
            inputs={spec.name: stacked([array], batch, rank)},
            targets=None if found.labels is None else {"labels": found.labels[place : place + 1]},
            source=found.source,
        )
        for place, array in enumerate(found.arrays)
    )
