"""Compressing: units that matter stay, what is published is held to the original, and what is not leaves no trace."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from exporters import compress as compressing
from exporters.compress import CompressOptions, compress
from exporters.prune import dispensable_border, prune
from exporters.workbench import for_bundle
from kit.bench.measure import Plan
from kit.bundle import Bundle, find
from kit.choices import Precision
from kit.errors import CheckFailed, GateFailed, UsageError
from kit.lab import data, models
from kit.lab.blueprint import Normalization
from kit.lab.models import Mlp
from kit.lab.records import Speedup, origin_of
from kit.lab.training.distill import with_batch_norm
from kit.verify import verify
from tests.conftest import Kit

PLAIN = Normalization(mean=0.0, std=1.0)
QUICK = CompressOptions(
    target_speedup=1.01,
    batch_sizes=(256,),
    epochs=4,
    max_loss=0.05,
    plan=Plan(rounds=10, turn_ms=1.0, warmup_ms=1.0, warmup_limit_ms=10.0),
)


def digits_pixels() -> torch.Tensor:
    return torch.from_numpy(data.load("digits").train.images)


def test_dead_units_and_black_borders_go_without_a_change() -> None:
    torch.manual_seed(0)
    module = Mlp((64, 12, 8, 3)).eval()
    first, second, _ = (layer for layer in module.layers if isinstance(layer, torch.nn.Linear))
    with torch.no_grad():
        first.weight[[1, 4, 7]], first.bias[[1, 4, 7]] = 0.0, -1.0  # never on
        second.weight[2], second.bias[2] = 0.0, 2.0  # always the same: its part goes into the biases
    pixels = torch.randint(0, 256, (50, 8, 8), dtype=torch.uint8)
    pixels[:, :2], pixels[:, -2:], pixels[:, :, :2], pixels[:, :, -2:] = 0, 0, 0, 0
    assert dispensable_border(module, pixels, PLAIN, height=8, width=8) == 2
    small = prune(module, (9, 7), 2, pixels, PLAIN)
    assert small.sizes == (16, 9, 7, 3)
    normalized = pixels.to(torch.float32) * PLAIN.scale
    with torch.no_grad():
        assert torch.allclose(small(normalized), module(normalized), atol=1e-5)


def test_the_units_that_matter_are_those_that_stay() -> None:
    torch.manual_seed(0)
    module = Mlp((16, 8, 3)).eval()
    _, last = (layer for layer in module.layers if isinstance(layer, torch.nn.Linear))
    with torch.no_grad():
        last.weight[:, [0, 2, 4, 6]] *= 1e-3
    pixels = torch.randint(0, 256, (200, 4, 4), dtype=torch.uint8)
    small = prune(module, (4,), 0, pixels, PLAIN)
    kept = next(layer for layer in small.layers if isinstance(layer, torch.nn.Linear)).weight
    whole = next(layer for layer in module.layers if isinstance(layer, torch.nn.Linear)).weight
    assert torch.equal(kept, whole[[1, 3, 5, 7]])


def test_batch_normalisation_put_in_and_folded_away_changes_nothing() -> None:
    torch.manual_seed(0)
    module = models.build("mlp-16-8-crop-4", shape=(28, 28), outputs=10)
    normalized = digits_pixels()[:300].to(torch.float32) / 255
    assert isinstance(module, Mlp)
    with_norm = with_batch_norm(module, normalized).eval()
    folded = models.folded(with_norm)
    assert folded.crop == 4
    with torch.no_grad():
        for found in (with_norm, folded):
            assert torch.allclose(found(normalized), module(normalized), atol=1e-4)


@pytest.fixture
def search(
    digits: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[float], tuple[tuple[int, ...], int]]:
    """Look for a width without the clock: one is so many times as fast as it is said to be here. Gives it and the runs."""
    runs: list[int] = []

    def speedups(_results: object, name: str) -> tuple[Speedup, ...]:
        found = 8.0 / (int(name.removeprefix("width-")) + 1)
        return (Speedup(batch_size=1, threads=1, speedup=found + 0.1, low=found, high=found + 0.2),)

    monkeypatch.setattr(compressing, "_measure", lambda _, measured, *__: runs.append(len(measured)))
    monkeypatch.setattr(compressing, "_speedups", speedups)
    model = compressing._Trained.of(digits, None)
    torch.manual_seed(0)
    narrow = dataclasses.replace(model, module=Mlp((784, 160, 80, 48, 10)).eval())
    bench = for_bundle(digits, tmp_path, opset=20)

    def found(target: float) -> tuple[tuple[int, ...], int]:
        options = dataclasses.replace(QUICK, target_speedup=target)

        def smaller(sizes: tuple[int, ...]) -> Mlp:
            return prune(narrow.module, sizes, 0, narrow.shown, narrow.blueprint.normalization)

        return compressing._widest(narrow, bench, smaller, options, lambda _: None), len(runs)

    return found


@pytest.mark.slow
def test_the_widest_that_is_surely_fast_enough_is_found_in_few_runs(
    search: Callable[[float], tuple[tuple[int, ...], int]],
) -> None:
    hidden, runs = search(2.0)
    assert hidden == (64, 32, 16)
    assert runs == 2


@pytest.mark.slow
def test_a_speed_that_no_width_reaches_is_an_error_that_says_what_was_reached(
    search: Callable[[float], tuple[tuple[int, ...], int]],
) -> None:
    with pytest.raises(CheckFailed, match=r"8\.00 times was the most") as caught:
        search(9.0)
    assert caught.value.hint


@pytest.fixture
def half(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the original's width, without asking the clock: what is fast enough on a busy machine is another matter."""
    monkeypatch.setattr(compressing, "_widest", lambda *_: (256, 128, 64))


@pytest.mark.slow
@pytest.mark.usefixtures("half")
def test_a_smaller_bundle_is_published_and_says_what_it_was_made_of(digits: Bundle, tmp_path: Path) -> None:
    done = compress(digits, tmp_path / "small", QUICK)
    bundle = find(tmp_path / "small")
    assert bundle.manifest == done.bundle.manifest
    origin = origin_of(bundle)
    assert origin == done.origin
    assert origin.bundle == digits.name
    assert origin.weights_sha256 == digits.manifest.original.weights.sha256
    assert origin.architecture == "mlp-512-256-128"
    assert bundle.manifest.original.name == models.mlp_name(
        origin.units_left, crop=(28 - round(origin_side(origin))) // 2
    )
    assert [one.batch_size for one in origin.speedups] == [256]
    assert done.weights[1] < done.weights[0]
    ids = [variant.id for variant in bundle.variants]
    assert ids == ["fp32", "int8-qdq", "int8-pixel"]
    assert verify(bundle).ok
    named = [one.name for one in done.judgement.candidates]
    assert named == ["original-fp32", "original-int8-qdq", "original-int8-dynamic", *ids]
    assert origin.score is not None
    assert origin.score.samples == bundle.variant("fp32").score("top-1").samples
    assert origin.score.loss <= 0.05
    # It is a bundle like any other: its weights and record make the same fp32 file again.
    import exporters

    again = exporters.export_bundle(bundle, exporters.ExportOptions()).bundle
    assert again.variant("fp32").graph == bundle.variant("fp32").graph
    assert origin_of(again) == origin


def origin_side(origin: object) -> float:
    return float(np.sqrt(28 * 28 - origin.pixels_left_out))


@pytest.mark.slow
def test_one_that_loses_too_much_is_not_written(
    digits: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forgets(student: Mlp, *_: object, **__: object) -> Mlp:
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.zero_()
        return student.eval()

    monkeypatch.setattr(compressing, "distill", forgets)
    monkeypatch.setattr(compressing, "_widest", lambda *_: (32, 16, 16))
    with pytest.raises(GateFailed, match="points of top-1") as caught:
        compress(digits, tmp_path / "small", QUICK)
    assert "--target-speedup" in caught.value.hint
    assert not (tmp_path / "small").exists()


def test_what_cannot_be_compressed_is_refused(tiny: Bundle, digits: Bundle, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not made by kit train"):
        compress(tiny, tmp_path / "small", QUICK)
    strangers = tmp_path / "full"
    strangers.mkdir()
    (strangers / "mine.txt").write_text("x")
    with pytest.raises(UsageError, match="other files"):
        compress(digits, strangers, QUICK)
    with pytest.raises(UsageError, match="is the bundle that is to be compressed"):
        compress(digits, digits.folder, QUICK)
    with pytest.raises(UsageError, match="no bundle name"):
        compress(digits, tmp_path / "my small", QUICK)
    for wrong in ({"target_speedup": 1.0}, {"epochs": 0}, {"batch_sizes": ()}, {"max_loss": -1.0}):
        with pytest.raises(UsageError):
            CompressOptions(**wrong)


@pytest.mark.slow
@pytest.mark.usefixtures("half")
def test_the_command_compresses(
    kit_inside: Kit, digits: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = compressing.compress

    def quickly(bundle: Bundle, out: Path, options: CompressOptions, **named: object) -> compressing.CompressReport:
        return whole(bundle, out, dataclasses.replace(options, plan=QUICK.plan), **named)

    monkeypatch.setattr(compressing, "compress", quickly)
    found = kit_inside(
        *("compress", str(digits.folder), "--target-speedup", "1.01", "--batch-size", "64", "--epochs", "4"),
        *("--max-drop", "8", "--out", str(tmp_path / "small")),
    )
    assert found.returncode == 0, found.stderr
    assert "original-fp32" in found.stdout
    assert "border pixels left out" in found.stdout
    assert find(tmp_path / "small").variant("int8-pixel").precision is Precision.INT8
