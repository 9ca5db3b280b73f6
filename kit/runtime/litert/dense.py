"""From ONNX to LiteRT for networks of dense layers: fp32, QDQ of 8 bits and QGemm, in one subgraph that XNNPACK runs whole.

    data = converted(onnx.load("int8-pixel.onnx"), batch=1)   # bytes of a .tflite, the same integers in it

Integers of 8 bits have a sign in LiteRT: what ONNX holds as uint8 is 128 less here, with a zero point that is 128 less, so that
products and sums are the same numbers. The last layer, whose outputs are real numbers, is computed in float from the same
integers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kit.errors import Unavailable

_ACTIVATIONS = {"Relu": "RELU", "Tanh": "TANH", "Sigmoid": "LOGISTIC", "Softmax": "SOFTMAX"}
_SHIFT = 128
_FLATTENING = frozenset({"Flatten", "Reshape", "Squeeze", "Identity"})


def converted(model: Any, *, batch: int) -> bytes:
    """Return the .tflite of a network (an onnx.ModelProto with its weights) for `batch` samples in a call.

    Raises:
        Unavailable: It is more than dense layers with one input and one output, or has another kind of quantization.
    """
    return _Converter(model, batch).bytes()


@dataclass(frozen=True)
class _Value:
    """A tensor of the new model: its number, and the values of one sample; without a scale they are real numbers.

    Attributes:
        zero: Zero point of its integers, as LiteRT has it.
        read_as_real: Whether a DequantizeLinear stands behind it.
    """

    tensor: int
    size: int
    scale: float | None = None
    zero: int = 0
    read_as_real: bool = False


@dataclass(frozen=True)
class _Weights:
    """Weights as ONNX holds them: integers with a scale for each output or for all, or real numbers."""

    values: NDArray[Any]
    scale: NDArray[np.float32] | None = None


class _Converter:
    """Walks a chain of nodes from the input to the output."""

    def __init__(self, model: Any, batch: int) -> None:
        from ai_edge_litert import schema_py_generated
        from onnx import numpy_helper

        self._schema: Any = schema_py_generated
        self._batch = batch
        self._graph = model.graph
        self._constants: Mapping[str, NDArray[Any]] = {
            one.name: numpy_helper.to_array(one) for one in model.graph.initializer
        }
        self._weights: dict[str, _Weights] = {}
        self._values: dict[str, _Value] = {}
        self._tensors: list[Any] = []
        self._buffers: list[Any] = [self._schema.BufferT()]
        self._operators: list[Any] = []
        self._codes: list[Any] = []

    def bytes(self) -> bytes:
        import flatbuffers

        if len(self._graph.input) != 1 or len(self._graph.output) != 1:
            raise _refusal("several inputs or outputs")
        self._give_input()
        for node in self._graph.node:
            self._convert(node)
        schema = self._schema
        last = self._real(self._values[self._graph.output[0].name])
        graph = schema.SubGraphT()
        graph.name, graph.tensors, graph.operators = b"main", self._tensors, self._operators
        graph.inputs, graph.outputs = np.array([0], np.int32), np.array([last.tensor], np.int32)
        model = schema.ModelT()
        model.version, model.description = 3, b"kit"
        model.operatorCodes, model.subgraphs, model.buffers = self._codes, [graph], self._buffers
        builder: Any = flatbuffers.Builder(1024)
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output())

    def _give_input(self) -> None:
        """Make the input: integers if the first node that looks at them takes them as such, else real numbers."""
        from onnx import TensorProto

        given = self._graph.input[0]
        dims = given.type.tensor_type.shape.dim
        size = int(np.prod([dim.dim_value for dim in dims[1:]], dtype=np.int64)) if len(dims) > 1 else 0
        if size < 1:
            raise _refusal("an input whose samples have no fixed size")
        kind = given.type.tensor_type.elem_type
        if kind == TensorProto.FLOAT:
            value = _Value(self._tensor(given.name, size, "FLOAT32"), size)
        elif kind == TensorProto.UINT8:
            scale = self._first_scale(given.name)
            value = _Value(self._tensor(given.name, size, "INT8", scale=scale, zero=-_SHIFT), size, scale, -_SHIFT)
        else:
            raise _refusal(f"an input of type {TensorProto.DataType.Name(kind)}")
        self._values[given.name] = value

    def _first_scale(self, name: str) -> float:
        """Return the scale at which the network reads its integers: 1 if it casts them."""
        for node in self._graph.node:
            if name not in node.input:
                continue
            if node.op_type in _FLATTENING:
                name = node.output[0]
            elif node.op_type == "Cast":
                return 1.0
            elif node.op_type in {"DequantizeLinear", "QGemm"}:
                if int(self._constants.get(node.input[2], np.zeros(()))) != 0:
                    raise _refusal("an input with a zero point")
                return float(self._constants[node.input[1]])
            else:
                break
        raise _refusal("an input of integers that is neither cast nor dequantized")

    def _convert(self, node: Any) -> None:
        kind = node.op_type
        if kind == "DequantizeLinear" and node.input[0] in self._constants:
            self._weights[node.output[0]] = self._quantized_weights(node)
            return
        value = self._values.get(node.input[0])
        if value is None:
            raise _refusal(f"{kind} of something else than the layer before")
        if kind in _FLATTENING or (kind == "Cast" and value.scale == 1.0):
            made = (
                value
                if kind != "Cast"
                else _Value(value.tensor, value.size, value.scale, value.zero, read_as_real=True)
            )
        elif kind == "DequantizeLinear":
            made = self._read(node, value)
        elif kind == "QuantizeLinear":
            made = self._quantized(node, value)
        elif kind in {"Gemm", "MatMul"}:
            made = self._dense(node, value)
        elif kind == "QGemm":
            made = self._integer_dense(node, value)
        elif kind == "Add":
            made = self._biased(node, value)
        elif kind in _ACTIVATIONS:
            made = self._activated(_ACTIVATIONS[kind], node, value)
        else:
            raise _refusal(kind)
        self._values[node.output[0]] = made

    def _quantized_weights(self, node: Any) -> _Weights:
        zero = self._constants.get(node.input[2]) if len(node.input) > 2 else None
        values, scale = self._constants[node.input[0]], self._constants[node.input[1]]
        if values.dtype != np.int8 or (zero is not None and zero.any()):
            if values.dtype == np.int32:  # a bias
                return _Weights(values.astype(np.float64) * scale)
            raise _refusal(f"weights of {values.dtype} with a zero point")
        return _Weights(values, np.atleast_1d(scale).astype(np.float32))

    def _read(self, node: Any, value: _Value) -> _Value:
        scale = float(self._constants[node.input[1]])
        if value.scale != scale:
            raise _refusal("integers that are read at another scale")
        return _Value(value.tensor, value.size, value.scale, value.zero, read_as_real=True)

    def _quantized(self, node: Any, value: _Value) -> _Value:
        """Give the layer before the integers that it ends in."""
        scale, zero = self._ends(node.input[1], node.input[2] if len(node.input) > 2 else "")
        if value.scale is not None:
            raise _refusal("integers that are quantized again")
        maker = self._operators[-1] if self._operators else None
        if maker is None or maker.outputs[0] != value.tensor or not self._takes_integers(maker):
            raise _refusal("real numbers that become integers")
        self._retype(value.tensor, scale, zero)
        return _Value(value.tensor, value.size, scale, zero)

    def _ends(self, scale: str, zero: str) -> tuple[float, int]:
        found = self._constants.get(zero)
        if found is None or found.dtype not in {np.dtype(np.uint8), np.dtype(np.int8)} or found.ndim:
            raise _refusal("integers other than those of 8 bits")
        return float(self._constants[scale]), int(found) - (_SHIFT if found.dtype == np.uint8 else 0)

    def _takes_integers(self, operator: Any) -> bool:
        return bool(self._tensors[operator.inputs[0]].type == self._schema.TensorType.INT8)

    def _dense(self, node: Any, value: _Value) -> _Value:
        options = {one.name: one for one in node.attribute}
        if any(abs(options[name].f - 1.0) > 0 for name in ("alpha", "beta") if name in options) or (
            "transA" in options and options["transA"].i
        ):
            raise _refusal("a Gemm with alpha, beta or a turned input")
        held = self._weights.get(node.input[1]) or _Weights(self._constant(node.input[1]))
        if "transB" not in options or not options["transB"].i:
            held = _Weights(held.values.T, held.scale)
        bias = self._bias(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        if held.scale is None or value.scale is None or not self._becomes_integers(node.output[0]):
            return self._real_dense(node.output[0], self._real(value), held, bias)
        scales = value.scale * held.scale.astype(np.float64)
        whole = np.zeros(len(held.values), np.int32) if bias is None else np.rint(bias / scales).astype(np.int32)
        return self._layer(
            node.output[0], value, self._weight(held), self._tensor_of(whole, "INT32", scale=scales), len(whole)
        )

    def _integer_dense(self, node: Any, value: _Value) -> _Value:
        values, scale = self._constants[node.input[3]].T, np.atleast_1d(self._constants[node.input[4]])
        if values.dtype != np.int8 or self._constants[node.input[5]].any() or value.scale is None:
            raise _refusal("a QGemm whose weights have a zero point")
        held = _Weights(values, scale.astype(np.float32))
        bias = self._constants[node.input[6]]
        scales = value.scale * held.scale.astype(np.float64) if held.scale is not None else scale
        if len(node.input) < 8 or not node.input[7]:
            return self._real_dense(node.output[0], self._real(value), held, bias * scales)
        end, zero = self._ends(node.input[7], node.input[8])
        made = self._layer(
            node.output[0], value, self._weight(held), self._tensor_of(bias, "INT32", scale=scales), len(bias)
        )
        self._retype(made.tensor, end, zero)
        return _Value(made.tensor, made.size, end, zero)

    def _becomes_integers(self, name: str) -> bool:
        """Whether what a layer gives is quantized at once, or after a ReLU or a bias."""
        after = [one for one in self._graph.node if name in one.input]
        if len(after) != 1:
            return False
        if after[0].op_type in {"Relu", "Add"}:
            return self._becomes_integers(after[0].output[0])
        return bool(after[0].op_type == "QuantizeLinear")

    def _real_dense(self, name: str, value: _Value, held: _Weights, bias: NDArray[Any] | None) -> _Value:
        values = held.values.astype(np.float32)
        if held.scale is not None:
            values *= held.scale[:, np.newaxis] if len(held.scale) > 1 else held.scale
        whole = np.zeros(len(values), np.float32) if bias is None else bias.astype(np.float32)
        return self._layer(
            name, value, self._tensor_of(values, "FLOAT32"), self._tensor_of(whole, "FLOAT32"), len(whole)
        )

    def _layer(self, name: str, value: _Value, weight: int, bias: int, size: int) -> _Value:
        schema = self._schema
        made = self._tensor(name, size, "FLOAT32")
        self._operator("FULLY_CONNECTED", (value.tensor, weight, bias), made, schema.FullyConnectedOptionsT())
        return _Value(made, size)

    def _biased(self, node: Any, value: _Value) -> _Value:
        """Take a constant that is added to a layer into it."""
        layer = self._operators[-1] if self._operators else None
        added = self._bias(node.input[1])
        if layer is None or layer.outputs[0] != value.tensor or len(added) != value.size or len(layer.inputs) != 3:
            raise _refusal("an Add of something else than a bias")
        bias = self._tensors[layer.inputs[2]]
        buffer = self._buffers[bias.buffer]
        if self._takes_integers(layer):
            held = buffer.data.view(np.int32) + np.rint(added / bias.quantization.scale).astype(np.int32)
        else:
            held = buffer.data.view(np.float32) + added.astype(np.float32)
        buffer.data = held.view(np.uint8)
        return value

    def _activated(self, kind: str, node: Any, value: _Value) -> _Value:
        layer = self._operators[-1] if self._operators else None
        schema = self._schema
        if kind == "RELU" and layer is not None and layer.outputs[0] == value.tensor and value.scale is None:
            layer.builtinOptions.fusedActivationFunction = schema.ActivationFunctionType.RELU
            return value
        real = self._real(value)
        made = self._tensor(node.output[0], real.size, "FLOAT32")
        options = schema.SoftmaxOptionsT() if kind == "SOFTMAX" else None
        if options is not None:
            options.beta = 1.0
        self._operator(kind, (real.tensor,), made, options)
        return _Value(made, real.size)

    def _real(self, value: _Value) -> _Value:
        if value.scale is None:
            return value
        made = self._tensor(f"{value.tensor} in float", value.size, "FLOAT32")
        self._operator("DEQUANTIZE", (value.tensor,), made, self._schema.DequantizeOptionsT())
        return _Value(made, value.size)

    def _constant(self, name: str) -> NDArray[Any]:
        if name not in self._constants:
            raise _refusal("a product of two tensors")
        return self._constants[name]

    def _bias(self, name: str) -> NDArray[Any]:
        held = self._weights.get(name)
        return held.values.ravel() if held is not None else self._constant(name).ravel()

    def _weight(self, held: _Weights) -> int:
        return self._tensor_of(held.values, "INT8", scale=held.scale)

    def _tensor_of(self, values: NDArray[Any], kind: str, *, scale: NDArray[Any] | None = None) -> int:
        """Add a constant; with several scales, one for each of its first axis."""
        buffer = self._schema.BufferT()
        buffer.data = np.frombuffer(np.ascontiguousarray(values).tobytes(), np.uint8).copy()
        self._buffers.append(buffer)
        number = self._add(f"constant {len(self._buffers)}", values.shape, kind, len(self._buffers) - 1)
        if scale is not None:
            self._scaled(number, np.asarray(scale, np.float32), np.zeros(len(scale), np.int64))
        return number

    def _tensor(self, name: str, size: int, kind: str, *, scale: float | None = None, zero: int = 0) -> int:
        number = self._add(name, (self._batch, size), kind, 0)
        if scale is not None:
            self._scaled(number, np.array([scale], np.float32), np.array([zero], np.int64))
        return number

    def _add(self, name: str, shape: tuple[int, ...], kind: str, buffer: int) -> int:
        tensor = self._schema.TensorT()
        tensor.name, tensor.shape, tensor.buffer = name.encode(), np.array(shape, np.int32), buffer
        tensor.type = getattr(self._schema.TensorType, kind)
        self._tensors.append(tensor)
        return len(self._tensors) - 1

    def _scaled(self, number: int, scale: NDArray[np.float32], zero: NDArray[np.int64]) -> None:
        quantization = self._schema.QuantizationParametersT()
        quantization.scale, quantization.zeroPoint, quantization.quantizedDimension = scale, zero, 0
        self._tensors[number].quantization = quantization

    def _retype(self, number: int, scale: float, zero: int) -> None:
        self._tensors[number].type = self._schema.TensorType.INT8
        self._scaled(number, np.array([scale], np.float32), np.array([zero], np.int64))

    def _operator(self, kind: str, inputs: tuple[int, ...], output: int, options: Any) -> None:
        schema = self._schema
        number = getattr(schema.BuiltinOperator, kind)
        operator = schema.OperatorT()
        operator.inputs, operator.outputs = np.array(inputs, np.int32), np.array([output], np.int32)
        if options is not None:
            name = type(options).__name__.removesuffix("T")
            operator.builtinOptions, operator.builtinOptionsType = options, getattr(schema.BuiltinOptions, name)
        known = next((place for place, one in enumerate(self._codes) if one.builtinCode == number), None)
        if known is None:
            code = schema.OperatorCodeT()
            code.builtinCode, code.deprecatedBuiltinCode, code.version = number, number, _VERSIONS.get(kind, 1)
            self._codes.append(code)
            known = len(self._codes) - 1
        operator.opcodeIndex = known
        self._operators.append(operator)


_VERSIONS = {"FULLY_CONNECTED": 5, "DEQUANTIZE": 2}
"""That have what is used of them: dense layers with a scale for each output, integers with a sign."""


def _refusal(what: str) -> Unavailable:
    return Unavailable(
        f"LiteRT is given networks of dense layers alone here, and this one has {what}",
        hint="use --runtime onnxruntime or openvino",
    )
