"""From any picture a person has to the pixels a model takes: named, versioned pipelines.

A pipeline's name travels in the ModelSpec, so a bundle keeps its preprocessing. A change that alters results gets a new
version; the old one stays. Knows Pillow and numpy, nothing of models.

    pixels = to_pixels("photo.jpg", pipeline="mnist-ink@1", shape=(28, 28))  # uint8 (28, 28)
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from kit.errors import PictureInvalid, UsageError

Pixels = NDArray[np.uint8]
Source = str | os.PathLike[str] | bytes | Image.Image

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"})
"""What a folder of pictures is searched for."""

MAX_PIXELS = 64 * 2**20
"""Largest picture read, in pixels: a phone's photograph fits, a decompression bomb does not."""

_LEAST_CONTRAST = 24.0  # grey levels between ground and ink; below it a scan of blank paper would be "ink"
_INK_SHARE = 0.25  # of the strongest ink: what counts when the ink is cropped; leaves out noise and JPEG halos


def to_pixels(source: Source, *, pipeline: str, shape: tuple[int, ...]) -> Pixels:
    """Read a picture and run a pipeline on it.

    Args:
        source: Path, encoded bytes (PNG, JPEG, ...) or a Pillow image.
        pipeline: Name in PIPELINES.
        shape: (height, width) of the result.

    Returns:
        uint8 of that shape.

    Raises:
        PictureInvalid: Not a readable picture, or nothing is drawn on it.
        UsageError: Unknown pipeline.
    """
    if pipeline not in PIPELINES:
        raise UsageError(f"unknown picture pipeline {pipeline!r}", hint="this bundle may need a newer kit")
    if len(shape) != 2:
        raise UsageError(f"the pipeline {pipeline!r} makes grey pictures, the model takes {shape}")
    return PIPELINES[pipeline](_open(source), (shape[0], shape[1]))


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


def _open(source: Source) -> Image.Image:
    if isinstance(source, Image.Image):
        return source
    name = "the picture" if isinstance(source, bytes) else os.fspath(source)
    try:
        image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else Path(source))
        if image.width * image.height > MAX_PIXELS:
            raise PictureInvalid(
                f"{name} has {image.width}x{image.height} pixels, more than {MAX_PIXELS // 2**20} million",
                hint="scale it down first",
            )
        image.load()
    except FileNotFoundError as error:
        raise PictureInvalid(f"{name} does not exist") from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise PictureInvalid(f"{name} is no readable picture", hint="PNG and JPEG always work") from error
    return ImageOps.exif_transpose(image)


def _grey(image: Image.Image) -> NDArray[np.float32]:
    """Return grey levels 0..255; what is transparent becomes the opposite of what is drawn."""
    has_alpha = image.mode in {"RGBA", "LA", "PA"} or "transparency" in image.info
    if not has_alpha:
        return np.array(image.convert("L"), np.float32)
    layers = np.asarray(image.convert("LA"), np.float32)
    grey, alpha = layers[..., 0], layers[..., 1] / 255.0
    drawn = float((grey * alpha).sum() / max(float(alpha.sum()), 1e-6))
    ground = 0.0 if drawn > 127.5 else 255.0
    composed: NDArray[np.float32] = grey * alpha + ground * (1.0 - alpha)
    return composed


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


def mnist_ink(image: Image.Image, shape: tuple[int, int]) -> Pixels:
    """`mnist-ink@1`: find the ink, crop, scale its longer side to 20/28 of the picture, centre by mass.

    The way the MNIST digits were made (LeCun, Cortes, Burges), for any size, polarity, place and alpha.
    """
    ink = _ink(_grey(image))
    rows, columns = np.nonzero(ink >= _INK_SHARE)
    cropped = ink[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    box = min(shape) * 20 / 28
    ratio = box / max(cropped.shape)
    height, width = (max(1, round(size * ratio)) for size in cropped.shape)
    drawing = Image.fromarray((cropped * 255).astype(np.uint8))
    small = np.asarray(drawing.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0))
    return place_by_mass(small, shape)


def resize(image: Image.Image, shape: tuple[int, int]) -> Pixels:
    """`resize@1`: grey, scaled to the shape; transparent ground becomes black, polarity stays."""
    if image.mode in {"RGBA", "LA", "PA"} or "transparency" in image.info:
        layered = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layered.size, "black"), layered)
    scaled = image.convert("L").resize((shape[1], shape[0]), Image.Resampling.BICUBIC)
    return np.asarray(scaled, np.uint8)


PIPELINES: dict[str, Callable[[Image.Image, tuple[int, int]], Pixels]] = {
    "mnist-ink@1": mnist_ink,
    "resize@1": resize,
}
