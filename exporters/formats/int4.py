"""fp32 ONNX -> int4 weights in blocks of 32 (MatMulNBits of com.microsoft); activations are quantized within each call.

The quantizer knows MatMul only and passes over Gemm without a word, so that Gemm becomes MatMul and Add first. Without
`accuracy_level=4`, integer arithmetic on the weights, it was 25 times slower on a CPU.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

import onnx
from onnx import helper

from exporters.formats.int8 import Quantized, count, excluded_layers
from exporters.graph.rules import Layer, is_plain, layers, strip
from kit.bundle.records import Quantization
from kit.choices import QuantizationScheme
from kit.errors import GateFailed

BLOCK_SIZE = 32
_INTEGER_ARITHMETIC = 4


def quantize_weights(model: onnx.ModelProto, *, exclude: tuple[str, ...] = ()) -> Quantized:
    """Quantize the weights of dense layers to 4 bits.

    Args:
        model: fp32, as exporters.sources.module makes it.
        exclude: Names of layers to leave in float.

    Raises:
        UsageError: A layer of that name does not exist, or all are excluded.
        GateFailed: A layer was skipped, because it is no dense one for instance, or the quantizer failed.
    """
    with _same_logging():
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    kept = excluded_layers(model, exclude)
    source = onnx.ModelProto()
    source.CopyFrom(model)
    named = {layer.name for layer in kept}
    left = [name for layer in layers(source) if (name := _as_matmul(source, layer)) and layer.name in named]
    logger = logging.getLogger("onnxruntime.quantization.matmul_nbits_quantizer")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        quantizer = MatMulNBitsQuantizer(
            source,
            block_size=BLOCK_SIZE,
            is_symmetric=False,
            accuracy_level=_INTEGER_ARITHMETIC,
            nodes_to_exclude=left,
        )
        quantizer.process()
    except (RuntimeError, ValueError, TypeError) as error:
        raise GateFailed(f"the quantizer failed: {error}") from error
    finally:
        logger.setLevel(level)
    quantized: onnx.ModelProto = quantizer.model.model
    strip(quantized)
    done, total = count(model, quantized, exclude)
    record = Quantization(
        scheme=QuantizationScheme.DYNAMIC,
        activation_dtype="int8",
        weight_dtype="uint4",
        weight_bits=4,
        per_channel=True,
        block_size=BLOCK_SIZE,
        layers_quantized=done,
        layers_total=total,
        layers_excluded=exclude,
    )
    return Quantized(model=quantized, record=record)


@contextlib.contextmanager
def _same_logging() -> Iterator[None]:
    """Leave the root logger as it is: ONNX Runtime's module sets it up for everybody when it is imported."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    try:
        yield
    finally:
        root.setLevel(level)
        root.handlers[:] = handlers


def unable(model: onnx.ModelProto) -> tuple[str, ...]:
    """Return the names of layers that weights of 4 bits are not for: convolutions, and Gemms that scale their product."""
    found = layers(model)
    return tuple(
        dict.fromkeys(
            one.name
            for one in found
            if one.node.op_type == "Conv" or (one.node.op_type == "Gemm" and not is_plain(one.node))
        )
    )


def _as_matmul(model: onnx.ModelProto, layer: Layer) -> str:
    """Write a plain Gemm as MatMul and Add; return the name of the MatMul."""
    gemm = layer.node
    if gemm.op_type != "Gemm" or not is_plain(gemm):
        return str(gemm.name)
    place = list(model.graph.node).index(gemm)
    name, product = f"{gemm.output[0]}.MatMul", f"{gemm.output[0]}.product"
    nodes = [helper.make_node("MatMul", list(gemm.input[:2]), [product], name=name)]
    if len(gemm.input) == 3:
        nodes.append(helper.make_node("Add", [product, gemm.input[2]], [gemm.output[0]], name=f"{gemm.output[0]}.Add"))
    else:
        nodes[0].output[0] = gemm.output[0]
    model.graph.node.remove(gemm)
    for offset, node in enumerate(nodes):
        model.graph.node.insert(place + offset, node)
    return name
