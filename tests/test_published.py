"""The bundle that travels with kit: found without a name, what its manifest says, and as good as it says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import kit
from kit.bench.results import last_path
from kit.bundle import Bundle, attach, find, open_folder, pack, read, unpack
from kit.errors import UsageError
from kit.lab import data
from kit.lab.data.strokes import NO_DIGIT, draw_digits
from kit.lab.records import training_record
from kit.verify import verify
from tests.conftest import ROOT, Kit


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """What is found in a folder that has no bundles of its own."""
    monkeypatch.chdir(tmp_path)
    return find()


def test_it_is_found_without_a_name_wherever_one_is(published: Bundle) -> None:
    assert published.folder.resolve() == (ROOT / "artifacts" / "mnist-mlp").resolve()
    assert {variant.id for variant in published.variants} == {"fp32", "fp16", "int8-qdq", "int8-pixel"}
    assert sum(ref.size_bytes for ref in published.manifest.files()) < 8e6


def test_it_holds_here_what_it_promises(published: Bundle) -> None:
    for ref in published.manifest.files():
        published.read(ref)  # checks the sha256
    assert verify(published).ok
    (golden,) = published.golden()
    assert "MNIST" not in golden.source


def test_it_says_where_it_comes_from(published: Bundle) -> None:
    card = (published.attachment("card") or b"").decode()
    for heading in ("## Accuracy", "## Data", "## Recipe", "## Known failures", "## Licence"):
        assert heading in card
    assert card.index("## Known failures") < card.index("## Recipe")
    record = training_record(published)
    assert record is not None
    assert (record.validation_fraction, record.validation) == (0.0, None)
    options = published.manifest.task.options
    assert options["temperature"] != 1.0
    assert options["abstain_below"] is not None
    assert {path.name for path in published.folder.iterdir()} == {
        "manifest.json",
        *(ref.file for ref in published.manifest.files()),
    }


@pytest.mark.mnist
@pytest.mark.parametrize("variant", ["fp32", "fp16", "int8-qdq", "int8-pixel"])
def test_its_accuracy_is_the_one_it_names(published: Bundle, variant: str) -> None:
    test = data.load("mnist").test
    with kit.load(published.folder, variant=variant) as engine:
        right = int((engine.predict(test.images).labels == test.labels).sum())
    named = published.variant(variant).score("top-1")
    assert named is not None
    # Another CPU may round another way: three images in ten thousand.
    assert abs(right - named.correct) <= 3
    assert right >= 9_930


def test_its_int8_agrees_with_fp32_and_loses_nothing(published: Bundle) -> None:
    """As its manifest says; the test above holds the manifest to the images."""
    for variant in ("int8-qdq", "int8-pixel"):
        found = published.variant(variant).score("top-1")
        assert found is not None
        assert found.samples == 10_000
        assert found.worse + found.improved <= 10
        assert found.loss <= 0.0005


def test_it_reads_digits_as_people_draw_them_and_is_unsure_of_what_is_none(published: Bundle) -> None:
    drawn = draw_digits(1_000, signs=500, seed=54_321)  # of a seed that nothing was trained on
    sign = drawn.labels == NO_DIGIT
    for variant in ("fp32", "int8-qdq", "int8-pixel"):
        with kit.load(published.folder, variant=variant) as engine:
            found = engine.predict(drawn.images)
        assert (found.labels == drawn.labels)[~sign].mean() > 0.97
        assert found.unsure[sign].mean() > 0.97


def test_everything_that_reads_a_bundle_takes_it_by_default(kit_inside: Kit, tmp_path: Path, published: Bundle) -> None:
    (golden,) = published.golden()
    Image.fromarray(255 - golden.inputs["pixels"][1]).resize((280, 280)).save(tmp_path / "digit.png")
    assert kit_inside("info").returncode == 0
    assert kit_inside("verify").returncode == 0
    assert kit_inside("predict", "digit.png").stdout.strip()
    assert kit_inside("bench", "--provider", "cpu", "--batch-size", "1", "--budget", "300ms").returncode == 0
    packed = kit_inside("pack")
    assert packed.returncode == 0, packed.stderr


def test_inside_an_installed_package_it_is_read_and_never_written(
    published: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read, "PACKAGED", tmp_path / "site" / "bundles")
    copy = unpack(pack(published, tmp_path), tmp_path / "site" / "bundles" / "mnist-mlp")
    shipped = open_folder(copy.folder)
    assert shipped.is_shipped
    assert last_path(shipped) == Path("artifacts") / "mnist-mlp.bench.json"
    with pytest.raises(UsageError, match="comes with kit"):
        attach(shipped, "card", b"mine")
    with kit.load(shipped.folder) as engine:
        (golden,) = shipped.golden()
        answers = engine.predict(golden.inputs["pixels"])
    assert np.array_equal(answers.labels, golden.expected["logits"].argmax(axis=1))


def test_its_models_are_the_ones_that_were_published(published: Bundle) -> None:
    digests = {variant.id: variant.graph.sha256[:8] for variant in published.variants}
    assert digests == {"fp32": "523ebd04", "fp16": "58a409b7", "int8-qdq": "466821cd", "int8-pixel": "92fdedee"}


@pytest.mark.slow
def test_its_weights_still_make_the_same_fp32_file(published: Bundle, tmp_path: Path) -> None:
    exporters = pytest.importorskip("exporters")
    copy = unpack(pack(published, tmp_path), tmp_path / "again" / "mnist-mlp")
    again = exporters.export_bundle(copy, exporters.ExportOptions()).bundle
    assert again.variant("fp32").graph == published.variant("fp32").graph
