"""What is measured of answers: metrics with a direction and a unit, scores with intervals, fidelity to the original."""

from __future__ import annotations

from kit.metrics.fidelity import Fidelity, Verdict
from kit.metrics.metric import Better, Metric, find, names
from kit.metrics.score import Score, Values, evaluate, score

__all__ = ["Better", "Fidelity", "Metric", "Score", "Values", "Verdict", "evaluate", "find", "names", "score"]
