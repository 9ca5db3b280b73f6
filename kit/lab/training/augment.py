"""Random distortions of whole batches of tensors: turned, scaled, sheared, shifted, bent, thicker and thinner strokes."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import torch
from torch.nn import functional

from kit.lab.training.recipe import Distortion


def distort(images: torch.Tensor, distortion: Distortion, generator: torch.Generator) -> torch.Tensor:
    """Distort every image by its own random amounts, by one interpolation for all that moves pixels.

    Takes uint8 or float32 `[N, height, width]`, 0 for the ground, and a generator on the images' device. Gives float32
    of the same shape and range, bilinear, the ground continued beyond the edges.
    """
    moved = functional.grid_sample(
        images.to(torch.float32).unsqueeze(1), _grid(images, distortion, generator), align_corners=False
    )
    if distortion.thicker or distortion.thinner:
        moved = _restroke(moved, distortion, generator)
    return moved.squeeze(1)


def _grid(images: torch.Tensor, distortion: Distortion, generator: torch.Generator) -> torch.Tensor:
    """Draw where each pixel comes from: `[N, height, width, 2]`, in the units of grid_sample."""
    count, height, width = images.shape
    device = generator.device
    draw = torch.rand((6, count), generator=generator, device=device) * 2 - 1
    angle, shear = draw[0] * math.radians(distortion.degrees), draw[1] * distortion.shear
    across, along = torch.exp(draw[2] * distortion.scale), torch.exp(draw[3] * distortion.scale)
    cos, sin = torch.cos(angle), torch.sin(angle)
    shift = draw[4:] * (2 * distortion.shift)
    theta = torch.stack(
        [
            torch.stack([cos * across, (cos * shear - sin) * along, shift[0] / width], dim=1),
            torch.stack([sin * across, (sin * shear + cos) * along, shift[1] / height], dim=1),
        ],
        dim=1,
    )  # (N, 2, 3): output position -> input position
    grid = functional.affine_grid(theta, [count, 1, height, width], align_corners=False)
    if not distortion.elastic:
        return grid
    nodes = distortion.nodes
    amount = torch.rand((count, 1, 1, 1), generator=generator, device=device) * (2 * distortion.elastic / width)
    field = torch.randn((count, 2, nodes, nodes), generator=generator, device=device) * amount
    rows, columns = (_interpolation(nodes, size, device) for size in (height, width))
    return grid + (rows @ field @ columns.T).permute(0, 2, 3, 1)


def _restroke(images: torch.Tensor, distortion: Distortion, generator: torch.Generator) -> torch.Tensor:
    """Thicken the strokes of a quarter of the images `[N, 1, height, width]`, thin those of another quarter."""
    count, device = len(images), generator.device
    draw = torch.rand((2, count, 1, 1, 1), generator=generator, device=device)
    amount = (draw[0] * 2 - 1) * (draw[1] < 0.5)
    highest, lowest = _extremes(images, torch.maximum), _extremes(images, torch.minimum)
    thicker, thinner = amount.clamp(min=0) * distortion.thicker, (-amount).clamp(min=0) * distortion.thinner
    return images + thicker * (highest - images) + thinner * (lowest - images)


def _extremes(images: torch.Tensor, most: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Return the maximum or minimum of each pixel's 3x3 neighbours, row by row and then along them: faster than pooling."""
    for dim in (2, 3):
        size = images.shape[dim]
        pairs = most(images.narrow(dim, 0, size - 1), images.narrow(dim, 1, size - 1))
        inner = most(pairs.narrow(dim, 0, size - 2), pairs.narrow(dim, 1, size - 2))
        images = torch.cat([pairs.narrow(dim, 0, 1), inner, pairs.narrow(dim, size - 2, 1)], dim=dim)
    return images


@cache
def _interpolation(nodes: int, size: int, device: torch.device) -> torch.Tensor:
    """Return the matrix `[size, nodes]` of bicubic interpolation between points spread from edge to edge."""
    points = torch.eye(nodes).reshape(nodes, 1, nodes, 1)
    spread = functional.interpolate(points, size=(size, 1), mode="bicubic", align_corners=True)
    return spread.reshape(nodes, size).T.contiguous().to(device)
