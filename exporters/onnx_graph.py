"""torch -> ONNX: one file, a dynamic batch, raw uint8 pixels in, normalisation in the first layer, no local paths.

Rules, each `model in -> model out`, applied in this order to what torch.onnx.export (dynamo) gives:

- `strip`       torch writes stack traces with local paths into metadata, and shapes that later tools trip over
                (quantize_dynamic fails on them, microsoft/onnxruntime#25890): drop metadata, doc strings and value_info.
- `untranspose` Gemm(transB=1) becomes Gemm with the transposed weight, which every quantizer reads.
- `fold`        Cast -> Mul -> Add -> Reshape -> Gemm becomes Cast -> Reshape -> Gemm: with y = (x*s + t) @ W + b,
                W' = s*W and b' = b + t*sum(W). Exact in real numbers, in float32 to rounding. Where the first layer is
                not dense the two nodes stay, and the result says so.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from torch import nn

from kit.errors import GateFailed
from kit.models import FromPixels
from kit.spec import BATCH, ModelSpec

OPSETS = (18, 19, 20, 21, 22, 23)
DEFAULT_OPSET = 20

# Oldest ONNX Runtime that reads an opset and an IR version (onnxruntime.ai/docs/reference/compatibility.html).
_RUNTIME_FOR_OPSET = {18: "1.14", 19: "1.15", 20: "1.17", 21: "1.18", 22: "1.20", 23: "1.22"}
_RUNTIME_FOR_IR = {8: "1.14", 9: "1.17", 10: "1.18", 11: "1.22"}


@dataclass(frozen=True, kw_only=True)
class Graph:
    """An ONNX model and what was done to it."""

    model: onnx.ModelProto
    normalization_folded: bool


def to_onnx(module: nn.Module, spec: ModelSpec, *, opset: int = DEFAULT_OPSET) -> Graph:
    """Export a module that takes normalised float32 `[N, *input shape]`.

    Args:
        module: In evaluation mode.
        spec: Names, shapes and the normalisation.
        opset: ONNX operator set.

    Raises:
        GateFailed: torch could not export the module, or not at this opset.
    """
    example = torch.zeros((2, *spec.input.shape), dtype=torch.uint8)  # a batch of 1 would be specialised
    wrapped = FromPixels(module, spec).eval()
    try:
        with _silence():
            program = torch.onnx.export(
                wrapped,
                (example,),
                dynamo=True,
                opset_version=opset,
                input_names=[spec.input.name],
                output_names=[spec.output.name],
                dynamic_shapes=({0: torch.export.Dim(BATCH)},),
                verbose=False,
            )
    except (torch.onnx.OnnxExporterError, RuntimeError, ValueError) as error:
        raise GateFailed(f"torch could not export the module: {_root_cause(error)}") from error
    assert program is not None  # dynamo=True always returns a program
    model: onnx.ModelProto = program.model_proto
    if opset_of(model) != opset:
        raise GateFailed(
            f"torch wrote opset {opset_of(model)} where {opset} was asked for", hint=f"use --opset {DEFAULT_OPSET}"
        )
    strip(model)
    untranspose(model)
    return Graph(model=model, normalization_folded=fold(model))


def strip(model: onnx.ModelProto) -> None:
    """Remove everything that does not compute: metadata, doc strings, inferred shapes."""
    graph = model.graph
    model.ClearField("doc_string")
    for holder in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        holder.ClearField("metadata_props")
        holder.ClearField("doc_string")
    graph.ClearField("value_info")
    graph.name = "kit"


def untranspose(model: onnx.ModelProto) -> None:
    """Store Gemm weights the way they are multiplied: transB=0."""
    constants = initializers(model)
    for node in model.graph.node:
        flag = next((a for a in node.attribute if a.name == "transB"), None)
        if node.op_type == "Gemm" and flag is not None and flag.i == 1 and node.input[1] in constants:
            weight = constants[node.input[1]]
            if _uses(model, node.input[1]) == 1:
                _assign(weight, numpy_helper.to_array(weight).T)
                flag.i = 0


def fold(model: onnx.ModelProto) -> bool:
    """Fold the normalisation into a dense first layer; return whether that could be done."""
    graph, constants = model.graph, initializers(model)
    names = ("Cast", "Mul", "Add")
    chain = _follow(model, graph.input[0].name)
    if tuple(node.op_type for node in chain[:3]) != names:
        return False
    reshapes = [node for node in chain[3:] if node.op_type in {"Reshape", "Flatten"}]
    rest = chain[3 + len(reshapes) :]
    if not rest or rest[0].op_type != "Gemm" or chain[3 : 3 + len(reshapes)] != reshapes:
        return False
    cast, multiply, add, gemm = *chain[:3], rest[0]
    scale, shift = (_scalar(node, constants) for node in (multiply, add))
    own = len(gemm.input) == 3 and all(name in constants and _uses(model, name) == 1 for name in gemm.input[1:])
    if scale is None or shift is None or not own or not _is_plain(gemm):
        return False
    weight, bias = constants[gemm.input[1]], constants[gemm.input[2]]
    matrix = numpy_helper.to_array(weight).astype(np.float64)
    _assign(weight, matrix * scale)
    _assign(bias, numpy_helper.to_array(bias).astype(np.float64) + shift * matrix.sum(axis=0))
    follower = reshapes[0] if reshapes else gemm
    follower.input[0] = cast.output[0]
    for node in (multiply, add):
        graph.node.remove(node)
    drop_unused_initializers(model)
    return True


def initializers(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """Return the graph's constants by name."""
    return {tensor.name: tensor for tensor in model.graph.initializer}


def opset_of(model: onnx.ModelProto) -> int:
    """Return the version of ONNX's own operator set."""
    return next(int(entry.version) for entry in model.opset_import if entry.domain in {"", "ai.onnx"})


def domains_of(model: onnx.ModelProto) -> tuple[str, ...]:
    """Return the operator domains the nodes use beyond ONNX's own; empty means portable."""
    return tuple(sorted({node.domain for node in model.graph.node} - {"", "ai.onnx"}))


def least_onnxruntime(model: onnx.ModelProto) -> str:
    """Return the oldest ONNX Runtime that reads the model."""
    versions = (_RUNTIME_FOR_OPSET.get(opset_of(model), "1.31"), _RUNTIME_FOR_IR.get(int(model.ir_version), "1.31"))
    return max(versions, key=lambda version: tuple(int(part) for part in version.split(".")))


def drop_unused_initializers(model: onnx.ModelProto) -> None:
    """Remove constants no node reads."""
    used = {name for node in model.graph.node for name in node.input}
    for tensor in [t for t in model.graph.initializer if t.name not in used]:
        model.graph.initializer.remove(tensor)


def _is_plain(gemm: onnx.NodeProto) -> bool:
    """Whether a Gemm is x @ W + b, nothing scaled and nothing transposed."""
    values = {attribute.name: helper.get_attribute_value(attribute) for attribute in gemm.attribute}
    scaled = values.get("alpha", 1.0) != 1.0 or values.get("beta", 1.0) != 1.0
    return not scaled and not values.get("transA", 0) and not values.get("transB", 0)


def _root_cause(error: BaseException) -> str:
    """Return the first line of what went wrong at the bottom, without the escape codes of torch's report."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _follow(model: onnx.ModelProto, tensor: str) -> list[onnx.NodeProto]:
    """Return the chain of nodes from `tensor` on, as long as each output has one reader."""
    chain: list[onnx.NodeProto] = []
    while True:
        readers = [node for node in model.graph.node if tensor in node.input]
        if len(readers) != 1 or len(readers[0].output) != 1:
            return chain
        chain.append(readers[0])
        tensor = readers[0].output[0]


def _scalar(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> float | None:
    """Return a binary node's constant operand, if it is a single number."""
    found = [numpy_helper.to_array(constants[name]) for name in node.input if name in constants]
    return float(found[0].reshape(-1)[0]) if len(found) == 1 and found[0].size == 1 else None


def _uses(model: onnx.ModelProto, tensor: str) -> int:
    return sum(list(node.input).count(tensor) for node in model.graph.node)


def _assign(tensor: onnx.TensorProto, values: NDArray[np.floating]) -> None:
    name = tensor.name
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values, np.float32), name))


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Hold back torch.onnx's progress prints and its log; what fails is raised."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
