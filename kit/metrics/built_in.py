"""The metrics that kit brings. Each gets the samples along the first axis, wherever the model has them (kit.metrics.score)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kit.errors import UsageError
from kit.metrics.metric import Better, metric
from kit.samples import Samples
from kit.tensors import Tensors, row_slices

_Floats = NDArray[np.float64]
_OTHER = "choose another metric: --metric NAME"


@dataclass(frozen=True, eq=False)
class _Pair:
    """An output and what it should be, `[samples, values]`; what does not count is 0 in both.

    Attributes:
        counts: How many values count of each sample.
        is_row: Whether a sample is a row of quantities, and no map or sequence of them.
    """

    ours: NDArray[np.floating]
    theirs: NDArray[np.floating]
    counts: NDArray[np.float64]
    is_row: bool

    def errors(self) -> NDArray[np.float64]:
        return self.of_each(lambda ours, theirs: ((ours - theirs) ** 2).sum(axis=1)) / np.maximum(self.counts, 1.0)

    def of_each(self, computed: Callable[[_Floats, _Floats], _Floats]) -> _Floats:
        """Compute a number of each sample, of few samples at a time: as float64 all of them would take too much room."""
        pieces = [
            computed(self.ours[rows].astype(np.float64), self.theirs[rows].astype(np.float64))
            for rows in row_slices(self.ours.shape)
        ]
        return np.concatenate(pieces) if pieces else np.zeros(0)


@metric("top-1", unit="%", allowed_loss=0.003)
def top1(outputs: Tensors, samples: Samples) -> NDArray[np.generic]:
    """Whether the highest score is the label's, for each sample; unknown labels (-1) and scores that are no numbers are wrong.

    For a label at each place of a sample, such as each word or pixel: the share of places that are right.
    """
    name, scores = _scores(outputs)
    labels = _labels(samples)
    answers = _classes(scores, axis=_class_axis(scores, labels.shape))
    return _share(answers == _shaped(labels, answers.shape), samples, name)


@metric("agreement", unit="%", needs_targets=False, allowed_loss=0.05)
def agreement(outputs: Tensors, samples: Samples) -> NDArray[np.generic]:
    """Whether the highest score is the one of the original's answer, for each sample."""
    name, scores = _scores(outputs)
    expected = _expected(samples)[name]
    axis = _class_axis(scores, None)
    answers, theirs = _classes(scores, axis=axis), _classes(expected, axis=axis)
    return _share((answers == theirs) & (answers >= 0), samples, name)


@metric("cosine", needs_targets=False, allowed_loss=0.02)
def cosine(outputs: Tensors, samples: Samples) -> NDArray[np.float64]:
    """Cosine of each sample's answer to the original's, the lowest of all float outputs."""
    return _worst(np.minimum, [_cosines(pair) for pair in _pairs(outputs, samples)])


@metric("max-error", better=Better.LOWER, needs_targets=False, allowed_loss=0.01)
def max_error(outputs: Tensors, samples: Samples) -> NDArray[np.float64]:
    """Largest absolute difference to the original's answer in each sample, over all float outputs."""
    pairs = _pairs(outputs, samples)
    found = [pair.of_each(lambda ours, theirs: np.abs(ours - theirs).max(axis=1, initial=0.0)) for pair in pairs]
    return _worst(np.maximum, found)


@metric("rmse", better=Better.LOWER, summary=lambda values: float(np.sqrt(values.mean())), needs_targets=False)
def rmse(outputs: Tensors, samples: Samples) -> NDArray[np.float64]:
    """Squared error of each sample against its targets, or the original's answer; the score is the root of their mean."""
    errors = [pair.errors() for pair in _against_targets(outputs, samples)]
    mean: NDArray[np.float64] = np.mean(errors, axis=0)
    return mean


def _r2_over_groups(answers: Sequence[Tensors], groups: Sequence[Samples]) -> NDArray[np.float64]:
    """Return what each sample contributes to R2, over all columns that vary, as scikit-learn has it.

    Columns of a row weigh the same (`uniform_average`); places of maps and sequences, of which some hardly vary, as much as
    they vary (`variance_weighted`).
    """
    pairs = [list(_against_targets(outputs, samples)) for outputs, samples in zip(answers, groups, strict=True)]
    parts = [_r2([group[place] for group in pairs]) for place in range(len(pairs[0]))]
    known = [part for part in parts if part is not None]
    if not known:
        raise UsageError("R2 says nothing of answers that do not vary", hint=_OTHER)
    mean: NDArray[np.float64] = np.mean(known, axis=0)
    return mean


@metric("r2", needs_targets=False, allowed_loss=0.05, over_groups=_r2_over_groups)
def r2(outputs: Tensors, samples: Samples) -> NDArray[np.float64]:
    """Share of the variance that is explained (coefficient of determination), as each sample contributes to it."""
    return _r2_over_groups([outputs], [samples])


def _r2(pairs: Sequence[_Pair]) -> NDArray[np.float64] | None:
    """Return the contribution of each sample of all groups to the R2 of one output; None if what it should be never varies."""
    if len({pair.theirs.shape[1] for pair in pairs}) == 1:
        return _r2_by_columns(pairs, is_row=all(pair.is_row for pair in pairs))
    whole = np.concatenate([pair.theirs.ravel() for pair in pairs])  # of several lengths: one spread for all values
    if not (whole != whole[:1]).any():
        return None
    pooled: NDArray[np.float64] = 1.0 - np.concatenate([pair.errors() for pair in pairs]) / float(
        whole.var(dtype=np.float64)
    )
    return pooled


def _r2_by_columns(pairs: Sequence[_Pair], *, is_row: bool) -> NDArray[np.float64] | None:
    samples, width = sum(len(pair.theirs) for pair in pairs), pairs[0].theirs.shape[1]
    shares, errors = np.zeros(samples), np.zeros(samples)
    spreads, varying = 0.0, 0
    for columns in row_slices((width, samples)):  # few at a time: of a map of a hundred megabytes there are many
        ours = np.concatenate([pair.ours[:, columns] for pair in pairs]).astype(np.float64)
        theirs = np.concatenate([pair.theirs[:, columns] for pair in pairs]).astype(np.float64)
        varies = (theirs != theirs[:1]).any(axis=0)  # the variance of equal numbers is not always 0
        spread, squared = theirs.var(axis=0), (ours - theirs) ** 2
        shares += (squared[:, varies] / spread[varies]).sum(axis=1)
        errors += squared.sum(axis=1)
        spreads += float(spread.sum())
        varying += int(varies.sum())
    if not varying:
        return None
    if is_row:
        return 1.0 - shares / varying
    return 1.0 - errors / spreads  # a place of a map that hardly varies says little: each weighs as much as it varies


def _scores(outputs: Tensors) -> tuple[str, NDArray[np.floating]]:
    """Return the scores for classes and their name: `logits`, or the only float output of two axes or more, or the first."""
    floats = {name: array for name, array in outputs.items() if array.dtype.kind == "f" and array.ndim >= 2}
    if not floats:
        raise UsageError("no output holds scores for classes", hint=_OTHER)
    name = "logits" if "logits" in floats else next(iter(floats))
    return name, floats[name]


def _class_axis(scores: NDArray[np.floating], labels: tuple[int, ...] | None) -> int:
    """Return which axis holds the classes: the one that labels for each place lack, else the usual one."""
    if labels is not None and len(labels) == scores.ndim - 1:
        fitting = [axis for axis in range(1, scores.ndim) if scores.shape[:axis] + scores.shape[axis + 1 :] == labels]
        if len(fitting) == 1:
            return fitting[0]
    return 1 if scores.ndim == 4 else scores.ndim - 1  # pictures have their channels first


def _classes(scores: NDArray[np.floating], *, axis: int) -> NDArray[np.int64]:
    """Return the class with the highest score; -2 where a score is no number."""
    answers: NDArray[np.int64] = scores.argmax(axis=axis).astype(np.int64)
    answers[np.isnan(scores).any(axis=axis)] = -2
    return answers


def _labels(samples: Samples) -> NDArray[np.generic]:
    targets = samples.targets or {}
    if not targets:
        raise UsageError("top-1 needs labels", hint="give labelled data: --data FILE")
    if "labels" not in targets and len(targets) > 1:
        raise UsageError(f"none of the targets {', '.join(targets)} is called labels", hint="call one of them labels")
    labels = targets.get("labels", next(iter(targets.values())))
    if labels.dtype.kind not in "biu" and not (labels.dtype.kind == "f" and np.array_equal(labels, np.rint(labels))):
        raise UsageError(
            f"top-1 needs labels that are whole numbers, found {labels.dtype} {list(labels.shape)}", hint=_OTHER
        )
    return labels


def _shaped(labels: NDArray[np.generic], shape: tuple[int, ...]) -> NDArray[np.generic]:
    """Return labels in the shape of the answers; axes of 1 are all that may differ."""
    if tuple(size for size in labels.shape[1:] if size != 1) != tuple(size for size in shape[1:] if size != 1):
        raise UsageError(f"labels have the shape {list(labels.shape)}, the answers {list(shape)}", hint=_OTHER)
    return labels.reshape(shape)


def _share(right: NDArray[np.bool_], samples: Samples, name: str) -> NDArray[np.generic]:
    """Return truth values for one answer a sample, the share of right ones among those that count for several."""
    if right.ndim == 1:
        return right
    places = right.reshape(len(right), -1)
    weights = (samples.weights or {}).get(name)
    if weights is None:
        plain: NDArray[np.float64] = places.mean(axis=1)
        return plain
    counts = np.broadcast_to(weights[..., 0] if weights.ndim == right.ndim + 1 else weights, right.shape)
    counted = (counts != 0).reshape(places.shape)
    share: NDArray[np.float64] = (places & counted).sum(axis=1) / np.maximum(counted.sum(axis=1), 1)
    return share


def _expected(samples: Samples) -> Tensors:
    if samples.expected is None:
        raise UsageError("the original's answers are not known for these samples")
    return samples.expected


def _pairs(outputs: Tensors, samples: Samples) -> list[_Pair]:
    expected = _expected(samples)
    names = [name for name, array in outputs.items() if array.dtype.kind == "f" and name in expected]
    if not names:
        raise UsageError("no output holds real numbers to compare", hint=_OTHER)
    return [_pair(name, outputs[name], expected[name], samples) for name in names]


def _against_targets(outputs: Tensors, samples: Samples) -> Iterator[_Pair]:
    """Give every output with its target of the same name; else the only output with the only target, or the original's."""
    targets = samples.targets or {}
    named = [name for name in outputs if name in targets]
    floats = [name for name, array in outputs.items() if array.dtype.kind == "f"]
    if named:
        yield from (_pair(name, outputs[name], targets[name], samples) for name in named)
    elif not floats:
        raise UsageError("no output holds real numbers to compare", hint=_OTHER)
    elif not targets:
        yield from _pairs(outputs, samples)
    elif len(targets) == 1 and len(floats) == 1:
        yield _pair(floats[0], outputs[floats[0]], next(iter(targets.values())), samples)
    else:
        raise UsageError(
            f"the targets are called {', '.join(targets)} and the outputs {', '.join(outputs)}",
            hint="call each target as the output that it belongs to",
        )


def _pair(name: str, ours: NDArray[np.generic], theirs: NDArray[np.generic], samples: Samples) -> _Pair:
    shapes = [tuple(size for size in array.shape[1:] if size != 1) for array in (ours, theirs)]
    if shapes[0] != shapes[1] or len(ours) != len(theirs):
        raise UsageError(
            f"the output {name!r} has the shape {ours.shape}, its target {theirs.shape}",
            hint="choose another metric, such as --metric top-1 for labels",
        )
    one, other = (_as_floats(array).reshape(len(array), -1) for array in (ours, theirs))
    # Masked scores are -inf in both: equal, and no number in any difference or product.
    alike = (one == other) & ~np.isfinite(one)
    if alike.any():
        one, other = np.where(alike, 0.0, one), np.where(alike, 0.0, other)
    weights, is_row = (samples.weights or {}).get(name), len(shapes[0]) <= 1
    if weights is None:
        return _Pair(one, other, np.full(len(one), float(one.shape[1])), is_row)
    counts = (np.broadcast_to(weights, ours.shape) != 0).reshape(one.shape)
    return _Pair(
        np.where(counts, one, 0.0), np.where(counts, other, 0.0), counts.sum(axis=1).astype(np.float64), is_row
    )


def _as_floats(array: NDArray[np.generic]) -> NDArray[np.floating]:
    floats: NDArray[np.floating] = array if array.dtype.kind == "f" else array.astype(np.float64)  # type: ignore[assignment]
    return floats


def _worst(worse: np.ufunc, values: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = worse.reduce(values)
    return found


def _cosines(pair: _Pair) -> NDArray[np.float64]:
    def cosines(ours: _Floats, theirs: _Floats) -> _Floats:
        lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
        product = (ours * theirs).sum(axis=1)
        both_zero = ~ours.any(axis=1) & ~theirs.any(axis=1)
        return np.where(both_zero, 1.0, product / np.maximum(lengths, 1e-300))

    return pair.of_each(cosines)
