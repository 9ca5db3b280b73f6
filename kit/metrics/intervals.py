"""How sure a difference is: exact for counts, by the normal law of paired means for real values."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
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
    """Return the probability of `count` or fewer of `total`, each as likely as `share`."""
    if share in {0.0, 1.0}:
        return float(share == 0.0 or count >= total)
    hits = np.arange(count + 1, dtype=np.float64)
    ways = np.array(
        [math.lgamma(total + 1) - math.lgamma(k + 1) - math.lgamma(total - k + 1) for k in range(count + 1)]
    )
    return float(min(np.exp(ways + hits * math.log(share) + (total - hits) * math.log1p(-share)).sum(), 1.0))
