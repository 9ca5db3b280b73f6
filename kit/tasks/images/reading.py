"""Files, bytes and Pillow images of every mode become 8-bit pictures that stand upright."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from kit.errors import MemoryShort, PictureInvalid
from kit.tasks.inputs import MOST_BYTES, refuse_special

Source = str | os.PathLike[str] | bytes | Image.Image

MAX_PIXELS = 64 * 2**20
"""Largest picture read, in pixels: a phone's photograph fits, a decompression bomb does not."""

_RAISED = (
    *(
        OSError,
        ValueError,
        SyntaxError,
        LookupError,
        ArithmeticError,
        RuntimeError,
        EOFError,
        TypeError,
        AttributeError,
    ),
    *(AssertionError, struct.error, zlib.error),
)
"""What Pillow's decoders raise for bad data."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""By the number of an orientation in EXIF data."""

_PNG = b"\x89PNG\r\n\x1a\n"
_BAND = 2**20  # pixels that are scaled at a time


def open_picture(source: Source, *, least_side: int | None = None, own_range: bool = False) -> Image.Image:
    """Decode a picture, turned as its EXIF data says, into one of the modes L, RGB and RGBA.

    EXIF data that are spoilt turn nothing, and spoil no picture.

    Args:
        source: Path, encoded bytes or a Pillow image.
        least_side: Where no pixel beyond this size matters, a JPEG file is decoded at 1/2, 1/4 or 1/8 of its size, the
            longer side still at least this long: 12 million pixels in a fifth of the time.
        own_range: Scale greys of more than 8 bits from their own least to their own greatest value; else whole numbers of up
            to 65535 are scaled from 0 to 65535, others from 0 to their greatest.

    Raises:
        PictureInvalid: Not a readable picture, one of more than MAX_PIXELS, or one without a finite number.
        MemoryShort: It does not fit into the memory.
    """
    name = os.fspath(source) if isinstance(source, str | os.PathLike) else "the picture"
    if isinstance(source, str | os.PathLike):
        refuse_special(Path(source), PictureInvalid)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of large pictures, which the limit is stricter about, and of spoilt extras
        try:
            image = _upright(_decoded(source, name, least_side))
            return _plain(image, own_range=own_range)
        except Image.DecompressionBombError as error:
            raise PictureInvalid(_too_large(name), hint="scale it down first") from error
        except MemoryError as error:
            raise MemoryShort(
                f"{name} does not fit into the memory that is free", hint="scale it down first"
            ) from error
        except FileNotFoundError as error:
            raise PictureInvalid(f"{name} does not exist", hint=_where(name)) from error
        except PermissionError as error:
            raise PictureInvalid(f"{name} may not be read", hint="look at the file's permissions") from error
        except _RAISED as error:
            raise _unreadable(name, error) from error


def _where(name: str) -> str:
    return "look at the path" if Path(name).is_absolute() else f"look at the path; it was looked for in {Path.cwd()}"


def _unreadable(name: str, error: Exception) -> PictureInvalid:
    if "truncated" in str(error).lower() or isinstance(error, EOFError):
        return PictureInvalid(f"{name} is no readable picture: it is truncated", hint="copy or download it once more")
    if isinstance(error, UnidentifiedImageError | IsADirectoryError):
        return PictureInvalid(f"{name} is no readable picture", hint="give a PNG or a JPEG that is whole")
    return PictureInvalid(f"{name} is no readable picture: it is damaged", hint="save or download it once more")


def _decoded(source: Source, name: str, least_side: int | None) -> Image.Image:
    if isinstance(source, Image.Image):
        return _loaded(source, name)
    try:
        return _loaded(Image.open(io.BytesIO(source) if isinstance(source, bytes) else Path(source)), name, least_side)
    except _RAISED:
        bare = _without_extras(source)
        if bare is None:
            raise
        return _loaded(Image.open(io.BytesIO(bare)), name)


def _loaded(image: Image.Image, name: str, least_side: int | None = None) -> Image.Image:
    if image.width * image.height > MAX_PIXELS:
        raise PictureInvalid(_too_large(name), hint="scale it down first")
    if least_side:
        _draft(image, least_side)
    image.load()
    return image


def _without_extras(source: str | os.PathLike[str] | bytes) -> bytes | None:
    """Return a PNG with nothing but its pixels, palette and transparency; None if that leaves nothing out, or it is no PNG.

    Pillow reads the other chunks before the pixels, and refuses the picture if one of them is spoilt.
    """
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else Path(source).open("rb") as file:
            data = file.read(len(_PNG))
            data += file.read(MOST_BYTES) if data == _PNG else b""
    except OSError:
        return None
    if not data.startswith(_PNG):
        return None
    kept, place = [_PNG], len(_PNG)
    while place + 12 <= len(data):  # length, name, content, checksum
        name, end = data[place + 4 : place + 8], place + 12 + int.from_bytes(data[place : place + 4])
        if name[:1].isupper() or name == b"tRNS":
            kept.append(data[place:end])
        place = end
    bare = b"".join(kept)
    return bare if len(bare) < len(data) else None


def _too_large(name: str) -> str:
    return f"{name} has more than {MAX_PIXELS // 2**20} million pixels"


def _draft(image: Image.Image, least_side: int) -> None:
    """Ask the decoder for fewer pixels; only JPEG's can, the others ignore it."""
    ratio = least_side / max(image.size)
    if ratio < 1:
        image.draft(None, (max(1, round(image.width * ratio)), max(1, round(image.height * ratio))))


def _upright(image: Image.Image) -> Image.Image:
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except _RAISED:
        return image
    return image if turn is None else image.transpose(turn)


def _plain(image: Image.Image, *, own_range: bool) -> Image.Image:
    """Bring any mode to 8 bits: L, RGB, or RGBA where something is transparent."""
    if image.width * image.height == 0:
        raise PictureInvalid("the picture has no pixels")
    if image.mode.startswith(("I", "F")):  # Pillow clips deeper greys to 255 instead of scaling them
        return _in_own_range(image) if own_range else _in_usual_range(image)
    if image.mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data:
        return image.convert("RGBA")
    return image.convert("L" if image.mode in {"1", "L"} else "RGB")


def _in_usual_range(image: Image.Image) -> Image.Image:
    """Scale greys of more than 8 bits as the first versions of the pipelines do, whatever their range is."""
    deep = np.asarray(image, np.float64)
    top = 65535.0 if image.mode.startswith("I") and deep.max() <= 65535 else max(float(deep.max()), 1e-12)
    return Image.fromarray(np.clip(deep * (255.0 / top), 0, 255).astype(np.uint8))


def _in_own_range(image: Image.Image) -> Image.Image:
    """Scale greys of more than 8 bits from their least to their greatest finite value; NaN becomes the least."""
    low, high = np.inf, -np.inf
    for _, band in _bands(image):
        finite = band[np.isfinite(band)]
        low, high = finite.min(initial=low), finite.max(initial=high)
    if low > high:
        raise PictureInvalid("the picture holds no finite number")
    scale = 255.0 / (high - low) if high > low else 0.0
    levels = np.empty((image.height, image.width), np.uint8)
    for top, band in _bands(image):
        np.nan_to_num(band, copy=False, nan=low, neginf=low, posinf=high)
        levels[top : top + len(band)] = np.rint((band - low) * scale)
    return Image.fromarray(levels)


def _bands(image: Image.Image) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Give a grey picture in parts of whole rows, each with its first row.

    In float64, where every whole number of 32 bits is exact and the range of two float32 is finite; in parts, since the
    largest picture would take 512 MiB.
    """
    rows = max(1, _BAND // image.width)
    for top in range(0, image.height, rows):
        part = image.crop((0, top, image.width, min(top + rows, image.height)))
        yield top, np.array(part, np.float64)


def grey_bytes(image: Image.Image) -> NDArray[np.uint8]:
    """Return `grey_levels` rounded to uint8, at once where nothing is transparent; not to be written to."""
    if image.mode != "RGBA":
        return np.asarray(image.convert("L"))
    if image.getchannel("A").getextrema() == (255, 255):
        return np.asarray(image.convert("L"))
    return np.rint(grey_levels(image)).astype(np.uint8)


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
