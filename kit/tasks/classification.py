"""What scores for classes mean: probabilities, names, and whether to abstain. Shared by pictures, texts and tables."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kit.tasks.base import Prediction

_FEW = 64


@dataclass(kw_only=True, slots=True, eq=False)
class Classes(Prediction):
    """The most probable class of each sample.

    Attributes:
        labels: int64 `[N]`, index of the most probable class.
        probabilities: float32 `[N, classes]`, softmax of the logits over the bundle's temperature.
        logits: float32 `[N, classes]`, as the model gave them.
        classes: Their names.
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
        """Whether the most probable class stays under the bundle's abstain threshold, bool `[N]`."""
        below: NDArray[np.bool_] = self.probabilities.max(axis=1) < (self.abstain_below or 0.0)
        return below

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[tuple[str, float]]:
        """Give (name, probability) of each sample."""
        return iter(zip(self.names, self.probabilities.max(axis=1).tolist(), strict=True))

    def records(self) -> list[dict[str, Any]]:
        """Return label, probability and all probabilities of each sample."""
        return [
            {
                "label": name,
                "probability": max(shares),
                "unsure": unsure,
                "probabilities": dict(zip(self.classes, shares, strict=True)),
            }
            for name, shares, unsure in zip(self.names, self.probabilities.tolist(), self.unsure.tolist(), strict=True)
        ]


def check_labels(labels: Sequence[str]) -> tuple[str, ...]:
    """Return the names of classes; each must be a word of its own, since answers are told apart by it.

    Raises:
        ValueError: One stands twice, or is blank.
    """
    names = tuple(str(label) for label in labels)
    if len(names) < 2:
        raise ValueError(f"a classifier needs two labels or more, found {len(names)}")
    blank = next((place for place, name in enumerate(names) if not name.strip()), None)
    if blank is not None:
        raise ValueError(f"label {blank} is blank")
    double = next((name for place, name in enumerate(names) if name in names[:place]), None)
    if double is not None:
        raise ValueError(f"two classes are called {double!r}")
    return names


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
