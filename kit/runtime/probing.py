"""Finds out by running a model what its graph does not tell: sizes and values that it accepts, and which axis is the batch."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kit.errors import KitError, PackageMissing
from kit.runtime.base import Runner
from kit.samples import SEEDED, Samples, seeded
from kit.tensors import Axis, Signature, Tensors, TensorSpec

_MOST_BYTES = 64 * 2**20
_GOLDEN_BYTES = 4 * 2**20
_MOST_ROWS = 8
_SIZES = (16, 32, 64, 128, 224, 256, 512, 640, 1024, 1, 2, 3, 4, 8, 48, 80, 96, 100, 160, 299, 320, 384, 2048, 16000)
_PICTURES = (224, 256, 320, 640)  # first, for inputs of four axes
_TOGETHER = (1, 2, 16, 64, 224, 512)
_MOST_TRIES = 600
_RATE = 16000


@dataclass(frozen=True)
class Probed:
    """What was found out.

    Attributes:
        signature: Of the graph, with the axes that outputs follow, sizes that were accepted, and the batch if it is one.
        samples: Inputs that were accepted, with the answers; empty if none were.
        problem: What the model said to those that were tried first; empty if some were accepted.
    """

    signature: Signature
    samples: tuple[Samples, ...] = ()
    problem: str = ""


@dataclass(frozen=True)
class _Run:
    sizes: dict[str, int]
    inputs: dict[str, NDArray[Any]]
    outputs: dict[str, NDArray[Any]]
    draw: str


def search(runner: Runner) -> Probed:
    """Run a model on inputs made up for it until it answers, and compare what it answers to others."""
    return _Search(runner).found()


class _Search:
    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._signature = runner.signature
        self._tries = 0
        self._problem = ""

    def found(self) -> Probed:
        first = self._first()
        if first is None:
            return Probed(self._signature, problem=self._problem or "its inputs are too large to try")
        runs = [first, *self._others(first)]
        signature = self._made_good(runs)
        return Probed(signature, tuple(self._golden(signature, runs)))

    def _first(self) -> _Run | None:
        """Return the first call that goes well, with other values if its answers are no finite numbers; None if none does."""
        for draw in _DRAWS:
            for sizes in _sizes(self._signature):
                run = self._run(sizes, draw)
                if run is not None:
                    return self._finite(run)
                if self._tries >= _MOST_TRIES:
                    return None
        return None

    def _finite(self, run: _Run) -> _Run:
        others = (self._run(run.sizes, draw) for draw in _DRAWS if draw != run.draw)
        calls = itertools.chain((run,), others)
        return next((one for one in calls if one is not None and _is_finite(one.outputs)), run)

    def _run(self, sizes: dict[str, int], draw: str, *, seed: int = 0) -> _Run | None:
        self._tries += 1
        if self._signature.nbytes(sizes) > _MOST_BYTES:
            return None
        drawn = _drawn(self._signature, sizes, draw, seed)
        try:
            outputs = self._runner.run(drawn)
        except PackageMissing:
            raise
        except KitError as error:
            self._problem = self._problem or str(error)
            return None
        return _Run(sizes, drawn, outputs, draw)

    def _others(self, first: _Run) -> Iterator[_Run]:
        """Give calls with one axis at another size, and one with other values."""
        for axis, size in first.sizes.items():
            for other in (size * 2, size + 1, max(size // 2, 1)):
                run = self._run({**first.sizes, axis: other}, first.draw) if other != size else None
                if run is not None:
                    yield run
                    break
        for draw, seed in ((first.draw, 1), ("zeros", 0)):
            run = self._run(first.sizes, draw, seed=seed)
            if run is not None:
                yield run

    def _made_good(self, runs: list[_Run]) -> Signature:
        signature = self._signature
        outputs = tuple(_observed(spec, signature, runs) for spec in signature.outputs)
        axes = {}
        for axis in signature.dynamic:
            sizes = tuple(dict.fromkeys(run.sizes[axis] for run in runs))
            axes[axis] = Axis(typical=sizes) if len(sizes) > 1 else Axis(least=sizes[0], most=sizes[0], typical=sizes)
        batch = signature.batch
        if batch is not None:
            if self._is_batch(batch, outputs, runs):
                axes[batch] = Axis(typical=(1, 8))
            else:
                batch = None
        return dataclasses.replace(signature, outputs=outputs, axes=axes, batch=batch)

    def _is_batch(self, batch: str, outputs: tuple[TensorSpec, ...], runs: list[_Run]) -> bool:
        """Whether every output has the axis, and two samples together are answered as each of them alone."""
        if any(batch not in spec.shape or spec.varies for spec in outputs):
            return False
        signature = dataclasses.replace(self._signature, outputs=outputs)
        both = self._run({**runs[0].sizes, batch: 2}, runs[0].draw)
        if both is None:
            return False
        for row in range(2):
            try:
                alone = self._runner.run(signature.take(both.inputs, slice(row, row + 1)))
            except KitError:
                return False
            together = signature.take(both.outputs, slice(row, row + 1))
            if not all(_is_close(together[name], alone[name]) for name in alone):
                return False
        return True

    def _golden(self, signature: Signature, runs: list[_Run]) -> Iterator[Samples]:
        """Give samples of two sizes at most; along a batch, as many rows as a few megabytes hold."""
        groups: dict[tuple[tuple[str, int], ...], _Run] = {}
        for run in runs:
            rest = tuple((axis, size) for axis, size in run.sizes.items() if axis != signature.batch)
            groups.setdefault(rest, run)
        for run in list(groups.values())[:2]:
            if signature.batch is not None:
                rows = min(_MOST_ROWS, signature.rows_within(_GOLDEN_BYTES, run.sizes))
                run = self._run({**run.sizes, signature.batch: rows}, run.draw) or run  # noqa: PLW2901
            yield Samples(inputs=run.inputs, expected=run.outputs, source=_DRAWS[run.draw])


_DRAWS = {
    "noise": SEEDED,
    "rates": f"{SEEDED}; single whole numbers are {_RATE}, as a sampling rate is",
    "unit": f"{SEEDED}; real numbers from 0 to 1",
    "ids": f"{SEEDED}; whole numbers are 0",
    "zeros": "zeros: no noise was accepted",
    "ones": "ones: neither noise nor zeros were accepted",
}
"""What is tried as inputs, in this order, and what the samples then say of themselves."""


def _drawn(signature: Signature, sizes: dict[str, int], draw: str, seed: int) -> dict[str, NDArray[Any]]:
    inputs = dict(seeded(signature, sizes=sizes, seed=seed).inputs)
    rng = np.random.default_rng(seed)
    for spec in signature.inputs:
        array = inputs[spec.name]
        if draw in {"zeros", "ones"}:
            array = np.full_like(array, draw == "ones")
        elif spec.is_float:
            array = rng.random(array.shape).astype(spec.dtype) if draw == "unit" else array
        elif spec.dtype != "bool" and draw == "ids":
            array = np.zeros_like(array)
        elif spec.dtype.endswith(("int32", "int64")) and array.size == 1 and draw == "rates":
            array = np.full_like(array, _RATE)
        inputs[spec.name] = array
    return inputs


def _sizes(signature: Signature) -> Iterator[dict[str, int]]:
    """Give sizes to try: two samples, then one; all other axes alike, then each for itself."""
    free = [axis for axis in signature.dynamic if axis != signature.batch]
    batch = [] if signature.batch is None else [signature.batch]
    if not free:
        yield from (dict.fromkeys(batch, rows) for rows in (2, 1)[: 1 + len(batch)] if batch or rows == 2)
        return
    pictures = any(len(spec.shape) >= 4 and set(spec.shape) & set(free) for spec in signature.inputs)
    for size in dict.fromkeys((*(_PICTURES if pictures else ()), *_SIZES)):
        yield from ({**dict.fromkeys(free, size), **dict.fromkeys(batch, rows)} for rows in (2, 1))
    if len(free) + len(batch) > 1:
        for each in itertools.product(_TOGETHER, repeat=len(free) + len(batch)):
            yield dict(zip([*batch, *free], each, strict=True))


def _observed(spec: TensorSpec, signature: Signature, runs: list[_Run]) -> TensorSpec:
    """Return an output as the runs had it: axes that follow those of the inputs, and whether it varies with the values."""
    shapes = [(run.sizes, run.outputs[spec.name].shape) for run in runs]
    rank = len(shapes[0][1])
    dtype = str(runs[0].outputs[spec.name].dtype)
    if any(len(shape) != rank for _, shape in shapes):
        return dataclasses.replace(spec, varies=True)
    by_sizes: dict[tuple[tuple[str, int], ...], tuple[int, ...]] = {}
    varies = any(by_sizes.setdefault(tuple(sizes.items()), shape) != shape for sizes, shape in shapes)
    declared = spec.shape if len(spec.shape) == rank else (None,) * rank
    axes = []
    for place, said in enumerate(declared):
        seen = [(sizes, shape[place]) for sizes, shape in shapes]
        axes.append(_axis(said, seen, signature, own=f"{spec.name}_{place}"))
    return TensorSpec(name=spec.name, dtype=dtype, shape=tuple(axes), varies=varies)


def _axis(
    said: int | str | None, seen: list[tuple[dict[str, int], int]], signature: Signature, *, own: str
) -> int | str:
    """Return what a size of an output is: the axis of the inputs that it always equals, a number, or a name of its own."""

    def follows(axis: str) -> bool:
        return all(sizes[axis] == size for sizes, size in seen)

    if isinstance(said, int):
        return said
    if said in signature.dynamic and follows(said):
        return said
    moving = [axis for axis in signature.dynamic if len({sizes[axis] for sizes, _ in seen}) > 1 and follows(axis)]
    if moving:
        return moving[0]
    if said is None and len({size for _, size in seen}) == 1:
        return seen[0][1]
    return said if said is not None and said not in signature.dynamic else own


def _is_finite(outputs: Tensors) -> bool:
    return all(bool(np.isfinite(array).all()) for array in outputs.values() if array.dtype.kind == "f")


def _is_close(first: NDArray[Any], second: NDArray[Any]) -> bool:
    if first.shape != second.shape:
        return False
    if first.dtype.kind != "f":
        return bool(np.array_equal(first, second))
    scale = float(np.abs(np.where(np.isfinite(second), second, 0), dtype=np.float64).max(initial=0.0))
    return bool(np.allclose(first, second, rtol=1e-3, atol=1e-4 * max(scale, 1e-6), equal_nan=True))
