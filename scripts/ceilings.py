"""What this machine can do at most: an empty call, reading the weights once, the rate of integer matrix products.

Each is measured through the runtimes themselves, so that a figure of a model can be held against what they reach at best.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator

import numpy as np
from onnx import GraphProto, TensorProto, helper, numpy_helper

from kit.bench.measure import Call
from kit.runtime.base import Binding, RunnerOptions
from kit.runtime.onnxruntime import OnnxRuntimeRunner
from kit.runtime.openvino import OpenVinoRunner

SHAPES = ((64, 784, 512), (1024, 784, 512), (1024, 512, 256), (1024, 1024, 1024), (1024, 2048, 2048), (4096, 784, 512))
"""Rows, inputs and outputs of the matrix products that are tried."""


def empty_call() -> Call:
    """Return a call of ONNX Runtime that hands 784 bytes on, bound as the engine binds."""
    inputs = [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", 28, 28])]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.UINT8, ["batch", 28, 28])]
    graph = helper.make_graph([helper.make_node("Identity", ["pixels"], ["logits"])], "empty", inputs, outputs)
    return OnnxRuntimeRunner(_model(graph)).bind({"batch": 1}).compute


def reading(size_bytes: int) -> Call:
    """Return a call that reads so many bytes once, from wherever they lie after being read before: C's memchr, in vain."""
    weights = np.zeros(size_bytes, np.uint8)
    search = ctypes.CDLL(None).memchr
    search.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
    address = weights.ctypes.data

    def read(keep: np.ndarray = weights) -> None:
        search(address, 1, len(keep))

    return read


def products(threads: int) -> Iterator[tuple[str, float, Call]]:
    """Give integer matrix products: name, operations in one call (two for each multiplication), and the call."""
    for rows, inputs, outputs in SHAPES:
        operations = 2.0 * rows * inputs * outputs
        name = f"{rows}x{inputs}x{outputs}"
        options = RunnerOptions(threads=threads)
        pixels = np.random.default_rng(0).integers(0, 256, (rows, inputs), dtype=np.uint8)
        for runtime, open_model in RUNTIMES.items():
            bound = open_model(_product(inputs, outputs), options, rows)
            bound.copy_in(pixels)
            yield f"{runtime} {name}", operations, bound.compute


def _in_onnxruntime(model: bytes, options: RunnerOptions, rows: int) -> Binding:
    return OnnxRuntimeRunner(model, options).bind({"rows": rows})


def _in_openvino(model: bytes, options: RunnerOptions, rows: int) -> Binding:
    with OnnxRuntimeRunner(model) as runner:
        signature = runner.signature
    return OpenVinoRunner(model, options, signature=signature).bind({"rows": rows})


RUNTIMES: dict[str, Callable[[bytes, RunnerOptions, int], Binding]] = {
    "onnxruntime": _in_onnxruntime,
    "openvino": _in_openvino,
}


def _product(inputs: int, outputs: int) -> bytes:
    """Write uint8 by int8 to uint8, with a scale for each tensor, as QDQ: both runtimes make one integer kernel of it."""
    weights = np.random.default_rng(1).integers(-63, 64, (inputs, outputs), dtype=np.int8)
    scales = {"x_scale": np.float32(1), "w_scale": np.float32(0.01), "y_scale": np.float32(inputs)}
    constants = [numpy_helper.from_array(np.array(value), name) for name, value in scales.items()]
    constants += [
        numpy_helper.from_array(np.array(0, np.uint8), "zero"),
        numpy_helper.from_array(np.array(0, np.int8), "w_zero"),
        numpy_helper.from_array(weights, "w"),
    ]
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "x_scale", "zero"], ["xf"]),
        helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["wf"]),
        helper.make_node("MatMul", ["xf", "wf"], ["yf"]),
        helper.make_node("QuantizeLinear", ["yf", "y_scale", "zero"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, ["rows", inputs])],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, ["rows", outputs])],
        constants,
    )
    return _model(graph)


def _model(graph: GraphProto) -> bytes:
    model: bytes = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    ).SerializeToString()
    return model
