"""`mnist-ink@2` and `@3`: a drawing, or a photograph of one, becomes what MNIST holds.

1. Grey: alpha is laid on the opposite of what is drawn; at most 640 pixels a side.
2. Even light: which of the two is ink, and what the light alone would show, follow from the picture (kit.tasks.images.light).
3. Pieces: the digit and what lies close to it stay; specks and what is left of shadows go.
4. Stroke width: thin strokes are widened, thick ones narrowed, to what MNIST's writers used.
5. Scaled into 20/28 of the result, antialiased, peak at 255, centred by mass (LeCun, Cortes, Burges).

Steps 2 to 4 can be left out, to see what each brings: docs/pictures.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kit.errors import PictureInvalid
from kit.tasks.images.light import median_of_counts, relief
from kit.tasks.images.pieces import label_pieces, spread
from kit.tasks.images.plain import Pixels, place_by_mass
from kit.tasks.images.reading import grey_bytes

LARGEST_SIDE = 640
"""Pixels of the longer side that the search for ink works on: a pen stroke in a photograph of a page is still there."""

_LEAST_SIDE = 256  # smaller pictures are enlarged, so that the steps below may count in pixels
_FINE = 160  # longer side of the cropped digit while its strokes are changed: 8 pixels for one of the result's 20
_BOX = 20 / 28
_LEAST_CONTRAST = 24.0  # grey levels; below it a scan of blank paper would be "ink"
_NARROWEST = 8  # pixels of the shorter side
_SPECK = 12  # pixels; a drawing that is smaller has no shape
_FULL = 0.6  # of the picture, or of its border: there is no ground left to tell ink from
Number = TypeVar("Number", np.int16, np.float32)
_PEN = (2.6, 3.0)  # pixels of 20; the upper middle of MNIST: its median is 2.4, its upper tenth begins at 3.2


@dataclass(frozen=True, kw_only=True)
class Steps:
    """Which steps are taken; `mnist-ink@2` is the default.

    Attributes:
        even_light: Follow uneven light; else one ground for the whole picture and ink on it of one strength.
        pieces: Leave out what does not belong to the digit.
        stroke_width: Bring strokes to MNIST's width.
        deskew: Shear the digit upright by its second moments; not in `mnist-ink@2`, for it brought nothing.
    """

    even_light: bool = True
    pieces: bool = True
    stroke_width: bool = True
    deskew: bool = False


def ink_pixels(image: Image.Image, shape: tuple[int, int], *, steps: Steps | None = None) -> Pixels:
    """Turn a picture of mode L, RGB or RGBA into light ink on black, uint8 of `shape` (height, width).

    Raises:
        PictureInvalid: Nothing is drawn, hardly anything, or so much that no ground is left.
    """
    steps = steps or Steps()
    ink = find_ink(working_copy(image), steps)
    digit = _scaled(_cropped(np.rint(ink * 255).astype(np.uint8)), _FINE)
    if steps.deskew:
        digit = _scaled(upright(digit), _FINE)
    if steps.stroke_width:
        digit = _cropped(with_pen(digit))
    small = _scaled(digit, min(shape) * _BOX).astype(np.float32)
    return place_by_mass(np.rint(small * (255.0 / max(float(small.max()), 1.0))).astype(np.uint8), shape)


def working_copy(image: Image.Image) -> NDArray[np.uint8]:
    """Return the picture in grey, uint8 (height, width), 256 to 640 long; raise PictureInvalid if it is too narrow."""
    side = max(image.size)
    if side > LARGEST_SIDE:
        image = image.copy() if side < 2 * LARGEST_SIDE else image.reduce(side // LARGEST_SIDE)
        image.thumbnail((LARGEST_SIDE, LARGEST_SIDE), Image.Resampling.BOX)
    grey = grey_bytes(image)
    grey = _scaled(grey, _LEAST_SIDE, Image.Resampling.BICUBIC) if side < _LEAST_SIDE else grey
    if min(grey.shape) < _NARROWEST:
        raise PictureInvalid("the picture is a line: too narrow for a drawing", hint="crop it less tightly")
    return grey


def find_ink(grey: NDArray[np.uint8], steps: Steps) -> NDArray[np.float32]:
    """Return the ink of the digit alone, 0 to 1, float32 (height, width). Raises what `ink_pixels` does."""
    found = relief(grey, even=steps.even_light)
    halves = _sum3(np.rint(2 * found.levels).astype(np.int16))  # levels are whole or half
    levels = halves.astype(np.float32) / 18
    spread_of_halves = median_of_counts(np.bincount(np.abs(halves).ravel()))
    noise = 1.4826 * spread_of_halves / 18  # standard deviation, from the median absolute deviation
    least = max(_LEAST_CONTRAST, 8.0 * noise)
    if levels.max() < least:
        raise PictureInvalid(
            "the picture is empty, or full of ink: no stroke stands out from its ground",
            hint="draw something, and leave a margin around it",
        )
    mask = levels >= least / 2
    near = _box(mask, margin=2)  # what lies further away changes nothing
    sharp, mask_near = found.strength(near), mask[near]
    strength = _sum3(sharp) / np.float32(9)
    if steps.pieces:
        mask_near = _digit(mask_near, strength)
    # Of the strong ink, not the strongest: a blot must not make the rest of a pencil's line faint.
    peak = _percentile(strength[mask_near], 90)
    low, high = 0.25 * peak, 0.6 * peak
    inked = np.where(mask_near, np.clip((sharp - low) / (high - low), 0.0, 1.0), 0.0).astype(np.float32)
    ink = np.zeros(grey.shape, np.float32)
    ink[near] = inked
    _check_amount(ink >= 0.5)
    return ink


def _box(mask: NDArray[np.bool_], *, margin: int) -> tuple[slice, slice]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return (
        slice(max(int(rows[0]) - margin, 0), int(rows[-1]) + 1 + margin),
        slice(max(int(columns[0]) - margin, 0), int(columns[-1]) + 1 + margin),
    )


def _check_amount(mask: NDArray[np.bool_]) -> None:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows) or max(np.ptp(rows), np.ptp(columns)) < _SPECK:
        raise PictureInvalid("the picture is nearly empty: there is a speck on it, no drawing", hint="draw larger")
    border = np.concatenate((mask[0], mask[-1], mask[:, 0], mask[:, -1]))
    if np.count_nonzero(mask) > _FULL * mask.size or border.mean() > _FULL:
        raise PictureInvalid("the picture is full of ink: no ground is left around it", hint="leave a margin")


def _digit(mask: NDArray[np.bool_], strength: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Keep the piece with the longest outline and what lies close to it; the bar of a 5 does, dust does not.

    A piece counts by its total variation, outline times contrast: a thin stroke has much, a soft shadow little.
    """
    label = label_pieces(mask)
    count = int(label.max()) + 1
    if count == 1:
        return mask
    rows, columns = np.nonzero(mask)
    down, across = (np.gradient(strength, axis=axis) for axis in (0, 1))
    weight = np.bincount(label, np.hypot(down[mask], across[mask]), count)
    top, left = np.full(count, mask.shape[0]), np.full(count, mask.shape[1])
    bottom, right = np.zeros(count, np.int64), np.zeros(count, np.int64)
    np.minimum.at(top, label, rows)
    np.maximum.at(bottom, label, rows)
    np.minimum.at(left, label, columns)
    np.maximum.at(right, label, columns)
    main = int(weight.argmax())
    reach = 0.5 * max(bottom[main] - top[main], right[main] - left[main])
    apart = np.maximum(
        np.maximum(top - bottom[main], top[main] - bottom), np.maximum(left - right[main], left[main] - right)
    )
    kept = (weight >= 0.06 * weight[main]) & (apart <= reach)
    digit = np.zeros_like(mask)
    digit[rows, columns] = kept[label]
    return digit


def stroke_width(ink: NDArray[np.uint8]) -> float:
    """Return the mean width of the strokes in pixels: twice the area over the outline, uint8 (height, width).

    The outline is the total variation (the co-area formula), so that grey edges count for what they are.
    """
    padded = np.pad(ink.astype(np.float32), 1)
    down, across = np.diff(padded, axis=0)[:, :-1], np.diff(padded, axis=1)[:-1]
    outline = np.sqrt(down * down + across * across)  # np.hypot guards against overflow, at five times the cost
    return 2 * float(padded.sum()) / max(float(outline.sum()), 1e-6)


def with_pen(digit: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Widen or narrow strokes into MNIST's range, for a digit that will be scaled until it fills 20 pixels."""
    side = max(digit.shape)
    width = stroke_width(digit)
    target = min(max(width * 20 / side, _PEN[0]), _PEN[1]) / 20
    # The digit grows with its strokes: (width + 2 r) / (side + 2 r) = target.
    radius = round((side * target - width) / (2 * (1 - target)))
    changed = spread(digit, radius) if radius else digit
    return changed if changed.max() >= 128 else digit


def upright(digit: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Shear a digit until its rows' centres lie below one another (deskewing, LeCun et al. 1998)."""
    mass = digit.astype(np.float64)
    rows, columns = np.arange(digit.shape[0]), np.arange(digit.shape[1])
    rows = rows - (mass.sum(axis=1) @ rows) / mass.sum()
    columns = columns - (mass.sum(axis=0) @ columns) / mass.sum()
    shear = float(rows @ mass @ columns) / max(float(mass.sum(axis=1) @ rows**2), 1e-6)
    margin = int(abs(shear) * digit.shape[0]) + 1
    wide = Image.fromarray(np.pad(digit, ((0, 0), (margin, margin))))
    matrix = (1.0, shear, shear * float(rows[0]), 0.0, 1.0, 0.0)
    return _cropped(np.asarray(wide.transform(wide.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)))


def _sum3(field: NDArray[Number]) -> NDArray[Number]:
    """Return the sum of the 3x3 pixels around each one: a ninth of it has a third of the noise."""
    padded = np.pad(field, 1, mode="edge")
    down = padded[:-2] + padded[1:-1] + padded[2:]
    total: NDArray[Number] = down[:, :-2] + down[:, 1:-1] + down[:, 2:]
    return total


def _percentile(values: NDArray[np.float32], percent: int) -> float:
    """Return a percentile between its two neighbours, as np.percentile does at a fifth of the cost of a call."""
    place, rest = divmod(percent * (len(values) - 1), 100)
    after = min(place + 1, len(values) - 1)
    ranked = np.partition(values, (place, after))
    lower, upper = float(ranked[place]), float(ranked[after])
    return lower + (upper - lower) * (rest / 100)


def _cropped(ink: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return ink[_box(ink >= 64, margin=0)]


def _scaled(
    ink: NDArray[np.uint8], side: float, resampling: Image.Resampling = Image.Resampling.BILINEAR
) -> NDArray[np.uint8]:
    """Scale so that the longer side has `side` pixels; Pillow's filters widen with the ratio, so this antialiases."""
    ratio = side / max(ink.shape)
    height, width = (max(1, round(size * ratio)) for size in ink.shape)
    return np.asarray(Image.fromarray(ink).resize((width, height), resampling))
