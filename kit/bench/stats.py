"""Intervals and verdicts from interleaved rounds. Pure functions of arrays; no clocks here.

Rounds are the unit: within one, calls share the machine's mood of the moment. Two contestants are compared by the log-ratio
of their medians in the same round, averaged over rounds; its interval comes from a moving-block bootstrap over rounds
(Kuensch 1989), which keeps what neighbouring rounds have in common. A table's verdicts share one error rate by Holm's
correction (Holm 1979).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

Rounds = NDArray[np.float64]

RESAMPLES = 4000
SAME_WITHIN = 0.02
"""Ratios within 2 % of 1 are the same for every purpose kit serves."""

ERROR_RATE = 0.05
LEAST_CALLS_FOR_P99 = 1000


class Outcome(StrEnum):
    """What a comparison says of a row, against its baseline."""

    BASELINE = "BASELINE"
    FASTER = "FASTER"
    SLOWER = "SLOWER"
    SAME = "SAME"
    INCONCLUSIVE = "INCONCLUSIVE"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How many times as fast as the baseline a contestant is.

    Attributes:
        speedup: Baseline time over contestant time; above 1 is faster.
        low: Lower end of its 95 % interval.
        high: Upper end.
        p_value: Two-sided, of no difference, from the same bootstrap.
    """

    speedup: float
    low: float
    high: float
    p_value: float


def block_bootstrap_means(values: Rounds, *, seed: int = 0) -> Rounds:
    """Draw RESAMPLES means of `values [rounds]` by resampling blocks of neighbouring rounds (circular)."""
    count = len(values)
    block = max(1, round(count ** (1 / 3)))
    blocks = -(-count // block)
    starts = np.random.default_rng(seed).integers(0, count, size=(RESAMPLES, blocks))
    picks = (starts[..., np.newaxis] + np.arange(block)).reshape(RESAMPLES, -1)[:, :count] % count
    means: Rounds = values[picks].mean(axis=1)
    return means


def compare(baseline: Rounds, contestant: Rounds, *, seed: int = 0) -> Comparison:
    """Compare per-round medians `[rounds]` of the same rounds, in any unit of time."""
    logs = np.log(baseline / contestant)
    means = block_bootstrap_means(logs, seed=seed)
    low, high = np.quantile(means, [ERROR_RATE / 2, 1 - ERROR_RATE / 2])
    tail = min(float((means <= 0).mean()), float((means >= 0).mean()))
    return Comparison(
        speedup=math.exp(float(logs.mean())),
        low=math.exp(float(low)),
        high=math.exp(float(high)),
        p_value=min(1.0, 2 * max(tail, 1 / RESAMPLES)),
    )


def judge(comparisons: list[Comparison]) -> list[Outcome]:
    """Give each comparison of a table its verdict.

    SAME when the interval lies within 2 % of 1; FASTER or SLOWER when it excludes 1 and Holm's correction over the table
    agrees; else INCONCLUSIVE: measure longer.
    """
    significant = _holm([comparison.p_value for comparison in comparisons])
    outcomes = []
    for comparison, sure in zip(comparisons, significant, strict=True):
        if comparison.low >= 1 / (1 + SAME_WITHIN) and comparison.high <= 1 + SAME_WITHIN:
            outcomes.append(Outcome.SAME)
        elif sure and comparison.low > 1:
            outcomes.append(Outcome.FASTER)
        elif sure and comparison.high < 1:
            outcomes.append(Outcome.SLOWER)
        else:
            outcomes.append(Outcome.INCONCLUSIVE)
    return outcomes


def median_interval(medians: Rounds, *, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % interval of the mean of per-round medians `[rounds]`."""
    low, high = np.quantile(block_bootstrap_means(medians, seed=seed), [ERROR_RATE / 2, 1 - ERROR_RATE / 2])
    return float(low), float(high)


def _holm(p_values: list[float]) -> list[bool]:
    """Return which hypotheses fall at ERROR_RATE for the whole family, stepping down from the smallest p-value."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    rejected = [False] * len(p_values)
    for rank, index in enumerate(order):
        if p_values[index] > ERROR_RATE / (len(p_values) - rank):
            break
        rejected[index] = True
    return rejected
