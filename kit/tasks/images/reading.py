"""Files, bytes and Pillow images of every mode become 8-bit pictures that stand upright."""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from kit.errors import PictureInvalid

Source = str | os.PathLike[str] | bytes | Image.Image

MAX_PIXELS = 64 * 2**20
"""Largest picture read, in pixels: a phone's photograph fits, a decompression bomb does not."""


def open_picture(source: Source, *, least_side: int | None = None) -> Image.Image:
    """Decode a picture, turned as its EXIF data says, into one of the modes L, RGB and RGBA.

    Args:
        source: Path, encoded bytes or a Pillow image.
        least_side: Where no pixel beyond this size matters, a JPEG file is decoded at 1/2, 1/4 or 1/8 of its size, the
            longer side still at least this long: 12 million pixels in a fifth of the time.

    Raises:
        PictureInvalid: Not a readable picture, or one of more than MAX_PIXELS.
    """
    name = os.fspath(source) if isinstance(source, str | os.PathLike) else "the picture"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below is stricter
            image = source if isinstance(source, Image.Image) else Image.open(_readable(source))
        if image.width * image.height > MAX_PIXELS:
            raise PictureInvalid(_too_large(name), hint="scale it down first")
        if least_side and image is not source:
            _draft(image, least_side)
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


def _draft(image: Image.Image, least_side: int) -> None:
    """Ask the decoder for fewer pixels; only JPEG's can, the others ignore it."""
    ratio = least_side / max(image.size)
    if ratio < 1:
        image.draft(None, (max(1, round(image.width * ratio)), max(1, round(image.height * ratio))))


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
    if image.has_transparency_data:
        return image.convert("RGBA")
    return image.convert("L" if image.mode in {"1", "L"} else "RGB")


def grey_levels(image: Image.Image) -> NDArray[np.float32]:
    """Return grey levels 0..255, float32 (height, width); what is transparent becomes the opposite of what is drawn."""
    if image.mode != "RGBA":
        return np.array(image.convert("L"), np.float32)
    layers = np.asarray(image.convert("LA"), np.float32)
    grey, alpha = layers[..., 0], layers[..., 1] / 255.0
    drawn = float((grey * alpha).sum() / max(float(alpha.sum()), 1e-6))
    ground = 0.0 if drawn > 127.5 else 255.0
    composed: NDArray[np.float32] = grey * alpha + ground * (1.0 - alpha)
    return composed
