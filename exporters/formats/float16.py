"""fp32 ONNX -> fp16: weights and arithmetic in half precision, pixels in and float32 logits out as before.

For GPUs. ONNX Runtime's CPU provider computes it in float32 on x86 and converts in between, so that it is no faster there.
"""

from __future__ import annotations

import onnx

from exporters.graph.rules import strip
from kit.errors import GateFailed


def to_float16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model in fp16.

    Raises:
        GateFailed: The converter failed.
    """
    from onnxruntime.transformers import float16

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    try:
        converted: onnx.ModelProto = float16.convert_float_to_float16(copy, keep_io_types=True)
    except (RuntimeError, ValueError, onnx.shape_inference.InferenceError) as error:
        raise GateFailed(f"the model could not be converted to fp16: {error}") from error
    strip(converted)
    return converted
