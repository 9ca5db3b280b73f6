"""What torch runs and writes, as an original: a module of today or a program of torch.export."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn
from torch.export import ExportedProgram

from exporters.graph.files import Graph
from exporters.graph.rewrite import simplify
from exporters.options import DEFAULT_OPSET
from exporters.sources import calls, torch_export, trial
from exporters.sources.pupil import Pupil
from kit.bundle.manifest import Provenance
from kit.errors import UsageError
from kit.runtime.base import BATCH_BYTES
from kit.samples import Samples
from kit.tasks.base import Task
from kit.tensors import Signature, Tensors

Ask = Callable[[nn.Module, Sequence[torch.Tensor]], Sequence[torch.Tensor]]


class TorchOriginal:
    """What torch runs and writes: an exporters.sources.base.Original."""

    def __init__(
        self,
        *,
        name: str,
        signature: Signature,
        record: Provenance,
        program: ExportedProgram,
        answer: trial.Answer,
        ask: Ask,
        device: torch.device,
        task: Task | None = None,
        examples: tuple[Samples, ...] | None = None,
        close: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = name
        self.signature = signature
        self.task = task
        self.record = record
        self.examples = examples
        self.remarks: tuple[str, ...] = ()
        self._program: ExportedProgram | None = program
        self._answer: trial.Answer | None = answer
        self._ask = ask
        self._device = device
        self._close = close

    def answer(self, tensors: Tensors) -> dict[str, NDArray[Any]]:
        """Compute the outputs, in pieces bounded by bytes."""
        if self._answer is None:
            raise UsageError("this model was closed")
        rows = self.signature.rows_within(BATCH_BYTES, self.signature.sizes(tensors))
        return self.signature.join([self._piece(piece) for piece in self.signature.split(tensors, rows)])

    def _piece(self, tensors: Tensors) -> dict[str, NDArray[Any]]:
        assert self._answer is not None  # answer looked
        found = trial.run(self._answer, self._given(tensors), trial.sizes_of(self.signature, tensors))
        return {
            spec.name: calls.as_array(value) for spec, value in zip(self.signature.outputs, found.values(), strict=True)
        }

    def graph(self, *, opset: int = DEFAULT_OPSET) -> Graph:
        """Return it as a graph whose large weights stay where the module has them."""
        if self._program is None:
            raise UsageError("this model was closed")
        return self._graph_of(self._program, opset)

    def write(self, folder: Path, *, opset: int = DEFAULT_OPSET) -> Path:
        """Write it as `model.onnx`, large weights in `model.data` beside it."""
        return self.graph(opset=opset).save(folder)

    def pupil(self) -> Pupil:
        """Return what can learn; it stays when this is closed."""
        if self._program is None:
            raise UsageError("this model was closed")
        return Pupil(
            program=self._program,
            signature=self.signature,
            inside=self._given,
            asked=self._ask,
            written=self._graph_of,
        )

    def _given(self, tensors: Tensors) -> list[torch.Tensor]:
        return [calls.as_tensor(tensors[spec.name], spec.name, self._device) for spec in self.signature.inputs]

    def _graph_of(self, program: ExportedProgram, opset: int) -> Graph:
        graph = torch_export.to_graph(program, self.signature, opset=opset)
        simplify(graph, batch=self.signature.batch)
        return graph

    def close(self) -> None:
        """Free its weights, as far as they are nobody else's."""
        self._program = self._answer = None
        self._close()
        self._close = lambda: None
