"""Files for phones: of one size, in two formats, held to the golden samples; nothing is left where that fails."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from exporters.mobile import write_mobile
from kit.bundle import Bundle, open_folder
from kit.errors import UsageError
from kit.ready import open_ready

from .conftest import Kit
from .helpers.bundles import overwrite


def dims(path: Path) -> list[list[int]]:
    return [[dim.dim_value for dim in one.type.tensor_type.shape.dim] for one in onnx.load(path).graph.input]


@pytest.mark.parametrize(
    "variant", ["int8-qdq", *(pytest.param(one, marks=pytest.mark.slow) for one in ("fp32", "int8-dynamic"))]
)
def test_both_files_answer_as_the_bundle_promises(digits: Bundle, tmp_path: Path, variant: str) -> None:
    done = write_mobile(digits, tmp_path / "phone", variant=variant)
    assert done.sizes == {"batch": 1}
    assert dims(tmp_path / "phone" / "digits-mlp.onnx") == [[1, 28, 28]]
    group = digits.golden()[0]
    for name in ("digits-mlp.onnx", "digits-mlp.ort"):
        session = onnxruntime.InferenceSession(str(tmp_path / "phone" / name), providers=["CPUExecutionProvider"])
        found = np.concatenate(
            [session.run(None, {"pixels": one[np.newaxis]})[0] for one in group.inputs["pixels"][:40]]
        )
        assert (found.argmax(1) == group.expected["logits"][:40].argmax(1)).mean() >= 0.95
    assert "ai.onnx" in (tmp_path / "phone" / "digits-mlp.required_operators_and_types.config").read_text()


@pytest.mark.slow
def test_what_was_made_is_written_down(digits: Bundle, tmp_path: Path) -> None:
    write_mobile(digits, tmp_path / "phone")
    said = json.loads((tmp_path / "phone" / "mobile.json").read_text())
    assert said["variant"] == digits.manifest.default
    assert said["made_of_sha256"] == digits.variant().graph.sha256
    assert {one["provider"] for one in said["coverage"]} == {"CoreML (MLProgram)", "CoreML (NeuralNetwork)", "NNAPI"}
    assert set(said["sha256"]) == {one.name for one in (tmp_path / "phone").iterdir()} - {"mobile.json"}


@pytest.mark.slow
def test_other_axes_are_given_a_size_and_several_inputs_will_do(duo: Bundle, reviews: Path, tmp_path: Path) -> None:
    for bundle in (duo, open_folder(reviews)):
        done = write_mobile(bundle, tmp_path / "phone" / bundle.name)
        assert set(done.sizes) == set(bundle.signature.dynamic)
        assert all(0 not in shape for shape in dims(tmp_path / "phone" / bundle.name / f"{bundle.name}.onnx"))


@pytest.mark.slow
def test_a_ready_model_will_do(tiny: Bundle, tmp_path: Path) -> None:
    done = write_mobile(open_ready(tiny.path(tiny.variant().graph)), tmp_path / "phone")
    assert done.samples > 0


def test_a_folder_that_holds_something_is_left_alone(digits: Bundle, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="holds something already"):
        write_mobile(digits, tmp_path)
    assert [one.name for one in tmp_path.iterdir() if one.is_file()] == ["notes.txt"]


def test_a_broken_promise_leaves_nothing(digits: Bundle, kit_inside: Kit, tmp_path: Path) -> None:
    path = digits.folder / "manifest.json"
    said = json.loads(path.read_text())
    for variant in said["variants"]:
        for one in variant["fidelity"]:
            one["rms_error"] /= 1000
    overwrite(path, json.dumps(said).encode())
    place = tmp_path / "files" / "phone"
    done = kit_inside("export", str(digits.folder), "--variant", "int8-qdq", "--mobile", str(place))
    assert done.returncode == 1
    assert "does not answer" in done.stderr
    assert list(place.parent.iterdir()) == []


def test_what_would_change_nothing_is_refused(digits: Bundle, kit_inside: Kit, tmp_path: Path) -> None:
    done = kit_inside("export", str(digits.folder), "--precision", "int8", "--mobile", str(tmp_path / "phone"))
    assert done.returncode == 2
    assert "--precision changes nothing with --mobile" in done.stderr
