"""What probabilities are worth: calibration error, a temperature that mends it, and where a model had better be silent."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from kit.lab.records import Confidence
from kit.metrics.calibration import expected_calibration_error
from kit.tasks.classification import probabilities

_TEMPERATURES = np.exp(np.linspace(np.log(0.2), np.log(5.0), 461))  # 0.7 % apart
_WRONG_ANSWERS = 0.001
_MOST_SILENCE = 0.05
_SUREST = 0.9999


def fit(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> tuple[float, float | None, Confidence]:
    """Find temperature and abstain threshold on validation logits float32 `[N, classes]` and labels int64 `[N]`.

    The temperature is the one of the least cross-entropy (Guo et al. 2017, arXiv 1706.04599), 1 if there is none, as
    with a few images that are all read correctly. The threshold is the lowest at which at most one answer in a thousand
    is wrong, unless it would silence the model on more than one image in twenty: then the one that does just that.

    Returns:
        The temperature, the threshold (None where even without one so few answers are wrong), and the figures.
    """
    places = np.arange(len(labels))
    losses = [
        -float(np.log(np.maximum(probabilities(logits, float(one))[places, labels], 1e-12)).mean())
        for one in _TEMPERATURES
    ]
    best = int(np.argmin(losses))
    # At either end there is nothing to fit: all answers are right, or hardly any.
    temperature = round(float(_TEMPERATURES[best]), 3) if 0 < best < len(_TEMPERATURES) - 1 else 1.0
    shares = probabilities(logits, temperature)
    sure, right = shares.max(axis=1), shares.argmax(axis=1) == labels
    threshold = _threshold(sure, right)
    answered = sure >= (threshold or 0.0)
    return (
        temperature,
        threshold,
        Confidence(
            expected_error=expected_calibration_error(shares, labels),
            expected_error_raw=expected_calibration_error(probabilities(logits, 1.0), labels),
            answered=float(answered.mean()),
            answered_top1=float(right[answered].mean()),
        ),
    )


def _threshold(sure: NDArray[np.float32], right: NDArray[np.bool_]) -> float | None:
    order = np.argsort(-sure, kind="stable")
    descending = sure[order]
    # Images of the same probability are answered together or not at all.
    counts = np.append(np.flatnonzero(np.diff(descending) < 0) + 1, len(order))
    wrong = np.cumsum(~right[order])[counts - 1]
    good = counts[wrong <= _WRONG_ANSWERS * counts]
    enough = counts[counts >= (1 - _MOST_SILENCE) * len(order)]
    count = max(int(good.max(initial=0)), int(enough.min()))
    if count == len(order):
        return None
    # Rounded down, so that the last one that should be answered is.
    return min(math.floor(float(descending[count - 1]) * 10_000) / 10_000, _SUREST)
