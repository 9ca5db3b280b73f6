"""Even out the ranges of neighbouring dense layers, which leaves what they compute as it is (Nagel et al. 2019, 1906.04721).

One scale for a whole layer wastes bits where its outputs differ in range. ReLU keeps positive factors: an output divided by s
here and multiplied by s in the next layer's weights changes nothing, so that s can be chosen to make both layers' ranges
alike. On the 784-512-256-128-10 network the rms error of the logits in 7 bits per tensor fell from 0.223 to 0.159; per
channel it is 0.100, at 17.4 instead of 12.4 us for one image.
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from exporters.graph.rules import assign, follow, initializers, is_plain, uses

_PASSES = 20
_LEAST = 1e-9


def equalize(model: onnx.ModelProto) -> bool:
    """Rescale each Gemm and the Gemm behind its Relu so that their weights have like ranges; return whether any were."""
    pairs = _pairs(model)
    constants = initializers(model)
    values = {
        name: numpy_helper.to_array(constants[name]).astype(np.float64)
        for pair in pairs
        for name in (*pair[0].input[1:3], pair[1].input[1])
    }
    for _ in range(_PASSES):
        for first, second in pairs:
            weight, bias, following = (values[name] for name in (*first.input[1:3], second.input[1]))
            scale = _scale(weight, following)
            values[first.input[1]] = weight / scale
            values[first.input[2]] = bias / scale
            values[second.input[1]] = following * scale[:, np.newaxis]
    for name, value in values.items():
        assign(constants[name], value)
    return bool(pairs)


def _scale(weight: NDArray[np.float64], following: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return for each unit between two layers the factor that gives its weights in and out the same range; 1 for dead ones."""
    coming, going = np.abs(weight).max(axis=0), np.abs(following).max(axis=1)
    is_alive = (coming > _LEAST) & (going > _LEAST)
    scale: NDArray[np.float64] = np.sqrt(np.divide(coming, going, out=np.ones_like(coming), where=is_alive))
    return scale


def _pairs(model: onnx.ModelProto) -> list[tuple[onnx.NodeProto, onnx.NodeProto]]:
    constants = initializers(model)

    def is_own(name: str) -> bool:
        return name in constants and uses(model, name) == 1

    found = []
    for node in model.graph.node:
        if node.op_type != "Gemm" or len(node.input) != 3 or not is_plain(node):
            continue
        if not all(is_own(name) for name in node.input[1:]):
            continue
        chain = follow(model, node.output[0])[:2]
        kinds = [one.op_type for one in chain]
        follows = kinds == ["Relu", "Gemm"] and chain[1].input[0] == chain[0].output[0]
        if follows and is_own(chain[1].input[1]) and is_plain(chain[1]):
            found.append((node, chain[1]))
    return found
