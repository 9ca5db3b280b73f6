"""Modules that are no plain chain of layers give their own answers in every format."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from exporters import ExportOptions, candidates
from exporters.formats import pixel
from exporters.formats.base import Source
from exporters.graph.rules import layers
from exporters.sources import open_source
from kit.choices import Precision, VariantFormat
from kit.errors import GateFailed
from kit.lab import models
from kit.samples import Samples
from kit.tasks.image import ImageClassification
from tests.helpers.modules import Conv
from tests.helpers.originals import noise, rms, run


class Scaled(torch.nn.Module):
    """Ends in a product that is scaled."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(16, 8)
        self.weight = torch.nn.Parameter(torch.randn(8, 3))
        self.bias = torch.nn.Parameter(torch.randn(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.addmm(self.bias, torch.relu(self.first(x.flatten(1))), self.weight, alpha=3, beta=0.5)


class Twice(torch.nn.Module):
    """One layer that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again, self.last = (torch.nn.Linear(16, 8), torch.nn.Linear(8, 8), torch.nn.Linear(8, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.again(torch.relu(self.first(x.flatten(1)))))
        return self.last(torch.relu(self.again(hidden)))


class CutTwice(torch.nn.Module):
    """Two cuts along one axis."""

    def __init__(self) -> None:
        super().__init__()
        self.last = torch.nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(x[:, 1:][:, :2].flatten(1))


class Position(torch.nn.Module):
    """Adds something of its own to every pixel before it cuts."""

    def __init__(self) -> None:
        super().__init__()
        self.position, self.last = torch.nn.Parameter(torch.randn(4, 4)), torch.nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last((x + self.position)[:, 1:3].flatten(1))


def sourced(
    folder: Path, module: torch.nn.Module, task: ImageClassification, *, shape: tuple[int, ...] = (4, 4)
) -> tuple[Source, Samples]:
    """What candidates are made of, and samples with the module's own answers."""
    original = open_source(module.eval(), name="tiny", task=task, signature=task.signature(shape))
    samples = noise(original.signature, 200)
    samples = dataclasses.replace(samples, expected=original.answer(samples.inputs))
    path = original.write(folder, opset=20)
    source = Source(path=path, folder=folder, signature=original.signature, train=(samples,), dataset="noise")
    original.close()
    return source, samples


@pytest.mark.parametrize("mean", [0.4, 0.0])
@pytest.mark.parametrize(
    "module",
    [
        Scaled,
        Twice,
        CutTwice,
        Position,
        Conv,
        lambda: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 8), torch.nn.Linear(8, 3), torch.nn.ReLU()),
    ],
)
def test_modules_of_other_shapes_give_their_own_answers_in_every_format(
    tiny_task: ImageClassification, tmp_path: Path, module: Callable[[], torch.nn.Module], mean: float
) -> None:
    torch.manual_seed(0)
    source, samples = sourced(tmp_path, module(), dataclasses.replace(tiny_task, mean=(mean,)))
    assert samples.expected is not None
    exact = samples.expected["logits"]
    largest = float(np.abs(exact).max())
    assert np.allclose(run(source.path, samples), exact, atol=1e-4 * max(1.0, largest))
    for options in (
        ExportOptions(precisions=("fp16", "int8", "int4"), formats=("qdq", "qoperator")),
        ExportOptions(precisions=("int8",), per_channel=False),
        ExportOptions(precisions=("int8",), quantization="dynamic"),
        ExportOptions(precisions=("int8",), formats=("pixel",)),
    ):
        for recipe in candidates.recipes(options):
            if recipe.format.refusal(source.model):
                continue
            if recipe.format.form is VariantFormat.QOPERATOR and module is Twice:
                with pytest.raises(GateFailed, match="again runs more than once"):
                    recipe.make(source)
                continue
            made = recipe.make(source, recipe.format.unable(source.model))
            limit = 0.25 if recipe.format.precision is Precision.INT4 else 0.05
            assert rms(exact, run(made.files.path, samples)) < limit * largest, recipe.id


def test_a_crop_is_cut_from_raw_pixels_and_every_format_takes_it(
    tiny_task: ImageClassification, tmp_path: Path
) -> None:
    module = models.build("mlp-32-16-crop-1", shape=(8, 6), outputs=3)
    source, samples = sourced(tmp_path, module, tiny_task, shape=(8, 6))
    assert samples.expected is not None
    assert [node.op_type for node in source.model.graph.node][:3] == ["Slice", "Cast", "Flatten"]
    assert [layer.name for layer in layers(source.model)] == ["layers.1", "layers.3", "layers.5"]
    exact = samples.expected["logits"]
    assert np.allclose(run(source.path, samples), exact, atol=1e-4)
    options = ExportOptions(precisions=("fp16", "int8", "int4"), formats=("qdq", "qoperator", "pixel"))
    for recipe in candidates.recipes(options):
        made = recipe.make(source)
        limit = 0.25 if recipe.format.precision is Precision.INT4 else 0.05
        assert rms(exact, run(made.files.path, samples)) < limit * float(np.abs(exact).max()), recipe.id


def test_a_normalisation_without_a_mean_is_folded_too(tiny_task: ImageClassification, tmp_path: Path) -> None:
    module = models.build("mlp-8", shape=(16,), outputs=3)
    source, _ = sourced(tmp_path, module, dataclasses.replace(tiny_task, mean=(0.0,)))
    assert [node.op_type for node in source.model.graph.node] == ["Cast", "Flatten", "Gemm", "Relu", "Gemm"]
    assert pixel.refusal(source.model) == ""
