"""Scores beside figures of speed: the manifest's, or counted in this run if labelled data is at hand.

A metric is found by name among those that kit has built in. A user's metric is a function of his own, and is only called
if he hands it over: no name in a manifest is ever imported.
"""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from kit import datasets, metrics
from kit.bundle import Bundle, Variant
from kit.errors import KitError, UsageError
from kit.metrics import Metric, Score, Values
from kit.runtime import registry
from kit.runtime.base import Runner, RunnerOptions, run_in_batches
from kit.samples import Samples, count
from kit.system.progress import OnProgress
from kit.tasks.base import Task, scored_output
from kit.tasks.registry import task_of
from kit.tensors import Signature, Tensors

if TYPE_CHECKING:
    from pathlib import Path

    from kit.bench.cases import OpenCase, Subject

LIVE, MANIFEST = "live", "manifest"
"""Where the scores of a row come from."""

_SPLIT = "test"


def published(variant: Variant) -> tuple[Score, ...]:
    """Return the scores that a manifest holds of a variant: on the test split, or on what there is without one."""
    return tuple(one for one in variant.scores if one.split == _SPLIT) or variant.scores


@dataclass(frozen=True)
class _Data:
    dataset: str
    split: str
    groups: tuple[Samples, ...]
    baseline: tuple[Tensors, ...] | None


@dataclass(frozen=True)
class Counted:
    """Cases with their scores, and what was not counted and why."""

    cases: list[OpenCase]
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Known:
    """A bundle's task, or why it does not open; a bundle without a task has neither."""

    task: Task | None = None
    problem: str = ""


def count_scores(
    subject: Subject,
    opened: Sequence[OpenCase],
    on_progress: OnProgress,
    *,
    metric: Metric | None = None,
    data_dir: Path | None = None,
    time_is_up: Callable[[], bool] = lambda: False,
) -> Counted:
    """Replace the manifest's scores by some counted now, if labelled data is at hand and there is time.

    Counts `metric` alone if it is given; else those that the manifest's scores name, or the first that suits the
    task. A task that does not open is a remark, for tensors can be measured without it.

    Raises:
        UsageError: There is no data for a metric that was asked for, or it cannot be applied.
    """
    bundle = subject.bundle
    known = _known_task(bundle)
    remarks = (f"no scores were counted, for {known.problem}",) if known.problem and metric is None else ()
    wanted = {one.id: [metric] if metric else _metrics(bundle, one, known.task) for one in bundle.variants}
    if remarks or time_is_up() or not any(wanted.values()) or not any(one.runner for one in opened):
        return Counted(list(opened), remarks)
    data = _data(subject, metric, data_dir)
    if data is None:
        return Counted(list(opened))
    on_progress(f"{_names(wanted)} on {count(data.groups, bundle.signature):,} samples", 0.0)
    data = dataclasses.replace(data, baseline=_baseline_answers(bundle, data.groups))
    output = scored_output(known.task, bundle.signature)
    cases = [
        one if time_is_up() else _counted(one, wanted[one.case.variant], data, output, is_asked=metric is not None)
        for one in opened
    ]
    return Counted(cases)


def _names(wanted: dict[str, list[Metric]]) -> str:
    return ", ".join(dict.fromkeys(one.name for every in wanted.values() for one in every))


def _metrics(bundle: Bundle, variant: Variant, task: Task | None) -> list[Metric]:
    """Return the built-in metrics of a variant's scores, else of the baseline's, else the first that suits the task."""
    scored = published(variant) or (published(bundle.baseline) if bundle.baseline else ())
    names = [one.metric for one in scored] or ([] if task is None else list(task.metrics)[:1])
    return [metrics.find(name) for name in dict.fromkeys(names) if name in metrics.names()]


def _known_task(bundle: Bundle) -> _Known:
    if bundle.manifest.task is None:
        return _Known()
    try:
        return _Known(task_of(bundle))
    except KitError as error:
        return _Known(problem=str(error))


def _data(subject: Subject, metric: Metric | None, data_dir: Path | None) -> _Data | None:
    splits = datasets.of(subject.bundle, data_dir=data_dir)
    if splits is not None:
        return _Data(splits.dataset, _SPLIT, splits.test, None)
    if metric is None:
        return None
    if metric.needs_targets:
        raise UsageError(
            f"the metric {metric.name} needs right answers, and the data of {subject.bundle.name!r} is not at hand",
            hint="say where it lies (the data folder), or choose a metric that compares with the original",
        )
    return _Data("golden samples", "golden", subject.groups, None)


def _baseline_answers(bundle: Bundle, groups: Sequence[Samples]) -> tuple[Tensors, ...] | None:
    if bundle.baseline is None:
        return None
    with registry.open_runner(registry.DEFAULT, bundle, bundle.baseline, RunnerOptions()) as runner:
        return _answers(runner, groups)


def _answers(runner: Runner, groups: Sequence[Samples]) -> tuple[Tensors, ...]:
    return tuple(run_in_batches(runner, group.inputs) for group in groups)


def _counted(one: OpenCase, wanted: Sequence[Metric], data: _Data, output: str | None, *, is_asked: bool) -> OpenCase:
    if one.runner is None:
        return one
    try:
        answers = _answers(one.runner, data.groups)
    except KitError as error:
        return one.failed(error)
    bundle = one.subject.bundle
    is_baseline = one.case.variant == bundle.manifest.baseline
    counted: list[tuple[Score, Values]] = []
    for metric in wanted:
        try:
            counted.append(_score(metric, answers, data, bundle.signature, output, is_baseline=is_baseline))
        except UsageError:  # the manifest's metric does not fit this data: its own score stays
            if is_asked:
                raise
    if not counted:
        return one
    return one.changed(scores=tuple(score for score, _ in counted), score_source=LIVE, right=_packed(counted[0][1]))


def _score(
    metric: Metric,
    answers: Sequence[Tensors],
    data: _Data,
    signature: Signature,
    output: str | None,
    *,
    is_baseline: bool,
) -> tuple[Score, Values]:
    groups = data.groups
    if data.baseline is not None:  # without the original's answers, the baseline's stand for them
        groups = tuple(
            group if group.expected is not None else dataclasses.replace(group, expected=dict(expected))
            for group, expected in zip(groups, data.baseline, strict=True)
        )
    values = metrics.evaluate(metric, answers, groups, signature=signature, output=output)
    before = None
    if data.baseline is not None and not is_baseline:
        before = metrics.evaluate(metric, data.baseline, groups, signature=signature, output=output)
    return metrics.score(metric, values, dataset=data.dataset, split=data.split, baseline=before), values


def _packed(values: Values) -> str:
    """Return which samples are right, for a metric that is right or wrong: packed bits, base64; empty for any other."""
    if values.each is None or not values.is_binary:
        return ""
    return base64.b64encode(np.packbits(values.each.astype(bool)).tobytes()).decode()
