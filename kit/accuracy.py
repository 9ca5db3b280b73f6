"""What logits say: probabilities, and with labels top-1 and what flipped against another variant on the same images."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kit.spec import Accuracy


def probabilities(logits: NDArray[np.float32], temperature: float) -> NDArray[np.float32]:
    """Return probabilities `[N, classes]`, the softmax of logits `[N, classes]` over a temperature; stable for large ones."""
    scaled = logits / np.float32(temperature)
    shifted = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    found: NDArray[np.float32] = shifted / shifted.sum(axis=1, keepdims=True)
    return found


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
    )
