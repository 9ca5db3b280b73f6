"""Other formats of a model: made by strangers in processes of their own, and kept whole or not at all."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from kit.bundle import Bundle
from kit.choices import Provider
from kit.errors import BundleInvalid, PackageMissing, Unavailable
from kit.runtime import child, converted, registry, trial
from kit.runtime.base import RunnerOptions
from kit.runtime.converted import Converter
from kit.system import packages
from kit.verify import verify
from tests import graphs
from tests.conftest import Kit
from tests.helpers.blocked import BLOCK
from tests.helpers.converters import converter

GUESTS = ("mnn", "tract")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where converted models are kept."""
    monkeypatch.setattr(converted, "folder", lambda: tmp_path / "converted")
    return tmp_path / "converted"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What children were asked so far."""
    questions: list[Any] = []
    ask = child.ask

    def noted(module: str, question: Any, **more: Any) -> subprocess.CompletedProcess[bytes]:
        questions.append(question)
        return ask(module, question, **more)

    monkeypatch.setattr(child, "ask", noted)
    return questions


def make(tool: Converter, bundle: Bundle, **more: Any) -> Path:
    graph = bundle.variant().graph
    return converted.converted(tool, bundle.path(graph), (graph,), **more)


@pytest.fixture
def small(tmp_path: Path) -> Bundle:
    return graphs.bundle(graphs.pixels(), tmp_path / "small")


def test_a_converter_works_on_a_copy_and_only_what_it_made_stays(small: Bundle, folder: Path) -> None:
    path = small.path(small.variant().graph)
    before = path.read_bytes()
    made = make(converter("works"), small)
    assert made.read_bytes() == before[::-1]
    assert path.read_bytes() == before
    assert list(folder.iterdir()) == [made]


def test_weights_beside_the_graph_are_beside_the_copy(tmp_path: Path) -> None:
    path = graphs.save_beside(graphs.pixels(), tmp_path / "model.onnx")
    with registry.open_runner("mnn", *opened(path), RunnerOptions()) as runner:
        assert runner.signature.inputs[0].name == "pixels"


def opened(path: Path) -> tuple[Bundle, Any]:
    from kit import ready

    bundle = ready.find(path)
    return bundle, bundle.variant()


def test_what_was_made_is_found_again_until_the_model_or_the_tool_changes(
    tmp_path: Path, small: Bundle, asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = converter("works")
    assert make(tool, small) == make(tool, small)
    assert len(asked) == 1
    other = graphs.bundle(graphs.times(2), tmp_path / "other")
    assert make(tool, other) != make(tool, small)
    assert len(asked) == 2
    monkeypatch.setattr(packages, "version", lambda _: "another")
    make(tool, small)
    assert len(asked) == 3


@pytest.mark.parametrize(
    ("ending", "message"),
    [
        ("fails", "Tool does not convert .*: Error: no such operator: Fancy"),
        ("dies", "the converter of Tool crashes on .*: it was ended by SIGSEGV"),
        ("hangs", "Tool does not convert .* within 2 s"),
        ("greedy", "Tool does not convert .*MemoryError"),
        ("empty", "Tool does not convert .*: it does not say why"),
    ],
)
def test_a_converter_that_fails_leaves_nothing_and_one_message(
    small: Bundle, folder: Path, ending: str, message: str
) -> None:
    with pytest.raises(BundleInvalid, match=message) as caught:
        make(converter(ending), small, seconds=2 if ending == "hangs" else 60)
    assert "\n" not in str(caught.value)
    assert caught.value.hint
    assert list(folder.iterdir()) == []


def test_what_a_killed_process_left_is_swept(small: Bundle, folder: Path) -> None:
    dead = subprocess.run(["true"], check=True)  # a number that no process has any more is hard to know
    assert dead.returncode == 0
    left = folder / ".partial-00000000-1-left"
    left.mkdir(parents=True)
    (left / "model.onnx").write_bytes(b"half")
    os.utime(left, (0, 0))
    made = make(converter("works"), small)
    assert list(folder.iterdir()) == [made]


@pytest.mark.parametrize("runtime", GUESTS)
def test_golden_samples_agree(runtime: str, tiny: Bundle, duo: Bundle, digits: Bundle) -> None:
    for bundle in (tiny, duo, digits):
        result = verify(bundle, runtimes=(runtime,))
        assert result.variants
        for check in result.variants:
            assert check.ok, (bundle.name, check.variant, check.problem)


def test_mnn_converts_a_model_once(tiny: Bundle, asked: list[Any]) -> None:
    for _ in range(2):
        with registry.open_runner("mnn", tiny, tiny.variant(), RunnerOptions()) as runner:
            assert runner.runtime == "mnn"
    assert len(asked) == 1


@pytest.mark.parametrize("runtime", GUESTS)
def test_a_wrong_answer_is_a_row_that_says_so(runtime: str, tiny: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    from kit.runtime.sized import SizedRunner

    run = SizedRunner.run

    def shifted(self: SizedRunner, tensors: Any) -> dict[str, Any]:
        return {name: array[:, ::-1] for name, array in run(self, tensors).items()}

    monkeypatch.setattr(SizedRunner, "run", shifted)
    (check,) = verify(tiny, runtimes=(runtime,)).variants
    assert not check.ok
    assert check.problem


@pytest.mark.parametrize("runtime", GUESTS)
def test_batches_of_any_size_and_in_any_order(runtime: str, tiny: Bundle) -> None:
    (golden,) = tiny.golden()
    assert golden.expected is not None
    with registry.open_runner(runtime, tiny, tiny.variant(), RunnerOptions()) as runner:
        for rows in (1, 7, 2, 1, 256):
            found = runner.run(tiny.signature.take(golden.inputs, slice(rows)))["logits"]
            assert np.allclose(found, golden.expected["logits"][:rows], atol=1e-4)


@pytest.mark.parametrize("runtime", GUESTS)
def test_a_file_that_ends_the_process_ends_another_one(
    runtime: str, tmp_path: Path, small: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A module that ends the process when it is imported stands for one that does so over a file."""
    monkeypatch.delenv(trial.TRUST)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    site = tmp_path / "site"
    site.mkdir()
    (site / f"{registry._MODULES.get(runtime, runtime)}.py").write_text("import os; os.abort()")
    monkeypatch.setenv("PYTHONPATH", str(site))
    with pytest.raises(BundleInvalid, match=f"{runtime} crashes on .*SIGABRT"):
        registry.open_runner(runtime, small, small.variant(), RunnerOptions())


def test_mnn_refuses_numbers_of_more_than_32_bits(tmp_path: Path) -> None:
    model = graphs.make(
        [graphs.node("Add", "x x", "y")], [("x", "int64", ["batch"])], [("y", "int64", ["batch"])]
    )
    bundle = graphs.bundle(model, tmp_path / "twice")
    with registry.open_runner("mnn", bundle, bundle.variant(), RunnerOptions()) as runner:
        assert runner.run({"x": np.array([3, -4])})["y"].tolist() == [6, -8]
        with pytest.raises(BundleInvalid, match="integers of 32 bits"):
            runner.run({"x": np.array([3, 2**40])})


def test_tract_has_one_thread(tiny: Bundle) -> None:
    with pytest.raises(Unavailable, match="one thread"):
        registry.open_runner("tract", tiny, tiny.variant(), RunnerOptions(threads=2))


@pytest.mark.parametrize("runtime", GUESTS)
def test_they_run_on_the_cpu_only(runtime: str, tiny: Bundle) -> None:
    with pytest.raises(Unavailable, match="CPU only"):
        registry.open_runner(runtime, tiny, tiny.variant(), RunnerOptions(provider=Provider.CUDA))


@pytest.mark.parametrize("runtime", GUESTS)
def test_one_that_is_missing_is_named_when_asked_for_and_not_one_of_all(
    runtime: str, tiny: Bundle, python: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = registry._MODULES.get(runtime, runtime)
    line = ["bench", str(tiny.folder), "--runtime", runtime, "--axis", "batch=1"]
    done = python(BLOCK.format(blocked=(module,)) + f"from apps.cli import run; raise SystemExit(run({line!r}))")
    told = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == 3, told
    assert f"the runtime {runtime} needs {runtime}" in told
    assert "extra `runtimes`" in told
    find_spec = registry.find_spec
    monkeypatch.setattr(registry, "find_spec", lambda name: None if name == module else find_spec(name))
    assert runtime not in registry.chosen(("all",))
    assert registry.chosen((runtime,)) == (runtime,)
    with pytest.raises(PackageMissing):
        monkeypatch.setitem(__import__("sys").modules, module, None)
        registry.open_runner(runtime, tiny, tiny.variant(), RunnerOptions())


def test_an_operator_that_mnn_lacks_is_one_message(tmp_path: Path) -> None:
    model = graphs.make(
        [onnx.helper.make_node("StringNormalizer", ["x"], ["y"])], [("x", "str", [1])], [("y", "str", [1])]
    )
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    with pytest.raises(BundleInvalid, match="does not convert"):
        from kit.bundle.manifest import FileRef
        from kit.runtime.mnn import CONVERTER

        ref = FileRef(file=path.name, sha256="0" * 64, size_bytes=path.stat().st_size)
        converted.converted(CONVERTER, path, (ref,))
