"""fp32 ONNX -> fp16: weights and arithmetic in half precision; inputs and outputs stay as they were.

For GPUs. ONNX Runtime's CPU provider computes it in float32 on x86 and converts in between, so that it is no faster there.
Weights beside the graph are converted one by one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper
from onnx.external_data_helper import uses_external_data

from exporters import staging
from exporters.formats.base import Source, refusal_of_quantized
from exporters.graph.files import array_of, names_read, tensors_of
from exporters.graph.rules import strip
from kit.choices import Precision, VariantFormat
from kit.errors import GateFailed

_LEAST, _MOST = 5.96e-08, 65504.0  # of float16, subnormal and finite: what the converter takes for its own weights

_PIECE = 2**18  # values


@dataclass(frozen=True)
class Float16:
    """Half precision."""

    precision = Precision.FP16
    form = VariantFormat.FLOAT

    def refusal(self, model: onnx.ModelProto) -> str:
        """Say why a model has no half precision."""
        if reason := refusal_of_quantized(model):
            return reason
        floats = [tensor for tensor in tensors_of(model) if tensor.data_type == onnx.TensorProto.FLOAT]
        return "" if floats else "it has no float32 weights"

    def unable(self, _: onnx.ModelProto) -> tuple[str, ...]:
        """Return nothing: no layer is left out."""
        return ()

    def prepared(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """Return the model itself."""
        return model

    def make(self, source: Source, exclude: tuple[str, ...], target: Path) -> None:  # noqa: ARG002 - no layers to leave out
        """Write the model in fp16.

        Raises:
            GateFailed: The converter failed.
        """
        model = source.copy()
        beside = [
            tensor
            for tensor in source.model.graph.initializer
            if uses_external_data(tensor) and tensor.data_type == onnx.TensorProto.FLOAT
        ]
        _as_inputs(model, beside)
        converted = to_float16(model, besides=[tensor.name for tensor in beside])
        with staging.DataWriter(target.with_suffix(".data")) as data:
            for tensor in staging.external_tensors(converted):
                data.add(tensor, array_of(tensor, source.path.parent))
            for tensor in beside:
                half = converted.graph.initializer.add()
                half.name, half.data_type = tensor.name, onnx.TensorProto.FLOAT16
                half.dims.extend(tensor.dims)
                data.add_pieces(half, _halved_in_pieces(array_of(tensor, source.path.parent)))
        staging.write(converted, target)


def _as_inputs(model: onnx.ModelProto, tensors: Sequence[onnx.TensorProto]) -> None:
    """Let constants beside the graph be inputs of it, for a converter that would read them all."""
    names = {tensor.name for tensor in tensors}
    if not names:
        return
    kept = [tensor for tensor in model.graph.initializer if tensor.name not in names]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    for tensor in tensors:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))


def to_float16(model: onnx.ModelProto, *, besides: Sequence[str] = ()) -> onnx.ModelProto:
    """Convert a graph to fp16; it is changed.

    Inputs named in `besides` are weights: they become fp16, and are no inputs of the result.

    Raises:
        GateFailed: The converter failed.
    """
    from onnxruntime.transformers import float16

    kept: bool | list[str] = True
    if besides:
        kept = [value.name for value in (*model.graph.input, *model.graph.output) if value.name not in besides]
    try:
        converted: onnx.ModelProto = float16.convert_float_to_float16(model, keep_io_types=kept)
    except (RuntimeError, ValueError, TypeError, AssertionError, onnx.shape_inference.InferenceError) as error:
        raise GateFailed(f"the model could not be converted to fp16: {error}") from error
    for value in [value for value in converted.graph.input if value.name in besides]:
        converted.graph.input.remove(value)
    _sort(converted)
    strip(converted)
    return converted


def halved(values: NDArray[np.float32]) -> NDArray[np.float16]:
    """Return float32 as float16, what is too small or too large for it at its ends, as the converter does it."""
    size = np.abs(values)
    clipped = np.clip(values, -_MOST, _MOST)
    clipped = np.where((size > 0) & (size < _LEAST), np.copysign(np.float32(_LEAST), values), clipped)
    halves: NDArray[np.float16] = clipped.astype(np.float16)
    return halves


def _halved_in_pieces(values: NDArray[np.float32]) -> Iterator[NDArray[np.float16]]:
    """Give float32 as float16 in pieces of bearable size: each takes several times as much while it is converted."""
    flat = values.reshape(-1)
    return (halved(flat[start : start + _PIECE]) for start in range(0, flat.size, _PIECE))


def _sort(model: onnx.ModelProto) -> None:
    """Let every node stand behind those that it reads, as the converter leaves it to its caller; others keep their order."""
    nodes = list(model.graph.node)
    makers = {name: place for place, node in enumerate(nodes) for name in node.output}
    reads = [
        [makers[name] for name in names_read(onnx.GraphProto(node=[node])) if makers.get(name, place) != place]
        for place, node in enumerate(nodes)
    ]
    order: dict[int, None] = {}
    for place in range(len(nodes)):
        waiting = [place]
        while waiting:
            missing = [one for one in reads[waiting[-1]] if one not in order]
            if missing:
                waiting += missing
            else:
                order.setdefault(waiting.pop())
    if list(order) != list(range(len(nodes))):
        copies = [onnx.NodeProto.FromString(nodes[place].SerializeToString()) for place in order]
        del model.graph.node[:]
        model.graph.node.extend(copies)
