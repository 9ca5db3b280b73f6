"""What is written for those who ship: a repository that Triton takes, and an image definition."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from apps.serve import triton
from kit.bundle import find
from tests import graphs


def read(text: str) -> Any:
    pytest.importorskip("tritonclient")
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    return text_format.Parse(text, model_config_pb2.ModelConfig())


def test_a_bundle_becomes_a_model_that_triton_s_schema_takes(kit_inside: Any, tmp_path: Path) -> None:
    found = kit_inside("export", "mnist-mlp", "--triton", "repository")
    assert found.returncode == 0, found.stderr
    folder = tmp_path / "repository" / "mnist-mlp"
    config = read((folder / "config.pbtxt").read_text())
    assert (config.name, config.backend, config.max_batch_size) == ("mnist-mlp", "onnxruntime", 64)
    assert [(one.name, list(one.dims)) for one in config.input] == [("pixels", [28, 28])]
    assert config.HasField("dynamic_batching")
    assert config.parameters["intra_op_thread_count"].string_value == "1"
    pixels = np.zeros((2, 28, 28), np.uint8)
    session = onnxruntime.InferenceSession(folder / "1" / "model.onnx", providers=["CPUExecutionProvider"])
    assert session.run(None, {"pixels": pixels})[0].shape == (2, 10)
    assert sorted(one.name for one in folder.parent.iterdir()) == ["mnist-mlp"]


def test_the_next_export_is_the_next_version_and_another_model_is_refused(kit_inside: Any, tmp_path: Path) -> None:
    onnx.save(graphs.pixels(), tmp_path / "model.onnx")
    kit_inside("export", "model.onnx", "--triton", "repository")
    found = kit_inside("export", "model.onnx", "--triton", "repository", "--json")
    assert json.loads(found.stdout)["version"] == "2"
    onnx.save(graphs.two_by_two(), tmp_path / "model.onnx")
    found = kit_inside("export", "model.onnx", "--triton", "repository")
    assert found.returncode == 2
    assert sorted(one.name for one in (tmp_path / "repository" / "model").iterdir()) == ["1", "2", "config.pbtxt"]


def test_weights_beside_the_graph_go_along(tmp_path: Path) -> None:
    from kit import ready

    graphs.save_beside(graphs.pixels(), tmp_path / "model.onnx")
    written = triton.write(ready.find(tmp_path / "model.onnx"), tmp_path / "repository")
    assert {one.name for one in (written.folder / "1").iterdir()} == {"model.onnx", "model.data"}
    onnxruntime.InferenceSession(written.folder / "1" / "model.onnx", providers=["CPUExecutionProvider"])


def test_scalars_and_tensors_without_a_leading_batch_are_not_batched(tmp_path: Path) -> None:
    from kit import ready

    onnx.save(graphs.mixed(), tmp_path / "model.onnx")
    written = triton.write(ready.find(tmp_path / "model.onnx"), tmp_path / "repository")
    config = read((written.folder / "config.pbtxt").read_text())
    assert config.max_batch_size == 0
    factor = next(one for one in config.input if one.name == "factor")
    assert list(factor.dims) == [1]
    assert list(factor.reshape.shape) == []
    assert {one.name: list(one.dims) for one in config.input}["half"] == [-1, 2]


def test_what_would_change_nothing_is_refused(kit_inside: Any) -> None:
    assert kit_inside("export", "mnist-mlp", "--triton", "r", "--precision", "int8").returncode == 2
    assert kit_inside("serve", "mnist-mlp", "--dockerfile", "d", "--port", "9000").returncode == 2


@pytest.mark.parametrize("flags", [(), ("--provider", "cuda")])
def test_an_image_is_pinned_small_and_not_root_s(kit_inside: Any, tmp_path: Path, flags: tuple[str, ...]) -> None:
    found = kit_inside("serve", "mnist-mlp", "--dockerfile", "image", *flags)
    assert found.returncode == 0, found.stderr
    text = (tmp_path / "image" / "Dockerfile").read_text()
    assert "USER 10001:10001" in text
    assert text.index("USER") < text.index("ENTRYPOINT")
    install = next(line for line in text.splitlines() if "pip install" in line)
    assert "-c /tmp/constraints.txt" in install
    assert "slim" in text or "base" in text
    assert ('"cuda"' in text) == bool(flags)
    pins = (tmp_path / "image" / "constraints.txt").read_text().splitlines()
    runtime = "onnxruntime-gpu" if flags else "onnxruntime"
    assert [one for one in pins if one.startswith("onnxruntime")] == [
        next(p for p in pins if p.startswith(f"{runtime}=="))
    ]
    (packed,) = (tmp_path / "image" / "models").iterdir()
    assert find(str(packed)).manifest.name == find("mnist-mlp").manifest.name
    service = (tmp_path / "image" / "kserve.yaml").read_text()
    assert "kind: InferenceService" in service
    assert "runAsNonRoot: true" in service
