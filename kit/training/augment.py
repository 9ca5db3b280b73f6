"""Random distortions of whole batches of tensors."""

from __future__ import annotations

import math

import torch
from torch.nn import functional

DEGREES = 10.0
SCALE = 0.1
SHEAR = 0.15
SHIFT_PIXELS = 1.5


def random_affine(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Turn, scale, shear and shift every image by its own random amount.

    Args:
        images: float32 `[N, height, width]`, 0 for the ground.
        generator: Source of the random numbers.

    Returns:
        float32 `[N, height, width]`, bilinear, the ground continued beyond the edges.
    """
    count, height, width = images.shape
    draw = torch.rand((5, count), generator=generator) * 2 - 1
    angle = draw[0] * math.radians(DEGREES)
    scale = 1 + draw[1] * SCALE
    shear = draw[2] * SHEAR
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    theta = torch.stack(
        [
            torch.stack([cos, shear * cos - sin, draw[3] * (2 * SHIFT_PIXELS / width)], dim=1),
            torch.stack([sin, shear * sin + cos, draw[4] * (2 * SHIFT_PIXELS / height)], dim=1),
        ],
        dim=1,
    )  # (N, 2, 3): output position -> input position
    grid = functional.affine_grid(theta, [count, 1, height, width], align_corners=False)
    moved = functional.grid_sample(images.unsqueeze(1), grid, align_corners=False)
    return moved.squeeze(1)
