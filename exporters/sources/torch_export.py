"""torch.export and torch.onnx.export behind functions that answer in kit's words: a program in, a graph out."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import onnx
import onnx_ir
import torch
from torch.export import ExportedProgram

from exporters.graph import names
from exporters.graph.files import Graph, Held
from exporters.graph.rules import opset_of, strip
from exporters.options import DEFAULT_OPSET
from exporters.sources import recurrent
from exporters.sources.base import EXTERNAL_ABOVE_BYTES
from exporters.sources.calls import Flat
from kit.errors import GateFailed, UsageError
from kit.tensors import DTYPES, Axis, Signature, TensorSpec

_HELD_FROM_BYTES = 16 * 2**10
_FAILURES = (RuntimeError, ValueError, TypeError, AttributeError, NotImplementedError, KeyError, IndexError)


def trace(module: Flat, signature: Signature, tensors: Sequence[torch.Tensor]) -> ExportedProgram:
    """Return a program for inputs of any size that the axes of a signature allow.

    The module is in evaluation mode. Sizes of the examples along the axes are 2 or more and differ from axis to axis.

    Raises:
        GateFailed: torch cannot trace the module, or only for some sizes; the message names the axis.
    """
    dims = {name: _dim(name, signature.axes[name]) for name in signature.dynamic if is_dynamic(signature.axes[name])}
    shapes = tuple(
        {place: dims[size] for place, size in enumerate(spec.shape) if isinstance(size, str) and size in dims} or None
        for spec in signature.inputs
    )

    def export(*, defers: bool) -> ExportedProgram:
        return torch.export.export(
            module,
            tuple(tensors),
            dynamic_shapes={"tensors": shapes},
            strict=False,
            prefer_deferred_runtime_asserts_over_guards=defers,
        )

    with silence():
        try:
            return export(defers=False)
        except Exception as error:  # whatever the module's own code raises
            refusal = _refusal(error, signature, tensors)
            is_special, is_recurrent = _is_special_case(error), recurrent.has_some(module)
            if not (is_special or is_recurrent):
                raise refusal from error
        try:  # sizes inside the module that must not be 1, for instance: the check of sizes is the judge of those
            with recurrent.Whole() if is_recurrent else contextlib.nullcontext():
                return export(defers=is_special)
        except Exception as error:  # as above; the first refusal says more
            raise refusal from error


def _is_special_case(error: BaseException) -> bool:
    """Whether torch merely wants a promise that a size computed from the axes is an ordinary one."""
    text = str(error)
    return "generated guard" in text and "specialized" not in text


def is_dynamic(axis: Axis) -> bool:
    """Whether there are two sizes to choose from."""
    return axis.most is None or axis.usual + axis.multiple_of <= axis.most


def _dim(name: str, axis: Axis) -> Any:
    word = re.sub(r"\W", "_", name)
    word = word if word.isidentifier() else f"axis_{word}"
    if axis.multiple_of == 1:
        return torch.export.Dim(word, min=axis.least or None, max=axis.most)
    most = None if axis.most is None else axis.most // axis.multiple_of
    return axis.multiple_of * torch.export.Dim(f"_{word}", min=max(1, axis.least // axis.multiple_of), max=most)


def _refusal(error: BaseException, signature: Signature, tensors: Sequence[torch.Tensor]) -> GateFailed:
    """Return what went wrong, with the axis and its size if torch fixed one."""
    text = _plain(str(error))
    fixed = re.search(r"specialized (?:it )?to be a constant \((\d+)\)", text)
    sizes = {
        size: int(tensor.shape[place])
        for spec, tensor in zip(signature.inputs, tensors, strict=True)
        for place, size in enumerate(spec.shape)
        if isinstance(size, str)
    }
    if fixed is not None:
        name = next((axis for axis, size in sizes.items() if size == int(fixed[1])), "one of the axes")
        return GateFailed(
            f"the module's code fixes the axis {name!r} at {fixed[1]}, the size of the example",
            hint=f"give that size as a number in the signature, or write the code without reading {name} as a number",
        )
    related = re.search(r"(\w+) = (\d+)\*_\w+", text)
    if related is not None and related[1] in sizes:
        return GateFailed(
            f"the axis {related[1]!r} must be a multiple of {related[2]} for this module",
            hint=f"say so in the signature: Axis(multiple_of={related[2]})",
        )
    equal = re.search(r"^\s*(\w+) = (\w+)\s*$", text, re.MULTILINE)
    if equal is not None and {equal[1], equal[2]} <= set(sizes):
        return GateFailed(
            f"the axes {equal[1]!r} and {equal[2]!r} must be equal for this module", hint="give both the same name"
        )
    bound = re.search(r"generated guard:? ?([^\n]+)", text)
    if bound is not None and "Constraints violated" in text:
        return GateFailed(
            f"the module does not take every size of the axes {', '.join(sizes)}: torch needs {bound[1].strip()}",
            hint="give the axis bounds that the module keeps: Axis(least=..., most=..., multiple_of=...)",
        )
    if "data-dependent" in text.lower():
        return GateFailed(
            f"torch could not export the module: its code decides by values of tensors ({root_cause(error)})",
            hint="use torch.where or torch.cond where it reads values with if, int() or .item()",
        )
    return GateFailed(f"torch could not export the module: {root_cause(error)}")


def root_cause(error: BaseException) -> str:
    """Return the first line of what went wrong at the bottom, without the escape codes of torch's report and its paths."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in _plain(str(error)).strip().splitlines() if line.strip()]
    return re.sub(r"(?<![\w.])(?:/[\w.+-]+){2,}", "...", lines[0]) if lines else type(error).__name__


def _plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def described(
    program: ExportedProgram, inputs: Signature, output_names: Sequence[str], *, axes: Mapping[str, Axis]
) -> Signature:
    """Return the whole signature of a program whose inputs are known.

    Raises:
        UsageError: An output is of a dtype that kit lacks.
    """
    known = axis_names(program, inputs)
    values = output_values(program)
    outputs = []
    for name, value in zip(output_names, values, strict=True):
        sizes = tuple(_size(size, known, f"{name}_{place}") for place, size in enumerate(value.shape))
        varies = any(str(size).startswith("u") for size in value.shape)
        outputs.append(TensorSpec(name=name, dtype=dtype_of(value, name), shape=sizes, varies=varies))
    vocabularies = _vocabularies(program)
    taken = [
        TensorSpec(name=one.name, dtype=one.dtype, shape=one.shape, below=one.below or vocabularies.get(place))
        for place, one in enumerate(inputs.inputs)
    ]
    every = {name: axis for name, axis in {**inputs.axes, **axes}.items() if name in inputs.axes}
    return Signature(inputs=tuple(taken), outputs=tuple(outputs), axes=every, batch=inputs.batch)


def axis_names(program: ExportedProgram, inputs: Signature) -> dict[str, str]:
    """Return the names of a program's sizes, by torch's own words for them."""
    known: dict[str, str] = {}
    for spec, value in zip(inputs.inputs, input_values(program), strict=True):
        for size, found in zip(spec.shape, value.shape, strict=True):
            if isinstance(size, str) and not isinstance(found, int):
                known.setdefault(str(found), size)
    return known


def _size(size: Any, known: dict[str, str], otherwise: str) -> int | str:
    return size if isinstance(size, int) else known.setdefault(str(size), otherwise)


def dtype_of(value: torch.Tensor, name: str) -> str:
    """Return numpy's word for a tensor's dtype.

    Raises:
        UsageError: kit has no such tensors.
    """
    word = str(value.dtype).removeprefix("torch.")
    if word not in DTYPES:
        raise UsageError(f"{name} is {word}, which kit does not run", hint="convert it inside the module: .float()")
    return word


def input_values(program: ExportedProgram) -> list[Any]:
    """Return torch's stand-ins for the inputs."""
    wanted = [one for one in program.graph_signature.user_inputs if isinstance(one, str)]
    values = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    return [values[name] for name in wanted]


def output_values(program: ExportedProgram) -> list[Any]:
    """Return torch's stand-ins for the outputs."""
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    return [values[name] for name in program.graph_signature.user_outputs if isinstance(name, str)]


_SAME_IDS = frozenset({"_to_copy", "view", "reshape", "unsqueeze", "squeeze", "alias", "clone", "to", "expand"})


def _vocabularies(program: ExportedProgram) -> dict[int, int]:
    """Return the size of the embedding table that an integer input picks from, by the input's place."""
    places = {name: place for place, name in enumerate(program.graph_signature.user_inputs)}
    found: dict[int, int] = {}
    for node in program.graph.nodes:
        if not str(node.target).startswith("aten.embedding"):
            continue
        table, ids = node.args[0], node.args[1]
        while ids.op == "call_function" and str(ids.target).split(".")[1] in _SAME_IDS:
            ids = ids.args[0]
        if ids.name in places and "val" in table.meta:
            place, size = places[ids.name], int(table.meta["val"].shape[0])
            found[place] = min(size, found.get(place, size))
    return found


def to_graph(program: ExportedProgram, signature: Signature, *, opset: int) -> Graph:
    """Write a program as an ONNX graph with the signature's names; large weights stay where the program has them.

    Raises:
        GateFailed: torch cannot, or not at this opset.
    """
    sizes = axis_names(program, signature)
    try:
        with silence():
            written = torch.onnx.export(program, dynamo=True, opset_version=opset, verbose=False)
    except (torch.onnx.OnnxExporterError, *_FAILURES) as error:
        raise GateFailed(f"torch could not write the module as ONNX: {root_cause(error)}") from error
    assert written is not None  # dynamo=True always returns a program
    graph = _taken_over(written)
    model = graph.model
    if opset_of(model) != opset:
        raise GateFailed(
            f"torch wrote opset {opset_of(model)} where {opset} was asked for", hint=f"use --opset {DEFAULT_OPSET}"
        )
    _name_weights(graph)
    _shorten(graph)
    strip(model)
    given = [*model.graph.input, *model.graph.output]
    specs = [*signature.inputs, *signature.outputs]
    if len(given) != len(specs):
        raise GateFailed(
            f"the graph has {len(model.graph.input)} inputs where the module takes {len(signature.inputs)}",
            hint="leave out inputs that the module does not read",
        )
    _name_axes(given, specs, sizes)
    names.call(graph, {one.name: spec.name for one, spec in zip(given, specs, strict=True)})
    try:
        onnx.checker.check_model(graph.outline())
    except onnx.checker.ValidationError as error:
        raise GateFailed(f"torch wrote a graph that is not valid ONNX: {root_cause(error)}") from error
    return graph


def _taken_over(written: Any) -> Graph:
    """Return torch's graph; the values of large constants stay in the tensors that hold them if they are large in all."""
    model: onnx_ir.Model = written.model
    values = {name: one.const_value for name, one in model.graph.initializers.items() if one.const_value is not None}
    if sum(one.nbytes for one in values.values()) <= EXTERNAL_ABOVE_BYTES:
        return Graph(written.model_proto)
    held: dict[str, Held] = {}
    for name, one in values.items():
        if one.nbytes >= _HELD_FROM_BYTES:
            held[name] = one.numpy()
            model.graph.initializers[name].const_value = onnx_ir.ExternalTensor(
                location=name,
                offset=0,
                length=one.nbytes,
                dtype=one.dtype,
                shape=onnx_ir.Shape(one.shape.numpy()),
                name=name,
            )
    proto = onnx_ir.to_proto(model)
    for tensor in proto.graph.initializer:
        tensor.ClearField("external_data")
    return Graph(proto, held)


_SCOPES, _NAMED_BY_TORCH = "pkg.torch.onnx.name_scopes", re.compile(r"val_\d+")


def _name_weights(graph: Graph) -> None:
    """Call weights that torch has transposed after their module again: their layers are known by that name."""
    model = graph.model
    held = names.taken(model)
    constants = graph.constants
    changes: dict[str, str] = {}
    for node in model.graph.node:
        if node.op_type != "MatMul" or node.input[1] not in constants or not _NAMED_BY_TORCH.fullmatch(node.input[1]):
            continue
        scopes = next((one.value for one in node.metadata_props if one.key == _SCOPES), "")
        with contextlib.suppress(ValueError, IndexError):
            wanted = f"{json.loads(scopes.replace(chr(39), chr(34)))[-2]}.weight"
            if wanted not in held and node.input[1] not in changes and len(constants[node.input[1]].dims) == 2:
                changes[node.input[1]] = wanted
                held.add(wanted)
    names.renamed(model, changes)
    graph.rename_constants(changes)


_TWICE = "model.model."


def _shorten(graph: Graph) -> None:
    """Take one `model.` from weights that all have two: the module was wrapped before it came here."""
    own = [name for name in graph.constants if name.startswith("model.")]
    if own and all(name.startswith(_TWICE) for name in own):
        changes = {name: name.removeprefix("model.") for name in own}
        names.renamed(graph.model, changes)
        graph.rename_constants(changes)


def _name_axes(given: Sequence[onnx.ValueInfoProto], specs: Sequence[TensorSpec], sizes: Mapping[str, str]) -> None:
    for one, spec in zip(given, specs, strict=True):
        dims = one.type.tensor_type.shape.dim
        for dim, size in itertools.zip_longest(dims, spec.shape):
            if dim is None or size is None:
                raise GateFailed(f"{spec.name} has {len(dims)} axes in the graph, expected {spec.describe()}")
            if dim.HasField("dim_param"):
                dim.dim_param = sizes.get(dim.dim_param, size if isinstance(size, str) else dim.dim_param)


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Hold back the progress prints and the logs of torch's exporters; what fails is raised."""
    loggers = [
        logging.getLogger(name) for name in ("torch.onnx", "torch.export", "torch._dynamo", "torch.fx", "onnxscript")
    ]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
