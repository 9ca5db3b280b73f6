"""Which layer is to blame, and the fewest that are left in float."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

import exporters
from exporters import ExportOptions, candidates
from exporters.search.blame import blame, fewest_excluded
from exporters.workbench import Workbench, for_bundle, for_module
from kit.bundle import Bundle, GoldenSamples, open_folder
from kit.bundle.records import ModelSpec
from kit.errors import UsageError
from kit.lab import models
from kit.lab.models import Mlp
from kit.runtime.pytorch import reference_logits
from tests.test_export import Conv, labelled
from tests.test_quantize import noise


def with_outlier(module: Mlp, layer: int) -> Mlp:
    """Give a layer one huge weight from a unit that is always off: its scale is ruined, its answers are as before."""
    linears = [one for one in module.layers if isinstance(one, torch.nn.Linear)]
    with torch.no_grad():
        linears[layer - 1].weight[0] = 0.0
        linears[layer - 1].bias[0] = -1.0
        linears[layer].weight[0, 0] = 3000.0
    return module


def workbench_of(module: Mlp, spec: ModelSpec) -> Workbench:
    pixels = noise(spec, 600)
    golden = GoldenSamples(
        pixels=pixels[:50],
        labels=np.full(50, -1, np.int64),
        logits=reference_logits(module, spec, pixels[:50]),
        source="noise",
    )
    return for_module(module, spec, golden, opset=20, data=labelled(module, spec), on_step=lambda _: None)


DYNAMIC = {"precisions": ("int8",), "quantization": "dynamic", "per_channel": False}


def test_the_layer_to_blame_is_found_and_the_fewest_are_left_in_float(tiny_spec: ModelSpec) -> None:
    torch.manual_seed(0)
    module = with_outlier(models.build("mlp-32-16", shape=(16,), outputs=3), 1).eval()
    bench = workbench_of(module, tiny_spec)
    (plan,) = candidates.plans(ExportOptions(**DYNAMIC))
    found = blame(plan, bench)
    own = {row.layer: row.own_sqnr_db for row in found.rows}
    assert list(own) == ["layers.1", "layers.3", "layers.5"]
    assert min(own, key=own.__getitem__) == "layers.3"
    guilty = found.rows[1]
    assert guilty.alone is not None
    assert guilty.without is not None
    assert found.together is not None
    assert guilty.alone.drop_points > 4 > guilty.without.drop_points
    assert guilty.without_sqnr_db > found.sqnr_db + 10
    assert fewest_excluded(plan, bench, 3.0) == ("layers.3",)
    sound = workbench_of(models.build("mlp-32-16", shape=(16,), outputs=3).eval(), tiny_spec)
    assert fewest_excluded(plan, sound, 5.0) == ()


def test_two_bad_layers_are_found_together(tiny_spec: ModelSpec) -> None:
    torch.manual_seed(0)
    module = models.build("mlp-32-16-16", shape=(16,), outputs=3)
    bench = workbench_of(with_outlier(with_outlier(module, 1), 3).eval(), tiny_spec)
    (plan,) = candidates.plans(ExportOptions(**DYNAMIC, exclude_layers=("auto",)))
    assert fewest_excluded(plan, bench, 3.0) == ("layers.3", "layers.7")


def test_exclude_layer_auto_publishes_what_it_found(tiny_spec: ModelSpec, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = with_outlier(models.build("mlp-32-16", shape=(16,), outputs=3), 1).eval()
    options = ExportOptions(**DYNAMIC, exclude_layers=("auto",), max_drop_points=3.0)
    report = exporters.export(module, tiny_spec, out=tmp_path / "b", options=options, data=labelled(module, tiny_spec))
    record = report.bundle.variant("int8-dynamic-per-tensor").quantization
    assert record is not None
    assert record.layers_excluded == ("layers.3",)
    assert open_folder(tmp_path / "b").manifest.schema_version == 2
    with pytest.raises(UsageError, match="labelled data"):
        exporters.export(module, tiny_spec, out=tmp_path / "c", options=options)


def test_without_labels_the_blame_is_of_the_golden_samples(tiny_spec: ModelSpec) -> None:
    module = models.build("mlp-32-16", shape=(16,), outputs=3).eval()
    bench = dataclasses.replace(workbench_of(module, tiny_spec), data=None)
    (plan,) = candidates.plans(ExportOptions(**DYNAMIC))
    found = blame(plan, bench)
    assert found.images == "50 golden samples"
    assert [row.alone for row in found.rows] == [None, None, None]


@pytest.mark.parametrize("form", ["png", "svg"])
def test_the_blame_is_drawn(tiny_spec: ModelSpec, form: str) -> None:
    from exporters.search.blame_picture import draw

    bench = workbench_of(models.build("mlp-32-16", shape=(16,), outputs=3).eval(), tiny_spec)
    (plan,) = candidates.plans(ExportOptions(**DYNAMIC))
    made = draw(blame(plan, bench), form=form)
    assert made.startswith(b"\x89PNG" if form == "png" else b"<svg")
    if form == "svg":
        assert b"layers.3" in made


def test_blame_of_a_bundle_is_the_blame_of_what_would_be_exported(quantized: Bundle) -> None:
    (plan,) = candidates.plans(ExportOptions(precisions=("int8",)))
    bench = for_bundle(quantized, opset=20, data_dir=None, on_step=lambda _: None)
    found = blame(plan, bench)
    assert found.variant == "int8-qdq"
    assert all(row.own_sqnr_db > 20 for row in found.rows)
    assert all(row.alone_sqnr_db > found.sqnr_db for row in found.rows)


def test_int4_finds_its_exclusions_among_the_layers_it_can_quantize(tiny_spec: ModelSpec) -> None:
    spec = dataclasses.replace(tiny_spec, architecture="Conv")
    module = Conv().eval()
    bench = workbench_of(module, spec)
    (plan,) = candidates.plans(ExportOptions(precisions=("int4",), exclude_layers=("auto",)))
    assert fewest_excluded(plan, bench, 50.0) == ("conv",)
