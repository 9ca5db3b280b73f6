"""Digits as people draw them on a screen, in forms that MNIST hardly has, and signs that are no digits: drawn by strokes.

drawn = draw_digits(6_000, signs=1_500, seed=0)
drawn.images, drawn.labels  # uint8 [7500, 28, 28], int64 [7500], NO_DIGIT for signs

A form is a way of the pen that somebody thought up, not one that was recorded: nobody's handwriting is in it. Every drawing
moves its points, turns, leans and stretches it, lets go of the pen early, and takes a pen of another width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from kit.lab.data.sets import Split
from kit.tasks.images import place_by_mass

NO_DIGIT = -1
"""Label of a sign that is no digit: every digit is as likely."""

Points = NDArray[np.float64]
"""float64 [N, 2]: x to the right, y down, of a box 60 wide and 100 high."""

# Pieces after "|" begin where the pen is set down anew, or where it turns sharply; what is drawn between points is smooth.
FORMS: dict[int, tuple[str, ...]] = {
    0: (
        "30,0 5,20 0,55 12,90 32,100 52,85 60,48 50,12 28,0",
        "45,8 20,2 2,35 4,75 25,100 50,90 60,50 50,15 30,4",
        "30,0 5,20 0,55 12,90 32,100 52,85 60,48 50,12 28,0 | 0,100 60,0",
        "30,0 5,20 0,55 12,90 32,100 52,85 60,48 50,12 28,0 | -12,112 72,-12",
        "30,0 5,20 0,55 12,90 32,100 52,85 60,48 50,12 28,0 | 15,78 45,22",
        "30,0 5,20 0,55 12,90 32,100 52,85 60,48 50,12 28,0 | 0,8 60,92",
        "30,0 8,25 6,60 16,92 32,100 46,88 52,48 44,12 28,0 | -4,70 62,28",
        "50,14 30,2 5,20 0,55 12,90 32,100 52,85 60,48 50,14 20,8",
        "50,14 28,0 5,25 0,58 12,90 32,100 54,85 60,48 48,12 5,95",
        "34,0 12,12 2,50 10,85 28,100 50,92 60,55 56,22 40,4 30,12 28,24",
    ),
    1: (
        "30,0 30,100",
        "8,28 30,0 | 30,0 30,100",
        "0,40 34,0 | 34,0 32,100",
        "0,55 36,0 | 36,0 36,100",
        "14,14 30,0 | 30,0 30,100",
        "4,62 14,30 30,0 | 30,0 38,45 38,100",
        "8,26 30,0 | 30,0 30,100 | 5,100 55,100",
        "0,36 30,0 | 30,0 30,100 | 2,98 60,98",
        "30,0 30,100 | 8,100 52,100",
        "14,10 30,0 | 30,0 32,95 | 32,95 8,104 | 8,104 58,92",
        "12,32 24,18 30,0 | 30,0 30,100",
        "30,0 24,50 28,90 40,98",
        "2,34 34,0 | 34,0 40,50 36,92 | 36,92 12,104 | 12,104 66,88",
        "10,20 32,0 | 32,0 24,98 | 24,98 54,92",
    ),
    2: (
        "4,22 20,2 46,4 54,28 36,60 2,100 | 2,100 60,100",
        "6,18 28,0 52,18 44,45 4,98 | 4,98 30,94 60,102",
        "4,20 26,0 50,16 40,55 10,92 0,84 14,76 34,94 60,92",
        "0,6 50,6 | 50,6 4,96 | 4,96 58,96",
        "4,16 30,0 54,14 46,38 4,56 | 4,56 30,76 48,96 60,88 58,74",
        "8,24 10,6 34,0 52,20 30,66 6,98 | 6,98 58,84",
    ),
    3: (
        "4,12 28,0 52,16 46,40 22,48 | 22,48 50,54 58,78 34,100 2,90",
        "2,4 52,4 | 52,4 24,40 | 24,40 54,50 58,78 32,100 2,92",
        "4,14 30,0 50,20 34,44 22,46 30,50 56,62 48,94 4,96",
        "6,8 34,0 50,18 24,46 14,52 20,42 50,56 56,80 30,100 0,88",
        "2,4 48,4 | 48,4 28,42 | 28,42 54,56 50,90 16,104",
    ),
    4: (
        "16,0 4,58 | 4,58 60,58 | 44,20 44,100",
        "10,4 6,56 | 6,56 58,52 | 50,0 42,100",
        "30,0 0,66 | 0,66 62,66 | 42,36 42,100",
        "44,0 0,70 | 0,70 60,70 | 44,0 44,100",
        "14,0 8,34 24,48 50,40 | 52,0 50,40 | 50,40 44,100",
        "8,6 8,50 | 8,50 30,56 56,46 | 56,2 56,46 | 56,46 50,102",
        "34,0 2,50 | 2,50 62,56 | 36,24 28,104",
        "40,4 6,30 20,44 60,60 | 44,0 24,100",
        "24,0 4,36 12,52 | 12,52 58,48 | 40,36 40,72",
        "46,0 14,50 4,66 | 4,66 62,60 | 34,46 34,96",
    ),
    5: (
        "56,2 10,2 | 10,2 6,44 | 6,44 34,36 58,62 42,96 2,94",
        "12,4 8,46 | 8,46 36,38 58,66 38,98 0,90 | 12,4 60,2",
        "16,12 10,46 | 10,46 40,40 58,68 36,100 2,92 | 22,0 58,-6",
        "54,0 16,4 10,40 44,52 52,82 28,100 2,92",
        "10,6 8,42 | 8,42 40,40 54,66 34,94 4,96 | 20,4 56,8",
        "50,0 14,0 | 14,0 14,42 | 14,42 44,42 | 44,42 54,68 40,98 2,98",
        "6,28 30,12 56,36 54,78 34,98 -8,98 | 14,-8 44,-20",
        "14,26 12,50 | 12,50 40,36 56,66 36,94 10,90 8,76 | 18,4 46,-4",
        "10,20 8,52 34,40 56,62 34,96 2,90 | 10,-2 50,-8",
    ),
    6: (
        "46,0 12,34 0,72 22,100 52,86 50,58 24,54 4,74",
        "40,0 10,50 8,90 34,100 54,80 40,58 12,72",
        "54,8 30,0 6,36 4,84 30,100 56,82 46,56 14,62",
        "20,0 8,50 8,88 32,100 54,84 44,60 10,68",
        "50,2 24,14 2,56 10,96 40,98 52,76 36,62 16,78 28,98",
        "34,0 4,60 14,98 46,94 50,70 28,62 10,82",
        "66,4 44,4 14,44 8,84 26,100 44,88 38,64 22,60 10,74",
        "60,0 30,14 4,62 10,98 36,96 40,76 20,72",
    ),
    7: (
        "0,4 58,4 | 58,4 22,100",
        "0,4 58,4 | 58,4 22,100 | 14,52 56,48",
        "4,18 6,2 56,4 | 56,4 20,100 | 10,50 54,50",
        "0,2 56,2 | 56,2 36,40 28,100 | 12,54 52,44",
        "0,20 2,4 | 2,4 58,4 | 58,4 30,50 24,100",
        "2,8 24,0 58,6 | 58,6 40,50 36,104 | 16,58 62,46",
        "0,4 54,0 | 54,0 50,50 40,100 | 22,56 70,48",
        "0,0 56,0 | 56,0 14,100 | 6,66 54,40",
    ),
    8: (
        "46,14 26,0 8,18 26,44 50,68 42,96 16,98 4,74 28,48 48,24 44,10",
        "30,48 10,28 26,0 46,20 30,48 8,76 26,100 52,80 30,48",
        "52,6 30,0 10,20 30,48 52,76 30,100 6,78 26,50 58,2",
        "30,0 14,22 30,46 44,76 30,100 16,78 30,46 44,20 30,0",
        "30,0 10,20 30,42 50,22 30,0 | 30,42 4,72 30,100 56,72 30,42",
        "42,2 22,24 12,60 24,100 46,88 48,66 26,46 22,20 38,2",
        "30,8 26,40 8,66 24,100 50,78 44,56 24,38 20,12 32,-2",
        "34,0 20,24 30,50 38,78 28,100 18,80 28,50 42,22 34,2",
        "12,0 18,24 50,40 54,90 8,96 6,44 40,24 46,2",
        "8,4 28,36 54,72 30,100 6,74 30,38 54,0",
    ),
    9: (
        "52,22 28,0 6,20 14,46 40,46 54,20 | 54,20 48,100",
        "50,12 24,0 4,28 20,50 46,36 52,8 | 52,8 50,60 38,100",
        "52,18 26,0 6,22 18,48 46,40 52,16 54,70 36,100 6,94",
        "46,10 20,4 6,34 26,50 48,26 | 48,2 50,100",
        "50,20 30,0 8,16 16,44 50,34 | 50,20 40,60 14,104",
        "54,14 24,2 8,28 22,48 50,30 54,10 50,74 56,100",
        "56,14 34,0 14,14 18,34 44,34 58,10 | 56,14 60,60 56,96 | 56,96 8,98",
        "50,16 30,0 10,14 14,32 40,34 50,14 | 50,20 54,92 20,100 4,92",
    ),
}

SIGNS: tuple[str, ...] = (
    "0,50 60,50",  # lone strokes, none of them upright: that is a 1
    "0,58 60,44",
    "0,44 60,58",
    "0,100 76,0",
    "0,0 70,100",
    "0,0 64,44",
    "0,20 30,0 60,20",
    "0,0 30,26 60,0",
    "0,30 20,10 44,30 64,10",
    "0,0 50,0 | 50,0 50,40",
    "0,0 0,60 | 0,60 50,60",
    "0,60 0,0 | 0,0 60,0",
    "30,0 30,60 | 0,30 60,30",
    "0,0 60,80 | 60,0 0,80",
    "0,0 60,0 | 0,30 60,30",
    "0,0 60,0 | 30,0 30,90",
    "0,100 30,0 | 30,0 60,100 | 12,62 48,62",
    "0,0 0,100 | 0,0 56,0 | 0,48 44,48 | 0,100 56,100",
    "0,0 0,100 | 0,0 56,0 | 0,46 44,46",
    "0,0 0,100 | 60,0 60,100 | 0,50 60,50",
    "0,0 0,100 | 56,0 0,50 | 0,50 58,100",
    "0,100 0,0 | 0,0 34,60 | 34,60 68,0 | 68,0 68,100",
    "0,100 0,0 | 0,0 60,100 | 60,100 60,0",
    "0,0 16,100 | 16,100 34,30 | 34,30 52,100 | 52,100 68,0",
    "0,0 30,100 | 30,100 60,0",
    "0,0 2,70 30,100 58,70 60,0",
    "14,0 0,30 4,60 | 60,0 46,30 50,60",
    "0,30 0,36 | 40,30 40,36 | 0,60 20,76 40,60",
    "30,0 0,90 | 0,90 60,90 | 60,90 30,0",
    "0,0 80,0 | 80,0 80,80 | 80,80 0,80 | 0,80 0,0",
    "0,40 20,0 40,40 60,80 80,40",
    "0,0 2,80 | 30,0 32,80",
    "0,0 2,80 | 24,0 26,80 | 50,0 50,80",
)

_SIDE, _FINER = 20, 8  # of the box that holds the ink, and how many times as finely it is drawn


def draw_digits(count: int, *, signs: int, seed: int) -> Split:
    """Draw digits, as many of each, and signs that are no digits, the same for the same arguments.

    Pictures are as MNIST's: light ink of 20 pixels at most in 28x28, centred by mass; signs come last.
    """
    rng = np.random.default_rng((seed, 28))
    labels = np.concatenate([np.arange(count) % len(FORMS), np.full(signs, NO_DIGIT)]).astype(np.int64)
    forms = [FORMS[label] if label != NO_DIGIT else SIGNS for label in labels.tolist()]
    images = [_drawn(str(one[rng.integers(len(one))]), rng) for one in forms]
    return Split(np.stack(images) if images else np.empty((0, 28, 28), np.uint8), labels)


def _drawn(form: str, rng: np.random.Generator) -> NDArray[np.uint8]:
    pieces = [_smooth(piece, rng) for piece in _moved(form, rng)]
    pieces = _leaning(pieces, rng)
    pen = rng.uniform(2.0, 3.4) * _FINER
    low = np.concatenate(pieces).min(axis=0)
    spread = float((np.concatenate(pieces).max(axis=0) - low).max())
    scale = (_SIDE * _FINER - pen) / max(spread, 1.0)
    size = _SIDE * _FINER + 2
    canvas = Image.new("L", (size, size))
    pencil = ImageDraw.Draw(canvas)
    for piece in pieces:
        way = ((piece - low) * scale + pen / 2 + 1).tolist()
        pencil.line([tuple(point) for point in way], fill=255, width=round(pen), joint="curve")
        for x, y in (way[0], way[-1]):
            pencil.ellipse((x - pen / 2, y - pen / 2, x + pen / 2, y + pen / 2), fill=255)
    ink = canvas.crop(canvas.getbbox())
    width, height = (max(round(side * _SIDE / max(ink.size)), 1) for side in ink.size)
    small = ink.resize((width, height), Image.Resampling.BOX)
    return place_by_mass(np.asarray(small), (28, 28))


def _moved(form: str, rng: np.random.Generator) -> list[Points]:
    """Return the points of each piece, moved at random; what two pieces share stays shared."""
    places = [[tuple(map(float, point.split(","))) for point in piece.split()] for piece in form.split("|")]
    moves = {place: rng.normal(0, 3.5, 2) for piece in places for place in piece}
    pieces = [np.array([np.add(place, moves[place]) for place in piece]) for piece in places]
    shared = [set(piece) for piece in places]
    for number, piece in enumerate(pieces[1:], start=1):  # a stroke of its own is set down where the hand happens to be
        if not shared[number] & set().union(*shared[:number]):
            middle = piece.mean(axis=0)
            piece[:] = (piece - middle) * rng.uniform(0.75, 1.2) + middle + rng.normal(0, 4, 2)
    return pieces


def _smooth(points: Points, rng: np.random.Generator) -> Points:
    """Return a curve through points (centripetal would be finer than the pen can show), its ends let go early at times."""
    if len(points) == 2:  # a straight line is seldom straight
        across = (points[1] - points[0])[::-1] * (1, -1)
        middle = points.mean(axis=0) + across * rng.normal(0, 0.04)
        points = np.stack([points[0], middle, points[1]])
    padded = np.concatenate([2 * points[:1] - points[1:2], points, 2 * points[-1:] - points[-2:-1]])
    before, start, end, after = (padded[shift : len(padded) - 3 + shift, None] for shift in range(4))
    t = np.linspace(0, 1, 12)[None, :, None]
    curve = 0.5 * (
        2 * start
        + (end - before) * t
        + (2 * before - 5 * start + 4 * end - after) * t**2
        + (3 * start - before - 3 * end + after) * t**3
    )
    way: Points = curve.reshape(-1, 2)
    first, last = (int(len(way) * max(rng.normal(0, 0.03), 0)) for _ in range(2))
    return way[first : len(way) - last]


def _leaning(pieces: Sequence[Points], rng: np.random.Generator) -> list[Points]:
    angle, lean, width = rng.normal(0, 0.08), rng.normal(-0.12, 0.2), np.exp(rng.normal(0, 0.22))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    shape = turn @ np.array([[width, lean], [0.0, 1.0]])
    return [piece @ shape.T for piece in pieces]
