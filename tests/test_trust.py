"""Can the verdicts be trusted? On a thousand fixed series of each kind of noise, without any clock."""

from __future__ import annotations

import numpy as np
import pytest

from kit.bench.measure import Plan
from kit.bench.stats import Outcome, compare, judge
from tests.helpers import noise

SERIES = 1000
ROUNDS = Plan().rounds
WRONG = {Outcome.FASTER, Outcome.SLOWER}


def verdicts(kind: str, difference: float, count: int = SERIES) -> list[Outcome]:
    """Judge `count` pairs of which the second takes `difference` less time than the first."""
    found = []
    for seed in range(count):
        logs = noise.series(kind, seed, ROUNDS)
        logs[:, 1] += np.log1p(-difference)
        found += judge([compare(50 * np.exp(logs[:, 0]), 50 * np.exp(logs[:, 1]))])
    return found


@pytest.mark.parametrize("kind", noise.KINDS)
def test_equal_contestants_are_called_different_in_five_of_a_hundred_at_most(kind: str) -> None:
    found = verdicts(kind, 0.0)
    assert sum(outcome in WRONG for outcome in found) <= 0.05 * SERIES


@pytest.mark.parametrize("kind", noise.KINDS)
def test_five_percent_are_found_ninety_five_times_of_a_hundred(kind: str) -> None:
    found = verdicts(kind, 0.05, count=300)
    assert found.count(Outcome.FASTER) >= 0.95 * len(found)
