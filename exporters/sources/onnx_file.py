"""A ready .onnx file as an original: ONNX Runtime answers, without its optimisations. Needs no torch."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import helper

from exporters.graph.files import Graph, read
from exporters.graph.opset import raised
from exporters.graph.rewrite import simplify
from exporters.graph.rules import domains_of, strip
from exporters.options import DEFAULT_OPSET
from exporters.sources.base import EXTERNAL_ABOVE_BYTES
from exporters.sources.names import bundle_name
from kit import ready
from kit.bundle import graph_file
from kit.bundle.manifest import Provenance
from kit.choices import VariantFormat
from kit.errors import BadInput, BundleInvalid, GateFailed, KitError, UsageError
from kit.runtime import probing, trial
from kit.runtime.base import RunnerOptions, run_in_batches
from kit.runtime.onnxruntime import OnnxRuntimeRunner
from kit.samples import Samples, seeded
from kit.system import files
from kit.tasks.base import Task
from kit.tensors import BATCH, Axis, Signature, Tensors

_ANSWERING = RunnerOptions(optimization="off", prepacking=False)
_KNOWN_DOMAINS = frozenset(
    {"", "ai.onnx", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc", "com.ms.internal.nhwc"}
)
_SAME_IDS = frozenset({"Cast", "Reshape", "Unsqueeze", "Squeeze", "Identity", "Flatten", "Expand"})


class OnnxOriginal:
    """A graph that is there already. Its IR version and the names of its ends stay; its opset is 13 at least.

    Weights may lie beside the file. An axis `batch` that it lacks is made of the fixed size with which all inputs
    begin.

    Raises:
        BadInput: It is no ONNX file, or not all of it is there.
        BundleInvalid: It needs operators, or tensors, that kit cannot run; or weights lie somewhere else.
        UsageError: It has no axis of a name in `axes`.
        GateFailed: A batch was asked for, and the graph holds the size of one.
    """

    def __init__(
        self,
        path: Path,
        *,
        name: str | None = None,
        task: Task | None = None,
        axes: Mapping[str, Axis] | None = None,
    ) -> None:
        if not path.is_file():
            raise BadInput(f"there is no file {str(path)!r}")
        _check_kind(path)
        beside = graph_file.weights_beside(path)
        trial.try_file(path, [ready.ref_of(one) for one in (path, *beside)], "onnxruntime", signature=None)
        self._graph: Graph | None = read(path)
        _check_operators(self._graph.model, path)
        self.name = name or bundle_name(path.stem)
        self.task = task
        self.examples: tuple[Samples, ...] | None = None
        self.remarks: tuple[str, ...] = ()
        self.record = _record(path)
        self._is_quantized = _is_quantized(path)
        self._forget: Callable[[], object] | None = None
        self._runner: OnnxRuntimeRunner | None = None
        wants_batch = axes is not None and BATCH in axes and _frees_batch(self._graph.model)
        try:
            self._runner = OnnxRuntimeRunner(self._opened(path, wants_batch), _ANSWERING)
            signature = _with_batch_of_outputs(self._runner)
            self.signature = _bounded(_with_vocabularies(signature, self._graph), dict(axes or {}))
            if wants_batch:
                self._try_batch()
        except BaseException:
            self.close()
            raise

    def _opened(self, path: Path, is_changed: bool) -> Path:
        """Return the file to open: large weights inside it are written beside it first, so that they are mapped."""
        graph = self._graph
        assert graph is not None  # it was just read
        inside = path.stat().st_size > EXTERNAL_ABOVE_BYTES
        if not (inside or is_changed):
            return path
        folder = tempfile.mkdtemp(prefix="kit-")
        self._forget = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        return graph.save(Path(folder))

    def _try_batch(self) -> None:
        sizes = self.signature.usual_sizes()
        try:
            for size in (1, 2):
                if not self.signature.axes[BATCH].problem(size):
                    self.answer(seeded(self.signature, sizes={**sizes, BATCH: size}).inputs)
        except KitError as error:
            raise GateFailed(
                f"the graph holds a batch of one size inside, and does not run with another: {error}",
                hint="export it with a dynamic batch, or leave the axis out",
            ) from error

    def answer(self, tensors: Tensors) -> dict[str, NDArray[Any]]:
        """Compute the outputs, in pieces bounded by bytes."""
        if self._runner is None:
            raise UsageError("this model was closed")
        if self.signature.batch is None:  # the graph may have an axis that looks like one
            return self._runner.run(tensors)
        return run_in_batches(self._runner, tensors)

    def graph(self, *, opset: int = DEFAULT_OPSET) -> Graph:  # noqa: ARG002 - its opset stays
        """Return the graph without what does not compute, in the form that quantizers read.

        Raises:
            GateFailed: It is no valid ONNX.
        """
        if self._graph is None:
            raise UsageError("this model was closed")
        if not self._is_quantized:
            _check_standard(self._graph)  # the rules take it for granted
        strip(self._graph.model)
        if not self._is_quantized:
            self._graph = raised(self._graph)
            simplify(self._graph, batch=self.signature.batch)
        return self._graph

    def write(self, folder: Path, *, opset: int = DEFAULT_OPSET) -> Path:
        """Write it as `model.onnx`, large weights in `model.data` beside it."""
        return self.graph(opset=opset).save(folder)

    def pupil(self) -> None:
        """Return nothing: a graph has no gradients."""

    def close(self) -> None:
        """Close the session, and forget the graph."""
        if self._runner is not None:
            self._runner.close()
        self._runner = self._graph = None
        if self._forget is not None:
            self._forget()


def _record(path: Path) -> Provenance:
    found = graph_file.look(path)
    kind = f" (already {found.precision}, {found.format})" if _is_quantized(path) else ""
    return Provenance(kind="onnx", name=f"{path.name}{kind}", sha256=files.sha256(path))


def _is_quantized(path: Path) -> bool:
    return graph_file.look(path).format is not VariantFormat.FLOAT


def _check_kind(path: Path) -> None:
    if path.suffix.lower() != ".onnx":
        raise UsageError(f"{path.name} is no .onnx file")


def _check_operators(model: onnx.ModelProto, path: Path) -> None:
    own = {function.domain for function in model.functions}
    foreign = sorted(set(domains_of(model)) - _KNOWN_DOMAINS - own)
    if foreign:
        used = sorted({node.op_type for node in model.graph.node if node.domain == foreign[0]})
        raise BundleInvalid(
            f"{path.name} needs the custom operators {', '.join(used)} of {foreign[0]!r}, which ONNX Runtime does not have",
            hint="export it with ONNX's own operators",
        )


def _check_standard(graph: Graph) -> None:
    """Refuse what is no valid ONNX, such as a graph that runs in a circle."""
    try:
        onnx.checker.check_model(graph.outline())
    except onnx.checker.ValidationError as error:
        raise GateFailed(f"onnx.checker refuses the graph: {error}") from error


def _frees_batch(model: onnx.ModelProto) -> bool:
    """Make the fixed size with which all inputs begin an axis; return whether there was one."""
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [one for one in model.graph.input if one.name not in constants]
    shapes = [one.type.tensor_type.shape.dim for one in inputs]
    sizes = {dims[0].dim_value if dims else 0 for dims in shapes}
    if len(sizes) != 1 or sizes == {0}:
        return False
    (size,) = sizes
    for one in (*inputs, *model.graph.output):
        dims = one.type.tensor_type.shape.dim
        if dims and dims[0].dim_value == size:
            dims[0].dim_param = BATCH
    model.graph.ClearField("value_info")
    return True


def _bounded(signature: Signature, axes: dict[str, Axis]) -> Signature:
    unknown = sorted(set(axes) - set(signature.axes))
    if unknown:
        raise UsageError(
            f"the model has no axis {unknown[0]!r}", hint=f"its axes are: {', '.join(signature.axes) or 'none'}"
        )
    return dataclasses.replace(signature, axes={**signature.axes, **axes})


def _with_batch_of_outputs(runner: OnnxRuntimeRunner) -> Signature:
    """Return a signature whose outputs call the batch as inputs do: exporters name it anew, and running tells."""
    # Their other axes stay as the graph has them: those may follow an input at some sizes and not at others.
    signature = runner.signature
    batch = signature.batch
    if batch is None or all(batch in spec.shape for spec in signature.outputs):
        return signature
    found = probing.search(runner).signature
    if found.batch != batch:
        return signature
    outputs = tuple(
        dataclasses.replace(
            spec,
            shape=tuple(batch if other == batch else own for own, other in zip(spec.shape, seen.shape, strict=True)),
        )
        if len(spec.shape) == len(seen.shape)
        else spec
        for spec, seen in zip(signature.outputs, found.outputs, strict=True)
    )
    return dataclasses.replace(signature, outputs=outputs)


def _with_vocabularies(signature: Signature, graph: Graph) -> Signature:
    specs = tuple(
        dataclasses.replace(spec, below=_rows_picked_from(graph, spec.name))
        if spec.dtype in {"int32", "int64"}
        else spec
        for spec in signature.inputs
    )
    return dataclasses.replace(signature, inputs=specs)


def _rows_picked_from(graph: Graph, name: str) -> int | None:
    """Return the least number of rows of the constant tables that a tensor picks from; None if it picks from none."""
    constants = graph.constants
    found: list[int] = []
    names, seen = [name], {name}
    while names:
        read_from = names.pop()
        for node in graph.model.graph.node:
            if read_from not in node.input:
                continue
            if node.op_type == "Gather" and node.input[1] == read_from and node.input[0] in constants:
                axis = next((helper.get_attribute_value(one) for one in node.attribute if one.name == "axis"), 0)
                found.append(int(constants[node.input[0]].dims[axis]))
            elif node.op_type in _SAME_IDS and node.input[0] == read_from and node.output[0] not in seen:
                seen.add(node.output[0])
                names.append(node.output[0])
    return min((size for size in found if size > 0), default=None)
