"""Intervals and verdicts from interleaved rounds. Pure functions of arrays; no clocks here.

Rounds are the unit: within one, calls share the machine's mood of the moment. Two contestants are compared by the log-ratio
of their medians in the same round. The median of the few rounds for which a model stays open stands for that opening, and
the openings are averaged without the most extreme fifth on either side (Tukey's trimmed mean): a neighbour that wakes up in
the middle of a round slows one of the two by a third, and must not decide.
Its standard error comes from a moving-block bootstrap over openings (Kuensch 1989), which keeps what neighbours have in
common; blocks are longer the more neighbours resemble each other (Carlstein 1986). The interval is Student's, with one
degree of freedom less than there are blocks. A table's verdicts share one error rate by Holm's correction (Holm 1979).

How often this errs, and what it finds, is simulated in tests/test_trust.py and drawn in docs/benchmarking.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from kit.bench.measure import LEAST_ROUNDS, ROUNDS_PER_OPENING
from kit.system.wording import times

Rounds = NDArray[np.float64]

RESAMPLES = 1000
TRIMMED = 0.2
"""Share of the rounds left out of a mean, on either side."""

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
        low: Lower end, and `high` the upper, of its 95 % interval.
        p_value: Two-sided, of no difference, by the same standard error.
    """

    speedup: float
    low: float
    high: float
    p_value: float

    def describe(self) -> str:
        """Return `1.74x [1.70, 1.78]`: times as fast as the baseline, and the 95 % interval."""
        return times(self.speedup, self.low, self.high)


def block_length(values: Rounds) -> int:
    """Return how many neighbouring rounds are resampled together, 1 to a quarter of all.

    Twice what is optimal for the variance of the mean of a first-order autoregressive series (Carlstein 1986, The Annals of
    Statistics 14): an interval wants longer blocks than a variance. Outliers are cut off first, for they hide what
    neighbours have in common, and the autocorrelation is freed from its bias towards zero (Kendall 1954).
    """
    count = len(values)
    cut = np.clip(values, *np.quantile(values, [0.1, 0.9]))
    centred = cut - cut.mean()
    spread = float((centred**2).sum())
    rho = float((centred[1:] * centred[:-1]).sum()) / spread if spread > 0 else 0.0
    if rho < 1 / math.sqrt(count):  # what independent rounds show as well, five times in six
        return 1
    rho = min(rho + (1 + 3 * rho) / count, 0.95)
    optimal = (math.sqrt(6) * rho / (1 - rho**2)) ** (2 / 3) * count ** (1 / 3)
    return int(min(max(math.ceil(2 * optimal), 1), max(count // 4, 1)))


def trimmed_mean(values: Rounds) -> Rounds:
    """Return the mean over the last axis without the TRIMMED lowest and highest values."""
    out = int(TRIMMED * values.shape[-1])
    kept = np.sort(values, axis=-1)[..., out : values.shape[-1] - out]
    found: Rounds = kept.mean(axis=-1)
    return found


def block_resamples(values: Rounds, *, seed: int = 0) -> Rounds:
    """Draw RESAMPLES series `[RESAMPLES, rounds]` by gluing blocks of neighbouring rounds (circular) together."""
    count, block = len(values), block_length(values)
    starts = np.random.default_rng(seed).integers(0, count, size=(RESAMPLES, -(-count // block)))
    picks = (starts[..., np.newaxis] + np.arange(block)).reshape(RESAMPLES, -1)[:, :count] % count
    drawn: Rounds = values[picks]
    return drawn


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A trimmed mean with its standard error and Student's degrees of freedom."""

    mean: float
    error: float
    freedom: float

    def exceeds(self, limit: float) -> float:
        """Return the one-sided p-value of the mean being no larger than `limit`."""
        if self.error == 0:
            return float(self.mean <= limit)
        t = (self.mean - limit) / self.error
        two_sided = _student_p_value(t, self.freedom)
        return two_sided / 2 if t > 0 else 1 - two_sided / 2


def estimate(values: Rounds, *, seed: int = 0) -> Estimate:
    """Estimate the trimmed mean of a series `[rounds]` whose neighbours may resemble each other.

    One value says nothing about its own spread: the error is infinite then.
    """
    if len(values) < 2:
        return Estimate(mean=float(values[0]), error=math.inf, freedom=1.0)
    count, block = len(values), block_length(values)
    # A resampled mean varies less than a mean does, by the share of one block, and more where the block is too short.
    lost = math.sqrt(count / max(count - 1.5 * block, 1))
    error = float(trimmed_mean(block_resamples(values, seed=seed)).std()) * lost
    return Estimate(mean=float(trimmed_mean(values)), error=error, freedom=max(count / block - 1, 1.0))


def difference(one: Estimate, other: Estimate) -> Estimate:
    """Estimate `one - other` from two independent runs (Welch 1947)."""
    variances = one.error**2, other.error**2
    total = sum(variances)
    spread = variances[0] ** 2 / one.freedom + variances[1] ** 2 / other.freedom
    freedom = total**2 / spread if spread > 0 else one.freedom + other.freedom
    return Estimate(mean=one.mean - other.mean, error=math.sqrt(total), freedom=max(freedom, 1.0))


def as_speedup(logs: Estimate) -> Comparison:
    """Read an estimate of log(baseline / contestant) as a speed-up with its 95 % interval."""
    margin = _student_quantile(1 - ERROR_RATE / 2, logs.freedom) * logs.error
    return Comparison(
        speedup=math.exp(logs.mean),
        low=math.exp(logs.mean - margin),
        high=math.exp(logs.mean + margin),
        p_value=_student_p_value(logs.mean / logs.error, logs.freedom) if logs.error > 0 else float(logs.mean == 0),
    )


def compare(baseline: Rounds, contestant: Rounds, *, seed: int = 0) -> Comparison:
    """Compare per-round medians `[rounds]` of the same rounds, in any unit of time."""
    return as_speedup(estimate(by_opening(np.log(baseline / contestant)), seed=seed))


def by_opening(values: Rounds) -> Rounds:
    """Return the median of each opening's rounds; in a short run of fewer rounds together, so that ten remain."""
    together = max(min(ROUNDS_PER_OPENING, len(values) // LEAST_ROUNDS), 1)
    return np.array([np.median(values[start : start + together]) for start in range(0, len(values), together)])


def _student_quantile(share: float, freedom: float) -> float:
    """Return Student's t for a share above one half (Wallace 1959, inverted; within 1.5 % from 3 degrees on)."""
    z = NormalDist().inv_cdf(share) * (8 * freedom + 3) / (8 * freedom + 1)
    return math.sqrt(freedom * math.expm1(z * z / freedom))


def _student_p_value(t: float, freedom: float) -> float:
    """Return the two-sided p-value of Student's t (Wallace 1959)."""
    z = (8 * freedom + 1) / (8 * freedom + 3) * math.sqrt(freedom * math.log1p(t * t / freedom))
    return math.erfc(z / math.sqrt(2))


def judge(comparisons: list[Comparison]) -> list[Outcome]:
    """Give each comparison of a table its verdict.

    SAME when the interval lies within 2 % of 1; FASTER or SLOWER when it excludes 1 and Holm's correction over the table
    agrees; else INCONCLUSIVE: measure longer.
    """
    significant = holm([comparison.p_value for comparison in comparisons])
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


def median_interval(medians: Rounds, *, seed: int = 0) -> tuple[float, float] | tuple[None, None]:
    """Return the 95 % interval of the median of per-round medians `[rounds]`; None for both ends of too few of them."""
    if len(medians) < LEAST_ROUNDS:
        return None, None
    drawn = np.median(block_resamples(by_opening(medians), seed=seed), axis=1)
    low, high = np.quantile(drawn, [ERROR_RATE / 2, 1 - ERROR_RATE / 2])
    return float(low), float(high)


def holm(p_values: list[float]) -> list[bool]:
    """Return which hypotheses fall at ERROR_RATE for the whole family, stepping down from the smallest p-value."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    rejected = [False] * len(p_values)
    for rank, index in enumerate(order):
        if p_values[index] > ERROR_RATE / (len(p_values) - rank):
            break
        rejected[index] = True
    return rejected


def lost_by_chance(lost: int, gained: int) -> float:
    """Return the exact one-sided p-value of `lost` flips against `gained` ones if both were as likely (McNemar 1947)."""
    flips = lost + gained
    ways = sum(math.comb(flips, count) for count in range(lost, flips + 1))
    return float(ways / 2**flips)
