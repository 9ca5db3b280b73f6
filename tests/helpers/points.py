"""Points of a benchmark, and a model that has only one."""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper


def batch(*sizes: int) -> tuple[dict[str, int], ...]:
    """A point for each batch size."""
    return tuple({"batch": size} for size in sizes)


def fixed_model() -> bytes:
    """A ready model whose sizes are all fixed: the square of each number."""
    given = helper.make_tensor_value_info("numbers", TensorProto.FLOAT, [3, 4])
    made = helper.make_tensor_value_info("squares", TensorProto.FLOAT, [3, 4])
    graph = helper.make_graph(
        [helper.make_node("Mul", ["numbers", "numbers"], ["squares"])], "squares", [given], [made]
    )
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return model.SerializeToString()
