"""Which of the two is ink, dark or light, and how much of it lies on each pixel under uneven light."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from kit.tasks.images.pieces import closing

Grey = NDArray[np.uint8]
Field = NDArray[np.float32]
Leans = NDArray[np.float64]

_BLURS = (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4)  # of the longer side
_NEARLY = 0.9
_OFF = (  # of copies so many times smaller: twice the most that their leans were off on even grounds, for each blur
    (4, (0.55, 0.2, 0.13, 0.04, 0.012)),
    (2, (0.2, 0.1, 0.05, 0.02, 0.005)),
    (1, (0.0, 0.0, 0.0, 0.0, 0.0)),
)
_COARSE = 256  # pixels; what is asked of the whole picture is asked of a small copy
_WINDOWS = 3.0  # of the chosen blur: wider than the pen, narrower than a shadow
_WIDEST = 1 / 2  # of the longer side


@dataclass(frozen=True, kw_only=True)
class Relief:
    """What stands out from the ground.

    Attributes:
        levels: Grey levels between ground and pixel, float32 (height, width); the median is 0, noise makes some negative.
        ground: What the light alone would show: uint8 (height, width), or one level for all.
    """

    levels: Field
    ground: Grey | int

    def strength(self, near: tuple[slice, slice]) -> Field:
        """Return the share of the ground's light that is missing, 0 to 1: the ink itself, whatever light falls on it."""
        ground = self.ground if isinstance(self.ground, int) else np.maximum(self.ground[near], 1)
        share: Field = self.levels[near] / np.float32(ground)
        return np.clip(share, 0.0, 1.0, out=share)


def relief(grey: Grey, *, even: bool = True) -> Relief:
    """Measure the ink of a picture, uint8 (height, width).

    The ground is a morphological closing: what is lighter than the ink around it within a window a little wider than
    the pen. It follows gradients and the edges of shadows. Light ink is the same on the negative. Without `even`, the
    ground is the median of the border all over the picture.
    """
    if not even:
        return _flat_relief(grey)
    light_ink, place = _leaning(grey)
    dark_ink = 255 - grey if light_ink else grey
    half = round(max(grey.shape) * min(_WINDOWS * _BLURS[place], _WIDEST) / 2)
    ground = closing(dark_ink, 2 * half + 1)
    below = ground - dark_ink  # a closing is nowhere darker
    missing = below.astype(np.float32)
    missing -= np.float32(_median(below))  # under noise the closing lies on its upper side
    return Relief(levels=missing, ground=ground)


def _median(levels: Grey) -> float:
    return median_of_counts(_histogram(levels))


def median_of_counts(counts: Sequence[int] | NDArray[np.int64]) -> float:
    """Return the median of whole numbers from how often 0, 1, 2, ... occur: counting takes a tenth of the time of sorting."""
    upto = np.cumsum(counts)
    size = int(upto[-1])
    lower, upper = np.searchsorted(upto, ((size - 1) // 2, size // 2), side="right")
    return (int(lower) + int(upper)) / 2


def _histogram(levels: Grey) -> list[int]:
    return Image.fromarray(levels).histogram()


def _leaning(grey: Grey) -> tuple[bool, int]:
    """Return whether the ink is light, and the place in _BLURS of the narrowest that is nearly as one-sided as any.

    Strokes are one-sided, and wider blurs let shadows in. On an even ground (half of the pixels or more are of one level, so
    that no noise goes with the size) small copies of the picture tell most, and what they leave open is asked of larger ones,
    the narrowest blur first, until no answer could change the choice.
    """
    is_even = max(_histogram(grey)) >= grey.size / 2
    low, high = np.full(len(_BLURS), -1.0), np.full(len(_BLURS), 1.0)
    asked = list(range(len(_BLURS)))
    for times, off in _OFF if is_even else _OFF[-1:]:
        picture = _copy(grey, times)
        levels = np.asarray(picture, np.float32)
        for place in asked:
            found = _lean_at(picture, levels, _BLURS[place])
            low[place], high[place] = max(found - off[place], -1.0), min(found + off[place], 1.0)
            if (chosen := _chosen(low, high)) is not None:
                return chosen
        asked = _open_places(low, high)
    # All are known, and their sum is 0: dark ink, as on paper.
    return False, int(np.argmax(-low >= _NEARLY * -low.min()))


def _chosen(low: Leans, high: Leans) -> tuple[bool, int] | None:
    """Return what any leans between two bounds lead to; None if that differs."""
    if low.sum() <= 0 <= high.sum():
        return None
    least, most = _towards_ink(low, high)
    place = int(np.argmax(most >= _NEARLY * least.max()))  # the narrowest that may be
    return (bool(low.sum() > 0), place) if least[place] >= _NEARLY * most.max() else None


def _open_places(low: Leans, high: Leans) -> list[int]:
    """Return the blurs whose leans may still change the choice."""
    if low.sum() <= 0 <= high.sum():
        return list(range(len(low)))
    least, most = _towards_ink(low, high)
    may_be, must_be = most >= _NEARLY * least.max(), least >= _NEARLY * most.max()
    found: list[int] = np.flatnonzero((may_be & ~must_be) | (most >= least.max())).tolist()
    return found


def _towards_ink(low: Leans, high: Leans) -> tuple[Leans, Leans]:
    """Return bounds of how far details lean towards the ink, whichever it is."""
    return (low, high) if low.sum() > 0 else (-high, -low)


def lean(grey: Grey) -> tuple[float, ...]:
    """Tell whether a picture's details are lighter (> 0) or darker (< 0) than what surrounds them, at several scales.

    For each blur the third moment of what the blur takes away, over its absolute third moment: -1 to 1. A stroke stands
    out to one side; noise, gradients and the straight edges of shadows and paper stand out to both alike.
    """
    picture = _copy(grey, 1)
    return tuple(_lean_at(picture, np.asarray(picture, np.float32), blur) for blur in _BLURS)


def _copy(grey: Grey, times: int) -> Image.Image:
    """Return a picture of _COARSE pixels, or of about so many times fewer."""
    picture = Image.fromarray(grey)
    if times > 1:
        return picture.reduce(max(1, round(max(grey.shape) * times / _COARSE)))
    picture.thumbnail((_COARSE, _COARSE), Image.Resampling.BOX)
    return picture


def _lean_at(picture: Image.Image, levels: Field, blur: float) -> float:
    details = levels - np.asarray(picture.filter(ImageFilter.GaussianBlur(max(picture.size) * blur)), np.float32)
    cubes = details * details * details  # an order faster than a power
    return float(cubes.sum()) / max(float(np.abs(cubes).sum()), 1e-9)


def _flat_relief(grey: Grey) -> Relief:
    edges = np.concatenate((grey[0], grey[-1], grey[:, 0], grey[:, -1]))
    levels = grey.astype(np.float32) - np.float32(np.median(edges))
    if -levels.min() > levels.max():
        levels = -levels
    return Relief(levels=levels, ground=255)
