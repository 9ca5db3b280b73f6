"""Where a quantized graph begins and ends: raw values in as they are, floats out as they come, no step that changes nothing."""

from __future__ import annotations

from dataclasses import dataclass

import onnx
from onnx import helper

from exporters.graph.names import free, taken
from exporters.graph.rules import LAYERS, Layer, initializers, is_plain, uses

# What gives nothing but what it was given, and the constants of a Pad.
_MOVES = ("Slice", "Reshape", "Flatten", "Transpose", "Split", "Pad", "Concat")


@dataclass(frozen=True)
class Door:
    """A raw uint8 input that enters a layer as it is.

    Attributes:
        cast: The tensor that its Cast gives.
        tensor: What enters the layer.
    """

    cast: str
    tensor: str


def doors(model: onnx.ModelProto, kept: tuple[Layer, ...]) -> list[Door]:
    """Return the raw uint8 inputs of which a cast to float enters one layer that is quantized, and nothing else.

    They may be moved and padded before, and nothing else, such as a normalisation that could not be folded.
    """
    stays_float = {layer.node.output[0] for layer in kept}
    raw = {value.name for value in model.graph.input if value.type.tensor_type.elem_type == onnx.TensorProto.UINT8}
    found = []
    for node in model.graph.node:
        if node.op_type in _MOVES and raw.issuperset(node.input if node.op_type == "Concat" else node.input[:1]):
            raw |= set(node.output)
        elif node.op_type == "Cast" and node.input[0] in raw:
            found.append(_from_cast(model, str(node.output[0]), stays_float))
    return [door for door in found if door is not None]


def _from_cast(model: onnx.ModelProto, cast: str, stays_float: set[str]) -> Door | None:
    tensor, seen = cast, set[str]()
    while tensor not in seen:
        seen.add(tensor)
        readers = [node for node in model.graph.node if tensor in node.input]
        if len(readers) != 1:
            return None
        reader = readers[0]
        if reader.op_type in LAYERS:
            enters = reader.input[0] == tensor and reader.output[0] not in stays_float
            return Door(cast, tensor) if enters else None
        if reader.op_type not in _MOVES or reader.input[0] != tensor:
            return None
        tensor = str(reader.output[0])
    return None


def read_as_quantized(model: onnx.ModelProto, door: Door) -> None:
    """Take out the Cast and the QuantizeLinear of a raw input: with scale 1 and zero point 0 they change nothing."""
    graph = model.graph
    cast = next(node for node in graph.node if door.cast in node.output)
    quantize = next(node for node in graph.node if node.op_type == "QuantizeLinear" and node.input[0] == door.tensor)
    for node in graph.node:
        node.input[:] = [door.tensor if name == quantize.output[0] else name for name in node.input]
    for node in (cast, quantize):
        graph.node.remove(node)
    for node in graph.node:
        node.input[:] = [cast.input[0] if name == cast.output[0] else name for name in node.input]


def keep_float(model: onnx.ModelProto, output: str) -> None:
    """Remove a QuantizeLinear, DequantizeLinear pair in front of an output, if nothing else reads what lies between."""
    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output}
    last = makers[output]
    if last.op_type != "DequantizeLinear" or last.input[0] not in makers:
        return
    quantize = makers[last.input[0]]
    if quantize.input[0] not in makers or any(uses(model, name) > 1 for name in (quantize.input[0], last.input[0])):
        return
    maker = makers[quantize.input[0]]
    maker.output[list(maker.output).index(quantize.input[0])] = output
    for node in (quantize, last):
        graph.node.remove(node)


def add_last_bias(model: onnx.ModelProto, output: str) -> None:
    """Add the float bias of the layer that gives an output behind it: with it inside, its integer kernel is not found."""
    graph, constants = model.graph, initializers(model)
    last = next(node for node in graph.node if output in node.output)
    if last.op_type != "Gemm" or len(last.input) != 3 or last.input[1] in constants or not is_plain(last):
        return
    bias = last.input[2]
    place = list(graph.node).index(last) + 1 if uses(model, output) else len(graph.node)
    del last.input[2:]
    last.output[0] = free(f"{output}.product", taken(model))
    graph.node.insert(place, helper.make_node("Add", [last.output[0], bias], [output]))


def end_in_float(model: onnx.ModelProto, output: str) -> None:
    """Let the last integer operator give a float output by itself, if it can, and take out the DequantizeLinear."""
    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output}
    last = makers[output]
    before = makers.get(last.input[0])
    if last.op_type != "DequantizeLinear" or before is None or before.op_type != "QGemm":
        return
    if uses(model, last.input[0]) > 1:
        return
    del before.input[7:]  # the scale and zero point of its output
    before.output[0] = output
    graph.node.remove(last)
