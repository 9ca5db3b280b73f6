"""`imagenet`: scale, then cut out the middle, as torchvision's and timm's transforms do it for pictures of Pillow."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
"""By name; Pillow's filters widen with the ratio, so that all but `nearest` antialias."""


@dataclass(frozen=True, kw_only=True)
class Crop:
    """How `imagenet` scales before it cuts.

    Attributes:
        resize: Pixels of the shorter side, as torchvision's `Resize(256)`; or (height, width), whatever the proportions, as
            `Resize((256, 256))`; None: what is cut, divided by `crop_pct`.
        crop_pct: Share of the scaled picture that is cut out, as timm has it; `resize` overrides it.
        interpolation: One of INTERPOLATIONS.
    """

    resize: int | tuple[int, int] | None = None
    crop_pct: float = 0.875
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        sides = (self.resize,) if isinstance(self.resize, int) else self.resize or ()
        if any(side < 1 for side in sides) or not 0 < self.crop_pct <= 1:
            raise ValueError(f"a picture cannot be scaled to {self.resize} or cut to {self.crop_pct:g} of itself")
        if self.interpolation not in INTERPOLATIONS:
            known = ", ".join(INTERPOLATIONS)
            raise ValueError(f"unknown interpolation {self.interpolation!r}; choose one of: {known}")


def imagenet(image: Image.Image, shape: tuple[int, int], mode: str, crop: Crop) -> NDArray[np.uint8]:
    """Return the middle of a picture as uint8 `shape` (height, width), or (height, width, channels) for colours.

    Transparency is dropped, as by `convert("RGB")`; what is smaller than the cut gets a black border.
    """
    image = image.convert(mode)
    height, width = _scaled(image, shape, crop)
    image = image.resize((width, height), INTERPOLATIONS[crop.interpolation])
    canvas = _padded(np.asarray(image, np.uint8), shape)
    top, left = (round((size - cut) / 2.0) for size, cut in zip(canvas.shape, shape, strict=False))
    return canvas[top : top + shape[0], left : left + shape[1]]


def _scaled(image: Image.Image, shape: tuple[int, int], crop: Crop) -> tuple[int, int]:
    """Return (height, width) of the scaled picture."""
    if isinstance(crop.resize, tuple):
        return crop.resize
    wanted = (crop.resize,) * 2 if crop.resize else tuple(math.floor(size / crop.crop_pct) for size in shape)
    if wanted[0] != wanted[1]:  # timm's ResizeKeepRatio
        ratio = min(image.height / wanted[0], image.width / wanted[1])
        return round(image.height / ratio), round(image.width / ratio)
    short, long = sorted(image.size)
    other = int(wanted[0] * long / short)
    return (wanted[0], other) if image.height <= image.width else (other, wanted[0])


def _padded(pixels: NDArray[np.uint8], shape: tuple[int, int]) -> NDArray[np.uint8]:
    missing = [max(cut - size, 0) for size, cut in zip(pixels.shape, shape, strict=False)]
    if not any(missing):
        return pixels
    borders = [(one // 2, (one + 1) // 2) for one in missing]
    return np.pad(pixels, [*borders, *[(0, 0)] * (pixels.ndim - 2)])
