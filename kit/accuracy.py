"""What logits say: probabilities, and with labels top-1 and what flipped against another variant on the same images."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kit.bundle.records import Accuracy

BINS = 15
"""Of a calibration curve."""

_FEW = 64


def probabilities(logits: NDArray[np.float32], temperature: float) -> NDArray[np.float32]:
    """Return probabilities `[N, classes]`, the softmax of logits `[N, classes]` over a temperature; stable for large ones."""
    if logits.size <= _FEW and len(logits) == 1:
        return _one(logits, temperature)
    found: NDArray[np.float32] = logits - np.maximum.reduce(logits, axis=1, keepdims=True)
    found /= np.float32(temperature)
    np.exp(found, out=found)
    found /= np.add.reduce(found, axis=1, keepdims=True)
    return found


def _one(logits: NDArray[np.float32], temperature: float) -> NDArray[np.float32]:
    """Do it for one sample without numpy, whose calls take ten times as long as the arithmetic (docs/performance.md)."""
    row = logits[0].tolist()
    top = max(row)
    shares = [math.exp((one - top) / temperature) for one in row]
    total = sum(shares)
    return np.array([[share / total for share in shares]], np.float32)


def accuracy(
    logits: NDArray[np.float32],
    labels: NDArray[np.int64],
    *,
    dataset: str,
    split: str,
    baseline: NDArray[np.float32] | None = None,
) -> Accuracy:
    """Count correct answers, and the images that changed sides against a baseline.

    Args:
        logits: float32 `[N, classes]`.
        labels: int64 `[N]`.
        dataset: Name of the data set, for the record.
        split: Name of its split, for the record.
        baseline: The fp32 variant's logits on the same images, if this is another variant.
    """
    right = logits.argmax(axis=1) == labels
    before = right if baseline is None else baseline.argmax(axis=1) == labels
    return Accuracy(
        dataset=dataset,
        split=split,
        images=len(labels),
        correct=int(right.sum()),
        flips_to_wrong=int((before & ~right).sum()),
        flips_to_right=int((~before & right).sum()),
        agreeing=len(labels) if baseline is None else int((logits.argmax(axis=1) == baseline.argmax(axis=1)).sum()),
    )


def drop_interval(found: Accuracy, *, confidence: float = 0.95) -> tuple[float, float]:
    """Return an interval of the drop against fp32 in percentage points, exact: it holds at least that often.

    Each kind of flip has its exact interval (Clopper and Pearson 1934); the drop lies between their differences. It is
    wider than one that assumes a normal distribution, and right for no flips at all.
    """
    tail = (1 - confidence) / 4  # two limits decide each end
    wrong = _proportion(found.flips_to_wrong, found.images, tail)
    right = _proportion(found.flips_to_right, found.images, tail)
    return 100 * (wrong[0] - right[1]), 100 * (wrong[1] - right[0])


def _proportion(count: int, total: int, tail: float) -> tuple[float, float]:
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


def expected_calibration_error(shares: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Return how far the probability of the answer is from the share of right ones, over BINS bins of equal count.

    Equal counts in place of equal widths (Nguyen and O'Connor 2015): a good model's answers nearly all lie in one bin of ten.

    Args:
        shares: Probabilities float32 `[N, classes]`.
        labels: int64 `[N]`.
    """
    sure, right = shares.max(axis=1), shares.argmax(axis=1) == labels
    return float(
        sum(abs(sure[part].mean() - right[part].mean()) * len(part) for part in equal_bins(sure)) / len(labels)
    )


def equal_bins(sure: NDArray[np.float32]) -> list[NDArray[np.intp]]:
    """Return the indices of `sure` `[N]` in BINS bins of equal count, from the least sure to the surest; none is empty."""
    return [part for part in np.array_split(np.argsort(sure, kind="stable"), BINS) if len(part)]


@dataclass(frozen=True, kw_only=True)
class Bin:
    """Answers of about the same probability.

    Attributes:
        probability: Their mean.
        right: Share of them that is right.
        images: How many they are.
    """

    probability: float
    right: float
    images: int


def reliability(sure: NDArray[np.float32], right: NDArray[np.bool_]) -> tuple[Bin, ...]:
    """Return the calibration curve: BINS bins of equal count, from the least sure to the surest.

    Args:
        sure: Probability of each answer, float32 `[N]`.
        right: Whether it is right, bool `[N]`.
    """
    return tuple(
        Bin(probability=float(sure[part].mean()), right=float(right[part].mean()), images=len(part))
        for part in equal_bins(sure)
    )


def confusion(labels: NDArray[np.int64], answers: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """Count how often each label (row) was read as each class (column): int64 `[classes, classes]`."""
    counts: NDArray[np.int64] = np.bincount(labels * classes + answers, minlength=classes * classes)
    return counts.reshape(classes, classes)
