"""From any picture a person has to the pixels a model takes: named, versioned pipelines.

A pipeline's name travels in the ModelSpec, so a bundle keeps its preprocessing. A change that alters results gets a new
version; the old one stays. Knows Pillow and numpy, nothing of models.

    pixels = to_pixels("photo.jpg", pipeline="mnist-ink@1", shape=(28, 28))  # uint8 (28, 28)
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from kit.errors import BundleInvalid, PictureInvalid, UsageError

Pixels = NDArray[np.uint8]
Source = str | os.PathLike[str] | bytes | Image.Image

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"})
"""What a folder of pictures is searched for."""

PIXELS_ONLY = ""
"""Pipeline of a model that takes no pictures."""

MAX_PIXELS = 64 * 2**20
"""Largest picture read, in pixels: a phone's photograph fits, a decompression bomb does not."""

_LEAST_CONTRAST = 24.0  # grey levels between ground and ink; below it a scan of blank paper would be "ink"
_INK_SHARE = 0.25  # of the strongest ink: what counts when the ink is cropped; leaves out noise and JPEG halos


def to_pixels(source: Source, *, pipeline: str, shape: tuple[int, ...]) -> Pixels:
    """Read a picture and run a pipeline on it.

    Args:
        source: Path, encoded bytes (PNG, JPEG, ...) or a Pillow image.
        pipeline: Name in PIPELINES.
        shape: (height, width) or (1, height, width) of the result.

    Returns:
        uint8 of that shape.

    Raises:
        PictureInvalid: Not a readable picture, or nothing is drawn on it.
        BundleInvalid: A pipeline this kit does not have.
        UsageError: The model takes pixels only.
    """
    if pipeline == PIXELS_ONLY:
        raise UsageError("this model takes pixels, not pictures", hint="give a uint8 array")
    try:
        check_pipeline(pipeline, shape)
    except UsageError as error:
        raise BundleInvalid(f"{error}; this bundle may need a newer kit") from error
    return PIPELINES[pipeline](_open(source), (shape[-2], shape[-1])).reshape(shape)


def check_pipeline(pipeline: str, shape: tuple[int, ...]) -> None:
    """Raise UsageError unless `pipeline` exists and can fill `shape`: (height, width), or (1, height, width)."""
    if pipeline == PIXELS_ONLY:
        return
    if pipeline not in PIPELINES:
        known = ", ".join(PIPELINES)
        raise UsageError(
            f"unknown picture pipeline {pipeline!r}",
            hint=f'choose one of: {known}; or "" for a model that takes pixels only',
        )
    if len(shape) not in {2, 3} or (len(shape) == 3 and shape[0] != 1):
        raise UsageError(
            f"the pipeline {pipeline!r} makes grey pictures, the model takes {shape}",
            hint='use pipeline="" for a model that takes pixels only',
        )


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
    """Decode a picture, turned as its EXIF data says, into one of the modes L, RGB and RGBA."""
    name = os.fspath(source) if isinstance(source, str | os.PathLike) else "the picture"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below is stricter
            image = source if isinstance(source, Image.Image) else Image.open(_readable(source))
        if image.width * image.height > MAX_PIXELS:
            raise PictureInvalid(_too_large(name), hint="scale it down first")
        return _plain(ImageOps.exif_transpose(image))
    except Image.DecompressionBombError as error:
        raise PictureInvalid(_too_large(name), hint="scale it down first") from error
    except FileNotFoundError as error:
        raise PictureInvalid(f"{name} does not exist") from error
    except PermissionError as error:
        raise PictureInvalid(f"{name} may not be read") from error
    except (OSError, ValueError, SyntaxError, IndexError) as error:  # what Pillow's decoders raise for bad data
        raise PictureInvalid(f"{name} is no readable picture", hint="PNG and JPEG always work") from error


def _readable(source: str | os.PathLike[str] | bytes) -> io.BytesIO | Path:
    return io.BytesIO(source) if isinstance(source, bytes) else Path(source)


def _too_large(name: str) -> str:
    return f"{name} has more than {MAX_PIXELS // 2**20} million pixels"


def _plain(image: Image.Image) -> Image.Image:
    """Bring any mode to 8 bits: L, RGB, or RGBA where something is transparent."""
    if image.width * image.height == 0:
        raise PictureInvalid("the picture has no pixels")
    if image.mode.startswith(("I", "F")):
        # Pillow clips deeper greys to 255 instead of scaling them.
        deep = np.asarray(image, np.float64)
        top = 65535.0 if image.mode.startswith("I") and deep.max() <= 65535 else max(float(deep.max()), 1e-12)
        return Image.fromarray(np.clip(deep * (255.0 / top), 0, 255).astype(np.uint8))
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode in {"RGBA", "LA", "PA", "RGBa"} or "transparency" in image.info:
        return image.convert("RGBA")
    return image.convert("L" if image.mode in {"1", "L"} else "RGB")


def _grey(image: Image.Image) -> NDArray[np.float32]:
    """Return grey levels 0..255; what is transparent becomes the opposite of what is drawn."""
    if image.mode != "RGBA":
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
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
    scaled = image.convert("L").resize((shape[1], shape[0]), Image.Resampling.BICUBIC)
    return np.asarray(scaled, np.uint8)


PIPELINES: dict[str, Callable[[Image.Image, tuple[int, int]], Pixels]] = {
    "mnist-ink@1": mnist_ink,
    "resize@1": resize,
}
