"""An original whose task does arithmetic on raw values: it takes uint8, and the arithmetic moves into the graph."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from exporters.graph.files import Graph
from exporters.graph.prologue import put_on
from exporters.graph.rewrite import move_in
from exporters.options import DEFAULT_OPSET
from exporters.sources.base import Original
from kit.errors import UsageError
from kit.runtime.base import BATCH_BYTES
from kit.samples import Samples
from kit.tasks.base import Prologue, Task
from kit.tensors import Signature, Tensors, TensorSpec

if TYPE_CHECKING:
    from exporters.sources.pupil import Pupil


class Graphed(Original, Protocol):
    """An original that can be had as a graph before it is written."""

    def graph(self, *, opset: int = DEFAULT_OPSET) -> Graph:
        """Return the graph."""


class RawOriginal:
    """An original behind the prologue of a task: `inner` takes the floats, `task` is whose prologue it is."""

    def __init__(self, inner: Graphed, prologue: Prologue, task: Task) -> None:
        self._inner, self._prologue = inner, prologue
        self._floats = float_input(inner.signature)
        self.name, self.record = inner.name, inner.record
        self.task: Task | None = task
        self.signature = outer(inner.signature, prologue)
        self.examples: tuple[Samples, ...] | None = None
        self.remarks = inner.remarks

    def answer(self, tensors: Tensors) -> Tensors:
        """Compute the outputs for raw values, in pieces bounded by bytes."""
        sizes = self.signature.check(tensors)
        rows = min(
            self.signature.rows_within(BATCH_BYTES, sizes), self._inner.signature.rows_within(BATCH_BYTES, sizes)
        )
        pieces = self.signature.split(tensors, rows)
        return self.signature.join([self._inner.answer(self._normalised(piece)) for piece in pieces])

    def _normalised(self, tensors: Tensors) -> dict[str, NDArray[Any]]:
        values = tensors[self._prologue.input].astype(np.float32)
        if self._prologue.channels_last:
            values = values.transpose(0, 3, 1, 2)
        scale, shift = (self._shaped(one, values.ndim) for one in (self._prologue.scale, self._prologue.shift))
        floats = np.ascontiguousarray(values * scale + shift, self._floats.dtype)
        others = {name: array for name, array in tensors.items() if name != self._prologue.input}
        return {**others, self._floats.name: floats}

    @staticmethod
    def _shaped(numbers: tuple[float, ...], rank: int) -> NDArray[np.float32]:
        array = np.array(numbers, np.float32)
        return array.reshape(-1, *[1] * (rank - 2)) if len(numbers) > 1 else array

    def graph(self, *, opset: int = DEFAULT_OPSET) -> Graph:
        """Return the graph with the arithmetic in front of it, or in its first layer."""
        return self._behind(self._inner.graph(opset=opset))

    def _behind(self, graph: Graph) -> Graph:
        put_on(graph, self._prologue, self._floats.name)
        move_in(graph, batch=self.signature.batch)
        return graph

    def write(self, folder: Path, *, opset: int = DEFAULT_OPSET) -> Path:
        """Write it as `model.onnx`, large weights in `model.data` beside it."""
        return self.graph(opset=opset).save(folder)

    def pupil(self) -> Pupil | None:
        """Return what can learn, asked with raw values; None where there is no model of torch."""
        inner = self._inner.pupil()
        if inner is None:
            return None
        return dataclasses.replace(
            inner,
            signature=self.signature,
            inside=lambda tensors: inner.inside(self._normalised(tensors)),
            written=lambda program, opset: self._behind(inner.written(program, opset)),
        )

    def close(self) -> None:
        """Free its weights."""
        self._inner.close()


def float_input(signature: Signature) -> TensorSpec:
    """Return the one input that a prologue can stand before.

    Raises:
        UsageError: There is none, or several.
    """
    found = [spec for spec in signature.inputs if spec.is_float and len(spec.shape) > 1]
    if len(found) != 1:
        raise UsageError(
            f"the task does arithmetic on the one input of floats, and the model has {len(found)}",
            hint=", ".join(f"{name}: {words}" for name, words in signature.described().items()),
        )
    return found[0]


def outer(signature: Signature, prologue: Prologue) -> Signature:
    """Return a signature with raw values at the input that takes floats."""
    floats = float_input(signature)
    shape = floats.shape
    if prologue.channels_last:
        if len(shape) != 4:
            raise UsageError(
                f"channels can only be moved in [batch, channels, height, width], found {floats.describe()}"
            )
        shape = (shape[0], *shape[2:], shape[1])
    raw = TensorSpec(name=prologue.input, dtype="uint8", shape=shape)
    inputs = tuple(raw if spec is floats else spec for spec in signature.inputs)
    return dataclasses.replace(signature, inputs=inputs)


def inner(signature: Signature, prologue: Prologue) -> Signature:
    """Return a signature with floats at the input that takes raw values; as it is if there is none."""
    raw = next((one for one in signature.inputs if one.name == prologue.input and one.dtype == "uint8"), None)
    if raw is None:
        return signature
    shape = raw.shape
    if prologue.channels_last and len(shape) == 4:
        shape = (shape[0], shape[3], *shape[1:3])
    floats = TensorSpec(name=raw.name, dtype="float32", shape=shape)
    return dataclasses.replace(signature, inputs=tuple(floats if spec is raw else spec for spec in signature.inputs))
