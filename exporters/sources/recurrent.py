"""LSTM and GRU for sequences of any length: torch traces them step by step, which fixes it; ONNX has operators for them.

Weights are put in ONNX's order: onnx.ai/onnx/operators/onnx__LSTM.html, onnx__GRU.html.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

_ORDER = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2)}  # of the gates: torch has i f g o, and r z n
_CALLS = {"lstm": "LSTM", "gru": "GRU"}


def has_some(module: nn.Module) -> bool:
    """Whether a module has layers that `Whole` can write."""
    return any(isinstance(one, (nn.LSTM, nn.GRU)) and not getattr(one, "proj_size", 0) for one in module.modules())


class Whole(TorchFunctionMode):
    """While it is entered, LSTM and GRU layers are traced as ONNX's own operators."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        operator = _CALLS.get(getattr(func, "__name__", ""))
        if operator is None or len(args) != 9 or kwargs or not isinstance(args[2], (list, tuple)):
            return func(*args, **(kwargs or {}))
        x, state, weights, has_biases, count, _, _, both, batch_first = args
        states = list(state) if operator == "LSTM" else [state]
        y, *last = _layers(
            operator,
            x.transpose(0, 1) if batch_first else x,
            states,
            weights,
            has_biases=has_biases,
            count=count,
            both=both,
        )
        return (y.transpose(0, 1) if batch_first else y, *last)


def _layers(
    operator: str,
    x: torch.Tensor,
    states: Sequence[torch.Tensor],
    weights: Sequence[torch.Tensor],
    *,
    has_biases: bool,
    count: int,
    both: bool,
) -> tuple[torch.Tensor, ...]:
    """Run the layers on `[time, batch, features]`; return the outputs and the last states."""
    directions, each = (2 if both else 1), (4 if has_biases else 2)
    ends: list[list[torch.Tensor]] = [[] for _ in states]
    for layer in range(count):
        own = weights[layer * directions * each : (layer + 1) * directions * each]
        first = [state[layer * directions : (layer + 1) * directions] for state in states]
        x, *last = _layer(operator, x, first, [own[i * each : (i + 1) * each] for i in range(directions)])
        for end, value in zip(ends, last, strict=True):
            end.append(value)
    return (x, *(torch.cat(end) for end in ends))


def _layer(
    operator: str, x: torch.Tensor, first: Sequence[torch.Tensor], weights: Sequence[Sequence[torch.Tensor]]
) -> tuple[torch.Tensor, ...]:
    hidden, directions = weights[0][1].shape[1], len(weights)
    inputs: list[torch.Tensor | None] = [
        x,
        torch.stack([_ordered(one[0], operator) for one in weights]),
        torch.stack([_ordered(one[1], operator) for one in weights]),
        torch.stack([torch.cat([_ordered(bias, operator) for bias in one[2:]]) for one in weights])
        if len(weights[0]) > 2
        else None,
        None,
        *first,
    ]
    attributes: dict[str, Any] = {"hidden_size": hidden}
    if directions == 2:
        attributes["direction"] = "bidirectional"
    if operator == "GRU":
        attributes["linear_before_reset"] = 1
    shapes = [(x.shape[0], directions, x.shape[1], hidden), *((directions, x.shape[1], hidden) for _ in first)]
    y, *last = torch.onnx.ops.symbolic_multi_out(
        operator, inputs, attributes, dtypes=[x.dtype] * len(shapes), shapes=shapes, version=None
    )
    return (y.transpose(1, 2).flatten(2), *last)


def _ordered(weight: torch.Tensor, operator: str) -> torch.Tensor:
    size = weight.shape[0] // len(_ORDER[operator])
    return torch.cat([weight[place * size : (place + 1) * size] for place in _ORDER[operator]])
