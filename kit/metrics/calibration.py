"""What the probabilities of a classifier are worth, and what it mistakes for what."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BINS = 15
"""Of a calibration curve."""


def expected_calibration_error(shares: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Return how far the probability of the answer is from the share of right ones, over BINS bins of equal count.

    `shares` are probabilities, float32 `[N, classes]`; `labels` int64 `[N]`. Equal counts in place of equal widths
    (Nguyen and O'Connor 2015): a good model's answers nearly all lie in one bin of ten.
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
    """Answers of about the same probability: its mean, the share of them that is right, and how many they are."""

    probability: float
    right: float
    samples: int


def reliability(sure: NDArray[np.float32], right: NDArray[np.bool_]) -> tuple[Bin, ...]:
    """Return the calibration curve, from the least sure to the surest, of `sure` float32 `[N]`, `right` bool `[N]`."""
    return tuple(
        Bin(probability=float(sure[part].mean()), right=float(right[part].mean()), samples=len(part))
        for part in equal_bins(sure)
    )


def confusion(labels: NDArray[np.int64], answers: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """Count how often each label (row) was read as each class (column): int64 `[classes, classes]`."""
    counts: NDArray[np.int64] = np.bincount(labels * classes + answers, minlength=classes * classes)
    return counts.reshape(classes, classes)
