"""The main job as users run it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image

import kit as library
from kit.bundle import find
from tests.conftest import ROOT, Kit

OFFLINE = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")


@pytest.mark.slow
def test_quickstart_without_data_and_network_does_the_whole_job_on_embedded_digits(
    kit_inside: Kit, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    done = kit_inside("quickstart", KIT_DATA_DIR=str(tmp_path / "empty"), **OFFLINE)
    assert done.returncode == 0, done.stderr
    assert "Going on with the embedded data set 'digits'" in done.stderr
    assert "FASTER" in done.stdout or "SLOWER" in done.stdout or "SAME" in done.stdout or "INCONCLUSIVE" in done.stdout
    assert "kit demo my-digits-mlp" in done.stderr
    bundle = find(tmp_path / "artifacts" / "my-digits-mlp")
    assert [variant.id for variant in bundle.variants] == ["fp32", "int8-qdq"]
    score = bundle.variant("int8-qdq").score("top-1")
    assert score is not None
    assert score.value > 0.95

    (golden,) = bundle.golden()
    assert golden.targets is not None
    labels = golden.targets["labels"]
    names = [f"{number}.jpg" for number in range(8)]
    for name, pixels in zip(names, golden.inputs["pixels"], strict=False):
        Image.fromarray(255 - pixels).resize((400, 400), Image.Resampling.BICUBIC).save(tmp_path / name)
    answers = kit_inside("predict", "my-digits-mlp", *names, "--jsonl").stdout.splitlines()
    right = [json.loads(answer)["label"] == str(label) for answer, label in zip(answers, labels, strict=False)]
    assert sum(right) >= len(names) - 2, "one of them is labelled wrongly, one is hard to read"

    with library.load(bundle.folder, variant="int8-qdq") as engine:
        assert (engine.predict(golden.inputs["pixels"]).labels == labels).mean() > 0.95


@pytest.mark.slow
@pytest.mark.mnist
def test_quickstart_on_mnist(kit_inside: Kit, tmp_path: Path) -> None:
    """Three epochs; CI holds the README's own run, with all of them, to 98 %."""
    done = kit_inside("quickstart", "--epochs", "3", **OFFLINE)
    assert done.returncode == 0, done.stderr
    bundle = find(tmp_path / "artifacts" / "my-mnist-mlp")
    assert [variant.id for variant in bundle.variants] == ["fp32", "int8-qdq"]
    for variant in bundle.variants:
        score = variant.score("top-1")
        assert score is not None
        assert (score.dataset, score.split, score.samples) == ("mnist", "test", 10_000)
        assert score.value >= 0.96
    assert "mnist test, 10,000 samples; counted now" in done.stdout


def test_the_readme_starts_with_the_two_commands() -> None:
    readme = (ROOT / "README.md").read_text()
    blocks = re.findall(r"```sh\n(.*?)```", readme, flags=re.DOTALL)
    assert blocks[0].strip() == "pip install uv && uv run kit quickstart"
    assert blocks[1].strip() == "pip install uv && uv run pytest"


def test_the_map_in_contributing_names_every_room() -> None:
    house = (ROOT / "CONTRIBUTING.md").read_text()
    rooms = [
        path for top in ("kit", "exporters", "apps") for path in (ROOT / top).iterdir() if path.name[0] not in "_."
    ]
    for path in rooms:
        if path.suffix == ".py" or (path / "__init__.py").exists():
            assert re.search(rf"\b{re.escape(path.name)}\b", house), path


@pytest.mark.slow
def test_the_readmes_example_of_a_module_runs_as_printed(python: Kit) -> None:
    module = """
import torch

class Sum(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(100, 8)

    def forward(self, ids, mask):
        return (self.table(ids) * mask.unsqueeze(-1)).sum(1)

module, ids, mask = Sum().eval(), torch.arange(24).reshape(2, 12), torch.ones(2, 12)
"""
    found = python(module + _example("README.md", "module"))
    assert found.returncode == 0, found.stderr
    assert "array(" in found.stdout


def test_the_example_of_running_a_bundle_runs_as_printed(python: Kit) -> None:
    found = python(_example("docs/python.md", "run"))
    assert found.stdout.splitlines()[:2] == ["(256, 10)", "(256,) (256, 10)"], found.stderr
    assert found.returncode == 0, found.stderr


@pytest.mark.slow
def test_the_example_of_an_export_runs_as_printed(python: Kit) -> None:
    found = python(_example("docs/python.md", "export"))
    assert found.stdout.strip() == "['fp32', 'int8-qdq']", found.stderr


def _example(page: str, name: str) -> str:
    """Return the Python below a page's comment `example: NAME`."""
    found = re.search(rf"<!-- example: {name} -->\n```python\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)
    assert found is not None, f"{page} has no example {name}"
    return found[1]
