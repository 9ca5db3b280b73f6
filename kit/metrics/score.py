"""Scores: what a metric says of a variant on named samples, and what changed against the baseline on the same ones."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kit.errors import UsageError
from kit.metrics.intervals import loss_of_counts, mean_of_pairs
from kit.metrics.metric import Better, Metric
from kit.samples import Samples
from kit.tensors import Signature, Tensors

MOST_SAMPLES = 10**12
"""Of one score: beyond it, intervals of counts are no longer exact."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """A metric's value on a split, and the loss against the baseline on the same samples.

    Attributes:
        value: Of the whole split, in `unit`; a share of 1 for `%`.
        unit: Of value, baseline and loss.
        baseline: Value of the baseline variant on the same samples; None for the baseline itself.
        worse: Samples that became wrong, for metrics that are right or wrong; `improved` became right.
        low: Lower end of the 95 % interval of the loss, `high` the upper one; None if none is known.
    """

    metric: str
    dataset: str
    split: str
    samples: int
    value: float
    better: Better = Better.HIGHER
    unit: str = ""
    baseline: float | None = None
    worse: int | None = None
    improved: int | None = None
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.samples <= MOST_SAMPLES:
            raise ValueError(f"a score on {self.samples:,} samples")
        for name in ("value", "baseline", "low", "high"):
            number = getattr(self, name)
            if number is not None and not math.isfinite(number):
                raise ValueError(f"a score whose {name} is {number}")
        if self.unit == "%" and not 0 <= self.value <= 1:
            raise ValueError(f"a share of {self.value}")
        changed = (self.worse or 0, self.improved or 0)
        if min(changed) < 0 or sum(changed) > self.samples:
            raise ValueError(f"{self.worse} became wrong and {self.improved} right, of {self.samples} samples")

    @property
    def loss(self) -> float:
        """What was lost against the baseline, in `unit`; negative for a gain, 0 without a baseline."""
        if self.worse is not None and self.improved is not None:
            return (self.worse - self.improved) / self.samples
        if self.baseline is None:
            return 0.0
        return self.baseline - self.value if self.better is Better.HIGHER else self.value - self.baseline

    @property
    def loss_interval(self) -> tuple[float, float] | None:
        """The 95 % interval of the loss: exact for counts, of paired means else; None if none is known."""
        if self.worse is not None and self.improved is not None:
            return loss_of_counts(self.worse, self.improved, self.samples)
        return None if self.low is None or self.high is None else (self.low, self.high)

    def change(self) -> str:
        """Return what became of it against the baseline: `0.12 points worse`, `0.003 mm better` or `the same`."""
        if not self.loss:
            return "the same"
        amount = abs(self.loss)
        said = f"{100 * amount:.2f} points" if self.unit == "%" else f"{amount:.3g} {self.unit}".rstrip()
        return f"{said} {'worse' if self.loss > 0 else 'better'}"

    @property
    def correct(self) -> int:
        """How many samples are right, for metrics that are right or wrong."""
        return round(self.value * self.samples)


@dataclass(frozen=True, eq=False)
class Values:
    """What a metric gave: one value for each sample, or None and only the whole."""

    each: NDArray[np.float64] | None
    whole: float
    samples: int
    is_binary: bool = False


def evaluate(
    metric: Metric,
    answers: Sequence[Tensors],
    groups: Sequence[Samples],
    *,
    signature: Signature | None = None,
    output: str | None = None,
) -> Values:
    """Apply a metric to the outputs of every group of samples.

    `signature` says where the batch axis of each tensor stands (None: first, everywhere); `output` is the only one that
    a built-in metric looks at, such as the scores that a task reads.

    Raises:
        UsageError: It cannot be applied to them, or gives neither a float nor a value for each sample.
    """
    rows = [_rows(group, signature) for group in groups]
    if metric.is_built_in:
        pairs = [_samples_first(one, group, signature, output) for one, group in zip(answers, groups, strict=True)]
        answers, groups = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    if metric.over_groups is not None:
        each = metric.over_groups(answers, groups)
        return Values(each, metric.summary(each), len(each))
    arrays = [np.asarray(_applied(metric, *pair)) for pair in zip(answers, groups, strict=True)]
    if all(array.ndim == 1 for array in arrays):
        return _of_each(metric, arrays, rows)
    if len(arrays) == 1 and arrays[0].ndim == 0:
        return Values(None, float(arrays[0]), max(rows[0], 1))
    raise UsageError(
        f"the metric {metric.name} gives one value for several groups of samples, which kit cannot join",
        hint="return one value for each sample, or give samples of one size",
    )


def _applied(metric: Metric, outputs: Tensors, samples: Samples) -> Any:
    try:
        return metric.function(outputs, samples)
    except (UsageError, MemoryError):
        raise
    except Exception as error:  # a user's metric may raise anything
        raise UsageError(f"the metric {metric.name} failed: {type(error).__name__}: {error}") from error


def _of_each(metric: Metric, arrays: Sequence[NDArray[Any]], rows: Sequence[int]) -> Values:
    wrong = next(((len(array), count) for array, count in zip(arrays, rows, strict=True) if len(array) != count), None)
    if wrong is not None:
        raise UsageError(
            f"the metric {metric.name} gives {wrong[0]} values for {wrong[1]} samples",
            hint="return one value for each sample, or one float for all of them",
        )
    is_binary = all(array.dtype == bool for array in arrays)
    each = np.concatenate(arrays).astype(np.float64)
    return Values(each, metric.summary(each), len(each), is_binary)


def _rows(group: Samples, signature: Signature | None) -> int:
    if signature is not None:
        return signature.rows(group.inputs)
    sized = (*group.inputs.values(), *(group.expected or {}).values(), *(group.targets or {}).values())
    return next((len(array) for array in sized if array.ndim), 1)


def _samples_first(
    outputs: Tensors, group: Samples, signature: Signature | None, output: str | None
) -> tuple[Tensors, Samples]:
    """Return outputs, answers and weights with the samples along the first axis; what belongs to the whole call is left out."""
    places = {name: _place(name, signature) for name in outputs if output in {None, name}}

    def moved(tensors: Tensors | None) -> dict[str, NDArray[Any]] | None:
        if tensors is None:
            return None
        named = {name: place for name, place in places.items() if name in tensors and place is not None}
        return {
            name: tensors[name][np.newaxis] if place < 0 else np.moveaxis(tensors[name], place, 0)
            for name, place in named.items()
        }

    targets = group.targets
    if targets is not None and signature is not None and signature.batch is None:
        targets = {
            name: array if array.ndim and len(array) == 1 else array[np.newaxis] for name, array in targets.items()
        }
    placed = dataclasses.replace(group, expected=moved(group.expected), weights=moved(group.weights), targets=targets)
    return moved(outputs) or {}, placed


def _place(name: str, signature: Signature | None) -> int | None:
    """Return the batch axis of an output; -1 if the whole call is one sample, None if it belongs to no sample."""
    if signature is None:
        return 0
    if signature.batch is None:
        return -1
    shape = signature.output(name).shape
    return shape.index(signature.batch) if signature.batch in shape else None


def score(metric: Metric, values: Values, *, dataset: str, split: str, baseline: Values | None = None) -> Score:
    """Write what was found as a score, with its loss against a baseline on the same samples.

    Raises:
        UsageError: A value is not a number.
    """
    if not math.isfinite(values.whole):
        raise UsageError(f"the metric {metric.name} is {values.whole} on {dataset} {split}")
    if metric.unit == "%" and not 0 <= values.whole <= 1:
        raise UsageError(
            f"the metric {metric.name} has the unit % and is {values.whole:g}", hint="return shares from 0 to 1"
        )
    worse = improved = None
    low = high = None
    if baseline is not None and values.each is not None and baseline.each is not None:
        if values.is_binary and baseline.is_binary:
            worse = int(((baseline.each == 1) & (values.each == 0)).sum())
            improved = int(((baseline.each == 0) & (values.each == 1)).sum())
        else:
            sign = 1.0 if metric.better is Better.HIGHER else -1.0
            low, high = _interval_of(metric, sign, baseline.each, values.each)
    return Score(
        metric=metric.name,
        dataset=dataset,
        split=split,
        samples=values.samples,
        value=values.whole,
        better=metric.better,
        unit=metric.unit,
        baseline=None if baseline is None else baseline.whole,
        worse=worse,
        improved=improved,
        low=low,
        high=high,
    )


def _interval_of(
    metric: Metric, sign: float, before: NDArray[np.float64], now: NDArray[np.float64]
) -> tuple[float | None, float | None]:
    """Return the interval of the loss of a summary, by the delta method for one that is not the mean; None if unknown."""
    low, high = mean_of_pairs(sign * (before - now))
    if not (math.isfinite(low) and math.isfinite(high)):
        return None, None
    ends = metric.summary(before), metric.summary(now)
    means = float(before.mean()), float(now.mean())
    if ends == means:
        return low, high
    slope = (ends[0] - ends[1]) / (means[0] - means[1]) if means[0] != means[1] else 0.0
    return low * slope, high * slope
