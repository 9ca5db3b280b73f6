"""Bars: how much may be lost, and what so few samples cannot tell."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from exporters import workbench
from exporters.bars import Bar, bars_for, hold, power
from exporters.options import ExportOptions
from exporters.pipeline import make
from kit import metrics
from kit.errors import GateFailed
from kit.metrics import Values
from kit.samples import SEEDED, Samples, Splits
from tests.helpers.originals import OnnxOriginal, dense, noise, vectors


def binary(wrong: int, samples: int) -> Values:
    each = np.ones(samples)
    each[:wrong] = 0
    return Values(each, float(each.mean()), samples, is_binary=True)


@pytest.mark.parametrize(
    ("wrong", "samples", "limit", "passes"),
    [
        *((1, 144, 0.003, True), (2, 144, 0.003, False), (1, 144, 0.0, False), (2, 144, 0.014, True)),
        (1, 8, 0.003, False),
    ],
)
def test_one_sample_is_the_least_that_a_gate_can_see_unless_it_is_a_large_share(
    wrong: int, samples: int, limit: float, *, passes: bool
) -> None:
    """Of 144 samples one is 0.7 points, more than a limit of 0.3: whose luck that is depends on the machine."""
    bar = Bar(metric=metrics.find("top-1"), max_loss=limit)
    about = {"name": "int8", "dataset": "d", "split": "test"}
    if passes:
        assert hold(bar, binary(wrong, samples), binary(0, samples), **about).worse == wrong
    else:
        with pytest.raises(GateFailed, match="points of top-1"):
            hold(bar, binary(wrong, samples), binary(0, samples), **about)


def test_a_gate_of_few_samples_says_what_it_cannot_exclude() -> None:
    bar = Bar(metric=metrics.find("top-1"), max_loss=0.003)
    few = hold(bar, binary(0, 30), binary(0, 30), name="int8", dataset="d", split="test")
    assert "30 samples of d test cannot exclude a loss of" in power(bar, few)
    many = hold(bar, binary(0, 10_000), binary(0, 10_000), name="int8", dataset="d", split="test")
    assert power(bar, many) == ""


@pytest.mark.parametrize("metric", ["rmse", "r2", "cosine"])
def test_a_gate_of_one_sample_says_so_for_metrics_that_are_not_right_or_wrong(metric: str) -> None:
    bar = Bar(metric=metrics.find(metric), max_loss=0.05)
    one = Values(np.array([0.9]), 0.9, 1, is_binary=False)
    score = hold(bar, one, one, name="int8", dataset="d", split="test")
    assert (
        power(bar, score)
        == f"1 sample of d test cannot say how sure the loss of {metric} is: give more data to be sure"
    )


def test_one_sample_of_data_does_not_excuse_answers_to_noise(tmp_path: Path) -> None:
    """The picture is a multiple of all calibration samples, and the noise is not: int8 is right for the one alone."""
    model, signature = dense((16, 32, 3))
    one = Samples(inputs={"x": np.full((1, 16), 1e-3, np.float32)}, source="mine")
    data = Splits(dataset="mine", train=(one,), validation=(one,), test=(one,))
    about = {"data": data, "golden": (dataclasses.replace(noise(signature, 64), source=SEEDED),)}
    bench = workbench.of(OnnxOriginal(model, signature), tmp_path, opset=20, **about)
    with pytest.raises(GateFailed, match="on golden samples") as caught:
        make(bench, ExportOptions(precisions=("int8",)), lambda _: None)
    assert "drawn samples" in caught.value.hint


def test_the_bars_are_the_tasks_metrics_that_the_data_allow_else_the_originals_answers() -> None:
    class Task:
        metrics = ("top-1", "agreement")

    signature = vectors(3, 3)
    about = {"task": Task(), "metric": None, "max_loss": None}
    for has_targets, name in ((True, "top-1"), (False, "agreement")):
        on_data, on_golden = bars_for(signature, **about, has_targets=has_targets)
        assert [bar.metric.name for bar in on_data] == [name]
        assert [bar.metric.name for bar in on_golden] == ["agreement"]
    without, _ = bars_for(signature, task=None, metric=None, max_loss=None, has_targets=False)
    assert [(bar.metric.name, bar.output, bar.max_loss) for bar in without] == [
        ("r2", "y", 0.05),
        ("cosine", "y", 0.02),
    ]
