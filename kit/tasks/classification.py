"""What scores for classes mean: probabilities, names, and whether to abstain. Shared by pictures, texts and tables."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kit.errors import BundleInvalid, DatasetInvalid, UsageError
from kit.tasks.base import Prediction
from kit.tasks.batches import has_rows_first
from kit.tensors import Signature, Tensors, TensorSpec

METRICS = ("top-1", "agreement")
"""Of classifiers, the best first."""

SCORES = ("logits", "probabilities")
"""What a model may give: scores that softmax turns into probabilities, or probabilities."""

_FLOAT32 = np.dtype(np.float32)
_FEW = 64
_SHOWN = 5  # labels named in a message, before "..."
_UNPRINTABLE = frozenset({"Cc", "Cs", "Zl", "Zp"})  # control signs, halves of characters, ends of lines and paragraphs
_BLANK = frozenset("\u034f\u115f\u1160\u2800\u3164\uffa0")  # fillers, which Unicode counts among letters and signs


@dataclass(kw_only=True, slots=True, eq=False, repr=False)
class Classes(Prediction):
    """The most probable class of each sample.

    Attributes:
        labels: int64 `[N]`, index of the most probable class.
        probabilities: float32 `[N, classes]`, softmax of the logits over the bundle's temperature.
        logits: float32 `[N, classes]`, as the model gave them.
        abstain_below: Probability under which an answer should be treated as "unsure"; None for never.
    """

    labels: NDArray[np.int64]
    probabilities: NDArray[np.float32]
    logits: NDArray[np.float32] = field(repr=False)
    classes: tuple[str, ...] = field(repr=False)
    abstain_below: float | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Name of each sample's class, `N` of them."""
        return tuple(self.classes[label] for label in self.labels.tolist())

    @property
    def unsure(self) -> NDArray[np.bool_]:
        """Whether the most probable class stays under the bundle's abstain threshold, or is no number, bool `[N]`."""
        sure: NDArray[np.bool_] = self.probabilities.max(axis=1) >= (self.abstain_below or 0.0)  # False for NaN
        return ~sure

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[tuple[str, float]]:
        return iter(zip(self.names, self.probabilities.max(axis=1).tolist(), strict=True))

    def _count(self) -> int:
        return len(self)

    def _cells(self, most: int) -> list[tuple[str, str]]:
        shares = self.probabilities[:most].max(axis=1).tolist()
        unsure = self.unsure[:most].tolist()
        return [
            (self.classes[label], f"{100 * share:.1f} %{', unsure' if doubtful else ''}")
            for label, share, doubtful in zip(self.labels[:most].tolist(), shares, unsure, strict=True)
        ]

    def records(self) -> list[dict[str, Any]]:
        """Return label, probability and all probabilities of each sample."""
        return [
            {
                "label": name,
                "probability": most,
                "unsure": unsure,
                "probabilities": dict(zip(self.classes, shares, strict=True)),
            }
            for (name, most), shares, unsure in zip(
                self, self.probabilities.tolist(), self.unsure.tolist(), strict=True
            )
        ]

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return labels and probabilities beside the outputs."""
        return {"labels": self.labels, "probabilities": self.probabilities, **self.outputs}


class Classifier:
    """How the scores of a model become answers.

    Args:
        labels: Names of the classes, in the order of the scores.
        temperature: Divides the logits before softmax, so that probabilities are what they say (Guo et al. 2017).
        abstain_below: Probability under which an answer counts as unsure; None for never.
        scores: One of SCORES.

    Attributes:
        output: Name of the output that holds the scores; empty before `check`.

    Raises:
        ValueError: Labels that are blank or stand twice, a temperature that cannot divide, or another kind of scores.
    """

    def __init__(
        self,
        labels: Sequence[str],
        *,
        temperature: float = 1.0,
        abstain_below: float | None = None,
        scores: str = SCORES[0],
    ) -> None:
        self.labels = check_labels(labels)
        check_temperature(temperature, abstain_below)
        if scores not in SCORES:
            raise ValueError(f"scores are {' or '.join(SCORES)}, not {scores!r}")
        self._temperature = temperature
        self._abstain_below = abstain_below
        self._scores = scores
        self._are_logits = scores == SCORES[0]
        self._index = {_written(label): place for place, label in enumerate(self.labels)}
        self.output = ""

    def options(self) -> dict[str, Any]:
        """Return what a manifest keeps beside the labels: what is not as usual."""
        kept = {"temperature": self._temperature, "abstain_below": self._abstain_below, "scores": self._scores}
        usual = {"temperature": 1.0, "abstain_below": None, "scores": SCORES[0]}
        return {name: value for name, value in kept.items() if value != usual[name]}

    def portable(self) -> dict[str, Any]:
        """Return how scores become answers, in plain values, for another language."""
        return {
            "kind": "classes",
            "labels": list(self.labels),
            "output": self.output,
            "scores": self._scores,
            "temperature": self._temperature,
            "unsure_below": self._abstain_below,
        }

    def check(self, signature: Signature) -> None:
        """Find the output with a score for each label; raise UsageError if there is none."""
        fitting = [spec for spec in signature.outputs if self._fits(spec, signature)]
        if not fitting:
            found = ", ".join(f"{spec.name}: {spec.describe()}" for spec in signature.outputs)
            raise UsageError(
                f"{len(self.labels)} labels do not fit the output {found}; classification needs a float output "
                f"[{signature.batch or 1}, {len(self.labels)}], a score for each label",
                hint="give as many labels as the model has classes",
            )
        preferred = [spec for spec in fitting if spec.name in SCORES]
        self.output = (preferred or fitting)[0].name

    def _fits(self, spec: TensorSpec, signature: Signature) -> bool:
        """Whether the last axis can be the scores, and the one before it, if any, the samples."""
        if not spec.is_float or len(spec.shape) not in {1, 2}:
            return False
        rows_fit = signature.batch is None if len(spec.shape) == 1 else has_rows_first(spec, signature)
        size = spec.shape[-1]
        can_be_scores = size != signature.batch if isinstance(size, str) else size == len(self.labels)
        return rows_fit and can_be_scores

    def decode(self, outputs: Tensors, inputs: Tensors) -> Classes:
        """Return the classes that outputs stand for; raise BundleInvalid for other than a score for each label."""
        scores = outputs[self.output]
        if scores.ndim == 1:
            scores = scores[np.newaxis]
        if scores.shape[1] != len(self.labels):
            raise BundleInvalid(
                f"the model gives {scores.shape[1]} scores in {self.output}, and its task has {len(self.labels)} labels",
                hint="export it again with as many labels as the model has classes",
            )
        if scores.dtype is not _FLOAT32:  # comparing dtypes by == takes 0.1 us
            scores = scores.astype(np.float32, copy=False)
        return Classes(
            labels=scores.argmax(axis=1),
            probabilities=probabilities(scores, self._temperature) if self._are_logits else scores,
            logits=scores,
            classes=self.labels,
            abstain_below=self._abstain_below,
            outputs=outputs,
            inputs=inputs,
        )

    def index(self, label: Any, place: str) -> int:
        """Return the index of a label as a data set writes it: its name, or else its number.

        Raises:
            DatasetInvalid: It is neither; the message begins with `place`.
        """
        if label is None or label == "":
            raise DatasetInvalid(f"{place}: the label is missing", hint="fill it in, or leave the column out")
        name = _written(str(label))
        if name in self._index:
            return self._index[name]
        try:
            number = int(label) if float(label) == int(float(label)) else -1
        except (TypeError, ValueError, OverflowError):
            number = -1
        if not 0 <= number < len(self.labels):
            raise DatasetInvalid(f"{place}: the model has no label {label!r}", hint=f"its labels: {self.described()}")
        return number

    def labels_of(self, values: Sequence[Any], name: str) -> NDArray[np.int64] | None:
        """Return the labels of rows as int64 `[N]`; None if no row has one.

        Raises:
            DatasetInvalid: A label is missing, or is none of the model's; the message names `name` and the row.
        """
        if all(value is None or value == "" for value in values):
            return None
        return np.array(
            [self.index(value, f"{name}, row {row}") for row, value in enumerate(values, start=1)], np.int64
        )

    def named(self, name: str) -> int | None:
        """Return the index of a label by its name alone; None if the model does not have it."""
        return self._index.get(_written(name))

    def described(self) -> str:
        """Return the first labels, for a message."""
        more = f", ... ({len(self.labels)} in all)" if len(self.labels) > _SHOWN else ""
        return ", ".join(self.labels[:_SHOWN]) + more


def _written(name: str) -> str:
    """Return a name in the form that macOS, Windows and Linux agree on."""
    return unicodedata.normalize("NFC", name).strip()


def check_labels(labels: Sequence[str]) -> tuple[str, ...]:
    """Return the names of classes; each must be a word of its own, since answers are told apart by it.

    Raises:
        ValueError: One is blank, cannot be printed, or looks like another.
    """
    names = tuple(str(label) for label in labels)
    if len(names) < 2:
        raise ValueError(f"a classifier needs two labels or more, found {len(names)}")
    for place, name in enumerate(names):
        if any(unicodedata.category(letter) in _UNPRINTABLE for letter in name):
            raise ValueError(f"label {place} cannot be printed: {name!r}")
        if not _seen(name):
            raise ValueError(f"label {place} is blank")
    seen = [_seen(name) for name in names]
    if len(set(seen)) != len(seen):
        double = next(name for place, name in enumerate(seen) if name in seen[:place])
        raise ValueError(f"two classes are called {double!r}")
    return names


def _seen(name: str) -> str:
    """Return what a person sees of a name: signs without a width, such as those that join emoji, are left out."""
    return _written("".join(letter for letter in name if unicodedata.category(letter) != "Cf" and letter not in _BLANK))


def check_temperature(temperature: float, abstain_below: float | None) -> None:
    """Raise ValueError for a temperature that cannot divide, or a threshold that is no probability."""
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature must be positive, found {temperature}")
    if abstain_below is not None and not 0 <= abstain_below <= 1:
        raise ValueError(f"the abstain threshold must be a probability, found {abstain_below}")


def probabilities(logits: NDArray[np.float32], temperature: float) -> NDArray[np.float32]:
    """Return probabilities `[N, classes]`, the softmax of logits `[N, classes]` over a temperature; stable for large ones."""
    if logits.size <= _FEW and len(logits) == 1:
        return _of_one_row(logits, temperature)
    shares: NDArray[np.float32] = logits - np.maximum.reduce(logits, axis=1, keepdims=True)
    shares /= np.float32(temperature)
    np.exp(shares, out=shares)
    shares /= np.add.reduce(shares, axis=1, keepdims=True)
    return shares


def _of_one_row(logits: NDArray[np.float32], temperature: float) -> NDArray[np.float32]:
    """Softmax of one row in plain Python, ten times faster than numpy at this size (docs/performance.md)."""
    row = logits[0].tolist()
    top = max(row)
    shares = [math.exp((one - top) / temperature) for one in row]
    total = sum(shares)
    return np.array([[share / total for share in shares]], np.float32)
