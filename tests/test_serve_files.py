"""The image definition that `kit serve --dockerfile` writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from apps.serve.model import How, Model
from kit.bundle import Bundle, find


def test_what_would_change_nothing_is_refused(kit_inside: Any) -> None:
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


def test_a_ready_model_that_is_quantized_already_is_served(quantized: Bundle) -> None:
    model = Model.opened("ready", "1", quantized.path(quantized.variant("int8-qdq").graph), How())
    try:
        assert "golden samples answered" in model.proof
    finally:
        model.close()
