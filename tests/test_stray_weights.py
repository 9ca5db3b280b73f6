"""A graph may read weights from files: those that its manifest names and hashes, and no others."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import onnx
import pytest

from kit import bundle as bundles
from kit import ready
from kit.bundle import Bundle, Staged, file_ref, graph_file
from kit.errors import BundleInvalid
from kit.runtime import registry
from kit.runtime.base import RunnerOptions
from kit.runtime.onnxruntime import OnnxRuntimeRunner
from kit.runtime.openvino import OpenVinoRunner
from kit.runtime.reference import ReferenceRunner
from tests import graphs

RUNTIMES = ("onnxruntime", "onnxruntime-plain", "openvino", "mnn", "onnx-reference")


def published(folder: Path, graph: bytes, data: dict[str, bytes] | None = None) -> Bundle:
    """A bundle like that of `pixels`, with another graph and other files beside it, by the stems of their names."""
    bundle = graphs.bundle(graphs.pixels(), folder)
    staged = folder.with_name("staged")
    staged.mkdir()
    refs = []
    for stem, content in (data or {}).items():
        refs.append(file_ref(content, stem, ".data"))
        (staged / refs[-1].file).write_bytes(content)
    ref = file_ref(graph, "graph", ".onnx")
    (staged / ref.file).write_bytes(graph)
    variant = dataclasses.replace(bundle.variant(), graph=ref, data=tuple(refs))
    return bundles.publish(bundle, [Staged(variant=variant, folder=staged)], tools={})


def beside(folder: Path, location: str = "") -> tuple[bytes, bytes]:
    """The graph `pixels` with its weights under a name, a bundle's own if none is given, and those weights."""
    folder.mkdir(parents=True)
    path = graphs.save_beside(graphs.pixels(), folder / "model.onnx")
    model, data = onnx.load(path, load_external_data=False), (folder / "model.data").read_bytes()
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location or file_ref(data, "w", ".data").file
    return model.SerializeToString(), data


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_weights_that_no_manifest_names_are_not_read_from_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runtime: str
) -> None:
    graph, data = beside(tmp_path / "made", "stray.bin")
    bundle = published(tmp_path / "bundle", graph)
    current = tmp_path / "current"
    current.mkdir()
    for folder in (current, bundle.folder):
        (folder / "stray.bin").write_bytes(data)
    monkeypatch.chdir(current)
    with pytest.raises(BundleInvalid, match=r"stray\.bin"):
        registry.open_runner(runtime, bundle, bundle.variant(), RunnerOptions())


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_named_weights_are_read_and_no_other_beside_them(tmp_path: Path, runtime: str) -> None:
    graph, data = beside(tmp_path / "made")
    bundle = published(tmp_path / "bundle", graph, {"w": data})
    (golden,) = bundle.golden()
    assert golden.expected is not None
    with registry.open_runner(runtime, bundle, bundle.variant(), RunnerOptions()) as runner:
        assert np.allclose(runner.run(golden.inputs)["logits"], golden.expected["logits"], atol=1e-4)
    for stems in (("w", "more"), ("other",)):
        other = published(tmp_path / stems[0] / "bundle", graph, dict.fromkeys(stems, data))
        with pytest.raises(BundleInvalid, match=r"more-|other-"):
            registry.open_runner(runtime, other, other.variant(), RunnerOptions())


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_weights_with_a_name_elsewhere_are_refused(tmp_path: Path, link: object) -> None:
    graph, data = beside(tmp_path / "made")
    bundle = published(tmp_path / "bundle", graph, {"w": data})
    own, elsewhere = bundle.path(bundle.variant().data[0]), tmp_path / "elsewhere"
    own.rename(elsewhere)
    assert callable(link)
    link(elsewhere, own)
    with pytest.raises(BundleInvalid, match=r"names|ordinary"):
        bundle.model(bundle.variant())


def test_a_graph_in_memory_with_weights_in_files_is_refused_by_every_runner(tmp_path: Path) -> None:
    graph, _ = beside(tmp_path / "made", "stray.bin")
    signature = graphs.bundle(graphs.pixels(), tmp_path / "bundle").signature
    for kind in (OnnxRuntimeRunner, OpenVinoRunner, ReferenceRunner):
        with pytest.raises(BundleInvalid, match=r"stray\.bin"):
            kind(graph, RunnerOptions(), signature=signature)


def test_a_ready_model_whose_graph_is_swapped_for_another_is_refused(tmp_path: Path) -> None:
    path = graphs.save_beside(graphs.pixels(), tmp_path / "model.onnx")
    bundle = ready.find(path)
    unnamed = dataclasses.replace(bundle.variant(), data=())
    with pytest.raises(BundleInvalid, match=r"model\.data"):
        bundle.model(unnamed)


def test_a_number_where_text_belongs_is_no_graph_and_takes_no_memory(tmp_path: Path) -> None:
    huge = b"\x08" + b"\xff" * 8 + b"\x3f"  # field 1 as the number 2**62 - 1
    opset = b"\x42" + bytes([len(huge)]) + huge
    path = tmp_path / "model.onnx"
    path.write_bytes(b"\x08\x0a" + opset)
    with pytest.raises(BundleInvalid, match="no ONNX file"):
        graph_file.look(path)


def test_a_field_whose_number_other_readers_see_otherwise_is_refused() -> None:
    """The upper bits of a key are dropped by some: an unknown field here would be weights there."""
    strange = b"\xea\x80\x80\x80\x70"
    with pytest.raises(BundleInvalid, match="no ONNX file"):
        graph_file.external_of(b"\x08\x0a" + strange + b"\x0a\x0a\x08location")
