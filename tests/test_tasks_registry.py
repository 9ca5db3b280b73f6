"""Tasks are found by name, also those of other packages, and a model without one has plain tensors."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest

import kit
from kit.bundle import Bundle, create
from kit.bundle.manifest import TaskRef
from kit.errors import BadInput, BundleInvalid, DatasetInvalid, PackageMissing
from kit.tasks import registry
from kit.tasks.base import Prediction
from kit.tasks.tensors import PlainTensors
from kit.tensors import Axis, Signature, Tensors, TensorSpec
from tests.helpers import plugs


class Doubling(PlainTensors):
    """Numbers by name: half of what the model takes."""

    name = "doubling@2"

    def __init__(self, *, factor: int = 2) -> None:
        super().__init__()
        self.factor = factor

    @classmethod
    def open(cls, name: str, options: Mapping[str, Any], files: Mapping[str, Path], signature: Signature) -> Self:  # noqa: ARG003
        if name != cls.name:
            raise BundleInvalid(f"this is {cls.name}, not {name}")
        return cls(**options)

    def options(self) -> dict[str, Any]:
        return {"factor": self.factor}

    def encode(self, items: Sequence[Any]) -> Tensors:
        return {"numbers": np.array(items, np.float32) * self.factor}

    def decode(self, outputs: Tensors, inputs: Tensors) -> Prediction:
        return Prediction(outputs=outputs, inputs=inputs)


SIGNATURE = Signature(
    inputs=(TensorSpec(name="numbers", dtype="float32", shape=("batch", 3)),),
    outputs=(TensorSpec(name="sums", dtype="float32", shape=("batch",)),),
    axes={"batch": Axis(typical=(1,))},
)


@pytest.fixture
def doubling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that registers a task: a folder on the path with its metadata."""
    plugs.install(
        tmp_path / "site", monkeypatch, group=registry.GROUP, name="doubling", target=f"{__name__}:{Doubling.__name__}"
    )


@pytest.mark.usefixtures("doubling")
def test_a_task_of_another_package_is_found_opened_and_named_in_the_bundle(tmp_path: Path) -> None:
    assert registry.names()[-1] == "doubling"
    assert registry.find("doubling@2") is Doubling
    golden = kit.Samples(inputs={"numbers": np.ones((1, 3), np.float32)}, expected={"sums": np.ones(1, np.float32)})
    bundle = create(
        tmp_path / "made",
        name="made",
        signature=SIGNATURE,
        golden=[golden],
        tools={},
        task=Doubling(factor=3),
    )
    task = registry.task_of(bundle)
    assert isinstance(task, Doubling)
    assert task.encode([[1, 2, 3]])["numbers"].tolist() == [[3, 6, 9]]
    assert bundle.manifest.task == TaskRef(name="doubling@2", options={"factor": 3}, package="plug-doubling")


@pytest.mark.usefixtures("doubling")
def test_a_plug_judges_its_own_versions_and_options() -> None:
    with pytest.raises(BundleInvalid, match=r"doubling@2, not doubling@3"):
        registry.open_task(TaskRef(name="doubling@3"), {}, SIGNATURE)
    with pytest.raises(BundleInvalid, match="does not take these options"):
        registry.open_task(TaskRef(name="doubling@2", options={"speed": 1}), {}, SIGNATURE)


def test_a_task_that_is_not_installed_is_named_with_its_package() -> None:
    with pytest.raises(PackageMissing, match="'chemistry@1'") as caught:
        registry.open_task(TaskRef(name="chemistry@1"), {}, SIGNATURE)
    assert "image-classification" in caught.value.hint
    with pytest.raises(PackageMissing, match="kit-chemistry") as caught:
        registry.open_task(TaskRef(name="chemistry@1", package="kit-chemistry"), {}, SIGNATURE)
    assert caught.value.hint.startswith("pip install kit-chemistry")


def test_a_plug_that_does_not_load_is_named_with_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugs.install(tmp_path / "site", monkeypatch, group=registry.GROUP, name="broken", target="no_such_module:Task")
    with pytest.raises(PackageMissing, match="plug-broken does not load"):
        registry.find("broken@1")


def test_a_model_without_a_task_has_plain_tensors(duo: Bundle) -> None:
    bundle = dataclasses.replace(duo, manifest=dataclasses.replace(duo.manifest, task=None))
    task = registry.task_of(bundle)
    assert isinstance(task, PlainTensors)
    assert task.options() == {}


@pytest.fixture
def plain() -> PlainTensors:
    task = PlainTensors()
    task.check(SIGNATURE)
    return task


@pytest.mark.parametrize("kind", ["npz", "json"])
def test_named_arrays_are_read_from_files(plain: PlainTensors, tmp_path: Path, kind: str) -> None:
    numbers = np.arange(6, dtype=np.float32).reshape(2, 3)
    path = tmp_path / f"tensors.{kind}"
    if kind == "npz":
        np.savez(path, numbers=numbers)
    else:
        path.write_text(json.dumps({"numbers": numbers.tolist()}))
    ((name, item),) = plain.read(str(path))
    assert name == str(path)
    encoded = plain.encode([item])["numbers"]
    assert np.array_equal(encoded, numbers)
    assert encoded.dtype == np.float32
    assert np.array_equal(plain.encode([item, item])["numbers"], np.concatenate([numbers, numbers]))


def test_a_data_set_of_arrays_tells_inputs_from_targets(plain: PlainTensors, tmp_path: Path) -> None:
    np.savez(
        tmp_path / "a.npz", **{"numbers": np.ones((2, 3), np.float32), "target.sums": np.zeros(2), "y": np.ones(2)}
    )
    (samples,) = plain.samples(tmp_path / "a.npz", SIGNATURE)
    assert list(samples.inputs) == ["numbers"]
    assert samples.targets is not None
    assert sorted(samples.targets) == ["sums", "y"]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"[1, 2]", b"{", b'{"numbers": [[1], [1, 2]]}'])
@pytest.mark.parametrize("kind", ["npz", "json"])
def test_a_file_without_named_arrays_is_refused(plain: PlainTensors, tmp_path: Path, kind: str, content: bytes) -> None:
    path = tmp_path / f"tensors.{kind}"
    path.write_bytes(content)
    with pytest.raises(BadInput):
        list(plain.read(str(path)))
    with pytest.raises(DatasetInvalid):
        plain.samples(path, SIGNATURE)


def test_a_missing_file_is_refused(plain: PlainTensors) -> None:
    with pytest.raises(BadInput, match=r"no file 'missing\.npz'"):
        list(plain.read("missing.npz"))


def test_an_array_without_a_name_says_how_to_save_it(plain: PlainTensors, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones(3))
    with pytest.raises(BadInput) as caught:
        list(plain.read(str(tmp_path / "a.npy")))
    assert "numpy.savez" in caught.value.hint


class Clumsy(PlainTensors):
    """A task whose code fails when it sees a model."""

    name = "clumsy@1"

    def check(self, signature: Signature) -> None:
        raise RuntimeError(f"out of luck with {len(signature.inputs)}")


def test_a_plug_whose_code_fails_is_named_with_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugs.install(
        tmp_path / "site", monkeypatch, group=registry.GROUP, name="clumsy", target=f"{__name__}:{Clumsy.__name__}"
    )
    with pytest.raises(BundleInvalid, match=r"clumsy@1 of the package plug-clumsy does not open: RuntimeError: out of"):
        registry.open_task(TaskRef(name="clumsy@1", package="plug-clumsy"), {}, SIGNATURE)
