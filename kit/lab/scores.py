"""Top-1 of logits on a labelled split, as a score."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kit.metrics import Score, evaluate, find, score
from kit.samples import Samples

TOP1 = "top-1"


def top1(
    logits: NDArray[np.float32],
    labels: NDArray[np.int64],
    *,
    dataset: str,
    split: str,
    baseline: NDArray[np.float32] | None = None,
) -> Score:
    """Score logits float32 `[N, classes]` by labels int64 `[N]`, and against a baseline's logits on the same images."""
    metric = find(TOP1)
    groups = [Samples(inputs={}, targets={"labels": labels})]
    values, before = (
        None if one is None else evaluate(metric, [{"logits": one}], groups) for one in (logits, baseline)
    )
    assert values is not None  # logits are always given
    return score(metric, values, dataset=dataset, split=split, baseline=before)
