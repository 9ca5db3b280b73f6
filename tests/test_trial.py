"""A file that was not made here is first opened in a process of its own, which it may end or hang."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from kit import bundle as bundles
from kit import ready
from kit.errors import BundleInvalid, MemoryShort
from kit.runtime import registry, trial
from kit.runtime.base import RunnerOptions
from tests import graphs
from tests.conftest import ROOT, Kit
from tests.helpers.bundles import overwrite


@pytest.fixture(autouse=True)
def _stranger(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(trial.TRUST, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def endless(path: Path) -> Path:
    """A Loop that never stops: its condition stays true."""
    body = helper.make_graph(
        [graphs.node("Identity", "condition", "again"), graphs.node("Identity", "carried", "kept")],
        "body",
        [
            helper.make_tensor_value_info("count", onnx.TensorProto.INT64, []),
            helper.make_tensor_value_info("condition", onnx.TensorProto.BOOL, []),
            helper.make_tensor_value_info("carried", onnx.TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("again", onnx.TensorProto.BOOL, []),
            helper.make_tensor_value_info("kept", onnx.TensorProto.FLOAT, None),
        ],
    )
    loop = helper.make_node("Loop", ["", "true", "x"], ["y"], body=body)
    model = graphs.make(
        [loop], [("x", "float32", ("batch", 3))], [("y", "float32", ("batch", 3))], {"true": np.array(True)}
    )
    onnx.save(model, path)
    return path


def greedy(path: Path) -> Path:
    """64 GB of ones, made when it runs."""
    model = graphs.make(
        [
            graphs.node("ConstantOfShape", "size", "many"),
            graphs.node("ReduceSum", "many", "sum"),
            graphs.node("Add", "x sum", "y"),
        ],
        [("x", "float32", ("batch", 3)), ("size", "int64", (1,))],
        [("y", "float32", ("batch", 3))],
    )
    del model.graph.input[1]
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([2**34]), "size"))
    onnx.save(model, path)
    return path


def test_a_file_that_never_answers_is_refused_in_the_time_it_gets(tmp_path: Path) -> None:
    path = endless(tmp_path / "endless.onnx")
    with pytest.raises(BundleInvalid, match="does not answer within"):
        trial.survives(path, "onnxruntime", signature=None, size_bytes=0, seconds=3)


def test_a_file_that_wants_more_memory_than_there_is_ends_neither_this_process_nor_the_machine(tmp_path: Path) -> None:
    with pytest.raises((MemoryShort, BundleInvalid), match=r"memory|crashes"):
        ready.find(greedy(tmp_path / "greedy.onnx"))


def test_a_runtime_that_is_ended_by_a_signal_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module called openvino that ends the process stands for one that does so over a file."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "openvino.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    bundle = graphs.bundle(graphs.pixels(), tmp_path / "bundle")
    with pytest.raises(BundleInvalid, match=f"crashes on .*{signal.Signals.SIGSEGV.name}"):
        registry.open_runner("openvino", bundle, bundle.variant(), RunnerOptions())


@pytest.mark.parametrize("runtime", trial.TRIED)
def test_what_survived_is_remembered_and_answers(tmp_path: Path, runtime: str) -> None:
    bundle = graphs.bundle(graphs.pixels(), tmp_path / "bundle")
    (golden,) = bundle.golden()
    assert golden.expected is not None
    for _ in range(2):
        with registry.open_runner(runtime, bundle, bundle.variant(), RunnerOptions()) as runner:
            assert np.allclose(runner.run(golden.inputs)["logits"], golden.expected["logits"], atol=1e-4)
    assert len(list((tmp_path / "cache" / "kit" / "tried").iterdir())) == 1


def test_a_file_that_is_not_what_its_manifest_says_vouches_for_none_that_is(tmp_path: Path) -> None:
    bundle = graphs.bundle(graphs.pixels(), tmp_path / "bundle")
    path = bundle.path(bundle.variant().graph)
    overwrite(path, path.read_bytes()[:-1] + b"!")
    with pytest.raises(BundleInvalid, match="altered"):
        registry.open_runner("onnxruntime", bundle, bundle.variant(), RunnerOptions())
    assert not (tmp_path / "cache" / "kit" / "tried").exists()


def test_a_model_that_refuses_inputs_made_up_for_it_is_opened_all_the_same(tmp_path: Path) -> None:
    model = graphs.make(
        [graphs.node("Reshape", "x shape", "y")],
        [("x", "float32", ("batch", 3))],
        [("y", "float32", (7, 3))],
        {"shape": np.array([7, 3])},
    )
    path = tmp_path / "seven.onnx"
    onnx.save(model, path)
    assert trial.survives(path, "onnxruntime", signature=None, size_bytes=0)


def test_the_bundle_that_comes_with_kit_is_not_tried_wherever_it_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "PACKAGED", ROOT / "artifacts")  # where a clone has what a wheel carries inside
    shutil.copytree(ROOT / "artifacts" / "mnist-mlp", tmp_path / "copy")
    bundle = bundles.find(tmp_path / "copy")
    with registry.open_runner("onnxruntime", bundle, bundle.variant(), RunnerOptions()):
        pass
    assert not (tmp_path / "cache" / "kit" / "tried").exists()


def test_the_command_line_refuses_it_with_one_message(tmp_path: Path, kit: Kit) -> None:
    done = kit("info", str(greedy(tmp_path / "greedy.onnx")), KIT_TRUST_FILES="", XDG_CACHE_HOME=str(tmp_path / "c"))
    assert done.returncode in {3, 4}, done.stderr
    assert "Traceback" not in done.stderr
    assert os.environ.get(trial.TRUST) is None
