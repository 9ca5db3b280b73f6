"""Originals for the workshop's tests: small ONNX graphs that answer for themselves, without torch."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from exporters.formats.base import Source
from kit.bundle.manifest import Provenance
from kit.metrics.fidelity import compare_tensors
from kit.runtime.base import RunnerOptions
from kit.runtime.onnxruntime import OnnxRuntimeRunner
from kit.samples import Samples
from kit.tasks.base import Task
from kit.tensors import Axis, Signature, Tensors, TensorSpec

ONE_IN_ONE_OUT = {"batch": Axis(typical=(1, 8))}


class OnnxOriginal:
    """An ONNX file, answered for by ONNX Runtime without optimizations.

    Args:
        source: A graph, or the path of one with its weights beside it.
        signature: What it takes and gives.
    """

    def __init__(
        self,
        source: onnx.ModelProto | Path,
        signature: Signature,
        *,
        name: str = "made-up",
        task: Task | None = None,
        examples: tuple[Samples, ...] | None = None,
    ) -> None:
        self.name, self.signature, self.task, self.examples = name, signature, task, examples
        self.record = Provenance(kind="onnx", name=f"{name}.onnx")
        self.remarks: tuple[str, ...] = ()
        self._source = source
        model = source if isinstance(source, Path) else source.SerializeToString()
        self._runner = OnnxRuntimeRunner(model, RunnerOptions(optimization="off"), binds=False)
        self.closed = False

    def answer(self, tensors: Tensors) -> Tensors:
        """Compute its outputs."""
        return self._runner.run(tensors)

    def write(self, folder: Path, *, opset: int) -> Path:
        """Write it, or copy its files."""
        del opset
        path = folder / "model.onnx"
        if isinstance(self._source, Path):
            for item in self._source.parent.iterdir():
                shutil.copyfile(item, folder / (path.name if item == self._source else item.name))
        else:
            path.write_bytes(self._source.SerializeToString(deterministic=True))
        return path

    def pupil(self) -> None:
        """Return nothing: it is no model of torch."""

    def close(self) -> None:
        """Free its weights."""
        self._runner.close()
        self.closed = True


def graph(
    nodes: Sequence[onnx.NodeProto], weights: dict[str, Any], signature: Signature, *, opset: int = 20
) -> onnx.ModelProto:
    """A model of these nodes and weights with the inputs and outputs of a signature."""
    ends = [
        [
            helper.make_tensor_value_info(
                spec.name, helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype)), list(spec.shape)
            )
            for spec in specs
        ]
        for specs in (signature.inputs, signature.outputs)
    ]
    made = helper.make_graph(
        list(nodes),
        "made-up",
        *ends,
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def dense(
    sizes: Sequence[int], *, seed: int = 0, raw: bool = False, last_relu: bool = False
) -> tuple[onnx.ModelProto, Signature]:
    """A chain of dense layers with ReLU between: `layers.1`, `layers.3`, ...; `raw` for uint8 values in."""
    rng = np.random.default_rng(seed)
    signature = vectors(sizes[0], sizes[-1], dtype="uint8" if raw else "float32")
    nodes, weights, tensor = [], {}, "x"
    if raw:
        nodes += [helper.make_node("Cast", ["x"], ["cast"], to=TensorProto.FLOAT)]
        nodes += [helper.make_node("Flatten", ["cast"], ["flat"], axis=1)]
        tensor = "flat"
    for place, (given, made) in enumerate(itertools.pairwise(sizes)):
        name, last = f"layers.{2 * place + 1}", place == len(sizes) - 2
        weights[f"{name}.weight"] = (rng.standard_normal((given, made)) / np.sqrt(given)).astype(np.float32)
        weights[f"{name}.bias"] = rng.standard_normal(made).astype(np.float32) / 10
        if raw and place == 0:
            weights[f"{name}.weight"] /= np.float32(128)
        ends = not last_relu and last
        nodes.append(
            helper.make_node(
                "Gemm",
                [tensor, f"{name}.weight", f"{name}.bias"],
                ["y" if ends else f"{name}.out"],
                name=f"{name}.gemm",
            )
        )
        if not ends:
            tensor = "y" if last else f"{name}.relu"
            nodes.append(helper.make_node("Relu", [f"{name}.out"], [tensor], name=f"{name}.act"))
    return graph(nodes, weights, signature), signature


def vectors(given: int, made: int, *, dtype: str = "float32") -> Signature:
    """Vectors in, vectors out."""
    return Signature(
        inputs=(TensorSpec(name="x", dtype=dtype, shape=("batch", given)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=("batch", made)),),
        axes=ONE_IN_ONE_OUT,
    )


def noise(signature: Signature, count: int, *, seed: int = 0, **sizes: int) -> Samples:
    """Samples that fit a signature, each another."""
    rng = np.random.default_rng(seed)
    every = signature.usual_sizes(**{**sizes, **({signature.batch: count} if signature.batch else {})})
    inputs = {}
    for spec in signature.inputs:
        shape = spec.sized(every)
        if spec.is_float:
            inputs[spec.name] = rng.standard_normal(shape).astype(spec.dtype)
        else:
            inputs[spec.name] = rng.integers(0, spec.below or 256, shape).astype(spec.dtype)
    return Samples(inputs=inputs, source="noise")


def convolution() -> tuple[onnx.ModelProto, Signature]:
    """A convolution, a mean over the picture, and a dense layer."""
    signature = Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", 1, 4, 4)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=("batch", 3)),),
    )
    rng = np.random.default_rng(0)
    weights = {
        "conv.weight": rng.standard_normal((4, 1, 3, 3)).astype(np.float32),
        "conv.bias": rng.standard_normal(4).astype(np.float32),
        "head.weight": rng.standard_normal((4, 3)).astype(np.float32),
        "head.bias": rng.standard_normal(3).astype(np.float32),
        "axes": np.array([2, 3], np.int64),
    }
    nodes = [
        helper.make_node("Conv", ["x", "conv.weight", "conv.bias"], ["conv"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["conv"], ["relu"], name="relu"),
        helper.make_node("ReduceMean", ["relu", "axes"], ["mean"], name="mean", keepdims=0),
        helper.make_node("Gemm", ["mean", "head.weight", "head.bias"], ["y"], name="head"),
    ]
    return graph(nodes, weights, signature), signature


def source_of(
    folder: Path, model: onnx.ModelProto, signature: Signature, *, train: tuple[Samples, ...] | None = None
) -> Source:
    """Return what candidates are made of: a graph in a folder, and samples to calibrate with."""
    path = folder / "fp32.onnx"
    path.write_bytes(model.SerializeToString())
    train = (noise(signature, 200),) if train is None else train
    return Source(path=path, folder=folder, signature=signature, train=train, dataset="noise")


def run(model: onnx.ModelProto | Path, samples: Samples) -> NDArray[np.float32]:
    """Return the first output of a graph."""
    given = model if isinstance(model, Path) else model.SerializeToString()
    with OnnxRuntimeRunner(given, binds=False) as runner:
        return next(iter(runner.run(samples.inputs).values()))


def rms(exact: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    """Return the rms error of answers."""
    return compare_tensors({"y": exact}, {"y": found})[0].rms_error
