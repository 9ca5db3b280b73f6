"""Bars: how much of a metric a variant may lose against the baseline, and which metrics decide if nobody names one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from kit import metrics
from kit.errors import GateFailed, UsageError
from kit.metrics import Metric, Score, Values
from kit.samples import Samples
from kit.system.wording import percent
from kit.tasks.base import Task
from kit.tensors import Signature, Tensors

AGAINST_THE_ORIGINAL = ("r2", "cosine")
"""Metrics of every float output if nothing else is known. R2 sees what cosine does not: answers that hardly vary."""

_LEAST_FOR_ONE = 20  # one of so many is 5 % at most, and may be lost in any case: the least that a split can tell

_SURE_ENOUGH = 1e-9
_SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A metric and how much of it may be lost.

    Attributes:
        max_loss: In the metric's unit.
        output: The only output that the metric sees, with the original's answer as its target; None for all.
    """

    metric: Metric
    max_loss: float
    output: str | None = None

    def values(self, groups: Sequence[Samples], answers: Sequence[Tensors], signature: Signature) -> Values | None:
        """Apply the metric to answers, a group each to `groups`, which hold the original's.

        None if it says nothing of these samples: there are no right answers, or none of them differ.

        Raises:
            UsageError: It cannot be applied.
        """
        if self.metric.needs_targets and any(not group.targets for group in groups):
            return None
        if self.output is not None:
            groups = [dataclasses.replace(group, targets=None) for group in groups]
        if not any(group.targets for group in groups) and not _has_rows(signature, self.output):
            signature = dataclasses.replace(signature, batch=None)  # the answer to a call is one sample
        if self.metric.name == "r2" and not any(group.targets for group in groups):
            own = [group.expected or {} for group in groups]
            try:
                self._applied(own, groups, signature)
            except UsageError:  # the original's answers are all the same, in all groups together
                return None
        return self._applied(answers, groups, signature)

    def _applied(self, answers: Sequence[Tensors], groups: Sequence[Samples], signature: Signature) -> Values:
        return metrics.evaluate(self.metric, answers, groups, signature=signature, output=self.output)

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


def _has_rows(signature: Signature, output: str | None) -> bool:
    """Whether an output, or any of real numbers, has an axis of samples."""
    specs = [spec for spec in signature.outputs if spec.is_float] if output is None else [signature.output(output)]
    return any(signature.batch in spec.shape for spec in specs)


def _allowed(metric: Metric, max_loss: float | None, *, is_named: bool) -> float:
    if max_loss is None:
        return metric.allowed_loss
    return max_loss if is_named else max(max_loss, metric.allowed_loss)


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
            f"({percent(score.value, 2)} of {score.samples} samples{flips}), more than the allowed {100 * bar.max_loss:g}"
        )
    unit = f" {score.unit}" if score.unit else ""
    return (
        f"{name} has {bar.metric.name}{of} {score.value:.3f}{unit} on {where} ({score.samples} samples), where the baseline "
        f"has {score.baseline:.3f}{unit}: it loses {score.loss:.3g}, more than the allowed {bar.max_loss:g}"
    )


def power(bar: Bar, score: Score) -> str:
    """Say how large a loss a split cannot exclude, if that is more than is allowed; empty if it can decide."""
    interval = score.loss_interval
    if score.baseline is None:
        return ""
    if interval is None:
        if score.samples >= _LEAST_FOR_ONE:
            return ""  # a metric of all samples at once has no interval, however many there are
        count = "1 sample" if score.samples == 1 else f"{score.samples} samples"
        return f"{count} of {_where(score)} cannot say how sure the loss of {bar.metric.name} is: give more data to be sure"
    if interval[1] <= bar.max_loss:
        return ""
    shown = f"{100 * interval[1]:.1f} points" if bar.metric.unit == "%" else f"{interval[1]:.3g}"
    allowed = f"{100 * bar.max_loss:g} points" if bar.metric.unit == "%" else f"{bar.max_loss:g}"
    return (
        f"{score.samples} samples of {_where(score)} cannot exclude a loss of {shown} of {bar.metric.name}, "
        f"more than the allowed {allowed}: give more data to be sure"
    )


def _where(score: Score) -> str:
    return f"{score.dataset} {score.split}" if score.split in _SPLITS else score.dataset
