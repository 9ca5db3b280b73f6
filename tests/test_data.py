"""Data sets: read with numpy, split by seed, never switched silently."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from kit.errors import DatasetInvalid, DatasetUnavailable, UsageError
from kit.lab import data
from kit.lab.training.recipe import Recipe
from tests.helpers.idx import write_idx


@pytest.fixture(params=[True, False], ids=["gz", "plain"])
def small_mnist(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for stem, count in (("train", 40), ("t10k", 10)):
        raw = tmp_path / "MNIST" / "raw"
        write_idx(raw / f"{stem}-images-idx3-ubyte", rng.integers(0, 256, (count, 28, 28)), packed=request.param)
        write_idx(raw / f"{stem}-labels-idx1-ubyte", rng.integers(0, 10, count), packed=request.param)
    return tmp_path


def test_idx_files_are_read_packed_or_not(small_mnist: Path) -> None:
    found = data.load("mnist", data_dir=small_mnist)
    assert found.train.images.shape == (40, 28, 28)
    assert found.train.images.dtype == np.uint8
    assert found.test.labels.dtype == np.int64
    assert len(found.test) == 10


def test_corrupt_files_are_named(small_mnist: Path) -> None:
    path = next((small_mnist / "MNIST" / "raw").glob("train-images*"))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DatasetInvalid, match="train-images"):
        data.load("mnist", data_dir=small_mnist)


def test_swapped_files_and_foreign_labels_are_refused(small_mnist: Path) -> None:
    raw = small_mnist / "MNIST" / "raw"
    labels = next(raw.glob("t10k-labels*"))
    write_idx(raw / "t10k-labels-idx1-ubyte", np.full(10, 200), packed=labels.suffix == ".gz")
    with pytest.raises(DatasetInvalid, match="label 200"):
        data.load("mnist", data_dir=small_mnist)
    labels.write_bytes(next(raw.glob("t10k-images*")).read_bytes())
    with pytest.raises(DatasetInvalid, match="IDX"):
        data.load("mnist", data_dir=small_mnist)


def test_a_missing_data_set_is_an_error_with_the_next_step(tmp_path: Path) -> None:
    with pytest.raises(DatasetUnavailable) as caught:
        data.load("mnist", data_dir=tmp_path)
    assert "KIT_DATA_DIR" in caught.value.hint
    assert data.at_hand("mnist", data_dir=tmp_path) is None


def test_an_unknown_data_set_lists_those_there_are() -> None:
    with pytest.raises(UsageError) as caught:
        data.load("imagenet")
    assert "fashion-mnist" in caught.value.hint


def test_digits_are_embedded_and_laid_out_as_mnist() -> None:
    found = data.load("digits")
    assert len(found.train) + len(found.test) == 1797
    assert found.train.images.shape[1:] == (28, 28)
    assert not found.train.images[:, 0].any(), "the margin is empty"
    assert set(found.test.labels.tolist()) == set(range(10))


def test_validation_is_held_out_repeatable_and_seeded() -> None:
    fitted, held_out = data.validation_indices(1000, fraction=0.1, seed=3)
    assert len(held_out) == 100
    assert not set(fitted) & set(held_out)
    again = data.validation_indices(1000, fraction=0.1, seed=3)
    assert np.array_equal(again[1], held_out)
    assert not np.array_equal(data.validation_indices(1000, fraction=0.1, seed=4)[1], held_out)
    with pytest.raises(UsageError):
        data.validation_indices(10, fraction=0.01, seed=0)


def test_calibration_never_touches_what_is_held_out() -> None:
    fitted, held_out = data.validation_indices(1000, fraction=0.1, seed=0)
    drawn = data.calibration_indices(fitted, samples=200, seed=0)
    assert len(set(drawn)) == 200
    assert not set(drawn) & set(held_out)
    assert data.indices_sha256(drawn) == data.indices_sha256(drawn[::-1])


def test_mnist_bundles_carry_no_mnist_pictures() -> None:
    split, licence = data.golden_split("mnist")
    assert len(split) >= 256
    assert "scikit-learn" in licence


def test_fashion_mnist_is_read_as_torchvision_lays_it_out(small_mnist: Path) -> None:
    (small_mnist / "MNIST").rename(small_mnist / "FashionMNIST")
    found = data.load("fashion-mnist", data_dir=small_mnist)
    assert (found.info.labels[0], found.info.labels[-1]) == ("T-shirt/top", "Ankle boot")
    assert (found.info.normalization.mean, found.info.normalization.std) == (0.2860, 0.3530)
    assert found.info.pipeline == "resize@1"
    assert len(found.test) == 10
    split, licence = data.golden_split("fashion-mnist", data_dir=small_mnist)
    assert len(split) == 10
    assert "MIT" in licence
    with pytest.raises(DatasetUnavailable, match="'mnist'"):
        data.load("mnist", data_dir=small_mnist)


def test_torchvision_is_asked_for_what_is_not_here_and_its_refusal_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torchvision = pytest.importorskip("torchvision.datasets")

    def refused(**_: object) -> None:
        raise RuntimeError("File not found or corrupted.")  # what it says where an md5 sum is wrong

    monkeypatch.setattr(torchvision, "FashionMNIST", refused)
    with pytest.raises(DatasetUnavailable, match="corrupted") as caught:
        data.load("fashion-mnist", data_dir=tmp_path, download=True)
    assert "FashionMNIST/raw" in caught.value.hint


def test_recipes_of_data_sets_fit_the_recipe() -> None:
    for known in data.DATASETS.values():
        dataclasses.replace(Recipe(), **known.recipe)
    assert data.DATASETS["fashion-mnist"].recipe["augment"] is False


@pytest.mark.mnist
def test_mnist_itself() -> None:
    found = data.load("mnist")
    assert (len(found.train), len(found.test)) == (60_000, 10_000)
    assert found.train.labels[:5].tolist() == [5, 0, 4, 1, 9]
