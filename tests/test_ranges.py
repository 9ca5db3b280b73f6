"""The range of activations that costs least when its values become integers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from exporters.formats.ranges import least_error

DRAWN = np.random.default_rng(0)
VALUES = {
    "normal": DRAWN.standard_normal(50_000),
    "behind a ReLU": np.maximum(DRAWN.standard_normal(50_000), 0),
    "one far out": np.append(DRAWN.standard_normal(50_000), -60.0),
    "few far out": np.append(DRAWN.laplace(size=50_000), DRAWN.uniform(20, 40, 40)),
    "none near 0": DRAWN.uniform(3, 4, 50_000),
    "all alike": np.full(100, -2.5),
}


def error(values: NDArray[np.floating], low: float, high: float) -> float:
    """Return what it costs to round values to 8 bits in a range."""
    scale = (high - low) / 255
    zero = np.rint(-low / scale)
    integers = np.clip(np.rint(values / scale) + zero, 0, 255)
    return float(np.square((integers - zero) * scale - values).mean())


def range_of(values: NDArray[np.floating]) -> tuple[float, float]:
    far = np.abs(values).max()
    counts, edges = np.histogram(values, bins=2048, range=(-far, far))
    return least_error(counts, edges, float(values.min()), float(values.max()))


@pytest.mark.parametrize("name", list(VALUES))
def test_no_range_costs_less(name: str) -> None:
    values = VALUES[name]
    low, high = range_of(values)
    assert low <= 0 <= high
    least, most = min(values.min(), 0.0), max(values.max(), 0.0)
    shares = np.linspace(0.05, 1, 39)
    others = [error(values, least * one, most * other) for one, other in itertools.product(shares, shares)]
    assert error(values, low, high) <= min(others) * 1.1


def test_rare_values_far_out_are_cut_off_and_as_many_as_others_are_kept() -> None:
    assert range_of(VALUES["few far out"])[1] < 40
    many = np.concatenate([VALUES["normal"], DRAWN.uniform(20, 40, 50_000)])
    assert range_of(many)[1] == pytest.approx(many.max(), rel=0.01)


def test_what_is_0_in_every_sample_has_no_width() -> None:
    assert range_of(np.zeros(100)) == (0, 0)
