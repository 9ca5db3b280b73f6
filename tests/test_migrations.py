"""Manifests of earlier versions are read as they were meant, and written in the newest."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from kit import bundle as bundles
from kit.bundle import Bundle
from kit.errors import BundleInvalid

EARLIER = Path(__file__).parent / "fixtures"


@pytest.fixture(params=["manifest-1", "manifest-2"])
def earlier(request: pytest.FixtureRequest, tmp_path: Path) -> Bundle:
    """A bundle as an earlier kit wrote it."""
    return bundles.open_folder(Path(shutil.copytree(EARLIER / request.param, tmp_path / "tiny")))


def test_an_earlier_manifest_is_read_in_memory_and_not_rewritten(earlier: Bundle) -> None:
    before = (earlier.folder / "manifest.json").read_bytes()
    assert earlier.signature.described() == {"pixels": "uint8 [batch, 4, 4]"}
    assert earlier.manifest.task is not None
    assert earlier.manifest.task.name == "image-classification@1"
    assert earlier.manifest.task.options["labels"] == ["left", "right", "none"]
    assert (earlier.manifest.task.options["mean"], earlier.manifest.task.options["std"]) == ([0.4], [0.2])
    assert earlier.manifest.baseline == earlier.manifest.default == "fp32"
    assert (earlier.folder / "manifest.json").read_bytes() == before


def test_its_golden_samples_and_figures_are_what_they_were(earlier: Bundle) -> None:
    old = json.loads((earlier.folder / "manifest.json").read_text())
    (group,) = earlier.golden()
    assert group.expected is not None
    assert group.expected["logits"].dtype == np.float32
    for variant, was in zip(earlier.variants, old["variants"], strict=True):
        assert variant.fidelity[0].rms_error == was["parity"]["rms_error"]
        assert variant.fidelity[0].agreement == was["parity"]["top1_agreement"]
        if was["accuracy"]:
            score = variant.score("top-1")
            assert score is not None
            assert (score.correct, score.samples) == (was["accuracy"]["correct"], was["accuracy"]["images"])
            assert (score.worse or 0, score.improved or 0) == (
                was["accuracy"]["flips_to_wrong"],
                was["accuracy"]["flips_to_right"],
            )
        earlier.read(variant.graph)


def test_upgrading_writes_the_newest_version_and_keeps_every_model(earlier: Bundle) -> None:
    records = dict(earlier.inline)
    new = bundles.upgrade(earlier)
    assert json.loads((new.folder / "manifest.json").read_text())["schema_version"] == 3
    again = bundles.open_folder(new.folder)
    assert again.manifest == new.manifest
    assert [one.graph for one in again.variants] == [one.graph for one in earlier.variants]
    assert again.manifest.golden.source
    for role, record in records.items():
        assert again.attachment(role) == record
    assert not again.inline


def test_an_earlier_manifest_that_is_damaged_names_the_field(earlier: Bundle) -> None:
    path = earlier.folder / "manifest.json"
    whole = json.loads(path.read_text())
    for change in (
        {"spec": None},
        {"spec": {}},
        {"variants": [{}]},
        {"variants": 3},
        {"golden": {}},
        {"tools": None},
        {"variants": [{**whole["variants"][0], "accuracy": {"images": 0}}]},
    ):
        path.write_text(json.dumps({**whole, **change}))
        with pytest.raises(BundleInvalid, match="manifest"):
            bundles.open_folder(earlier.folder)
