"""Pictures as a page shows them: arrays made visible, and carried in the page itself."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from apps.demo.explain import plane_of


def pixels_of(picture: NDArray[Any], side: int) -> NDArray[np.uint8]:
    """Return a picture to be shown, enlarged by whole factors to about `side`, so that each pixel stays a square.

    Args:
        picture: `[height, width]`, `[channels, height, width]` or `[height, width, channels]`; real numbers are stretched to
            what can be seen.
        side: In pixels.

    Returns:
        uint8 `[height, width]`, or `[height, width, 3]` of three or four channels.
    """
    rows, columns = plane_of(picture.shape)
    shown: NDArray[Any] = np.moveaxis(picture, (rows, columns), (0, 1))
    if shown.ndim == 3:
        shown = shown[..., :3] if shown.shape[2] >= 3 else shown[..., 0]
    if shown.dtype != np.uint8:
        low, high = float(shown.min(initial=0)), float(shown.max(initial=0))
        shown = 255 * (shown.astype(np.float32) - low) / max(high - low, 1e-6)
    factor = max(side // max(shown.shape[:2]), 1)
    return shown.astype(np.uint8).repeat(factor, axis=0).repeat(factor, axis=1)


def as_address(picture: NDArray[np.uint8] | Image.Image) -> str:
    """Return a picture as a data address: exactly these pixels, in the page that shows them and nowhere else."""
    file = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
