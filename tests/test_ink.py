"""The quick ways through a picture give what the plain ones give."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from kit.tasks.images import ink, light, pieces


def _drawing(seed: int, *, noise: float = 0.0, shade: float = 0.0) -> NDArray[np.uint8]:
    """Return strokes of a random pen, dark on light or light on dark, perhaps under a shade and with noise."""
    random = np.random.default_rng(seed)
    side = int(random.integers(256, 480))
    picture = Image.new("L", (side, side), 0)
    pen = ImageDraw.Draw(picture)
    points = [tuple(random.uniform(0.15, 0.85, 2) * side) for _ in range(int(random.integers(2, 7)))]
    pen.line(points, fill=255, width=int(random.integers(2, side // 8)), joint="curve")
    levels = np.asarray(picture, np.float32) * (random.uniform(0.3, 1.0))
    levels = levels + shade * np.linspace(0, 60, side, dtype=np.float32) + random.normal(0, noise, (side, side))
    grey = np.clip(levels, 0, 255).astype(np.uint8)
    return 255 - grey if random.random() < 0.5 else grey


@pytest.mark.parametrize(("noise", "shade"), [(0.0, 0.0), (4.0, 1.0)])
def test_small_copies_decide_as_the_whole_picture_does(noise: float, shade: float) -> None:
    for seed in range(60):
        grey = _drawing(seed, noise=noise, shade=shade)
        leans = np.array(light.lean(grey))
        signed = leans if leans.sum() > 0 else -leans
        wanted = (bool(leans.sum() > 0), int(np.argmax(signed >= 0.9 * signed.max())))
        assert light._leaning(grey) == wanted, seed


@pytest.mark.parametrize("size", [1, 3, 7, 31, 64])
@pytest.mark.parametrize("extreme", [np.maximum, np.minimum])
def test_running_extremes_are_those_of_each_window(size: int, extreme: np.ufunc) -> None:
    grey = np.random.default_rng(size).integers(0, 256, (23, 37), np.uint8)
    before = (size - 1) // 2
    around = np.pad(grey, (before, size - 1 - before), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(around, (size, size))
    wanted = windows.max(axis=(2, 3)) if extreme is np.maximum else windows.min(axis=(2, 3))
    assert np.array_equal(pieces.running(extreme, grey, size), wanted)


@pytest.mark.parametrize("size", [1, 5, 33])
def test_a_closing_is_the_least_of_the_largest_beyond_the_border_too(size: int) -> None:
    grey = np.random.default_rng(size).integers(0, 256, (23, 37), np.uint8)
    around = np.pad(grey, 2 * size, mode="edge")
    wanted = pieces.running(np.minimum, pieces.running(np.maximum, around, size), size)
    assert np.array_equal(pieces.closing(grey, size), wanted[2 * size : -2 * size, 2 * size : -2 * size])


@pytest.mark.parametrize("count", [1, 2, 9, 10])
def test_medians_and_percentiles_are_those_of_numpy(count: int) -> None:
    random = np.random.default_rng(count)
    for most in (2, 256):
        levels = random.integers(0, most, count)
        assert light.median_of_counts(np.bincount(levels)) == np.median(levels)
    shares = random.random(count).astype(np.float32)
    assert ink._percentile(shares, 90) == pytest.approx(float(np.percentile(shares, 90)), rel=1e-6)
