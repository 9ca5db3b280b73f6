"""The pipelines that ask for a clean drawing (`mnist-ink@1`) or for nothing at all (`resize`)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kit.errors import PictureInvalid
from kit.tasks.images.reading import grey_levels

Pixels = NDArray[np.uint8]

_LEAST_CONTRAST = 24.0  # grey levels between ground and ink; below it a scan of blank paper would be "ink"
_INK_SHARE = 0.25  # of the strongest ink: what counts when the ink is cropped; leaves out noise and JPEG halos


def mnist_ink(image: Image.Image, shape: tuple[int, int]) -> Pixels:
    """`mnist-ink@1`: find the ink, crop, scale its longer side to 20/28 of the picture, centre by mass.

    The way the MNIST digits were made (LeCun, Cortes, Burges), for any size, polarity, place and alpha.
    """
    ink = _ink(grey_levels(image))
    rows, columns = np.nonzero(ink >= _INK_SHARE)
    cropped = ink[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    box = min(shape) * 20 / 28
    ratio = box / max(cropped.shape)
    height, width = (max(1, round(size * ratio)) for size in cropped.shape)
    drawing = Image.fromarray((cropped * 255).astype(np.uint8))
    small = np.asarray(drawing.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0))
    return place_by_mass(small, shape)


def resize(image: Image.Image, shape: tuple[int, int], mode: str = "L") -> Pixels:
    """`resize`: scaled to the shape, whatever the proportions; transparent ground becomes black, polarity stays."""
    if image.mode == "RGBA" and mode != "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
    scaled = image.convert(mode).resize((shape[1], shape[0]), Image.Resampling.BICUBIC)
    return np.asarray(scaled, np.uint8)


def place_by_mass(ink: NDArray[np.uint8], shape: tuple[int, int]) -> Pixels:
    """Paste `ink` on black so that its centre of mass lies in the middle, as near as its edges allow."""
    height, width = ink.shape
    total = max(float(ink.sum()), 1.0)
    mass_y = float((ink.sum(axis=1) * np.arange(height)).sum()) / total
    mass_x = float((ink.sum(axis=0) * np.arange(width)).sum()) / total
    top = _clip(round((shape[0] - 1) / 2 - mass_y), shape[0] - height)
    left = _clip(round((shape[1] - 1) / 2 - mass_x), shape[1] - width)
    canvas = np.zeros(shape, np.uint8)
    canvas[top : top + height, left : left + width] = ink
    return canvas


def _clip(offset: int, largest: int) -> int:
    return min(max(offset, 0), largest)


def _border(grey: NDArray[np.float32]) -> float:
    edges = (grey[0], grey[-1], grey[:, 0], grey[:, -1])
    return float(np.median(np.concatenate(edges)))


def _ink(grey: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return how far each pixel is from the ground, 0..1, whichever of the two is darker."""
    ground = _border(grey)
    lighter, darker = float(grey.max()) - ground, ground - float(grey.min())
    strongest = max(lighter, darker)
    if strongest < _LEAST_CONTRAST:
        raise PictureInvalid("the picture is empty: nothing stands out from its ground", hint="draw something first")
    signed = grey - ground if lighter >= darker else ground - grey
    ink: NDArray[np.float32] = np.clip(signed / strongest, 0.0, 1.0)
    return ink
