"""From any picture a person has to the pixels a model takes: named, versioned pipelines.

A pipeline's name travels in the bundle, which so keeps its preprocessing. A change that alters results gets a new version; the
old one stays. Knows Pillow and numpy, nothing of models.

    pixels = to_pixels("photo.jpg", pipeline="mnist-ink@3", shape=(28, 28))  # uint8 (28, 28)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

from kit.errors import BundleInvalid, UsageError
from kit.tasks.images.crop import Crop, imagenet
from kit.tasks.images.folders import SUFFIXES
from kit.tasks.images.ink import LARGEST_SIDE, ink_pixels
from kit.tasks.images.layout import Layout, layout_of
from kit.tasks.images.plain import Pixels, mnist_ink, place_by_mass, resize
from kit.tasks.images.reading import MAX_PIXELS, Source, open_picture

__all__ = [
    "MAX_PIXELS",
    "PIPELINES",
    "PIXELS_ONLY",
    "SUFFIXES",
    "Crop",
    "Pipeline",
    "Pixels",
    "Source",
    "check_pipeline",
    "place_by_mass",
    "to_pixels",
]

PIXELS_ONLY = ""
"""Pipeline of a model that takes no pictures."""


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """A way from a picture to pixels.

    Attributes:
        run: From a picture of mode L, RGB or RGBA, (height, width), the wanted mode and a Crop to uint8 of that shape, with
            channels last if they are more than one.
        least_side: Resolution it needs: larger JPEG files are decoded smaller. None: no limit.
        colours: Whether it makes more than grey.
        own_range: Whether greys of more than 8 bits are scaled from their own range; see `open_picture`.
    """

    run: Callable[[Image.Image, tuple[int, int], str, Crop], Pixels]
    least_side: int | None = None
    colours: bool = False
    own_range: bool = False


PIPELINES = {
    "mnist-ink@1": Pipeline(run=lambda image, shape, _mode, _crop: mnist_ink(image, shape)),
    "mnist-ink@2": Pipeline(run=lambda image, shape, _mode, _crop: ink_pixels(image, shape), least_side=LARGEST_SIDE),
    "resize@1": Pipeline(run=lambda image, shape, mode, _crop: resize(image, shape, mode), colours=True),
    "imagenet@1": Pipeline(run=imagenet, colours=True),
}
# The newest versions differ from those before in the greys of more than 8 bits alone.
PIPELINES |= {
    newest: dataclasses.replace(PIPELINES[before], own_range=True)
    for newest, before in (("mnist-ink@3", "mnist-ink@2"), ("resize@2", "resize@1"), ("imagenet@2", "imagenet@1"))
}


def to_pixels(
    source: Source,
    *,
    pipeline: str,
    shape: tuple[int, ...],
    channels_last: bool = False,
    crop: Crop | None = None,
) -> Pixels:
    """Read a picture and run a pipeline on it; return uint8 of `shape`.

    That is (height, width), (channels, height, width) or (height, width, channels): `channels_last` decides if both
    ends could be channels. A `source` of bytes is an encoded picture (PNG, JPEG, ...); `crop` is how `imagenet` scales.

    Raises:
        PictureInvalid: Not a readable picture, or nothing is drawn on it.
        BundleInvalid: A pipeline this kit does not have.
        UsageError: The model takes pixels only.
    """
    if pipeline == PIXELS_ONLY:
        raise UsageError("this model takes pixels, not pictures", hint="give an array")
    try:
        layout = layout_of(shape, channels_last=channels_last)
        check_pipeline(pipeline, layout)
    except UsageError as error:
        raise BundleInvalid(f"{error}; this bundle may need a newer kit") from error
    return run_pipeline(source, pipeline, layout, crop or Crop())


def run_pipeline(source: Source, pipeline: str, layout: Layout, crop: Crop) -> Pixels:
    """Read a picture and run a pipeline that was checked for the layout, whose height and width are known."""
    chosen = PIPELINES[pipeline]
    picture = open_picture(source, least_side=chosen.least_side, own_range=chosen.own_range)
    return layout.arrange(chosen.run(picture, (layout.height or 1, layout.width or 1), layout.mode, crop))


def check_pipeline(pipeline: str, layout: Layout) -> None:
    """Raise UsageError unless `pipeline` exists and makes as many channels as the model takes."""
    if pipeline == PIXELS_ONLY:
        return
    if pipeline not in PIPELINES:
        known = ", ".join(PIPELINES)
        raise UsageError(
            f"unknown picture pipeline {pipeline!r}",
            hint=f'choose one of: {known}; or "" for a model that takes pixels only',
        )
    if layout.channels > 1 and not PIPELINES[pipeline].colours:
        raise UsageError(
            f"the pipeline {pipeline!r} makes grey pictures, the model takes {layout.channels} channels",
            hint='use pipeline="imagenet@2" or "resize@2", or "" for a model that takes pixels only',
        )
