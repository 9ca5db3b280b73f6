"""Other formats of a model: made by strangers in processes of their own, kept whole or not at all; and MNN, which needs one."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from kit import ready
from kit.bundle import Bundle
from kit.bundle.manifest import FileRef
from kit.choices import Provider
from kit.errors import BundleInvalid, PackageMissing, Unavailable
from kit.runtime import child, converted, registry, trial
from kit.runtime.base import RunnerOptions
from kit.runtime.converted import Converter
from kit.runtime.mnn import CONVERTER, MnnRunner
from kit.system import packages
from kit.verify import verify
from tests import graphs
from tests.conftest import Kit
from tests.helpers.blocked import BLOCK
from tests.helpers.converters import converter

WITHOUT_MNN = BLOCK.format(blocked=("MNN",))


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


@pytest.fixture
def small(tmp_path: Path) -> Bundle:
    return graphs.bundle(graphs.pixels(), tmp_path / "small")


def make(tool: Converter, bundle: Bundle, **more: Any) -> Path:
    graph = bundle.variant().graph
    return converted.converted(tool, bundle.path(graph), (graph,), **more)


def opened(bundle: Bundle, **options: Any) -> Any:
    return registry.open_runner("mnn", bundle, bundle.variant(), RunnerOptions(**options))


def test_a_converter_works_on_a_copy_and_only_what_it_made_stays(small: Bundle, folder: Path) -> None:
    path = small.path(small.variant().graph)
    before = path.read_bytes()
    made = make(converter("works"), small)
    assert made.read_bytes() == before[::-1]
    assert path.read_bytes() == before
    assert list(folder.iterdir()) == [made]


def test_what_was_made_is_found_again_until_the_model_or_the_tool_changes(
    tmp_path: Path, small: Bundle, asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = converter("works")
    first = make(tool, small)
    assert make(tool, small) == first
    assert len(asked) == 1
    other = graphs.bundle(graphs.times(2), tmp_path / "other")
    assert make(tool, other) != first
    assert len(asked) == 2
    monkeypatch.setattr(packages, "version", lambda _: "another")
    assert make(tool, small) != first
    assert len(asked) == 3


@pytest.mark.parametrize(
    ("ending", "message"),
    [
        ("fails", "Tool does not convert .*: Error: no such operator: Fancy"),
        ("dies", "the converter of Tool crashes on .*: it was ended by SIGSEGV"),
        ("hangs", "Tool does not convert .* within 2 s"),
        ("greedy", "Tool does not convert .*: MemoryError"),
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
    left = folder / ".partial-00000000-1-left"
    left.mkdir(parents=True)
    (left / "model.onnx").write_bytes(b"half")
    os.utime(left, (0, 0))
    made = make(converter("works"), small)
    assert list(folder.iterdir()) == [made]


def test_weights_beside_the_graph_are_beside_the_copy(tmp_path: Path) -> None:
    model = ready.find(graphs.save_beside(graphs.pixels(), tmp_path / "model.onnx"))
    (golden,) = model.golden()
    assert golden.expected is not None
    with opened(model) as runner:
        assert np.allclose(runner.run(golden.inputs)["logits"], golden.expected["logits"], atol=1e-4)


def test_golden_samples_agree_in_mnn(tiny: Bundle, duo: Bundle, digits: Bundle) -> None:
    for bundle in (tiny, duo, digits):
        checks = verify(bundle, runtimes=("mnn",)).variants
        assert [check.variant for check in checks] == ["fp32"]
        assert checks[0].ok, (bundle.name, checks[0].problem)


def test_mnn_converts_a_model_once(tiny: Bundle, asked: list[Any]) -> None:
    for _ in range(2):
        with opened(tiny) as runner:
            assert runner.runtime == "mnn"
    assert len(asked) == 1


def test_a_wrong_answer_is_a_row_that_says_so(tiny: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    run = MnnRunner.run

    def shifted(self: MnnRunner, tensors: Any) -> dict[str, Any]:
        return {name: array[:, ::-1] for name, array in run(self, tensors).items()}

    monkeypatch.setattr(MnnRunner, "run", shifted)
    (check,) = verify(tiny, runtimes=("mnn",)).variants
    assert not check.ok
    assert "relative error" in check.problem


def test_mnn_takes_batches_of_any_size_in_any_order(tiny: Bundle) -> None:
    (golden,) = tiny.golden()
    assert golden.expected is not None
    with opened(tiny) as runner:
        for rows in (1, 7, 2, 1, 256):
            found = runner.run(tiny.signature.take(golden.inputs, slice(rows)))["logits"]
            assert np.allclose(found, golden.expected["logits"][:rows], atol=1e-4)


def test_inputs_of_a_binding_stay_for_the_next_call(duo: Bundle) -> None:
    (golden, *_) = duo.golden()
    with opened(duo) as runner:
        sizes = duo.signature.sizes(golden.inputs)
        bound = runner.bind(sizes)
        bound.copy_in(*(golden.inputs[spec.name] for spec in duo.signature.inputs))
        bound.compute()
        first = {name: array.copy() for name, array in bound.outputs.items()}
        bound.compute()
        assert all(np.array_equal(array, first[name]) for name, array in bound.outputs.items())


def test_a_file_on_which_mnn_ends_the_process_ends_another_one(
    tmp_path: Path, small: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A module MNN that ends the process stands for one that does so over a file; kit's own files are tried as well."""
    monkeypatch.delenv(trial.TRUST)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    trial.remember(small.variant())
    site = tmp_path / "site"
    site.mkdir()
    (site / "MNN.py").write_text("import os; os.abort()")
    monkeypatch.setenv("PYTHONPATH", str(site))
    with pytest.raises(BundleInvalid, match=r"mnn crashes on .*SIGABRT"):
        opened(small)


def test_what_mnn_survived_is_remembered(
    tmp_path: Path, small: Bundle, asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(trial.TRUST)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for _ in range(2):
        opened(small).close()
    assert len(asked) == 2  # to convert it, and to run it once


def test_mnn_refuses_numbers_of_more_than_32_bits(tmp_path: Path) -> None:
    model = graphs.make([graphs.node("Add", "x x", "y")], [("x", "int64", ["batch"])], [("y", "int64", ["batch"])])
    bundle = graphs.bundle(model, tmp_path / "twice")
    with opened(bundle) as runner:
        assert runner.run({"x": np.array([3, -4])})["y"].tolist() == [6, -8]
        with pytest.raises(BundleInvalid, match="integers of 32 bits"):
            runner.run({"x": np.array([3, 2**40])})


def test_mnn_refuses_an_output_whose_size_depends_on_the_values(tmp_path: Path) -> None:
    bundle = graphs.bundle(graphs.times(2), tmp_path / "times")
    signature = bundle.signature
    varying = dataclasses.replace(
        signature, outputs=tuple(dataclasses.replace(spec, varies=True) for spec in signature.outputs)
    )
    with pytest.raises(Unavailable, match="depends on the values"):
        MnnRunner(make(CONVERTER, bundle), RunnerOptions(), signature=varying)


def test_mnn_runs_on_the_cpu_only(tiny: Bundle) -> None:
    with pytest.raises(Unavailable, match="CPU only"):
        opened(tiny, provider=Provider.CUDA)


def test_an_operator_that_mnn_lacks_is_one_message(tmp_path: Path) -> None:
    model = graphs.make(
        [onnx.helper.make_node("StringNormalizer", ["x"], ["y"])], [("x", "str", [1])], [("y", "str", [1])]
    )
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    ref = FileRef(file=path.name, sha256="0" * 64, size_bytes=path.stat().st_size)
    with pytest.raises(
        BundleInvalid, match=r"MNN does not convert model\.onnx: These Op Not Support: .*StringNormalizer"
    ):
        converted.converted(CONVERTER, path, (ref,))


def test_mnn_prints_nothing_where_answers_go(tiny: Bundle, python: Kit) -> None:
    done = python(f"""
from kit.bundle import find
from kit.runtime import registry
from kit.runtime.base import RunnerOptions
bundle = find({str(tiny.folder)!r})
with registry.open_runner("mnn", bundle, bundle.variant(), RunnerOptions()) as runner:
    runner.run(bundle.golden()[0].inputs)
print("done")
""")
    assert (done.stdout, done.stderr) == ("done\n", "")


def test_if_mnn_is_missing_it_is_named_when_it_is_asked_for(tiny: Bundle, python: Kit) -> None:
    line = ["bench", str(tiny.folder), "--runtime", "mnn", "--provider", "cpu", "--json", "-"]
    done = python(WITHOUT_MNN + f"from apps.cli import run; raise SystemExit(run({line!r}))")
    assert done.returncode == 3, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert {row["reason"] for row in rows} == {"the runtime mnn needs mnn, which is not installed"}
    assert all(row["fix"].lower().startswith('pip install "mnn~=') and "`runtimes`" in row["fix"] for row in rows)


def test_if_mnn_is_missing_it_is_none_of_all(tiny: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = registry.find_spec
    assert "mnn" in registry.chosen(("all",))
    monkeypatch.setattr(registry, "find_spec", lambda name: None if name == "MNN" else find_spec(name))
    assert "mnn" not in registry.chosen(("all",))
    assert registry.chosen(("mnn",)) == ("mnn",)
    monkeypatch.setitem(sys.modules, "MNN", None)
    with pytest.raises(PackageMissing, match="the runtime mnn needs mnn"):
        opened(tiny)
