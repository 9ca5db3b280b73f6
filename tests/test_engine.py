"""Predicting and running: what a task reads, arrays or named tensors in, answers out."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import kit
from kit import engine as engines
from kit.bundle import Bundle
from kit.bundle.manifest import TaskRef
from kit.choices import Provider
from kit.engine import Engine, open_engine
from kit.errors import UsageError
from kit.runtime.base import BaseRunner, Placement, run_in_batches
from kit.tasks.classification import probabilities
from kit.tensors import Axis, Signature, Tensors, TensorSpec
from tests import graphs


def _with_options(bundle: Bundle, **options: object) -> Bundle:
    task = bundle.manifest.task
    assert task is not None
    changed = dataclasses.replace(task, options={**task.options, **options})
    return dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, task=changed))


def test_pixels_in_labels_and_probabilities_out(digits: Bundle) -> None:
    (golden,) = digits.golden()
    assert golden.targets is not None
    with kit.load(digits.folder) as engine:
        found = engine.predict(golden.inputs["pixels"])
    assert isinstance(found, kit.Classes)
    assert found.labels.shape == (256,)
    assert found.probabilities.shape == (256, 10)
    assert np.allclose(found.probabilities.sum(axis=1), 1, atol=1e-5)
    assert (found.labels == golden.targets["labels"]).mean() > 0.9
    assert found.provider is kit.Provider.CPU
    assert found.latency_us > 0
    assert found.names[0] == engine.task.options()["labels"][found.labels[0]]


@pytest.mark.parametrize("variant", ["fp32", "int8-qdq", "int8-dynamic"])
def test_every_variant_agrees_with_the_original_on_the_class(digits: Bundle, variant: str) -> None:
    (golden,) = digits.golden()
    assert golden.expected is not None
    with kit.load(digits.folder, variant=variant) as engine:
        found = engine.predict(golden.inputs["pixels"])
    assert isinstance(found, kit.Classes)
    assert (found.labels == golden.expected["logits"].argmax(axis=1)).mean() > 0.98


def test_a_picture_goes_through_the_pipeline_and_pixels_do_not(digits: Bundle, tmp_path: Path) -> None:
    pixels = digits.golden()[0].inputs["pixels"][3]
    large = Image.fromarray(255 - pixels).resize((300, 300), Image.Resampling.BICUBIC)
    large.save(tmp_path / "large.png")
    with kit.load(digits.folder) as engine:
        from_pixels = engine.predict(pixels)
        from_picture = engine.predict(tmp_path / "large.png")
        both = engine.predict([tmp_path / "large.png", large])
    assert isinstance(from_pixels, kit.Classes)
    assert isinstance(from_picture, kit.Classes)
    assert isinstance(both, kit.Classes)
    assert np.array_equal(from_pixels.inputs["pixels"][0], pixels)
    assert from_picture.names == from_pixels.names
    assert from_picture.inputs["pixels"].shape == (1, 28, 28)
    assert both.names == from_picture.names * 2


def test_named_tensors_are_run_whatever_the_task(duo: Bundle) -> None:
    (golden, *_) = duo.golden()
    assert golden.expected is not None
    with kit.load(duo.folder) as engine:
        outputs = engine.run(golden.inputs)
        by_lists = engine.run({"ids": [[1, 2]], "numbers": [[0.5, 1, 2]]})
        predicted = engine.predict(dict(golden.inputs))
    assert list(outputs) == ["scores", "vectors"]
    for name, array in outputs.items():
        assert np.allclose(array, golden.expected[name], atol=1e-5)
        assert np.array_equal(array, predicted.outputs[name])
    assert by_lists["vectors"].shape == (1, 2, 6)


def test_a_task_that_is_not_installed_stops_predicting_alone(duo: Bundle) -> None:
    manifest = dataclasses.replace(duo.manifest, task=TaskRef(name="chemistry@3", package="kit-chemistry"))
    (golden, *_) = duo.golden()
    with open_engine(dataclasses.replace(duo, manifest=manifest)) as engine:
        assert engine.run(golden.inputs)["scores"].shape[1] == 4
        with pytest.raises(kit.PackageMissing, match="kit-chemistry"):
            engine.predict(dict(golden.inputs))


def test_one_array_is_no_answer_to_two_inputs(duo: Bundle) -> None:
    with kit.load(duo.folder) as engine, pytest.raises(kit.UsageError, match="2 inputs"):
        engine.predict(np.zeros((1, 3), np.float32))


def test_batches_of_nothing_and_of_very_many_are_answered(tiny: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "WHOLE_UP_TO_BYTES", 1024)
    with kit.load(tiny.folder) as engine:
        nothing = engine.predict(np.zeros((0, 4, 4), np.uint8))
        assert isinstance(nothing, kit.Classes)
        assert len(nothing) == 0
        assert nothing.probabilities.shape == (0, 3)
        many = np.random.default_rng(0).integers(0, 256, (5000, 4, 4), dtype=np.uint8)
        found = engine.predict(many)
        last = engine.predict(many[-1])
    assert isinstance(found, kit.Classes)
    assert isinstance(last, kit.Classes)
    assert len(found) == 5000
    assert np.allclose(found.probabilities[-1], last.probabilities[0], atol=1e-6)


def test_temperature_and_abstention_come_from_the_task(tiny: Bundle) -> None:
    with open_engine(_with_options(tiny, temperature=1000.0, abstain_below=0.9)) as engine:
        found = engine.predict(tiny.golden()[0].inputs["pixels"])
    assert isinstance(found, kit.Classes)
    assert found.unsure.all()
    assert np.allclose(found.probabilities, 1 / 3, atol=0.01)


def test_softmax_is_stable() -> None:
    assert np.allclose(probabilities(np.array([[1e4, 0, -1e4]], np.float32), 1.0), [[1, 0, 0]])


@pytest.mark.parametrize("items", [[1, 2, 3], 7, {"pixels": 1}])
def test_what_is_no_picture_is_refused(tiny: Bundle, items: object) -> None:
    with kit.load(tiny.folder) as engine, pytest.raises(kit.UsageError, match="cannot read a picture"):
        engine.predict(items)


@pytest.mark.parametrize(
    "array", [np.zeros((1, 4, 4), np.float32), np.zeros((1, 4, 5), np.uint8), np.zeros(4, np.uint8)]
)
def test_an_array_of_another_dtype_or_shape_is_refused(tiny: Bundle, array: np.ndarray) -> None:
    with kit.load(tiny.folder) as engine, pytest.raises(kit.UsageError, match="pixels must be uint8"):
        engine.predict(array)


def test_buffers_are_bound_by_the_names_of_the_axes(tiny: Bundle, duo: Bundle) -> None:
    with kit.load(tiny.folder) as engine:
        bound = engine.bind(batch=2)
        pixels = tiny.golden()[0].inputs["pixels"][:2]
        assert np.array_equal(bound.run(pixels), engine.run({"pixels": pixels})["logits"])
        with pytest.raises(kit.UsageError, match="no axis 'batch_size'"):
            engine.bind(batch_size=2)
        with pytest.raises(kit.UsageError, match="0 is less than 1"):
            engine.bind(batch=0)
    with kit.load(duo.folder) as engine:
        bound = engine.bind(batch=2, sequence=7)
        scores, vectors = bound.run(*bound.inputs.values())
    assert (scores.shape, vectors.shape) == ((2, 4), (2, 7, 6))


def test_a_shared_engine_answers_after_the_first_is_closed(tiny: Bundle) -> None:
    pixels = tiny.golden()[0].inputs["pixels"]
    engine = kit.load(tiny.folder)
    before = engine.run({"pixels": pixels})["logits"]
    with engine.share() as other:
        engine.close()
        assert np.array_equal(other.run({"pixels": pixels})["logits"], before)


def test_a_closed_engine_says_so(tiny: Bundle) -> None:
    engine: Engine = kit.load(tiny.folder)
    engine.close()
    with pytest.raises(kit.UsageError, match="closed"):
        engine.predict(tiny.golden()[0].inputs["pixels"])


def test_unknown_names_are_errors_with_the_choices(tiny: Bundle) -> None:
    with pytest.raises(kit.BundleNotFound):
        kit.load("nothing-of-that-name")
    with pytest.raises(kit.UsageError) as caught:
        kit.load(tiny.folder, variant="int4")
    assert "fp32" in caught.value.hint
    with pytest.raises(kit.UsageError) as caught:
        kit.load(tiny.folder, provider="tpu")
    assert "cuda" in caught.value.hint
    with pytest.raises(kit.UsageError) as caught:
        kit.load(tiny.folder, runtime="abacus")
    assert "openvino" in caught.value.hint


class Recording(BaseRunner):
    """Doubles its input, and keeps how many samples each call had."""

    runtime, provider, placement = "recording", Provider.CPU, Placement({"cpu": 1})

    def __init__(self, axis: Axis, *, varies: bool = False) -> None:
        self.signature = Signature(
            inputs=(TensorSpec(name="x", dtype="float32", shape=(2, "batch")),),
            outputs=(TensorSpec(name="y", dtype="float32", shape=("batch", "found"), varies=varies),),
            axes={"batch": axis},
        )
        self.varies = varies
        self.calls: list[int] = []

    def run(self, tensors: Tensors) -> dict[str, NDArray[Any]]:
        """Give as many columns as samples, if the size depends on the values."""
        self.calls.append(self.signature.check(tensors)["batch"])
        doubled = 2 * tensors["x"].T
        return {"y": np.repeat(doubled, self.calls[-1] if self.varies else 1, axis=1)}

    def close(self) -> None:
        """Hold nothing."""


@pytest.mark.parametrize(
    ("axis", "samples", "calls"),
    [
        (Axis(), 7, [3, 3, 1]),
        (Axis(least=4), 7, [4, 4]),
        (Axis(multiple_of=4), 8, [4, 4]),
        (Axis(multiple_of=4), 9, [4, 4, 4]),
        (Axis(least=6, multiple_of=4), 8, [8]),
        (Axis(most=2), 5, [2, 2, 1]),
        (Axis(least=2, most=2), 5, [2, 2, 2]),
    ],
)
def test_pieces_are_of_sizes_that_the_batch_axis_allows(axis: Axis, samples: int, calls: list[int]) -> None:
    runner = Recording(axis)
    x = np.arange(2 * samples, dtype=np.float32).reshape(2, samples)
    found = run_in_batches(runner, {"x": x}, most_bytes=3 * 12)  # three samples
    assert np.array_equal(found["y"], 2 * x.T)
    assert runner.calls == calls


def test_answers_whose_size_depends_on_the_values_are_of_one_call() -> None:
    runner = Recording(Axis(), varies=True)
    x = np.ones((2, 5), np.float32)
    assert run_in_batches(runner, {"x": x}, most_bytes=24)["y"].shape == (5, 10)
    assert runner.calls == [5]


def test_large_inputs_of_a_size_that_the_batch_lacks_are_refused_as_small_ones_are(tmp_path: Path) -> None:
    bundle = graphs.bundle(graphs.two_by_two(), tmp_path / "two")
    signature = dataclasses.replace(bundle.signature, axes={"batch": Axis(most=8)})
    bundle = dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, signature=signature))
    with open_engine(bundle) as engine:
        for rows in (9, 200_000):
            x = np.zeros((rows, 3), np.float32)
            with pytest.raises(UsageError, match="more than 8"):
                engine.run({"a": x, "b": x})
