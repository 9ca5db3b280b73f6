"""Shapes of all that a graph computes, for calls of one size."""

from __future__ import annotations

import onnx
from onnx import helper

from kit.tensors import Signature, Sizes


def with_shapes(model: onnx.ModelProto, signature: Signature, sizes: Sizes) -> onnx.ModelProto | None:
    """Return a copy with the shapes that ONNX infers for inputs of these sizes; None if it cannot."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.value_info[:]
    for value in copy.graph.input:
        spec = next((one for one in signature.inputs if one.name == value.name), None)
        if spec is not None:
            dtype = value.type.tensor_type.elem_type
            value.CopyFrom(helper.make_tensor_value_info(value.name, dtype, list(spec.sized(sizes))))
    for value in copy.graph.output:
        value.type.tensor_type.ClearField("shape")
    try:
        return onnx.shape_inference.infer_shapes(copy, data_prop=True)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError):
        return None
