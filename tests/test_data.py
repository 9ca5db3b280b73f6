"""Data sets: read with numpy, split by seed, never switched silently."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from kit import datasets
from kit.errors import DatasetInvalid, DatasetUnavailable, UsageError
from kit.lab import data
from kit.lab.training.recipe import Recipe
from kit.samples import Samples
from kit.tasks.image import ImageClassification
from kit.tasks.tensors import PlainTensors
from kit.tensors import Signature, TensorSpec
from tests.helpers.idx import write_idx
from tests.helpers.modules import duo_signature


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
    assert found.info.pipeline == "resize@2"
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


TASK = PlainTensors()


def rows_of(groups: tuple[Samples, ...]) -> set[bytes]:
    return {row.tobytes() for group in groups for row in group.inputs["numbers"]}


def written(path: Path, count: int, *, seed: int = 0, words: int = 5) -> Path:
    rng = np.random.default_rng((seed, words))
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(
        path,
        ids=rng.integers(0, 11, (count, words)),
        numbers=rng.standard_normal((count, 3)).astype(np.float32),
        labels=rng.integers(0, 4, count),
    )
    return path


def test_a_users_own_data_are_split_by_what_each_sample_holds(tmp_path: Path) -> None:
    path = written(tmp_path / "mine.npz", 400)
    splits = datasets.load(str(path), TASK, duo_signature())
    parts = [rows_of(groups) for groups in (splits.train, splits.validation, splits.test)]
    assert sum(len(part) for part in parts) == len(set().union(*parts)) == 400
    assert [round(len(part) / 100) for part in parts] == [2, 1, 1]
    assert splits.dataset == "mine.npz"
    assert splits.test[0].targets["labels"].shape == (len(parts[2]),)


def test_samples_that_are_added_move_no_other_out_of_its_part(tmp_path: Path) -> None:
    before = datasets.load(str(written(tmp_path / "a.npz", 200)), TASK, duo_signature())
    first, second = (dict(np.load(written(tmp_path / f"{seed}.npz", 200, seed=seed))) for seed in (0, 1))
    np.savez(tmp_path / "both.npz", **{name: np.concatenate([second[name], first[name]]) for name in first})
    after = datasets.load(str(tmp_path / "both.npz"), TASK, duo_signature())
    for part in ("train", "validation", "test"):
        assert rows_of(getattr(before, part)) <= rows_of(getattr(after, part))


def test_every_part_has_a_few_samples_however_few_there_are(tmp_path: Path) -> None:
    for count in (3, 5, 12, 30):
        splits = datasets.load(str(written(tmp_path / f"{count}.npz", count)), TASK, duo_signature())
        sizes = [len(rows_of(groups)) for groups in (splits.train, splits.validation, splits.test)]
        assert sum(sizes) == count
        assert min(sizes) >= max(count // 6, 1)
    one = datasets.load(str(written(tmp_path / "one.npz", 1)), TASK, duo_signature())
    assert one.validation_name == "train", "it was not held out, and is not said to be"
    assert len(rows_of(one.test)) == 1


def test_data_without_labels_are_data_too(tmp_path: Path) -> None:
    arrays = dict(np.load(written(tmp_path / "a.npz", 40)))
    np.savez(tmp_path / "b.npz", ids=arrays["ids"], numbers=arrays["numbers"])
    splits = datasets.load(str(tmp_path / "b.npz"), TASK, duo_signature())
    assert splits.validation[0].targets is None
    assert splits.train is not None


def test_parts_that_a_folder_has_are_kept(tmp_path: Path) -> None:
    for part, count in (("train", 30), ("val", 10), ("test", 20)):
        written(tmp_path / "three" / f"{part}.npz", count, seed=count)
    three = datasets.load("three", TASK, duo_signature(), data_dir=tmp_path)
    assert [len(rows_of(groups)) for groups in (three.train, three.validation, three.test)] == [30, 10, 20]
    (tmp_path / "three" / "val.npz").unlink()
    two = datasets.load("three", TASK, duo_signature(), data_dir=tmp_path)
    assert rows_of(two.test) == rows_of(three.test)
    assert rows_of(two.train) | rows_of(two.validation) == rows_of(three.train)
    assert min(len(rows_of(two.train)), len(rows_of(two.validation))) >= 4


def test_a_model_without_a_batch_axis_has_a_sample_in_each_call(tmp_path: Path) -> None:
    signature = Signature(
        inputs=(TensorSpec(name="numbers", dtype="float32", shape=(3,)),),
        outputs=(TensorSpec(name="scores", dtype="float32", shape=(2,)),),
        batch=None,
    )
    np.savez(tmp_path / "one.npz", numbers=np.ones(3, np.float32))
    splits = datasets.load(str(tmp_path / "one.npz"), TASK, signature)
    assert splits.test[0].inputs["numbers"].shape == (3,)


def test_what_is_no_data_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no file called") as caught:
        datasets.load("missing.npz", TASK, duo_signature())
    assert "digits" in caught.value.hint
    np.savez(tmp_path / "empty.npz", ids=np.zeros((0, 5), np.int64), numbers=np.zeros((0, 3), np.float32))
    with pytest.raises(DatasetInvalid):
        datasets.load(str(tmp_path / "empty.npz"), TASK, duo_signature())


def test_registered_data_sets_are_read_by_name_by_models_that_take_them(tiny_task: ImageClassification) -> None:
    assert {"mnist", "fashion-mnist", "digits"} <= set(datasets.names())
    splits = datasets.load("digits", tiny_task, tiny_task.signature((28, 28)))
    assert splits.train[0].inputs["pixels"].shape[1:] == (28, 28)
    channels = datasets.load("digits", tiny_task, tiny_task.signature((1, 28, 28)))
    assert channels.test[0].inputs["pixels"].shape[1:] == (1, 28, 28)
    with pytest.raises(UsageError, match="grey pictures"):
        datasets.load("digits", TASK, duo_signature())


def test_what_is_not_here_is_no_error_if_nobody_asked_for_it(tmp_path: Path, tiny_task: ImageClassification) -> None:
    signature = tiny_task.signature((28, 28))
    assert datasets.at_hand("mnist", tiny_task, signature, data_dir=tmp_path) is None
    assert datasets.at_hand("somebody-elses", tiny_task, signature) is None
    assert datasets.at_hand("digits", tiny_task, signature) is not None
