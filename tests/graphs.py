"""Small ONNX models written by hand, and bundles of them: no exporter, no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from kit.bundle import Bundle, Staged, create, file_ref
from kit.bundle.manifest import Needs, Variant
from kit.choices import Precision, VariantFormat
from kit.runtime.onnxruntime import OnnxRuntimeRunner
from kit.samples import seeded

Value = tuple[str, str, Sequence[int | str | None] | None]
"""Name, dtype as numpy spells it, shape: None for a size without a name, or for a shape that the graph does not tell."""


def make(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[Value],
    outputs: Sequence[Value],
    weights: dict[str, NDArray[np.generic]] | None = None,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [_value(one) for one in inputs],
        [_value(one) for one in outputs],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    domains = {node.domain for node in nodes if node.domain}
    opsets = [helper.make_opsetid("", 20), *(helper.make_opsetid(domain, 1) for domain in sorted(domains))]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def _value(value: Value) -> onnx.ValueInfoProto:
    name, dtype, shape = value
    kind = onnx.TensorProto.STRING if dtype == "str" else helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return helper.make_tensor_value_info(name, kind, shape)


def node(operator: str, inputs: str, outputs: str, **attributes: object) -> onnx.NodeProto:
    """Return a node; names are separated by blanks."""
    return helper.make_node(operator, inputs.split(), outputs.split(), **attributes)


def pixels() -> onnx.ModelProto:
    """uint8 [batch, 4, 4] in, three float32 out."""
    weight = np.random.default_rng(0).normal(0, 0.01, (16, 3)).astype(np.float32)
    return make(
        [
            node("Cast", "pixels", "real", to=onnx.TensorProto.FLOAT),
            node("Flatten", "real", "flat"),
            node("MatMul", "flat weight", "logits"),
        ],
        [("pixels", "uint8", ["batch", 4, 4])],
        [("logits", "float32", ["batch", 3])],
        {"weight": weight},
    )


def two_by_two() -> onnx.ModelProto:
    """Sum and difference of two inputs: `[batch, 3]` each."""
    return make(
        [node("Add", "a b", "sum"), node("Sub", "a b", "difference")],
        [("a", "float32", ["batch", 3]), ("b", "float32", ["batch", 3])],
        [("sum", "float32", ["batch", 3]), ("difference", "float32", ["batch", 3])],
    )


def sentences(*, vocabulary: int = 10) -> onnx.ModelProto:
    """Vectors of ids int64 [batch, sequence], masked, for each token and their sum for each sentence."""
    table = np.random.default_rng(0).normal(0, 1, (vocabulary, 4)).astype(np.float32)
    return make(
        [
            node("Gather", "table ids", "looked"),
            node("Cast", "mask", "real", to=onnx.TensorProto.FLOAT),
            node("Unsqueeze", "real last", "column"),
            node("Mul", "looked column", "tokens"),
            node("ReduceSum", "tokens middle", "sentence", keepdims=0),
        ],
        [("ids", "int64", ["batch", "sequence"]), ("mask", "bool", ["batch", "sequence"])],
        [("tokens", "float32", ["batch", "sequence", 4]), ("sentence", "float32", ["batch", 4])],
        {"table": table, "last": np.array([2]), "middle": np.array([1])},
    )


def mixed() -> onnx.ModelProto:
    """A scalar, truth values, float16 and int64."""
    return make(
        [
            node("Cast", "half", "real", to=onnx.TensorProto.FLOAT),
            node("Mul", "real factor", "product"),
            node("Not", "flags", "others"),
            node("Add", "count count", "twice"),
            node("Identity", "half", "same"),
        ],
        [
            ("half", "float16", ["batch", 2]),
            ("factor", "float32", []),
            ("flags", "bool", ["batch"]),
            ("count", "int64", ["batch"]),
        ],
        [
            ("product", "float32", ["batch", 2]),
            ("others", "bool", ["batch"]),
            ("twice", "int64", ["batch"]),
            ("same", "float16", ["batch", 2]),
        ],
    )


def nonzero() -> onnx.ModelProto:
    """Where an input is not 0: an output whose size depends on the values."""
    return make([node("NonZero", "x", "places")], [("x", "float32", ["n", 3])], [("places", "int64", [2, "found"])])


def times(factor: float) -> onnx.ModelProto:
    """`y` is so many times `x`: [batch, 3]."""
    return make(
        [node("Mul", "x factor", "y")],
        [("x", "float32", ["batch", 3])],
        [("y", "float32", ["batch", 3])],
        {"factor": np.array(factor, np.float32)},
    )


def slow() -> onnx.ModelProto:
    """`y` is `x`, [batch, 1], after as many products of 384x384 matrices as its largest value says, and one more."""
    body = helper.make_graph(
        [
            node("MatMul", "state weight", "next"),
            node("Identity", "going", "still"),
        ],
        "body",
        [
            helper.make_tensor_value_info("turn", onnx.TensorProto.INT64, []),
            helper.make_tensor_value_info("going", onnx.TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", onnx.TensorProto.FLOAT, [384, 384]),
        ],
        [
            helper.make_tensor_value_info("still", onnx.TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", onnx.TensorProto.FLOAT, [384, 384]),
        ],
    )
    return make(
        [
            node("ReduceMax", "x", "largest", keepdims=0),
            node("Abs", "largest", "size"),
            node("Cast", "size", "whole", to=onnx.TensorProto.INT64),
            node("Add", "whole one", "turns"),
            helper.make_node("Loop", ["turns", "", "zeros"], ["end"], body=body),
            node("ReduceMax", "end", "nothing", keepdims=0),
            node("Add", "x nothing", "y"),
        ],
        [("x", "float32", ["batch", 1])],
        [("y", "float32", ["batch", 1])],
        {
            "weight": np.eye(384, dtype=np.float32),
            "zeros": np.zeros((384, 384), np.float32),
            "one": np.array(1, np.int64),
        },
    )


def save_beside(model: onnx.ModelProto, path: Path) -> Path:
    """Save a model with its weights in `NAME.data` beside it."""
    onnx.save(
        model, path, save_as_external_data=True, location=f"{path.stem}.data", size_threshold=0, convert_attribute=False
    )
    return path


def bundle(
    model: onnx.ModelProto,
    folder: Path,
    *,
    name: str = "model",
    sizes: dict[str, int] | None = None,
    off_by: float = 0.0,
) -> Bundle:
    """Write a bundle of one variant, `fp32`, with answers of ONNX Runtime as golden samples, or answers that are off."""
    staging = folder.parent / f"{folder.name}-staging"
    staging.mkdir(parents=True)
    data = model.SerializeToString()
    graph = file_ref(data, "fp32", ".onnx")
    (staging / graph.file).write_bytes(data)
    with OnnxRuntimeRunner(data) as runner:
        signature = runner.signature
        batch = {} if signature.batch is None else {signature.batch: 64}
        samples = seeded(signature, sizes=signature.usual_sizes(**batch, **(sizes or {})))
        answers = runner.run(samples.inputs)
        if off_by:
            answers = {name: array + array.dtype.type(off_by) for name, array in answers.items()}
        golden = dataclasses.replace(samples, expected=answers)
    variant = Variant(
        id="fp32",
        precision=Precision.FP32,
        format=VariantFormat.FLOAT,
        graph=graph,
        needs=Needs(opset=20, ir_version=10, onnxruntime="1.18"),
    )
    staged = [Staged(variant=variant, folder=staging)]
    return create(folder, name=name, signature=signature, golden=[golden], tools={}, variants=staged)
