"""NNCF's int8 as one more candidate, where it is installed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from exporters import AutoOptions
from exporters.candidates import VariantRecipe
from exporters.formats import nncf
from exporters.formats.nncf import NncfInt8
from kit.errors import UsageError
from tests.helpers.originals import convolution, dense, noise, rms, run, source_of


@pytest.fixture(autouse=True)
def _installed() -> None:
    pytest.importorskip("nncf")


@pytest.mark.parametrize("kind", ["dense", "convolution"])
def test_it_makes_portable_qdq_that_is_close_and_says_nothing(
    kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model, signature = dense((16, 32, 16, 3)) if kind == "dense" else convolution()
    source = source_of(tmp_path, model, signature)
    made = VariantRecipe(id="int8-nncf", format=NncfInt8()).make(source)
    record = made.quantization
    assert record is not None
    assert record.layers_quantized == record.layers_total
    assert record.calibration is not None
    assert record.calibration.samples == 200
    loaded = onnx.load(made.files.path)
    assert {node.domain for node in loaded.graph.node} <= {"", "ai.onnx"}
    others = noise(signature, 50, seed=9)
    exact = run(model, others)
    assert rms(exact, run(made.files.path, others)) < 0.1 * float(np.sqrt(np.mean(exact**2)))
    assert capfd.readouterr().out == ""


def test_layers_can_stay_in_float(tmp_path: Path) -> None:
    model, signature = dense((16, 32, 16, 3))
    source = source_of(tmp_path, model, signature)
    made = VariantRecipe(id="int8-nncf", format=NncfInt8()).make(source, ("layers.3",))
    assert made.quantization is not None
    assert made.quantization.layers_excluded == ("layers.3",)
    assert made.quantization.layers_quantized == made.quantization.layers_total - 1


def test_auto_has_it_last_and_only_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = dense((16, 32, 3))
    assert AutoOptions().recipes(model)[-1].id == "int8-nncf"
    monkeypatch.setattr(nncf, "is_here", lambda: False)
    assert "int8-nncf" not in {one.id for one in AutoOptions().recipes(model)}
    assert NncfInt8().refusal(model) == "nncf is not installed"


def test_without_data_it_says_what_is_needed(tmp_path: Path) -> None:
    model, signature = dense((16, 32, 3))
    source = source_of(tmp_path, model, signature, train=())
    with pytest.raises(UsageError, match="needs data"):
        VariantRecipe(id="int8-nncf", format=NncfInt8()).make(source)
