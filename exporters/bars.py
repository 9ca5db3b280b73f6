"""Bars: how much of a metric a variant may lose against the baseline, and which metrics decide if nobody names one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kit import metrics
from kit.errors import GateFailed, UsageError
from kit.metrics import Metric, Score, Values
from kit.samples import Samples
from kit.tasks.base import Task
from kit.tensors import Signature, Tensors

AGAINST_THE_ORIGINAL = ("r2", "cosine")
"""Metrics of every float output if nothing else is known. R2 sees what cosine does not: answers that hardly vary."""

_LEAST_FOR_ONE = 20
"""So many samples make one of them 5 % at most: then one may be lost in any case, as the least that a split can tell."""

_SURE_ENOUGH = 1e-9
_SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A metric and how much of it may be lost.

    Attributes:
        max_loss: In the metric's unit.
        output: The only output that the metric sees, with the original's answer as its target; None for all that there is.
    """

    metric: Metric
    max_loss: float
    output: str | None = None

    def values(self, groups: Sequence[Samples], answers: Sequence[Tensors], signature: Signature) -> Values | None:
        """Apply the metric; None if it says nothing of these samples: there are no right answers, or none of them differ.

        Args:
            groups: With the original's answers.
            answers: A group each.
            signature: Of the model, which says along which axis the samples lie.

        Raises:
            UsageError: It cannot be applied.
        """
        if self.metric.needs_targets and any(not group.targets for group in groups):
            return None
        output, is_r2 = self.output, self.metric.name == "r2"
        if output is None and is_r2 and not any(group.targets for group in groups):
            output = next((spec.name for spec in signature.outputs if spec.is_float), None)
        if output is None:
            return metrics.evaluate(self.metric, answers, groups)
        parts = [_Part.of(output, group, given, signature) for group, given in zip(groups, answers, strict=True)]
        if not is_r2:
            made = [_one(output, part.exact, part.given, part.weights) for part in parts]
            return metrics.evaluate(self.metric, [given for _, given in made], [group for group, _ in made])
        return _explained(self.metric, output, parts)

    def allowed(self, score: Score) -> float:
        """Return the largest loss that is allowed on a split: one sample in any case, if that is a small share of it."""
        if score.worse is None or self.max_loss == 0 or score.samples < _LEAST_FOR_ONE:
            return self.max_loss
        return max(self.max_loss, 1 / score.samples)


def bars_for(
    signature: Signature,
    *,
    task: Task | None,
    metric: str | Metric | None,
    max_loss: float | None,
    has_targets: bool,
) -> tuple[tuple[Bar, ...], tuple[Bar, ...]]:
    """Return the bars on data and the bars on golden samples, which have no right answers.

    The metric that was named decides, or the first of the task's that the data allow. Without either, and for models with
    several float outputs in any case, each float output is compared with the original's.

    Raises:
        UsageError: There is no metric of that name, or it needs right answers and there are none.
    """
    chosen = metrics.find(metric) if isinstance(metric, str) else metric
    if chosen is not None and chosen.needs_targets and not has_targets:
        raise UsageError(
            f"the metric {chosen.name} needs data with right answers", hint="give labelled data: --data FILE"
        )
    known = [metrics.find(name) for name in (task.metrics if task is not None else ())]
    decides = chosen or next((one for one in known if has_targets or not one.needs_targets), None)
    blind = next((one for one in (*([chosen] if chosen else []), *known) if not one.needs_targets), None)
    return (
        _bars(signature, decides, max_loss, is_named=True),
        _bars(signature, blind, max_loss, is_named=blind is decides),
    )


def _bars(signature: Signature, metric: Metric | None, max_loss: float | None, *, is_named: bool) -> tuple[Bar, ...]:
    floats = [spec.name for spec in signature.outputs if spec.is_float and not spec.varies]
    bars = [] if metric is None else [Bar(metric=metric, max_loss=_allowed(metric, max_loss, is_named=is_named))]
    if metric is None or len(floats) > 1:
        for name in AGAINST_THE_ORIGINAL:
            one = metrics.find(name)
            own = max_loss if metric is None else None
            bars += [Bar(metric=one, max_loss=_allowed(one, own, is_named=True), output=output) for output in floats]
    return tuple(bars)


def _allowed(metric: Metric, max_loss: float | None, *, is_named: bool) -> float:
    if max_loss is None:
        return metric.allowed_loss
    return max_loss if is_named else max(max_loss, metric.allowed_loss)


@dataclass(frozen=True, eq=False)
class _Part:
    """The answers of a group at one output, samples along the first axis; weights are broadcast to them."""

    exact: NDArray[Any]
    given: NDArray[Any]
    weights: NDArray[Any] | None

    @classmethod
    def of(cls, output: str, group: Samples, answers: Tensors, signature: Signature) -> _Part:
        spec = signature.output(output)
        place = spec.shape.index(signature.batch) if signature.batch in spec.shape else None
        exact, given = (group.expected or {})[output], answers[output]
        if exact.shape != given.shape:
            raise UsageError(
                f"the output {output!r} is {list(given.shape)}, where the original's is {list(exact.shape)}"
            )
        weights = (group.weights or {}).get(output)
        spread = None if weights is None else np.broadcast_to(weights, exact.shape)
        return cls(
            _rows_first(exact, place), _rows_first(given, place), None if spread is None else _rows_first(spread, place)
        )


def _rows_first(array: NDArray[Any], place: int | None) -> NDArray[Any]:
    """Return an array with its samples along the first axis; what has no axis of samples is one sample."""
    return array[np.newaxis] if place is None else np.moveaxis(array, place, 0)


def _one(
    output: str, exact: NDArray[Any], given: NDArray[Any], weights: NDArray[Any] | None = None
) -> tuple[Samples, Tensors]:
    """Return answers as if there were one output."""
    group = Samples(inputs={}, expected={output: exact}, weights=None if weights is None else {output: weights})
    return group, {output: given}


def _explained(metric: Metric, output: str, parts: Sequence[_Part]) -> Values | None:
    """Apply r2 to all groups together; None if the original's answers are all the same.

    One sample alone has no variance, however many stand in other groups. Samples of one shape are compared with the mean of
    each value; of several shapes, or if they are all the same sample, single vectors or values are.
    """
    samples = sum(len(part.exact) for part in parts)
    if len({part.exact.shape[1:] for part in parts}) == 1 and all(part.weights is None for part in parts):
        exact, given = (np.concatenate([getattr(part, side) for part in parts]) for side in ("exact", "given"))
        if _varies(exact):
            group, answers = _one(output, exact, given)
            return metrics.evaluate(metric, [answers], [group])
    width = {part.exact.shape[-1] if part.exact.ndim > 2 else 1 for part in parts}
    columns = width.pop() if len(width) == 1 else 1
    kept = [_counted(part, columns) for part in parts]
    exact, given = np.concatenate([one for one, _ in kept]), np.concatenate([other for _, other in kept])
    if not _varies(exact):
        return None
    group, answers = _one(output, exact, given)
    found = metrics.evaluate(metric, [answers], [group])
    return Values(None, found.whole, samples)  # values of one sample are not independent: they give no interval


def _counted(part: _Part, columns: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return answers as rows of so many values, without padding."""
    exact, given = part.exact.reshape(-1, columns), part.given.reshape(-1, columns)
    if part.weights is None:
        return exact, given
    counts = (part.weights.reshape(-1, columns) != 0).all(axis=1)
    return exact[counts], given[counts]


def _varies(rows: NDArray[Any]) -> bool:
    return len(rows) > 1 and not bool((rows == rows[:1]).all())


def hold(
    bar: Bar, values: Values, baseline: Values | None, *, name: str, dataset: str, split: str, hint: str = ""
) -> Score:
    """Return the score of a candidate on a split.

    Raises:
        GateFailed: It loses more than is allowed, or is no number.
    """
    where = f"the {split} split" if split in _SPLITS else dataset
    of = f" of {bar.output!r}" if bar.output is not None else ""
    try:
        score = metrics.score(bar.metric, values, dataset=dataset, split=split, baseline=baseline)
    except (UsageError, ValueError) as error:
        raise GateFailed(f"{name}: {bar.metric.name}{of} is {values.whole:.3g} on {where}", hint=hint) from error
    if baseline is not None and not score.loss <= bar.allowed(score) + _SURE_ENOUGH:
        raise GateFailed(_lost(bar, score, name, where, of), hint=hint)
    return score


def _lost(bar: Bar, score: Score, name: str, where: str, of: str) -> str:
    flips = ""
    if score.worse is not None:
        flips = f"; {score.worse} became wrong, {score.improved} became right"
    if bar.metric.unit == "%":
        return (
            f"{name} loses {100 * score.loss:.2f} points of {bar.metric.name}{of} on {where} "
            f"({score.value:.2%} of {score.samples} samples{flips}), more than the allowed {100 * bar.max_loss:g}"
        )
    unit = f" {score.unit}" if score.unit else ""
    return (
        f"{name} has {bar.metric.name}{of} {score.value:.3f}{unit} on {where} ({score.samples} samples), where the baseline "
        f"has {score.baseline:.3f}{unit}: it loses {score.loss:.3g}, more than the allowed {bar.max_loss:g}"
    )


def power(bar: Bar, score: Score) -> str:
    """Say how large a loss a split cannot exclude, if that is more than is allowed; empty if it can decide."""
    interval = score.loss_interval
    if score.baseline is None or interval is None or interval[1] <= bar.max_loss:
        return ""
    shown = f"{100 * interval[1]:.1f} points" if bar.metric.unit == "%" else f"{interval[1]:.3g}"
    allowed = f"{100 * bar.max_loss:g} points" if bar.metric.unit == "%" else f"{bar.max_loss:g}"
    return (
        f"{score.samples} samples of {_where(score)} cannot exclude a loss of {shown} of {bar.metric.name}, "
        f"more than the allowed {allowed}: give more data to be sure"
    )


def _where(score: Score) -> str:
    return f"{score.dataset} {score.split}" if score.split in _SPLITS else score.dataset
