"""Modules that are no plain chain of layers give their own answers in every format."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from exporters import ExportOptions, candidates
from exporters.formats import pixel
from kit import parity
from kit.bundle.records import ModelSpec
from kit.choices import Precision, VariantFormat
from kit.errors import GateFailed
from kit.lab import models
from kit.runtime.pytorch import reference_logits
from tests.helpers.originals import noise, run, source_of


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


@pytest.mark.parametrize("mean", [0.4, 0.0])
@pytest.mark.parametrize(
    "module",
    [
        Scaled,
        Twice,
        CutTwice,
        Position,
        lambda: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 8), torch.nn.Linear(8, 3), torch.nn.ReLU()),
    ],
)
def test_modules_of_other_shapes_give_their_own_answers_in_every_format(
    tiny_spec: ModelSpec, module: type[torch.nn.Module], mean: float
) -> None:
    torch.manual_seed(0)
    spec = dataclasses.replace(tiny_spec, normalization=dataclasses.replace(tiny_spec.normalization, mean=mean))
    made = module().eval()
    pixels = noise(spec)
    exact, source = reference_logits(made, spec, pixels), source_of(made, spec)
    assert np.allclose(run(source.model, pixels), exact, atol=1e-4 * max(1.0, np.abs(exact).max()))
    for options in (
        ExportOptions(precisions=("fp16", "int8", "int4"), formats=("qdq", "qoperator")),
        ExportOptions(precisions=("int8",), per_channel=False),
        ExportOptions(precisions=("int8",), quantization="dynamic"),
        ExportOptions(precisions=("int8",), formats=("pixel",)),
    ):
        for plan in candidates.plans(options):
            if plan.format is VariantFormat.PIXEL and pixel.refusal(source.model):
                continue
            if plan.format is VariantFormat.QOPERATOR and module is Twice:
                with pytest.raises(GateFailed, match="again runs more than once"):
                    plan.make(source)
                continue
            found = parity.compare(exact, run(plan.make(source).model, pixels))
            limit = 0.25 if plan.precision is Precision.INT4 else 0.05
            assert found.rms_error < limit * np.abs(exact).max(), (plan.id, found)


def test_a_normalisation_without_a_mean_is_folded_too(tiny_spec: ModelSpec) -> None:
    spec = dataclasses.replace(tiny_spec, normalization=dataclasses.replace(tiny_spec.normalization, mean=0.0))
    source = source_of(models.build("mlp-8", shape=(16,), outputs=3).eval(), spec)
    assert source.normalization_folded
    assert [node.op_type for node in source.model.graph.node] == ["Cast", "Flatten", "Gemm", "Relu", "Gemm"]
    assert pixel.refusal(source.model) == ""
