"""Predicting: pictures or pixels in, labels and probabilities out."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import kit
from kit.accuracy import probabilities
from kit.bundle import Bundle
from kit.engine import MAX_BATCH, Engine
from kit.runtime.onnxruntime import OnnxRuntimeRunner


def test_pixels_in_labels_and_probabilities_out(digits: Bundle) -> None:
    golden = digits.golden()
    with kit.load(digits.folder) as engine:
        found = engine.predict(golden.pixels)
    assert found.labels.shape == (256,)
    assert found.probabilities.shape == (256, 10)
    assert np.allclose(found.probabilities.sum(axis=1), 1, atol=1e-5)
    assert (found.labels == golden.labels).mean() > 0.9
    assert found.provider is kit.Provider.CPU
    assert found.latency_us > 0
    assert found.names[0] == engine.spec.labels[found.labels[0]]


@pytest.mark.parametrize("variant", ["fp32", "int8-qdq", "int8-dynamic"])
def test_every_variant_agrees_with_pytorch_on_the_class(digits: Bundle, variant: str) -> None:
    golden = digits.golden()
    with kit.load(digits.folder, variant=variant) as engine:
        found = engine.predict(golden.pixels)
    assert (found.labels == golden.logits.argmax(axis=1)).mean() > 0.98


def test_a_picture_goes_through_the_pipeline_and_pixels_do_not(digits: Bundle, tmp_path: Path) -> None:
    pixels = digits.golden().pixels[3]
    large = Image.fromarray(255 - pixels).resize((300, 300), Image.Resampling.BICUBIC)
    large.save(tmp_path / "large.png")
    with kit.load(digits.folder) as engine:
        from_pixels = engine.predict(pixels)
        from_picture = engine.predict(tmp_path / "large.png")
    assert np.array_equal(from_pixels.pixels[0], pixels)
    assert from_picture.names == from_pixels.names
    assert from_picture.pixels.shape == (1, 28, 28)


def test_batches_of_nothing_and_of_very_many_are_answered(tiny: Bundle) -> None:
    with kit.load(tiny.folder) as engine:
        assert len(engine.predict(np.zeros((0, 4, 4), np.uint8))) == 0
        many = np.random.default_rng(0).integers(0, 256, (MAX_BATCH + 3, 4, 4), dtype=np.uint8)
        found = engine.predict(many)
        assert len(found) == MAX_BATCH + 3
        assert np.allclose(found.probabilities[-1], engine.predict(many[-1]).probabilities[0], atol=1e-6)


def test_temperature_and_abstention_come_from_the_spec(tiny: Bundle) -> None:
    spec = dataclasses.replace(tiny.spec, temperature=1000.0, abstain_below=0.9)
    changed = Bundle(tiny.folder, dataclasses.replace(tiny.manifest, spec=spec))
    variant = tiny.variant()
    with Engine(changed, variant, OnnxRuntimeRunner(tiny.read(variant.artifact))) as engine:
        found = engine.predict(tiny.golden().pixels)
    assert found.unsure.all()
    assert np.allclose(found.probabilities, 1 / 3, atol=0.01)


def test_softmax_is_stable() -> None:
    assert np.allclose(probabilities(np.array([[1e4, 0, -1e4]], np.float32), 1.0), [[1, 0, 0]])


def test_what_is_neither_picture_nor_pixels_is_refused(tiny: Bundle) -> None:
    with kit.load(tiny.folder) as engine, pytest.raises(kit.UsageError, match="list"):
        engine.predict([1, 2, 3])  # type: ignore[arg-type]


def test_a_closed_engine_says_so(tiny: Bundle) -> None:
    engine = kit.load(tiny.folder)
    engine.close()
    with pytest.raises(kit.UsageError, match="closed"):
        engine.predict(tiny.golden().pixels)


def test_unknown_names_are_errors_with_the_choices(tiny: Bundle) -> None:
    with pytest.raises(kit.BundleNotFound):
        kit.load("nothing-of-that-name")
    with pytest.raises(kit.UsageError) as caught:
        kit.load(tiny.folder, variant="int4")
    assert "fp32" in caught.value.hint
    with pytest.raises(kit.UsageError) as caught:
        kit.load(tiny.folder, provider="tpu")
    assert "cuda" in caught.value.hint
