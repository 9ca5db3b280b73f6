"""torch -> ONNX: one file, a dynamic batch, raw uint8 pixels in, normalisation in the first layer, no local paths.

Rules, each `model in -> model out`, applied in this order to what torch.onnx.export (dynamo) gives:

- `strip`       torch writes stack traces with local paths into metadata, and shapes that later tools trip over
                (quantize_dynamic fails on them, microsoft/onnxruntime#25890): drop metadata, doc strings and value_info.
- `untranspose` Gemm(transB=1) becomes Gemm with the transposed weight, which every quantizer reads.
- `unscale`     Gemm's alpha and beta go into its weight and bias: quantizers pass over them.
- `crop`        Cast -> Mul -> Add -> Slice becomes Slice -> Cast -> Mul -> Add: what is cut away need not be computed.
- `fold`        Cast -> Mul -> Add -> Reshape -> Gemm becomes Cast -> Reshape -> Gemm: with y = (x*s + t) @ W + b,
                W' = s*W and b' = b + t*sum(W); the Add is missing where the mean is 0. Exact in real numbers, in float32
                to rounding. Where the first layer is not dense the nodes stay, and the result says so.
- `flatten`     Reshape to (-1, all the rest) becomes Flatten, which reads no shape: 0.7 us less of 12 for one image in
                int8 on one core of an AMD EPYC (family 25 model 17).
"""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
import math
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import nn

from exporters.graph.rules import (
    assign,
    drop_unused_initializers,
    follow,
    initializers,
    is_plain,
    opset_of,
    strip,
    uses,
)
from exporters.options import DEFAULT_OPSET
from kit.bundle.records import ModelSpec
from kit.choices import BATCH
from kit.errors import GateFailed
from kit.lab.models import FromPixels


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
    unscale(model)
    crop(model)
    folded = fold(model)
    flatten(model)
    return Graph(model=model, normalization_folded=folded)


def untranspose(model: onnx.ModelProto) -> None:
    """Store Gemm weights the way they are multiplied, transB=0; one that several layers share, once for all of them."""
    for name, weight in initializers(model).items():
        readers = [node for node in model.graph.node if name in node.input]
        flags = [next((a for a in node.attribute if a.name == "transB"), None) for node in readers]
        gemms = [node for node in readers if node.op_type == "Gemm" and list(node.input).index(name) == 1]
        if readers and len(gemms) == uses(model, name) and all(flag is not None and flag.i == 1 for flag in flags):
            assign(weight, numpy_helper.to_array(weight).T)
            for flag in flags:
                assert flag is not None  # all were looked at
                flag.i = 0


def unscale(model: onnx.ModelProto) -> None:
    """Multiply a Gemm's weight by its alpha and its bias by its beta, where they are its own."""
    constants = initializers(model)
    for node in (one for one in model.graph.node if one.op_type == "Gemm"):
        if not all(name in constants and uses(model, name) == 1 for name in node.input[1:]):
            continue
        for name, number in zip(("alpha", "beta"), node.input[1:3], strict=False):
            factor = next((a for a in node.attribute if a.name == name), None)
            if factor is not None and factor.f != 1.0:
                assign(constants[number], numpy_helper.to_array(constants[number]) * np.float32(factor.f))
                factor.f = 1.0


def crop(model: onnx.ModelProto) -> None:
    """Cut raw pixels, in one Slice, where each normalised pixel is computed by itself and then cut."""
    graph, constants = model.graph, initializers(model)
    chain = follow(model, graph.input[0].name)
    start = 1 + len(_normalization(chain[1:], constants))
    slices = list(itertools.takewhile(lambda node: node.op_type == "Slice", chain[start:]))
    place = start + len(slices)
    if not slices or chain[0].op_type != "Cast" or len(chain) == place:
        return
    given = [[_integers(constants, name) for name in node.input[1:]] for node in slices]
    if any(len(one) < 3 or None in one or set((one[3:] or [[1]])[0] or []) != {1} for one in given):
        return  # a step, or a bound that is computed
    axes = [axis for one in given for axis in one[2] or []]
    if len(set(axes)) < len(axes) or min(axes) < 1:
        return  # cut twice, or across the batch
    pixels = graph.input[0].name
    names = [f"{pixels}.{part}" for part in ("starts", "ends", "axes")]
    for name, parts in zip(names, zip(*(one[:3] for one in given), strict=True), strict=True):
        joined = np.array([number for part in parts for number in part or []], np.int64)
        graph.initializer.append(numpy_helper.from_array(joined, name))
    chain[place].input[0] = slices[0].input[0]
    for node in slices:
        graph.node.remove(node)
    chain[0].input[0] = f"{pixels}.cropped"
    graph.node.insert(0, helper.make_node("Slice", [pixels, *names], [chain[0].input[0]], name="crop"))
    drop_unused_initializers(model)


def _normalization(chain: list[onnx.NodeProto], constants: dict[str, onnx.TensorProto]) -> list[onnx.NodeProto]:
    """Return the nodes at the start of a chain that normalise raw pixels: Mul and Add of single numbers, or one of them."""
    kinds = [node.op_type for node in chain[:2]]
    count = 2 if kinds == ["Mul", "Add"] else 1 if kinds[:1] in (["Mul"], ["Add"]) else 0
    steps = chain[:count]
    while steps and _scalar(steps[-1], constants) is None:
        del steps[-1]  # the model's own
    return steps if all(_scalar(node, constants) is not None for node in steps) else []


def _integers(constants: dict[str, onnx.TensorProto], name: str) -> list[int] | None:
    return [int(value) for value in numpy_helper.to_array(constants[name]).ravel()] if name in constants else None


def fold(model: onnx.ModelProto) -> bool:
    """Fold the normalisation into a dense first layer; return whether that could be done."""
    graph, constants = model.graph, initializers(model)
    chain = follow(model, graph.input[0].name)
    if chain and chain[0].op_type == "Slice":
        del chain[0]
    if not chain or chain[0].op_type != "Cast":
        return False
    steps = _normalization(chain[1:], constants)
    rest = chain[1 + len(steps) :]
    reshapes = list(itertools.takewhile(lambda node: node.op_type in {"Reshape", "Flatten"}, rest))
    rest = rest[len(reshapes) :]
    if not rest or rest[0].op_type != "Gemm":
        return False
    cast, gemm = chain[0], rest[0]
    numbers = {node.op_type: found for node in steps if (found := _scalar(node, constants)) is not None}
    scale, shift = numbers.get("Mul", 1.0), numbers.get("Add", 0.0)
    own = len(gemm.input) == 3 and all(name in constants and uses(model, name) == 1 for name in gemm.input[1:])
    if not own or not is_plain(gemm):
        return False
    weight, bias = constants[gemm.input[1]], constants[gemm.input[2]]
    matrix = numpy_helper.to_array(weight).astype(np.float64)
    assign(weight, matrix * scale)
    assign(bias, numpy_helper.to_array(bias).astype(np.float64) + shift * matrix.sum(axis=0))
    follower = reshapes[0] if reshapes else gemm
    follower.input[0] = cast.output[0]
    for node in steps:
        graph.node.remove(node)
    drop_unused_initializers(model)
    return True


def flatten(model: onnx.ModelProto) -> None:
    """Write a Reshape that keeps the batch and joins everything else as Flatten."""
    constants = initializers(model)
    shapes = {
        one.name: one.type.tensor_type.shape.dim for one in onnx.shape_inference.infer_shapes(model).graph.value_info
    }
    for node in model.graph.node:
        if node.op_type != "Reshape" or node.input[0] not in shapes:
            continue
        target = _integers(constants, node.input[1])
        batch, *rest = shapes[node.input[0]] or [None]
        joined = math.prod(dim.dim_value for dim in rest)
        if target == [-1, joined] and joined > 0 and batch is not None and batch.dim_param == BATCH:
            node.op_type = "Flatten"
            del node.input[1:]
            del node.attribute[:]
            node.attribute.append(helper.make_attribute("axis", 1))
    drop_unused_initializers(model)


def _root_cause(error: BaseException) -> str:
    """Return the first line of what went wrong at the bottom, without the escape codes of torch's report."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _scalar(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> float | None:
    """Return a binary node's constant operand, if it is a single number."""
    found = [numpy_helper.to_array(constants[name]) for name in node.input if name in constants]
    return float(found[0].reshape(-1)[0]) if len(found) == 1 and found[0].size == 1 else None


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
