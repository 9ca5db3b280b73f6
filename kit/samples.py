"""Samples: inputs, what the original answered, and what the right answers are, stacked along the batch axis.

groups = (Samples(inputs={"pixels": pixels}, targets={"labels": labels}, source="mnist test"),)
seeded(signature, sizes={"batch": 8, "sequence": 16})  # inputs that fit a signature, for want of real ones
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kit.errors import UsageError
from kit.tensors import Signature, Sizes, Tensors, TensorSpec, along, native

SEEDED = "seeded noise"
"""Source of samples that were drawn to fit a signature."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Samples:
    """Samples of the same sizes, stacked along the batch axis.

    Lists become arrays, and arrays of a foreign byte order those of this machine.

    Attributes:
        inputs: By name.
        expected: What the original answered, by output; None if it was not asked.
        targets: Labels, boxes, masks: what only a metric understands, samples along the first axis; None if unknown.
        weights: By output, 1 where its values count and 0 where they are padding, broadcast to it; None: all count.
        source: Where they come from and under which licence.

    Raises:
        UsageError: A value is no array of numbers or words, such as rows of different lengths.
    """

    inputs: Tensors
    expected: Tensors | None = None
    targets: Tensors | None = None
    weights: Tensors | None = None
    source: str = ""

    def __post_init__(self) -> None:
        for kind in ("inputs", "expected", "targets", "weights"):
            given = getattr(self, kind)
            if given is not None and not all(_is_plain(one) for one in given.values()):
                object.__setattr__(self, kind, {name: _array(one, name, kind) for name, one in given.items()})

    def take(self, signature: Signature, rows: slice | NDArray[np.integer[Any]]) -> Samples:
        """Return some of the samples."""
        return dataclasses.replace(
            self,
            inputs=signature.take(self.inputs, rows),
            expected=None if self.expected is None else signature.take(self.expected, rows),
            targets=None if self.targets is None else {name: along(one, 0, rows) for name, one in self.targets.items()},
            weights=None if self.weights is None else signature.take(self.weights, rows),
        )

    def resized(self, signature: Signature, sizes: Sizes) -> dict[str, NDArray[Any]]:
        """Return inputs of other sizes: samples are repeated and sequences tiled or cut, so that ids and masks stay valid."""
        return {spec.name: _resized(self.inputs[spec.name], spec.sized(sizes)) for spec in signature.inputs}


def _is_plain(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.isnative and not value.dtype.hasobject


def _array(value: Any, name: str, kind: str) -> NDArray[Any]:
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"{kind}: {name} is no array: {error}", hint="give rows of one length") from error
    if array.dtype.hasobject:
        first = next((type(one).__name__ for one in array.flat), "none")
        raise UsageError(f"{kind}: {name} holds Python objects, such as {first}", hint="give an array of numbers")
    return native(array)


@dataclass(frozen=True, kw_only=True, eq=False)
class Splits:
    """A data set for checking a model.

    Attributes:
        validation: Held out of the training data: where the gate decides.
        test: For the final figure alone: held to the same bar, chosen by nothing.
        train: What static quantization draws its calibration samples from; None if there is nothing to draw from.
        validation_name: `train` if the model has seen those samples, for want of any held out.
    """

    dataset: str
    validation: tuple[Samples, ...]
    test: tuple[Samples, ...]
    train: tuple[Samples, ...] | None = None
    validation_name: str = "validation"


def count(groups: Sequence[Samples], signature: Signature) -> int:
    """Return how many samples there are in all."""
    return sum(signature.rows(group.inputs) for group in groups)


def check(groups: Sequence[Samples], signature: Signature, *, name: str = "samples") -> None:
    """Raise UsageError unless every group fits the signature, its targets have a row for each sample, and there are some."""
    for group in groups:
        try:
            signature.sizes(group.inputs)
        except UsageError as error:
            raise UsageError(f"{name}: {error}", hint=error.hint) from error
        for target, values in (group.targets or {}).items():
            if values.shape[:1] != (signature.rows(group.inputs),):
                raise UsageError(
                    f"{name}: {target} has {values.shape[0] if values.ndim else 0} rows for "
                    f"{signature.rows(group.inputs)} samples"
                )
    if not groups or count(groups, signature) == 0:
        raise UsageError(f"there are no {name}")


def nearest(groups: Sequence[Samples], signature: Signature, sizes: Sizes) -> Samples:
    """Return the group whose sizes are nearest, by ratio; the batch counts for nothing, for samples can be repeated."""

    def distance(group: Samples) -> float:
        own = signature.sizes(group.inputs)
        others = (axis for axis in own if axis != signature.batch)
        return sum(abs(math.log(max(sizes[axis], 1) / max(own[axis], 1))) for axis in others)

    return min(groups, key=distance)


def batches(groups: Sequence[Samples], signature: Signature, most_bytes: int) -> Iterator[dict[str, NDArray[Any]]]:
    """Give the inputs of all groups in pieces of so many bytes, outputs included."""
    for group in groups:
        rows = signature.rows_within(most_bytes, signature.sizes(group.inputs))
        yield from signature.split(group.inputs, rows)


def seeded(signature: Signature, *, sizes: Sizes, seed: int = 0) -> Samples:
    """Draw inputs that fit a signature: noise, ids within the vocabulary, masks of ones, positions that count up.

    `sizes` must name every axis of the inputs.

    Raises:
        MemoryShort: They do not fit into the memory that is free.
    """
    signature.check_room(sizes)
    rng = np.random.default_rng(seed)
    return Samples(inputs={spec.name: _drawn(spec, spec.sized(sizes), rng) for spec in signature.inputs}, source=SEEDED)


def _drawn(spec: TensorSpec, shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[Any]:
    name = spec.name.lower()
    if spec.is_float:
        return rng.standard_normal(shape).astype(spec.dtype)
    if spec.dtype == "bool" or "mask" in name:
        return np.ones(shape, spec.dtype)
    if "token_type" in name or "segment" in name:
        return np.zeros(shape, spec.dtype)
    if "position" in name and shape:
        return np.broadcast_to(np.arange(shape[-1], dtype=spec.dtype), shape).copy()
    if spec.below is not None:
        return rng.integers(0, spec.below, shape).astype(spec.dtype)
    if spec.dtype == "uint8":
        return rng.integers(0, 256, shape, dtype=np.uint8)
    if name in _RATES and np.iinfo(spec.dtype).max >= _RATE:
        return np.full(shape, _RATE, spec.dtype)
    return np.ones(shape, spec.dtype) if _is_length(name) else rng.integers(0, 2, shape).astype(spec.dtype)


_RATE = 16000
_RATES = frozenset({"sr", "rate", "fs", "sample_rate", "sampling_rate", "samplerate"})
"""Names of a sampling rate, which models of speech refuse if it is none of their own."""


def _is_length(name: str) -> bool:
    return any(part in name for part in ("length", "len", "size", "rate"))


def _resized(array: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    if array.shape == shape:
        return array
    for axis, size in enumerate(shape):
        if array.shape[axis] != size:
            array = array.take(np.arange(size) % max(array.shape[axis], 1), axis=axis)
    return np.ascontiguousarray(array)


def merged(groups: Sequence[Mapping[str, NDArray[Any]]], name: str) -> NDArray[Any] | None:
    """Return one tensor of several groups along its first axis; None if their other sizes differ."""
    arrays = [group[name] for group in groups]
    if len({array.shape[1:] for array in arrays}) != 1 or any(array.ndim == 0 for array in arrays):
        return None
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def drawn_rows(total: int, wanted: int, *, seed: int) -> NDArray[np.int64]:
    """Return `wanted` of `total` rows, seeded, in ascending order."""
    return np.sort(np.random.default_rng(seed).permutation(total)[: min(wanted, total)].astype(np.int64))


def within(most_bytes: int, signature: Signature, sizes: Sizes, *, least: int = 2, most: int = 256) -> int:
    """Return how many samples of these sizes to keep in a file of so many bytes: between `least` and `most`."""
    if signature.batch is None:
        return 1
    one = signature.nbytes({**sizes, signature.batch: 1})
    return int(min(most, max(least, math.floor(most_bytes / max(one, 1)))))
