"""How a picture lies in an array: which axis holds the channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kit.errors import UsageError

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Pillow's modes by number of channels."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Sizes of a picture in an array of one of the shapes [H, W], [C, H, W] and [H, W, C].

    Attributes:
        height: Pixels; None if it may differ.
        width: Likewise.
        channels: 1, 3 or 4.
        axis: Of the channels: 0 or 2; None for [H, W].
    """

    height: int | None
    width: int | None
    channels: int
    axis: int | None

    @property
    def mode(self) -> str:
        """Pillow's mode."""
        return MODES[self.channels]

    def arrange(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return pixels (height, width) or (height, width, channels) as they lie in this layout, contiguous."""
        if self.axis is None:
            return pixels
        if pixels.ndim == 2:
            pixels = pixels[..., np.newaxis]
        return np.ascontiguousarray(np.moveaxis(pixels, 2, self.axis))

    def per_channel(self, values: Sequence[float]) -> NDArray[np.float32]:
        """Return one value, or one for each channel, so that it broadcasts to an array of this layout."""
        array = np.asarray(values, np.float32)
        if len(array) == 1 or self.axis is None:
            return array
        return array.reshape(-1, 1, 1) if self.axis == 0 else array


def layout_of(shape: Sequence[int | str], *, channels_last: bool = False) -> Layout:
    """Read the shape of one picture, or raise UsageError; `channels_last` decides if both ends could be channels."""
    height: int | str
    width: int | str
    channels: int | str
    axis: int | None
    first = len(shape) == 3 and shape[0] in MODES
    last = len(shape) == 3 and shape[-1] in MODES
    if len(shape) == 2:
        (height, width), channels, axis = shape, 1, None
    elif last and (channels_last or not first):
        (height, width, channels), axis = shape, 2
    elif first:
        (channels, height, width), axis = shape, 0
    else:
        raise UsageError(
            f"a picture cannot have the shape [{', '.join(map(str, shape))}]",
            hint="its shape is [height, width], [channels, height, width] or [height, width, channels], 1, 3 or 4 channels",
        )
    return Layout(
        height=height if isinstance(height, int) else None,
        width=width if isinstance(width, int) else None,
        channels=int(channels),
        axis=axis,
    )
