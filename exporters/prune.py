"""Structured pruning of dense networks: border pixels that carry nothing, and hidden units that matter least.

What is left is a smaller dense network that any runtime runs faster, with no sparse kernels. A unit matters as much as its
activation varies times the weights it feeds; what a removed unit gave on average goes into the biases it fed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from kit.lab.blueprint import Normalization
from kit.lab.models import Mlp

CARRIED = 0.99
"""Share of what the pixels carry into the first layer that must be left inside."""

Images = torch.Tensor


def dispensable_border(module: Mlp, pixels: Images, normalization: Normalization, *, height: int, width: int) -> int:
    """Return how many rows and columns can be left out on every side.

    A pixel carries its variance over the images times the squares of the weights it feeds. Pixels are uint8
    `[N, height, width]`, of the training split; the module has no crop of its own yet.
    """
    weights = _linears(module)[0].weight.detach()
    variance = (pixels.reshape(len(pixels), -1).to(torch.float32) * normalization.scale).var(dim=0)
    carried = (variance * weights.square().sum(dim=0)).reshape(height, width)
    total, border = float(carried.sum()), 0
    while 2 * (border + 1) < min(height, width):
        inside = carried[border + 1 : height - border - 1, border + 1 : width - border - 1]
        if float(inside.sum()) < CARRIED * total:
            break
        border += 1
    return border


@torch.no_grad()
def prune(module: Mlp, hidden: Sequence[int], crop: int, pixels: Images, normalization: Normalization) -> Mlp:
    """Return a smaller network made of the `hidden` units of each layer that matter most, `crop` pixels off every side.

    Pixels are uint8 `[N, height, width]`, to see what the units do; the module has no crop of its own yet.
    """
    height, width = pixels.shape[1:]
    normalized = pixels.to(torch.float32) * normalization.scale + normalization.shift
    activation = normalized.reshape(len(pixels), -1)
    inside = torch.zeros((height, width), dtype=torch.bool)
    inside[crop : height - crop, crop : width - crop] = True
    kept = inside.reshape(-1).nonzero().squeeze(1)
    linears = _linears(module)
    small = Mlp((len(kept), *hidden, linears[-1].out_features), crop=crop)
    for number, (target, source) in enumerate(zip(_linears(small), linears, strict=True)):
        gone = torch.ones(source.in_features, dtype=torch.bool)
        gone[kept] = False
        weight = source.weight[:, kept]
        bias = source.bias + source.weight[:, gone] @ activation[:, gone].mean(dim=0)
        outputs = torch.arange(source.out_features)
        activation = source(activation)
        if number < len(hidden):
            activation = activation.relu()
            matter = activation.std(dim=0) * linears[number + 1].weight.norm(dim=0)
            outputs = matter.topk(hidden[number]).indices.sort().values
        target.weight.copy_(weight[outputs])
        target.bias.copy_(bias[outputs])
        kept = outputs
    return small


def _linears(module: Mlp) -> list[nn.Linear]:
    return [layer for layer in module.layers if isinstance(layer, nn.Linear)]
