"""What a model of scripts/int8_networks.py loses on the test part, beside the float network's own answers.

The bar is the metric that `kit export` decided by, applied to every tool alike. Sentences are asked one by one, and compared by
their pooled vectors; everything else in batches of 8 at most.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import int8_inputs
import numpy as np
from int8_peers import Call, Tensors
from numpy.typing import NDArray

from kit import metrics
from kit.bundle import Bundle
from kit.metrics import Metric, Score, Values
from kit.metrics.score import evaluate, score
from kit.samples import Samples
from kit.tasks.base import scored_output
from kit.tasks.registry import task_of

ROWS = 8


@dataclass(frozen=True, kw_only=True, eq=False)
class Answered:
    """What became of the test part: values of kit's metric, and other figures by name."""

    values: Values
    more: Mapping[str, float]


class Test:
    """The test part and how answers to it are judged.

    Args:
        bundle: Whose task and signature.
        groups: Test samples; for texts in the order of `texts`, one each.
        metric: Of kit.
        positions: Count the positions whose highest score is the float network's.
        pairs: Whether the samples are the two sentences of each pair, one after the other.
    """

    def __init__(
        self, bundle: Bundle, groups: Sequence[Samples], metric: Metric, *, positions: bool, pairs: bool
    ) -> None:
        self.bundle, self.signature, self.metric = bundle, bundle.signature, metric
        self.task = task_of(bundle)
        self._positions, self._pairs = positions, pairs
        if pairs:
            encoded = [self.task.encode([text]) for text in int8_inputs.texts("test")]
            groups = [Samples(inputs=one) for one in encoded]
        self.groups = list(groups)
        self._reference: list[Tensors] = []
        self._exact: Answered | None = None

    @property
    def largest(self) -> Tensors:
        """Inputs of the sizes that come first."""
        return next(self.signature.split(self.groups[0].inputs, ROWS))

    def refer(self, call: Call) -> Answered:
        """Take a network's answers for what all others are compared with."""
        self._reference = self._answers(call)
        self.groups = [
            dataclasses.replace(group, expected=one) for group, one in zip(self.groups, self._reference, strict=True)
        ]
        self._exact = self._judged(self._reference)
        return self._exact

    def of(self, call: Call) -> Answered:
        """Ask a network everything."""
        return self._judged(self._answers(call))

    def scored(self, found: Answered, baseline: Answered | None = None) -> Score:
        """Return the score with its loss against another model's answers, the float network's without one."""
        than = baseline or self._exact
        assert than is not None  # `refer` comes first
        return score(self.metric, found.values, dataset="test", split="test", baseline=than.values)

    def _answers(self, call: Call) -> list[Tensors]:
        found: list[Tensors] = [{} for _ in self.groups]
        # Texts of one length follow each other: some runtimes compile for each length.
        order = sorted(range(len(found)), key=lambda one: [array.shape for array in self.groups[one].inputs.values()])
        for place in order:
            pieces = [copied(call(piece)) for piece in self.signature.split(self.groups[place].inputs, ROWS)]
            found[place] = pieces[0] if len(pieces) == 1 else self.signature.join(pieces)
        return found

    def _judged(self, answers: list[Tensors]) -> Answered:
        more = {"rms error": max(self._rms(answers).values())}
        if self._pairs:
            return self._of_vectors(answers, more)
        output = scored_output(self.task, self.signature)
        values = evaluate(self.metric, answers, self.groups, signature=self.signature, output=output)
        if self._positions:
            more["positions that agree"] = self._agreeing(answers)
        return Answered(values=values, more=more)

    def _of_vectors(self, answers: list[Tensors], more: dict[str, float]) -> Answered:
        from scipy.stats import spearmanr  # type: ignore[import-untyped]  # SciPy has no types of its own

        ours, theirs = self._vectors(answers), self._vectors(self._reference)
        grades = [one["similarity"] for one in int8_inputs.pairs()]
        more["Spearman"] = float(spearmanr(cosines(ours[0::2], ours[1::2]), grades).statistic)
        each = cosines(ours, theirs)
        return Answered(values=Values(each, float(each.mean()), len(each)), more=more)

    def _vectors(self, answers: list[Tensors]) -> NDArray[np.float64]:
        pairs = zip(self.groups, answers, strict=True)
        predictions: list[Any] = [self.task.decode(one, group.inputs) for group, one in pairs]
        return np.concatenate([one.vectors for one in predictions]).astype(np.float64)

    def _rms(self, answers: list[Tensors]) -> dict[str, float]:
        """Return the error of each float output, as a share of the float network's values."""
        found = {}
        for spec in self.signature.outputs:
            if spec.is_float:
                pairs = [(ours[spec.name], one[spec.name]) for ours, one in zip(answers, self._reference, strict=True)]
                error = sum(float(np.square(ours - exact, dtype=np.float64).sum()) for ours, exact in pairs)
                whole = sum(float(np.square(exact, dtype=np.float64).sum()) for _, exact in pairs)
                found[spec.name] = float(np.sqrt(error / max(whole, 1e-30)))
        return found

    def _agreeing(self, answers: list[Tensors]) -> float:
        name = self.signature.outputs[0].name
        pairs = [(ours[name], exact[name]) for ours, exact in zip(answers, self._reference, strict=True)]
        same = [(ours.argmax(axis=-1) == exact.argmax(axis=-1)).ravel() for ours, exact in pairs]
        return float(np.concatenate(same).mean())


def bar(metric: Metric) -> float:
    """Return how much of it kit lets a model lose."""
    return metrics.find(metric.name).allowed_loss


def copied(outputs: Tensors) -> dict[str, NDArray[Any]]:
    """Keep outputs that the next call may write over."""
    return {name: np.array(array) for name, array in outputs.items()}


def cosines(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the cosine of each row to its counterpart."""
    lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    found: NDArray[np.float64] = (ours * theirs).sum(axis=1) / np.maximum(lengths, 1e-30)
    return found
