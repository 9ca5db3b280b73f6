"""Ready .onnx files as other people's tools write them, made without torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def scores(path: Path, *, factor: float = 1.0, rows_depend: bool = False, fixed: bool = False, seed: int = 0) -> Path:
    """Words in, three scores out: ids and a mask of any length, embedded and averaged.

    Args:
        path: Of the file.
        factor: Of the last weights, to have another model that answers otherwise.
        rows_depend: Take the mean over the batch away from each row.
        fixed: Two samples of four words, and no other size.
        seed: Of the weights.
    """
    rng = np.random.default_rng(seed)
    sizes: list[int | str] = [2, 4] if fixed else ["batch", "sequence"]
    words = rng.standard_normal((20, 8)).astype(np.float32)
    weights = rng.standard_normal((8, 3)).astype(np.float32) * np.float32(factor)
    nodes = [
        helper.make_node("Gather", ["words", "ids"], ["vectors"]),
        helper.make_node("Cast", ["mask"], ["counts"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["counts", "last"], ["wide"]),
        helper.make_node("Mul", ["vectors", "wide"], ["masked"]),
        helper.make_node("ReduceSum", ["masked", "middle"], ["summed"], keepdims=0),
        helper.make_node("MatMul", ["summed", "weights"], ["raw" if rows_depend else "scores"]),
    ]
    if rows_depend:
        nodes += [
            helper.make_node("ReduceMean", ["raw", "first"], ["mean"], keepdims=1),
            helper.make_node("Sub", ["raw", "mean"], ["scores"]),
        ]
    axes = {"last": [2], "middle": [1], "first": [0]}
    constants = [
        numpy_helper.from_array(words, "words"),
        numpy_helper.from_array(weights, "weights"),
        *(numpy_helper.from_array(np.array(axis, np.int64), name) for name, axis in axes.items()),
    ]
    graph = helper.make_graph(
        nodes,
        "scores",
        [helper.make_tensor_value_info(name, TensorProto.INT64, sizes) for name in ("ids", "mask")],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [sizes[0], 3])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(path))
    return path


def endless(path: Path) -> Path:
    """A model that never answers: its loop has no end."""
    value = helper.make_tensor_value_info("value", TensorProto.FLOAT, [1])
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["going"], ["goes_on"]),
            helper.make_node("Add", ["value", "value"], ["next"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("count", TensorProto.INT64, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            value,
        ],
        [
            helper.make_tensor_value_info("goes_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, [1]),
        ],
    )
    graph = helper.make_graph(
        [helper.make_node("Loop", ["most", "yes", "x"], ["y"], body=body)],
        "endless",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
        [
            helper.make_tensor("most", TensorProto.INT64, [], [2**62]),
            helper.make_tensor("yes", TensorProto.BOOL, [], [True]),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), str(path))
    return path


def strings(path: Path) -> Path:
    """A model that takes text, which kit does not run."""
    graph = helper.make_graph(
        [helper.make_node("Identity", ["text"], ["same"])],
        "strings",
        [helper.make_tensor_value_info("text", TensorProto.STRING, ["batch"])],
        [helper.make_tensor_value_info("same", TensorProto.STRING, ["batch"])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), str(path))
    return path
