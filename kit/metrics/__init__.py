"""What is measured of answers: metrics with a direction and a unit, scores with intervals, fidelity to the original."""

from __future__ import annotations

from kit.metrics.fidelity import Fidelity, FidelityVerdict
from kit.metrics.metric import Better, Metric, find, names
from kit.metrics.score import Score, Values, evaluate, score

__all__ = ["Better", "Fidelity", "FidelityVerdict", "Metric", "Score", "Values", "evaluate", "find", "names", "score"]
