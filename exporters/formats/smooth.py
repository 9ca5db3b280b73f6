"""Share the difficulty of a layer's inputs with its weights, before both become integers (Xiao et al. 2022, arXiv 2211.10438).

Attention networks have a few channels that are far larger than all others, and one scale for all of a layer's inputs leaves the
small ones a handful of integers. Divided by s in front of the layer and multiplied by s in its weights, a channel computes the
same. How much of its range moves into the weights is tried for the layers that read one tensor, on one half of the calibration
samples with ranges of the other, by the error of what they give in 8 bits; where nothing pays they stay as they are.

So do layers that see fewer rows than channels, as a classifier behind a pool does: once all channels reach as far as the range,
in other samples some reach further (EfficientNet-Lite0: the logits' rms error on other photographs rose from 0.056 to 0.074).

The division goes into a LayerNormalization if no one else reads what it gives; else it is a Mul of its own.

all-MiniLM-L6-v2, its own weights, the words of 50 sentences from elsewhere: the mean cosine to the float model's vectors is
0.998 in QDQ and 0.996 in dynamic int8, at the same speed.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx.external_data_helper import ExternalDataInfo

from exporters import staging
from exporters.formats.inside import in_parts, tensors_inside
from exporters.graph.files import array_of, overwrite
from exporters.graph.names import free, taken
from exporters.graph.rules import initializers, layers, uses
from kit.tensors import Tensors

SHARES = (0.4, 0.55, 0.7, 0.85)
"""Of a channel's range, on a scale of logarithms, that moves into the weights."""

SAMPLES = 256
"""Calibration samples that are looked at."""

_ROWS = 512  # of a layer's inputs, by which shares are compared
_HELD_BYTES = 128 * 2**20  # of such rows at a time
_PAYS = 0.9  # what is left of the squared error, at most, for a Mul of its own
_LEAST = 1e-6
_MANY_BATCHES = 8

Floats = NDArray[np.float32]
Factors = dict[str, Floats]
"""By tensor: what each of its channels is divided by, float32 [channels]."""


@dataclass(frozen=True)
class _Group:
    """The layers that read one tensor, and the LayerNormalization that makes it for them alone, if there is one."""

    tensor: str
    nodes: tuple[onnx.NodeProto, ...]
    norm: onnx.NodeProto | None


@dataclass(frozen=True)
class _Range:
    """Least and largest values of each channel, 0 within: float32 [channels]."""

    low: Floats
    high: Floats

    @classmethod
    def of(cls, ends: Sequence[Floats]) -> _Range:
        return cls(np.minimum(np.min(ends, axis=0), 0), np.maximum(np.max(ends, axis=0), 0))

    @property
    def size(self) -> Floats:
        return np.maximum(-self.low, self.high)

    def divided(self, factor: Floats) -> _Range:
        return _Range(self.low / factor, self.high / factor)


@dataclass(frozen=True)
class _Seen:
    """What a tensor held on calibration samples: how many rows, the range of a known half, and the whole range.

    `rows` are some of the other half: float32 [rows, channels].
    """

    count: int
    rows: Floats
    known: _Range
    whole: _Range


def factors(model: onnx.ModelProto, batches: Sequence[Tensors], folder: Path) -> Factors:
    """Return what the inputs of a fp32 model's dense layers should be divided by; where it does not pay, nothing.

    `folder` is where weights lie that are not in the model.
    """
    constants = initializers(model)
    found: Factors = {}

    def held_bytes(group: _Group) -> int:
        node = group.nodes[0]
        return 4 * _ROWS * int(constants[node.input[1]].dims[1 if _is_turned(node) else 0])

    for groups in in_parts(_groups(model), held_bytes, _HELD_BYTES):
        seen = _seen(model, [group.tensor for group in groups], batches, folder)
        for group in (one for one in groups if one.tensor in seen):
            matrices = [_by_inputs(node, array_of(constants[node.input[1]], folder)) for node in group.nodes]
            factor = _factor(seen[group.tensor], np.concatenate(matrices, axis=1), _PAYS if group.norm is None else 1.0)
            if factor is not None:
                found[group.tensor] = factor
    return found


def smooth(model: onnx.ModelProto, chosen: Mapping[str, Floats], folder: Path, target: Path) -> onnx.ModelProto:
    """Return a fp32 model that computes the same, inputs divided by the `chosen` factors, weights multiplied.

    The model given stays. Weights that are not in it are copied from `folder` to `target`.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    for name in sorted({ExternalDataInfo(tensor).location for tensor in staging.external_tensors(model)}):
        shutil.copyfile(folder / name, target / name)
    constants = initializers(made)

    def multiply(name: str, by: NDArray[Any]) -> None:
        tensor = constants[name]
        overwrite(tensor, array_of(tensor, target) * by, target)

    for group in _groups(made):
        factor = chosen.get(group.tensor)
        if factor is None:
            continue
        for node in group.nodes:
            multiply(node.input[1], factor if _is_turned(node) else factor[:, np.newaxis])
        if group.norm is None:
            _divide(made, group, factor)
            continue
        for name in group.norm.input[1:]:
            multiply(name, 1 / factor)
    return made


def _divide(model: onnx.ModelProto, group: _Group, factor: Floats) -> None:
    names = taken(model)
    inverse = numpy_helper.from_array((1 / factor).astype(np.float32), free(f"{group.tensor}.smooth", names))
    model.graph.initializer.append(inverse)
    smoothed = free(f"{group.tensor}.smoothed", names)
    nodes = list(model.graph.node)
    place = min(nodes.index(node) for node in group.nodes)
    for node in group.nodes:
        node.input[0] = smoothed
    model.graph.node.insert(place, helper.make_node("Mul", [group.tensor, inverse.name], [smoothed], name=smoothed))


def _groups(model: onnx.ModelProto) -> list[_Group]:
    constants = initializers(model)
    makers = {name: node for node in model.graph.node for name in node.output}
    given = {value.name for value in model.graph.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for layer in layers(model):
        if _is_dense(layer.node, constants) and uses(model, layer.weight) == 1:
            readers.setdefault(str(layer.node.input[0]), []).append(layer.node)
    groups = []
    for tensor, nodes in readers.items():
        norm = makers.get(tensor)
        is_own = norm is not None and norm.op_type == "LayerNormalization" and norm.output[0] == tensor
        is_alone = tensor not in given and uses(model, tensor) == len(nodes)
        absorbs = (
            is_own
            and is_alone
            and all(
                name in constants and uses(model, name) == 1 and len(constants[name].dims) == 1
                for name in (norm.input[1:] if norm is not None else ())
            )
        )
        groups.append(_Group(tensor, tuple(nodes), norm if absorbs else None))
    return groups


def _is_dense(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> bool:
    about = {one.name: helper.get_attribute_value(one) for one in node.attribute}
    is_matrix = node.op_type in {"MatMul", "Gemm"} and len(constants[node.input[1]].dims) == 2
    return is_matrix and not about.get("transA", 0)


def _is_turned(node: onnx.NodeProto) -> bool:
    """Whether weights are [outputs, inputs]."""
    return any(one.name == "transB" and one.i for one in node.attribute)


def _by_inputs(node: onnx.NodeProto, weights: NDArray[Any]) -> Floats:
    """Return weights as [inputs, outputs]."""
    return np.asarray(weights.T if _is_turned(node) else weights, np.float32)


def _seen(model: onnx.ModelProto, tensors: Sequence[str], batches: Sequence[Tensors], folder: Path) -> dict[str, _Seen]:
    random = np.random.default_rng(0)
    each = max(2 * _ROWS // max(len(batches), 1), 1)
    rows: dict[str, list[Floats]] = {name: [] for name in tensors}
    counts = dict.fromkeys(tensors, 0)
    known: dict[str, list[Floats]] = {name: [] for name in tensors}
    tried: dict[str, list[Floats]] = {name: [] for name in tensors}
    for number, held in enumerate(tensors_inside(model, tensors, batches, folder)):
        for name in tensors:
            values = held[name].reshape(-1, held[name].shape[-1]).astype(np.float32)
            counts[name] += len(values)
            one, other = _halves(values, number, len(batches))
            if len(one):
                known[name] += [one.min(axis=0), one.max(axis=0)]
            if len(other):
                tried[name] += [other.min(axis=0), other.max(axis=0)]
                drawn = random.choice(len(other), min(each, len(other)), replace=False)
                rows[name].append(other[np.sort(drawn)])
    return {
        name: _Seen(
            counts[name], np.concatenate(rows[name]), _Range.of(known[name]), _Range.of([*known[name], *tried[name]])
        )
        for name in tensors
        if rows[name] and known[name]
    }


def _halves(values: Floats, number: int, batches: int) -> tuple[Floats, Floats]:
    """Return the rows of a batch by which ranges are made, and those they are tried on: every other batch, or half of each."""
    if batches >= _MANY_BATCHES:
        return (values, values[:0]) if number % 2 == 0 else (values[:0], values)
    return values[: len(values) // 2], values[len(values) // 2 :]


def _factor(seen: _Seen, weights: Floats, pays: float) -> Floats | None:
    """Return the factors of the share with the least error of what the layers give; None if none is better than none."""
    if seen.count < len(weights):
        return None
    going = np.abs(weights).max(axis=1)
    exact = seen.rows @ weights
    best, least = None, _error(seen.rows, seen.known, weights, exact) * pays
    for share in SHARES:
        factor = _shared(seen.known.size, going, share)
        error = _error(seen.rows / factor, seen.known.divided(factor), weights * factor[:, np.newaxis], exact)
        if error < least:
            best, least = share, error
    return None if best is None else _shared(seen.whole.size, going, best)


def _shared(coming: Floats, going: Floats, share: float) -> Floats:
    """Return the factors that move a share of inputs' ranges into weights; 1 for channels that are dead on either side."""
    is_alive = (coming > _LEAST) & (going > _LEAST)
    logs = share * np.log(np.maximum(coming, _LEAST)) - (1 - share) * np.log(np.maximum(going, _LEAST))
    middle = logs[is_alive].mean() if is_alive.any() else 0.0
    return np.where(is_alive, np.exp(logs - middle), 1).astype(np.float32)


def _error(rows: Floats, known: _Range, weights: Floats, exact: Floats) -> float:
    """Return the mean squared error of a product in 8 bits: one range for the inputs, one for each output's weights."""
    low, high = float(known.low.min()), float(known.high.max())
    step = max((high - low) / 255, _LEAST**2)
    steps = np.maximum(np.abs(weights).max(axis=0) / 127, _LEAST**2)
    given = (np.rint(np.clip(rows, low, high) / step) * step) @ (np.rint(weights / steps) * steps)
    return float(np.mean(np.square(given - exact)))
