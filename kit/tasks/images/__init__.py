"""From any picture a person has to the pixels a model takes: named, versioned pipelines.

A pipeline's name travels in the ModelSpec, so a bundle keeps its preprocessing. A change that alters results gets a new
version; the old one stays. Knows Pillow and numpy, nothing of models.

    pixels = to_pixels("photo.jpg", pipeline="mnist-ink@2", shape=(28, 28))  # uint8 (28, 28)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

from kit.errors import BundleInvalid, UsageError
from kit.tasks.images.ink import LARGEST_SIDE, ink_pixels
from kit.tasks.images.plain import Pixels, mnist_ink, place_by_mass, resize
from kit.tasks.images.reading import MAX_PIXELS, Source, open_picture

__all__ = [
    "MAX_PIXELS",
    "PIPELINES",
    "PIXELS_ONLY",
    "SUFFIXES",
    "Pipeline",
    "Pixels",
    "Source",
    "check_pipeline",
    "place_by_mass",
    "to_pixels",
]

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"})
"""What a folder of pictures is searched for."""

PIXELS_ONLY = ""
"""Pipeline of a model that takes no pictures."""


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """A way from a picture to pixels.

    Attributes:
        run: From a picture of mode L, RGB or RGBA and (height, width) to uint8 of that shape.
        least_side: Pixels of the longer side beyond which it looks at none; None if it looks at all.
    """

    run: Callable[[Image.Image, tuple[int, int]], Pixels]
    least_side: int | None = None


PIPELINES = {
    "mnist-ink@1": Pipeline(run=mnist_ink),
    "mnist-ink@2": Pipeline(run=ink_pixels, least_side=LARGEST_SIDE),
    "resize@1": Pipeline(run=resize),
}


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
    chosen = PIPELINES[pipeline]
    picture = open_picture(source, least_side=chosen.least_side)
    return chosen.run(picture, (shape[-2], shape[-1])).reshape(shape)


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
