"""Metrics: functions of outputs and samples, built in or a user's own.

A metric returns one value for each sample, so that kit can say which samples changed and how sure that is, or a single
float for the whole, such as a mean average precision:

    def within_a_degree(outputs, samples):  # used as --metric my_package.metrics:within_a_degree
        return np.abs(outputs["angle"] - samples.targets["angle"])[:, 0] < 1.0

`outputs` and `samples.inputs` are arrays by name; `samples.targets` holds what the data set says, `samples.expected` what the
original answered. Attributes of the function may say more: `better = "lower"`, `unit = "mm"`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kit.errors import UsageError
from kit.samples import Samples
from kit.tensors import Tensors

Function = Callable[[Tensors, Samples], "NDArray[Any] | float"]


class Better(StrEnum):
    """Which way a metric improves."""

    HIGHER = "higher"
    LOWER = "lower"


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric and what its values mean.

    Attributes:
        function: One value for each sample, or one float for the whole.
        unit: Of the values; `%` for shares of 1, which are shown as percentages.
        needs_targets: Whether it compares with right answers, and not with the original's.
        allowed_loss: Default bar: how much of it a variant may lose against the baseline.
        summary: Of the values for each sample; the mean, unless the metric is a root or a ratio of means.
        is_built_in: Its function gets the samples along the first axis, wherever the model has them.
        over_groups: In place of `function`, for a metric that has to see all groups of samples at once.
    """

    name: str
    function: Function
    better: Better = Better.HIGHER
    unit: str = ""
    needs_targets: bool = True
    allowed_loss: float = 0.01
    summary: Callable[[NDArray[np.float64]], float] = lambda values: float(values.mean())
    is_built_in: bool = False
    over_groups: Callable[[Sequence[Tensors], Sequence[Samples]], NDArray[np.float64]] | None = None


_BUILT_IN: dict[str, Metric] = {}


def metric(name: str, **about: Any) -> Callable[[Function], Function]:
    """Register a built-in metric."""

    def register(function: Function) -> Function:
        _BUILT_IN[name] = Metric(name=name, function=function, is_built_in=True, **about)
        return function

    return register


def names() -> tuple[str, ...]:
    """Return the built-in metrics."""
    return tuple(_built_in())


def find(name: str) -> Metric:
    """Return a metric: a built-in one, or `package.module:function`, which is imported.

    Only for names that a person typed, never for one that stands in a file.

    Raises:
        UsageError: There is none of that name, or its module does not import.
    """
    if name in _built_in():
        return _BUILT_IN[name]
    module, _, attribute = name.partition(":")
    if not attribute:
        raise UsageError(
            f"unknown metric {name!r}",
            hint=f"choose one of: {', '.join(_BUILT_IN)}; or your own: package.module:function",
        )
    function = imported(module, attribute)
    try:
        return Metric(
            name=name,
            function=function,
            better=Better(getattr(function, "better", Better.HIGHER)),
            unit=str(getattr(function, "unit", "")),
            needs_targets=bool(getattr(function, "needs_targets", True)),
            allowed_loss=float(getattr(function, "allowed_loss", 0.01)),
        )
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"the attributes of the metric {name} are not right: {error}", hint='such as better = "lower", unit = "mm"'
        ) from error


def imported(module: str, attribute: str) -> Any:
    """Import what a person named as `package.module:attribute`; modules in the current folder are found, as by `python -m`.

    Raises:
        UsageError: The module or the attribute does not exist, or the module fails while it is imported.
    """
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found = importlib.import_module(module)
        return getattr(found, attribute)
    except ModuleNotFoundError as error:
        hint = "it is looked for in the current folder and among the installed packages"
        raise UsageError(
            f"{module}:{attribute} needs the module {error.name!r}, which does not exist", hint=hint
        ) from error
    except AttributeError as error:
        raise UsageError(f"{module} has no {attribute!r}", hint="write it as package.module:function") from error
    except Exception as error:  # a user's module may raise anything
        raise UsageError(f"{module} fails while it is imported: {type(error).__name__}: {error}") from error


def default(*, has_targets: bool, names_wanted: Sequence[str]) -> Metric:
    """Return the first of the wanted metrics that the samples allow."""
    for name in names_wanted:
        if has_targets or not _built_in()[name].needs_targets:
            return _BUILT_IN[name]
    return _built_in()["cosine"]


def _built_in() -> dict[str, Metric]:
    """Return kit's own metrics, which register themselves when they are imported: opening a model needs none."""
    importlib.import_module("kit.metrics.built_in")
    return _BUILT_IN
