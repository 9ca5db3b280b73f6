"""Weights that are trained to bear being quantized: what becomes of the noise, what is kept, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import exporters
from exporters import AutoOptions, ExportOptions, candidates, workbench
from exporters.search import fine_tuning
from exporters.search.blame import Trial
from exporters.sources import open_source
from exporters.sources.pupil import Lesson
from exporters.workbench import Workbench
from kit.bench.measure import Plan
from kit.bundle import Bundle
from kit.errors import GateFailed, UsageError
from kit.samples import Samples, Splits
from kit.tasks.image import ImageClassification
from tests.conftest import Kit
from tests.helpers.modules import Conv, Duo, duo_signature
from tests.helpers.originals import OnnxOriginal, dense, noise
from tests.helpers.points import batch

INT4 = ExportOptions(precisions=("int4",), max_loss=0.5, fine_tune_seconds=2.0)
FAST = Plan(rounds=10, turn_ms=0.5, warmup_ms=1.0, warmup_limit_ms=10.0)


def splits(inputs: dict[str, np.ndarray]) -> Splits:
    """Cut inputs into three splits."""
    (total,) = {len(array) for array in inputs.values()}
    third = total // 3
    parts = [
        (Samples(inputs={name: array[start : start + third] for name, array in inputs.items()}, source="made up"),)
        for start in (0, third, 2 * third)
    ]
    return Splits(dataset="made-up", train=parts[0], validation=parts[1], test=parts[2])


def pictures(count: int = 300) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(0).standard_normal((count, 12, 12)).astype(np.float32)}


def conv_bench(folder: Path, module: nn.Module | None = None, seconds: float = 1.0) -> Workbench:
    torch.manual_seed(0)
    original = open_source(module or Conv(), inputs={"x": pictures(2)["x"]})
    return workbench.of(original, folder, opset=20, data=splits(pictures()), fine_tune_seconds=seconds)


def test_there_is_less_noise_and_the_artifact_says_why(digits: Bundle) -> None:
    report = exporters.export_bundle(digits, INT4)
    (made,) = [one for one in report.passed if one.variant.id == "int4"]
    assert made.variant.quantization is not None
    assert made.variant.quantization.fine_tuned
    (said,) = [one for one in made.remarks if "fine-tuned" in one]
    after, before = (float(word) for word in said.replace(" dB", "").split("noise ")[1].split(" instead of "))
    assert after > before + 1
    plain = exporters.export_bundle(digits, ExportOptions(precisions=("int4",), max_loss=0.5))
    assert [one.variant.quantization.fine_tuned for one in plain.passed[1:] if one.variant.quantization] == [False]


@pytest.mark.parametrize("precision", ["int8", pytest.param("int4", marks=pytest.mark.slow)])
def test_a_module_of_words_and_numbers_learns_and_stays_as_it_was(tmp_path: Path, precision: str) -> None:
    torch.manual_seed(0)
    module = Duo().train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    random = np.random.default_rng(0)
    inputs = {
        "ids": random.integers(0, 11, (300, 5)),
        "numbers": random.standard_normal((300, 3)).astype(np.float32),
    }
    options = ExportOptions(precisions=(precision,), max_loss=0.5, fine_tune_seconds=0.5)
    report = exporters.export(
        module, out=tmp_path / "duo", signature=duo_signature(), options=options, data=splits(inputs)
    )
    assert any("fine-tun" in said for one in report.passed for said in one.remarks)
    assert module.training
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


@pytest.mark.slow
def test_pictures_behind_arithmetic_on_raw_pixels_learn_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 6 * 6, 4))
    task = ImageClassification(labels=("a", "b", "c", "d"), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), size=(8, 8))
    pixels = np.random.default_rng(0).integers(0, 256, (300, 3, 8, 8), dtype=np.uint8)
    report = exporters.export(
        module,
        out=tmp_path / "pictures",
        inputs={"input": np.zeros((2, 3, 8, 8), np.float32)},
        task=task,
        options=ExportOptions(precisions=("int8",), max_loss=0.5, fine_tune_seconds=0.5),
        data=splits({"pixels": pixels}),
    )
    assert any("fine-tun" in said for said in report.passed[1].remarks)


@pytest.mark.slow
def test_a_program_that_takes_dicts_and_keywords_learns(tmp_path: Path) -> None:
    class Apart(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Linear(8, 32), nn.Linear(4, 5)

        def forward(self, given: dict[str, torch.Tensor], *, extra: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"second": self.other(extra), "first": torch.relu(self.one(given["x"]))}

    rows = {0: torch.export.Dim("rows", max=1024)}
    program = torch.export.export(
        Apart().eval(),
        ({"x": torch.randn(4, 8)},),
        {"extra": torch.randn(4, 4)},
        dynamic_shapes={"given": {"x": rows}, "extra": rows},
    )
    original = open_source(program)
    random = np.random.default_rng(0)
    inputs = {
        spec.name: random.standard_normal((300, int(spec.shape[1]))).astype(np.float32)
        for spec in original.signature.inputs
    }
    bench = workbench.of(original, tmp_path, opset=20, data=splits(inputs), fine_tune_seconds=0.3)
    (recipe,) = candidates.recipes(ExportOptions(precisions=("int4",)))
    _, said = fine_tuning.better(recipe, bench)
    assert "fine-tun" in said


def test_what_brings_nothing_is_left_out(tmp_path: Path) -> None:
    bench = conv_bench(tmp_path, seconds=1e-6)
    (recipe,) = candidates.recipes(ExportOptions(precisions=("int8",)))
    at, said = fine_tuning.better(recipe, bench)
    assert at.source is bench.source
    assert "brought nothing" in said


@pytest.mark.slow
def test_recipes_of_as_many_bits_share_what_was_learned(tmp_path: Path) -> None:
    bench = conv_bench(tmp_path, seconds=0.1)
    assert bench.fine_tuning is not None
    for asked in ({"formats": ("qdq",)}, {"quantization": "dynamic"}, {"weight_bits": 7}):
        (recipe,) = candidates.recipes(ExportOptions(precisions=("int8",), **asked))
        fine_tuning.better(recipe, bench)
    assert sorted(lesson.bits for lesson in bench.fine_tuning.done) == [7, 8]
    (recipe,) = candidates.recipes(ExportOptions(precisions=("fp16",)))
    assert fine_tuning.better(recipe, bench) == (bench, "")


@pytest.mark.slow
def test_what_is_kept_has_no_more_noise_on_validation_samples(tmp_path: Path) -> None:
    bench = conv_bench(tmp_path)
    assert bench.fine_tuning is not None
    (recipe,) = candidates.recipes(ExportOptions(precisions=("int8",)))
    at, _ = fine_tuning.better(recipe, bench)
    assert Trial(at).of(recipe, ()).sqnr_db >= Trial(bench).of(recipe, ()).sqnr_db


def test_an_operator_without_a_gradient_is_said(tmp_path: Path) -> None:
    class Stairs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(12, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.sum(self.layer(x) > 0, dim=1).float()

    bench = conv_bench(tmp_path, Stairs())
    assert bench.fine_tuning is not None
    with pytest.raises(GateFailed, match="cannot be fine-tuned") as caught:
        bench.fine_tuning.pupil.taught(splits(pictures()).train or (), Lesson(seconds=1.0, bits=8))
    assert "--fine-tune" in caught.value.hint


def test_a_graph_has_nothing_to_train(tmp_path: Path, kit_inside: Kit, duo: Bundle) -> None:
    model, signature = dense((16, 8, 3))
    data = splits({"x": np.random.default_rng(0).standard_normal((90, 16)).astype(np.float32)})
    with pytest.raises(UsageError, match="needs the PyTorch model") as caught:
        workbench.of(OnnxOriginal(model, signature), tmp_path, opset=20, data=data, fine_tune_seconds=1.0)
    assert "package.module:factory" in caught.value.hint
    found = kit_inside("export", str(duo.folder), "--precision", "auto", "--fine-tune", "1m")
    assert found.returncode == 2
    assert "needs the PyTorch model" in found.stderr


def test_it_takes_samples_and_enough_of_them(tmp_path: Path) -> None:
    few = splits(pictures(30))
    original = open_source(Conv(), inputs={"x": pictures(2)["x"]})
    bench = workbench.of(original, tmp_path, opset=20, data=few, fine_tune_seconds=1.0)
    (recipe,) = candidates.recipes(ExportOptions(precisions=("int8",)))
    with pytest.raises(UsageError, match="20 samples or more, and there are 10"):
        fine_tuning.better(recipe, bench)
    original = open_source(Conv(), inputs={"x": pictures(2)["x"]})
    with pytest.raises(UsageError, match="samples to train with"):
        workbench.of(original, tmp_path, opset=20, golden=[noise(bench.signature, 4)], fine_tune_seconds=1.0)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("inf"), float("nan")])
def test_no_time_is_refused(seconds: float) -> None:
    for made in (ExportOptions, AutoOptions):
        with pytest.raises(UsageError, match="fine-tuning takes longer than nothing"):
            made(**({"precisions": ("int8",)} if made is ExportOptions else {}), fine_tune_seconds=seconds)


def test_without_integers_it_changes_nothing(kit_inside: Kit) -> None:
    found = kit_inside("export", "anything:at_all", "--precision", "fp16", "--fine-tune", "1m")
    assert found.returncode == 2
    assert "--fine-tune changes nothing without --precision int8 or int4" in found.stderr


@pytest.mark.slow
def test_auto_trains_as_well(digits: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exporters.formats.nncf.is_here", lambda: False)
    options = AutoOptions(points=batch(1), max_loss=0.01, plan=FAST, fine_tune_seconds=1.0)
    done = exporters.export_auto(digits, options)
    said = {one.variant.id: " ".join(one.remarks) for one in done.report.passed}
    assert "fine-tun" in said["int8-qdq"]
    assert "fine-tun" in said["int4"]
    assert "fine-tun" not in said["fp16"]
