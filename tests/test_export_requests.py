"""What `kit export` refuses, replaces and says, for sources that people name and bundles that are there."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import onnx
import pytest

from exporters import request, workbench
from kit import bundle as bundles
from kit.bundle import Bundle
from kit.errors import StorageUnavailable, UsageError
from tests.conftest import Kit
from tests.helpers.bundles import edit_manifest
from tests.helpers.originals import dense

DYNAMIC = ("--precision", "int8", "--quantization", "dynamic")
CHEMISTRY = {"name": "chemistry@1", "options": {}, "files": {}, "package": "kit-chemistry"}


def saved(model: onnx.ModelProto, folder: Path, name: str = "model.onnx") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model, folder / name)
    return folder / name


def test_a_bundle_whose_task_nobody_knows_is_exported_as_plain_tensors_and_keeps_its_task(
    kit_inside: Kit, duo: Bundle
) -> None:
    edit_manifest(duo, task=CHEMISTRY)
    found = kit_inside("export", str(duo.folder), *DYNAMIC)
    assert found.returncode == 0, found.stderr
    assert "No installed package knows the task chemistry@1 (install kit-chemistry)" in found.stderr
    manifest = bundles.open_folder(duo.folder).manifest
    assert [one.id for one in manifest.variants] == ["fp32", "int8-dynamic"]
    assert manifest.task is not None
    assert (manifest.task.name, manifest.task.package) == ("chemistry@1", "kit-chemistry")
    assert "chemistry@1" in kit_inside("blame", str(duo.folder), "--quantization", "dynamic", "--json").stderr


def test_a_data_file_is_read_as_tensors_if_nobody_knows_the_task(kit_inside: Kit, duo: Bundle, tmp_path: Path) -> None:
    edit_manifest(duo, task=CHEMISTRY)
    np.savez(tmp_path / "data.npz", **duo.golden()[0].inputs)
    found = kit_inside("export", str(duo.folder), *DYNAMIC, "--data", "data.npz")
    assert found.returncode == 0, found.stderr


def test_the_table_names_the_split_that_decided(kit_inside: Kit, duo: Bundle, tmp_path: Path) -> None:
    found = kit_inside("export", str(duo.folder), *DYNAMIC)
    assert "r2 golden" in found.stdout
    assert "r2 (higher is better): golden samples, " in found.stdout
    inputs = duo.golden()[0].inputs
    np.savez(tmp_path / "data.npz", **{name: np.concatenate([array] * 20) for name, array in inputs.items()})
    found = kit_inside("export", str(duo.folder), *DYNAMIC, "--data", "data.npz")
    assert "r2 val" in found.stdout
    assert "r2 (higher is better): data.npz validation, " in found.stdout


def test_golden_samples_that_are_data_too_decide_nothing_beside_held_out_ones(kit_inside: Kit, tmp_path: Path) -> None:
    saved(dense((16, 8, 3))[0], tmp_path)
    np.savez(tmp_path / "data.npz", x=np.random.default_rng(0).standard_normal((300, 16)).astype(np.float32))
    found = kit_inside("export", "model.onnx", *DYNAMIC, "--data", "data.npz")
    assert "r2 (higher is better): data.npz validation, " in found.stdout, found.stderr
    assert "golden samples, " not in found.stdout


def test_another_operator_set_is_refused_for_a_bundle_of_its_own_graph(
    kit_inside: Kit, duo: Bundle, tmp_path: Path
) -> None:
    found = kit_inside("export", str(duo.folder), *DYNAMIC, "--opset", "22")
    assert found.returncode == 2
    assert "--opset changes nothing for duo, whose graph has 20" in found.stderr
    assert kit_inside("export", str(duo.folder), *DYNAMIC, "--opset", "20").returncode == 0
    with pytest.raises(UsageError, match="whose operator set is 20, and not 22"):
        workbench.for_bundle(duo, tmp_path, opset=22)


def test_the_bundle_of_another_model_is_not_replaced_unless_somebody_names_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every exporter calls its file model.onnx."""
    monkeypatch.chdir(tmp_path)
    one = saved(dense((4, 3), seed=0)[0], tmp_path / "one")
    other = saved(dense((4, 3), seed=1)[0], tmp_path / "other")
    first = request.export_source(str(one)).bundle
    assert request.export_source(str(one)).bundle.manifest.original == first.manifest.original
    with pytest.raises(UsageError, match=r"artifacts/model is a bundle of the onnx model\.onnx, of another") as caught:
        request.export_source(str(other))
    assert "--name" in caught.value.hint
    assert "--out artifacts/model" in caught.value.hint
    assert bundles.find("model").manifest.original == first.manifest.original
    assert request.export_source(str(other), name="second").bundle.name == "second"
    replaced = request.export_source(str(other), out=Path("artifacts/model")).bundle
    assert replaced.manifest.original != first.manifest.original


def test_only_errors_of_writing_are_said_to_be_some(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), workbench.staging_beside(tmp_path / "out"):
        (tmp_path / "elsewhere" / "missing").read_bytes()
    with (
        pytest.raises(StorageUnavailable, match="cannot write beside"),
        workbench.staging_beside(tmp_path / "out") as one,
    ):
        (one / "missing" / "file").write_bytes(b"")
    with pytest.raises(StorageUnavailable, match="No space"), workbench.staging_beside(tmp_path / "out"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_int8_that_is_scored_on_what_it_was_calibrated_with_says_so(kit_inside: Kit, tmp_path: Path) -> None:
    model = saved(dense((4, 8, 3))[0], tmp_path)
    rows = np.random.default_rng(0).standard_normal((40, 4)).astype(np.float32)
    for count, is_said in ((2, True), (40, False)):
        np.savez(tmp_path / "data.npz", x=rows[:count])
        about = ("--precision", "int8", "--data", "data.npz", "--out", f"few-{count}", "--max-loss", "1")
        found = kit_inside("export", str(model), *about)
        assert found.returncode == 0, found.stderr
        assert ("is what its ranges were made of" in found.stderr) is is_said
