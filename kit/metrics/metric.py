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
        name: As users type it.
        function: One value for each sample, or one float for the whole.
        better: Which way is better.
        unit: Of the values; `%` for shares of 1, which are shown as percentages.
        needs_targets: Whether it compares with right answers, and not with the original's.
        allowed_loss: Default bar: how much of it a variant may lose against the baseline.
        summary: Of the values for each sample; the mean, unless the metric is a root or a ratio of means.
    """

    name: str
    function: Function
    better: Better = Better.HIGHER
    unit: str = ""
    needs_targets: bool = True
    allowed_loss: float = 0.01
    summary: Callable[[NDArray[np.float64]], float] = lambda values: float(values.mean())


_BUILT_IN: dict[str, Metric] = {}


def metric(name: str, **about: Any) -> Callable[[Function], Function]:
    """Register a built-in metric."""

    def register(function: Function) -> Function:
        _BUILT_IN[name] = Metric(name=name, function=function, **about)
        return function

    return register


def names() -> tuple[str, ...]:
    """Return the built-in metrics."""
    return tuple(_BUILT_IN)


def find(name: str) -> Metric:
    """Return a metric: a built-in one, or `package.module:function`, which is imported.

    Only for names that a person typed, never for one that stands in a file.

    Raises:
        UsageError: There is none of that name, or its module does not import.
    """
    if name in _BUILT_IN:
        return _BUILT_IN[name]
    module, _, attribute = name.partition(":")
    if not attribute:
        raise UsageError(
            f"unknown metric {name!r}",
            hint=f"choose one of: {', '.join(_BUILT_IN)}; or your own: package.module:function",
        )
    function = imported(module, attribute)
    return Metric(
        name=name,
        function=function,
        better=Better(getattr(function, "better", Better.HIGHER)),
        unit=str(getattr(function, "unit", "")),
        needs_targets=bool(getattr(function, "needs_targets", True)),
        allowed_loss=float(getattr(function, "allowed_loss", 0.01)),
    )


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


def scores_of(outputs: Tensors) -> NDArray[Any]:
    """Return the scores for classes: `logits`, or the first float output of two axes or more.

    Raises:
        UsageError: There is none.
    """
    floats = [array for array in outputs.values() if array.dtype.kind == "f" and array.ndim >= 2]
    if "logits" in outputs or floats:
        return outputs.get("logits", floats[0] if floats else outputs["logits"])
    raise UsageError("no output holds scores for classes", hint="choose another metric: --metric NAME")


def _labels(samples: Samples) -> NDArray[Any]:
    targets = samples.targets or {}
    if not targets:
        raise UsageError("top-1 needs labels", hint="give labelled data: --data FILE")
    return targets.get("labels", next(iter(targets.values())))


def _expected(samples: Samples) -> Tensors:
    if samples.expected is None:
        raise UsageError("the original's answers are not known for these samples")
    return samples.expected


@metric("top-1", unit="%", allowed_loss=0.003)
def top1(outputs: Tensors, samples: Samples) -> NDArray[Any]:
    """Whether the highest score is the label's, for each sample; unknown labels (-1) count as wrong."""
    right: NDArray[Any] = scores_of(outputs).argmax(axis=-1) == _labels(samples)
    return right if right.ndim == 1 else right.reshape(len(right), -1).mean(axis=1)


@metric("agreement", unit="%", needs_targets=False, allowed_loss=0.05)
def agreement(outputs: Tensors, samples: Samples) -> NDArray[Any]:
    """Whether the highest score is the one of the original's answer, for each sample."""
    same: NDArray[Any] = scores_of(outputs).argmax(axis=-1) == scores_of(_expected(samples)).argmax(axis=-1)
    return same if same.ndim == 1 else same.reshape(len(same), -1).mean(axis=1)


@metric("cosine", needs_targets=False, allowed_loss=0.02)
def cosine(outputs: Tensors, samples: Samples) -> NDArray[np.float64]:
    """Cosine of each sample's answer to the original's, the lowest of all float outputs."""
    pairs = _pairs(outputs, samples)
    lowest: NDArray[np.float64] = np.minimum.reduce([_cosines(ours, theirs) for ours, theirs in pairs])
    return lowest


@metric("max-error", better=Better.LOWER, needs_targets=False, allowed_loss=0.01)
def max_error(outputs: Tensors, samples: Samples) -> NDArray[np.float64]:
    """Largest absolute difference to the original's answer in each sample, over all float outputs."""
    pairs = _pairs(outputs, samples)
    largest = [np.abs(_flat(ours) - _flat(theirs)).max(axis=1, initial=0.0) for ours, theirs in pairs]
    error: NDArray[np.float64] = np.maximum.reduce(largest)
    return error


@metric("rmse", better=Better.LOWER, summary=lambda values: float(np.sqrt(values.mean())), needs_targets=False)
def rmse(outputs: Tensors, samples: Samples) -> NDArray[np.float64]:
    """Squared error of each sample against its target, or the original's answer; the score is the root of their mean."""
    ours, theirs = _against_targets(outputs, samples)
    error: NDArray[np.float64] = ((_flat(ours) - _flat(theirs)) ** 2).mean(axis=1)
    return error


@metric("r2", needs_targets=False, allowed_loss=0.05)
def r2(outputs: Tensors, samples: Samples) -> NDArray[np.float64]:
    """Share of the variance that is explained (coefficient of determination), as each sample contributes to it."""
    ours, theirs = _against_targets(outputs, samples)
    exact = _flat(theirs)
    spread = float(((exact - exact.mean(axis=0)) ** 2).mean())
    error: NDArray[np.float64] = ((_flat(ours) - exact) ** 2).mean(axis=1)
    explained: NDArray[np.float64] = 1.0 - error / spread if spread > 0 else np.where(error > 0, -np.inf, 1.0)
    return explained


def _against_targets(outputs: Tensors, samples: Samples) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return an output and what it should be: the target of the same name, the only target, else the original's answer."""
    targets = samples.targets or {}
    for name, array in outputs.items():
        if name in targets:
            return array, targets[name]
    name, ours = next((name, array) for name, array in outputs.items() if array.dtype.kind == "f")
    theirs = next(iter(targets.values())) if targets else _expected(samples)[name]
    if ours.size != theirs.size:
        raise UsageError(
            f"the output {name!r} has the shape {ours.shape}, its target {theirs.shape}",
            hint="choose another metric, such as --metric top-1 for labels",
        )
    return ours, theirs.reshape(ours.shape)


def _pairs(outputs: Tensors, samples: Samples) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    expected = _expected(samples)
    weights = samples.weights or {}
    pairs = []
    for name, array in outputs.items():
        if array.dtype.kind != "f" or name not in expected:
            continue
        weight = np.broadcast_to(weights[name], array.shape) if name in weights else 1
        pairs.append((array * weight, expected[name] * weight))
    if not pairs:
        raise UsageError("no output holds real numbers to compare", hint="choose another metric: --metric NAME")
    return pairs


def _flat(array: NDArray[Any]) -> NDArray[np.float64]:
    return array.astype(np.float64).reshape(len(array), -1) if array.ndim else array.astype(np.float64).reshape(1, 1)


def _cosines(ours: NDArray[Any], theirs: NDArray[Any]) -> NDArray[np.float64]:
    one, other = _flat(ours), _flat(theirs)
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    both_zero = (np.abs(one).max(axis=1, initial=0) == 0) & (np.abs(other).max(axis=1, initial=0) == 0)
    return np.where(both_zero, 1.0, (one * other).sum(axis=1) / np.maximum(lengths, 1e-300))


def default(*, has_targets: bool, names_wanted: Sequence[str]) -> Metric:
    """Return the first of the wanted metrics that the samples allow."""
    for name in names_wanted:
        if has_targets or not _BUILT_IN[name].needs_targets:
            return _BUILT_IN[name]
    return _BUILT_IN["cosine"]
