"""How sure a difference is: exact for counts, by the normal law of paired means for real values."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
_MANY = 3000
_MOST_STEPS = 10_000
_EXACT = 1e-15
_TINY = 1e-300
_Z = 1.959963984540054  # of the normal law, for CONFIDENCE


def loss_of_counts(worse: int, better: int, samples: int, *, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return an interval of (worse - better) / samples that holds at least that often.

    Each kind of change has its exact interval (Clopper and Pearson 1934); the difference lies between their differences. It
    is wider than one that assumes a normal distribution, and right for no changes at all.
    """
    tail = (1 - confidence) / 4  # two limits decide each end
    lost, gained = proportion(worse, samples, tail), proportion(better, samples, tail)
    return lost[0] - gained[1], lost[1] - gained[0]


def mean_of_pairs(differences: NDArray[np.float64]) -> tuple[float, float]:
    """Return an interval of the mean of paired differences; infinite for fewer than two."""
    if len(differences) < 2:
        return -math.inf, math.inf
    centre = float(differences.mean())
    reach = _Z * float(differences.std(ddof=1)) / math.sqrt(len(differences))
    return centre - reach, centre + reach


def proportion(count: int, total: int, tail: float) -> tuple[float, float]:
    """Return the Clopper-Pearson limits of a share, each missed with probability `tail` at most."""
    low = 0.0 if count == 0 else _root(lambda share: 1 - _at_most(count - 1, total, share) - tail)
    high = 1.0 if count == total else _root(lambda share: tail - _at_most(count, total, share))
    return low, high


def _root(rising: Callable[[float], float]) -> float:
    """Return where a function of a share that rises becomes positive."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if rising(middle) > 0 else (middle, high)
    return (low + high) / 2


def _at_most(count: int, total: int, share: float) -> float:
    if share in {0.0, 1.0} or count >= total:
        return float(share == 0.0 or count >= total)
    return _beta(total - count, count + 1, 1 - share, share)


def _beta(a: float, b: float, x: float, rest: float) -> float:
    """Return the regularised incomplete beta function I_x(a, b); `rest` is 1 - x (Press et al. 2007, section 6.4)."""
    if x > (a + 1) / (a + b + 2):  # the other tail is the one that is quick
        return 1 - _beta(b, a, rest, x)
    ways = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    if min(a, b) > _MANY:
        return _beta_of_many(a, b, x, ways)
    return math.exp(ways + a * math.log(x) + b * math.log(rest)) * _fraction(a, b, x) / a


def _fraction(a: float, b: float, x: float) -> float:
    """Return the continued fraction of the incomplete beta function, by Lentz's method."""
    c, d = 1.0, 1 / _not_zero(1 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, _MOST_STEPS):
        before = value
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / _not_zero(1 + term * d)
            c = _not_zero(1 + term / c)
            value *= c * d
        if abs(value - before) <= _EXACT * abs(value):
            break
    return value


def _not_zero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY


def _beta_of_many(a: float, b: float, x: float, ways: float) -> float:
    """Integrate the density from x ten standard deviations down, where the fraction would take thousands of steps."""
    spread = math.sqrt(a * b / ((a + b) ** 2 * (a + b + 1)))
    start = max(0.0, min(a / (a + b) - 10 * spread, x - 5 * spread))
    places, weights = _nodes()
    shares = start + (x - start) * (places + 1) / 2
    density = np.exp(ways + (a - 1) * np.log(shares) + (b - 1) * np.log1p(-shares))
    return min(float((weights * density).sum()) * (x - start) / 2, 1.0)


@cache
def _nodes() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    places, weights = np.polynomial.legendre.leggauss(64)
    return places, weights
