"""Digits drawn anew with a pen of any width, on any ground, in any light: what a picture pipeline has to read.

MNIST digits become skeletons (Zhang and Suen, 1984), skeletons become lines, and lines are drawn as a person might.
Every draw is seeded; numpy and Pillow only.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

Floats = NDArray[np.float64]
Random = np.random.Generator

SIDE = 400
_FINER = 3  # the skeleton is looked for at this many times MNIST's resolution
_SMOOTHER = 2  # drawn at this many times the picture's


@dataclass(frozen=True, kw_only=True)
class Lines:
    """A digit as lines: `points` float64 `[N, 2]`, x and y, the longer side 1 and the middle 0; `ends` int64 `[M, 2]`."""

    points: Floats
    ends: NDArray[np.int64]


def as_lines(digits: NDArray[np.uint8]) -> list[Lines]:
    """Return the pen's ways through digits, uint8 `[N, 28, 28]`."""
    size = (28 * _FINER, 28 * _FINER)
    large = [Image.fromarray(digit).resize(size, Image.Resampling.BICUBIC) for digit in digits]
    masks = np.stack([np.asarray(image.filter(ImageFilter.GaussianBlur(1))) > 110 for image in large])
    return [_joined(skeleton) for skeleton in _thinned(masks)]


def _thinned(masks: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Peel bool `[N, H, W]` from both sides in turn until only lines are left (Zhang and Suen, 1984)."""
    masks = np.pad(masks, ((0, 0), (1, 1), (1, 1))).astype(np.uint8)
    shifts = ((1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1))
    changed = True
    while changed:
        changed = False
        for first in (True, False):
            around = [np.roll(masks, shift, (1, 2)) for shift in shifts]
            north, east, south, west = around[::2]
            count = np.sum(around, axis=0)
            turns = np.sum(
                [(one == 0) & (other == 1) for one, other in zip(around, _turned(around), strict=True)], axis=0
            )
            free = (north * east * south, east * south * west) if first else (north * east * west, north * south * west)
            peel = (masks == 1) & (count >= 2) & (count <= 6) & (turns == 1) & (free[0] == 0) & (free[1] == 0)
            masks[peel] = 0
            changed = changed or bool(peel.any())
    return masks[:, 1:-1, 1:-1].astype(bool)


def _turned(around: list[NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
    return [*around[1:], around[0]]


def _joined(skeleton: NDArray[np.bool_]) -> Lines:
    rows, columns = np.nonzero(skeleton)
    index = {place: number for number, place in enumerate(zip(rows.tolist(), columns.tolist(), strict=True))}
    found = []
    for (row, column), number in index.items():
        for down, right in ((0, 1), (1, -1), (1, 0), (1, 1)):
            other = index.get((row + down, column + right))
            detour = down and right and ((row + down, column) in index or (row, column + right) in index)
            if other is not None and not detour:
                found.append((number, other))
    ends = np.array(found, np.int64).reshape(-1, 2)
    points = _smoothed(np.stack([columns, rows], axis=1).astype(np.float64), ends)
    low, high = points.min(axis=0), points.max(axis=0)
    return Lines(points=(points - (low + high) / 2) / max(float((high - low).max()), 1.0), ends=ends)


def _smoothed(points: Floats, ends: NDArray[np.int64]) -> Floats:
    """Move each point but the loose ends to the mean of itself and its neighbours, twice."""
    degree = np.bincount(ends.ravel(), minlength=len(points))
    for _ in range(2):
        total = points.copy()
        np.add.at(total, ends[:, 0], points[ends[:, 1]])
        np.add.at(total, ends[:, 1], points[ends[:, 0]])
        points = np.where((degree >= 2)[:, None], total / (degree + 1)[:, None], points)
    return points


def drawn(
    lines: Lines,
    *,
    extent: float,
    pen: float,
    centre: tuple[float, float] = (SIDE / 2, SIDE / 2),
    degrees: float = 0.0,
    pressure: Callable[[Floats], Floats] | None = None,
    size: tuple[int, int] = (SIDE, SIDE),
) -> Floats:
    """Draw a digit; extent, pen and centre (x, y) in pixels. Returns the ink's cover 0..1, float64 (height, width)."""
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    places = (lines.points @ np.array([[cos, sin], [-sin, cos]]) * extent + centre) * _SMOOTHER
    covers = np.ones(len(places)) if pressure is None else pressure(lines.points)
    fills = np.clip(255 * covers, 0, 255).astype(int).tolist()
    image = Image.new("L", (size[0] * _SMOOTHER, size[1] * _SMOOTHER))
    canvas, radius = ImageDraw.Draw(image), pen * _SMOOTHER / 2
    for start, end in lines.ends.tolist():
        canvas.line([*places[start], *places[end]], fill=fills[start], width=max(1, round(2 * radius)))
    for (x, y), fill in zip(places.tolist(), fills, strict=True):
        canvas.ellipse([x - radius, y - radius, x + radius, y + radius], fill=fill)
    return np.asarray(image.reduce(_SMOOTHER), np.float64) / 255


def _picture(levels: Floats) -> Image.Image:
    return Image.fromarray(np.clip(np.rint(levels), 0, 255).astype(np.uint8))


def _anywhere(random: Random, extent: float) -> tuple[float, float]:
    margin = extent / 2 + 14
    return float(random.uniform(margin, SIDE - margin)), float(random.uniform(margin, SIDE - margin))


def _grid(size: tuple[int, int], random: Random) -> Floats:
    """Return a ramp of random direction, in units of the longer side around 0."""
    y, x = np.mgrid[0 : size[1], 0 : size[0]].astype(np.float64)
    angle = random.uniform(0, 2 * np.pi)
    ramp: Floats = ((x - size[0] / 2) * np.cos(angle) + (y - size[1] / 2) * np.sin(angle)) / max(size)
    return ramp


def _light(random: Random, darkest: float, size: tuple[int, int] = (SIDE, SIDE)) -> Floats:
    ramp = _grid(size, random)
    falling: Floats = darkest + (1 - darkest) * ((ramp - ramp.min()) / np.ptp(ramp)) ** 1.3
    return falling


def _shadow(random: Random, depth: float, softness: float, size: tuple[int, int] = (SIDE, SIDE)) -> Floats:
    edge = (_grid(size, random) + random.uniform(-0.25, 0.25)) * max(size) / softness
    shade: Floats = 1 - depth / (1 + np.exp(-np.clip(edge, -50, 50)))
    return shade


def _pressure(random: Random) -> Callable[[Floats], Floats]:
    angle = random.uniform(0, 2 * np.pi)
    return lambda points: 0.72 + 0.28 * np.sin(6 * (points @ [np.cos(angle), np.sin(angle)]))


def _noise(random: Random, deviation: float) -> Floats:
    return random.normal(0, deviation, (SIDE, SIDE))


def plain(lines: Lines, random: Random) -> Image.Image:  # noqa: ARG001 - all conditions are called alike
    """White on black, in the middle, 260 pixels tall, a pen of 26."""
    return _picture(255 * drawn(lines, extent=260, pen=26))


def thin(lines: Lines, random: Random) -> Image.Image:
    """A pen of 3 pixels for 300."""
    return _picture(255 * drawn(lines, extent=300, pen=3, centre=_anywhere(random, 300)))


def thick(lines: Lines, random: Random) -> Image.Image:
    """A pen of 44 pixels for 220: loops begin to close."""
    return _picture(255 * drawn(lines, extent=220, pen=44, centre=_anywhere(random, 270)))


def corner(lines: Lines, random: Random) -> Image.Image:
    """44 pixels tall, in one of the corners of 400."""
    centre = (float(random.choice([32, SIDE - 32])), float(random.choice([32, SIDE - 32])))
    return _picture(255 * drawn(lines, extent=44, pen=4, centre=centre))


def sloping(lines: Lines, random: Random) -> Image.Image:
    """Turned by 10 to 20 degrees, either way."""
    degrees = float(random.uniform(10, 20) * random.choice([-1, 1]))
    return _picture(255 * drawn(lines, extent=240, pen=22, degrees=degrees, centre=_anywhere(random, 290)))


def dark_on_light(lines: Lines, random: Random) -> Image.Image:
    """Dark grey on light grey."""
    return _picture(235 - 200 * drawn(lines, extent=240, pen=14, centre=_anywhere(random, 250)))


def transparent(lines: Lines, random: Random) -> Image.Image:
    """Alpha alone: black, dark or white all over."""
    alpha = _picture(255 * drawn(lines, extent=240, pen=16, centre=_anywhere(random, 250)))
    colour = Image.new("L", alpha.size, int(random.choice([0, 30, 255])))
    return Image.merge("RGBA", [colour, colour, colour, alpha])


def uneven_light(lines: Lines, random: Random) -> Image.Image:
    """A pencil of uneven pressure; the light falls to a third across the paper; noise."""
    ink = drawn(lines, extent=220, pen=9, centre=_anywhere(random, 230), pressure=_pressure(random))
    return _picture(230 * _light(random, 0.35) * (1 - 0.65 * ink) + _noise(random, 5))


def shadow(lines: Lines, random: Random) -> Image.Image:
    """A shadow that takes half of the light, its edge across the picture; noise."""
    ink = drawn(lines, extent=220, pen=10, centre=_anywhere(random, 230))
    return _picture(225 * _shadow(random, 0.5, 4) * (1 - 0.6 * ink) + _noise(random, 5))


def dust(lines: Lines, random: Random) -> Image.Image:
    """25 dark specks of 2 to 4 pixels; noise."""
    levels = 230 - 190 * drawn(lines, extent=220, pen=12, centre=_anywhere(random, 230))
    for _ in range(25):
        (y, x), half = random.integers(3, SIDE - 3, 2), int(random.integers(1, 3))
        levels[y - half : y + half, x - half : x + half] = random.integers(20, 120)
    return _picture(levels + _noise(random, 4))


def table(lines: Lines, random: Random) -> Image.Image:
    """The paper's edge and a strip of dark table on one side; uneven light; noise."""
    centre = (SIDE / 2 + random.uniform(-40, 40), SIDE / 2 + random.uniform(-40, 40))
    levels = 225 * (1 - 0.6 * drawn(lines, extent=200, pen=10, centre=centre))
    y, x = np.mgrid[0:SIDE, 0:SIDE]
    tilt = random.uniform(-0.04, 0.04)
    inwards = (y + tilt * x, SIDE - 1 - y + tilt * x, x + tilt * y, SIDE - 1 - x + tilt * y)[int(random.integers(4))]
    levels = np.where(inwards < random.integers(8, 45), random.uniform(30, 80), levels)
    blurred = np.asarray(_picture(levels).filter(ImageFilter.GaussianBlur(1)), np.float64)
    return _picture(blurred * _light(random, 0.6) + _noise(random, 4))


def photograph(lines: Lines, random: Random) -> Image.Image:
    """All at once, 1200x900 and through JPEG: anywhere, sloping, pen of 5 to 14 pixels, uneven light, shadow, noise."""
    size, extent = (1200, 900), float(random.uniform(220, 420))
    centre = tuple(float(random.uniform(extent / 2 + 60, side - extent / 2 - 60)) for side in size)
    ink = drawn(
        lines,
        extent=extent,
        pen=float(random.uniform(5, 14)),
        degrees=float(random.uniform(-12, 12)),
        centre=(centre[0], centre[1]),
        pressure=_pressure(random),
        size=size,
    )
    levels = 220 * _light(random, 0.45, size) * _shadow(random, 0.35, 12, size) * (1 - 0.6 * ink)
    blurred = np.asarray(_picture(levels).filter(ImageFilter.GaussianBlur(1.5)), np.float64)
    stored = io.BytesIO()
    _picture(blurred + random.normal(0, 5, blurred.shape)).convert("RGB").save(stored, "JPEG", quality=80)
    return Image.open(stored).convert("RGB")


CONDITIONS = (
    plain,
    thin,
    thick,
    corner,
    sloping,
    dark_on_light,
    transparent,
    uneven_light,
    shadow,
    dust,
    table,
    photograph,
)
