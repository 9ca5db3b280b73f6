"""What objects show of themselves in a notebook, and the next thing to type when something is missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import kit as library
from kit import ready
from kit.bundle import Bundle, unpack
from kit.errors import BundleNotFound, PictureInvalid
from kit.metrics import Better, Score
from kit.system import html
from tests.conftest import Kit
from tests.helpers.blocked import BLOCK
from tests.helpers.onnx_files import scores


def test_a_bundle_an_engine_and_a_prediction_say_what_they_are(digits: Bundle) -> None:
    assert repr(digits) == (
        "<Bundle digits-mlp: pixels uint8 [batch, 28, 28] -> logits float32 [batch, 10]; fp32, int8-qdq, int8-dynamic; "
        f"{digits.folder}>"
    )
    with library.load(digits.folder, variant="int8-qdq") as engine:
        assert repr(engine).startswith("<Engine digits-mlp: int8-qdq in onnxruntime on cpu ")
        pixels = digits.golden()[0].inputs["pixels"]
        one, many = engine.predict(pixels[:1]), engine.predict(pixels)
    name, share = next(iter(one))
    assert repr(one).startswith(f"<Classes: {name} {100 * share:.1f} %")
    assert "int8-qdq in onnxruntime on cpu" in repr(one)
    assert f", ... ({len(pixels)} in all);" in repr(many)
    assert len(repr(many)) < 200
    for shown, words in (
        (digits, ("Bundle digits-mlp", "uint8 [batch, 28, 28]", "image-classification@1", "int8-dynamic")),
        (engine, ("Engine of digits-mlp", "int8-qdq", "float32 [batch, 10]")),
        (many, (f"the first 20 of {len(pixels)}", f"{100 * share:.1f} %")),
    ):
        page = shown._repr_html_()
        assert all(word in page for word in words)
        assert page.count("<tr>") == page.count("</tr>") <= 21


def test_tensors_numbers_and_vectors_show_their_shapes(duo: Bundle, scores_of_rows: Path, tmp_path: Path) -> None:
    with library.load(duo.folder) as engine:
        found = engine.predict(dict(duo.golden()[0].inputs))
    assert "vectors float32 [" in repr(found)
    with library.load(scores_of_rows) as engine:
        assert repr(engine.predict({"age": 30, "smoker": "yes"})).startswith("<Estimates: score ")
    scores(tmp_path / "scores.onnx")
    assert repr(ready.find(tmp_path / "scores.onnx")).startswith("<ReadyModel scores: ids int64 [batch, sequence]")


@pytest.fixture
def scores_of_rows(scores: Path) -> Path:
    return scores


def test_words_in_a_page_are_text() -> None:
    assert "<b>" not in html.table("<b>", [("<b>", "<b>&")])


def test_a_change_is_worse_or_better_whatever_the_sign_of_the_metric() -> None:
    def score(value: float, baseline: float, better: Better, unit: str) -> Score:
        return Score(
            metric="m", dataset="d", split="test", samples=10, value=value, baseline=baseline, better=better, unit=unit
        )

    assert score(0.9845, 0.9846, Better.HIGHER, "%").change() == "0.01 points worse"
    assert score(0.9846, 0.9845, Better.HIGHER, "%").change() == "0.01 points better"
    assert score(1.5, 1.2, Better.LOWER, "mm").change() == "0.3 mm worse"
    assert score(1.2, 1.2, Better.LOWER, "mm").change() == "the same"


def test_files_that_are_not_there_have_a_hint(kit_inside: Kit, digits: Bundle, tmp_path: Path) -> None:
    with pytest.raises(BundleNotFound) as missing:
        unpack(tmp_path / "nope.kit")
    assert "kit pack BUNDLE" in missing.value.hint
    found = kit_inside("unpack", "nope.kit")
    assert found.returncode == 4
    assert "→" in found.stderr
    with library.load(digits.folder) as engine, pytest.raises(PictureInvalid) as nothing:
        engine.predict("nofile.png")
    assert "it was looked for in" in nothing.value.hint
    assert "→" in kit_inside("predict", str(digits.folder), "nofile.png").stderr


@pytest.mark.slow
def test_train_without_torch_names_the_extra(python: Kit) -> None:
    line = ["train", "--dataset", "digits"]
    found = python(BLOCK.format(blocked=("torch",)) + f"from apps.cli import run; raise SystemExit(run({line!r}))")
    assert found.returncode == 3, found.stderr
    assert "torch, which is not installed" in found.stderr
    assert "extra `train`" in found.stderr


@pytest.mark.usefixtures("no_cuda")
def test_verify_says_a_thing_once_and_its_verdict_where_the_figures_are(kit_inside: Kit, digits: Bundle) -> None:
    found = kit_inside("verify", str(digits.folder), "--provider", "cuda")
    assert found.returncode == 3
    assert found.stdout.count("CUDA cannot run here") == 1
    assert "was not checked" in found.stdout
    fine = kit_inside("verify", str(digits.folder))
    assert "everything its manifest promises holds" in fine.stdout
    assert fine.stderr.strip() == ""
    assert "everything its manifest promises holds" in kit_inside("verify", str(digits.folder), "--json").stderr


def test_verify_explains_its_count_beside_the_published_one(kit_inside: Kit, digits: Bundle) -> None:
    found = kit_inside("verify", str(digits.folder)).stdout
    samples = sum(len(group.inputs["pixels"]) for group in digits.golden())
    right = sum(
        int((np.argmax((group.expected or {})["logits"], axis=1) == (group.targets or {})["labels"]).sum())
        for group in digits.golden()
    )
    published = digits.variant("fp32").score("top-1")
    assert published is not None
    assert f"top-1 of fp32 here: {right:,} of {samples:,} golden samples right" in found
    assert f"counted on digits test, {published.samples:,} samples: {100 * published.value:.2f} %" in found
