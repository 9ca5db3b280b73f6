"""Training: repeatable, keeps the best, survives Ctrl-C."""

from __future__ import annotations

import dataclasses
import json
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch

from kit import datasets
from kit.bundle import Bundle, attach
from kit.errors import BundleInvalid, UsageError
from kit.lab import data, models, plugs
from kit.lab.blueprint import Blueprint
from kit.lab.data import Dataset
from kit.lab.records import training_record
from kit.lab.training.augment import distort
from kit.lab.training.batches import Labelled
from kit.lab.training.loop import Epoch, InterruptedEarlyError, Listener, train
from kit.lab.training.recipe import RECIPES, Distortion, Recipe, bundle_name, recipe
from kit.lab.training.trained import answers, same_weights, save
from kit.lab.training.world import World

SHORT = Recipe(model="mlp-64-64", epochs=3, batch_size=64)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return data.load("digits")


def test_the_same_seed_gives_the_same_weights(dataset: Dataset) -> None:
    first = models.save_weights(train(dataset, SHORT, name="a").module)
    assert models.save_weights(train(dataset, SHORT, name="a").module) == first
    other = train(dataset, dataclasses.replace(SHORT, seed=1), name="a")
    assert models.save_weights(other.module) != first


def test_the_best_epoch_is_kept(dataset: Dataset) -> None:
    result = train(dataset, dataclasses.replace(SHORT, epochs=6, lr=0.05), name="a")
    scores = [row["validation_top1"] for row in result.record.history]
    assert result.record.validation.value == max(scores)
    assert result.record.best_epoch == 1 + scores.index(max(scores))


def test_validation_images_are_not_trained_on(dataset: Dataset) -> None:
    result = train(dataset, SHORT, name="a")
    _, held_out = data.validation_indices(len(dataset.train), fraction=SHORT.val_fraction, seed=SHORT.seed)
    assert result.record.validation.samples == len(held_out)
    split = dataset.train.take(held_out)
    right = (answers(result.module, result.blueprint, split.images).argmax(axis=1) == split.labels).sum()
    assert right == result.record.validation.correct


def test_ctrl_c_keeps_the_best_so_far_and_the_record_says_so(dataset: Dataset) -> None:
    def stop(epoch: Epoch) -> None:
        if epoch.epoch == 2:
            raise KeyboardInterrupt

    result = train(dataset, dataclasses.replace(SHORT, epochs=50), name="a", listener=Listener(on_epoch=stop))
    assert result.record.interrupted
    assert result.record.epochs_run == 2


def test_ctrl_c_before_there_is_anything_to_keep_is_an_error(dataset: Dataset) -> None:
    def stop(_what: str, _share: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(InterruptedEarlyError) as caught:
        train(dataset, SHORT, name="a", listener=Listener(on_step=stop))
    assert caught.value.exit_code == 130


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("schedule", ["constant", "one-cycle"])
def test_every_optimizer_and_schedule_learns(dataset: Dataset, optimizer: str, schedule: str) -> None:
    chosen = dataclasses.replace(SHORT, optimizer=optimizer, schedule=schedule, epochs=8, lr=0.01, augment=False)
    assert train(dataset, chosen, name="a").record.validation.value > 0.8


def square(count: int = 64) -> torch.Tensor:
    images = torch.zeros(count, 28, 28, dtype=torch.uint8)
    images[:, 10:18, 10:18] = 200
    return images


STILL = Distortion(degrees=0, scale=0, shear=0, shift=0, elastic=0, thicker=0, thinner=0)


@pytest.mark.parametrize(
    "one",
    [
        {"degrees": 15},
        {"scale": 0.15},
        {"shear": 0.2},
        {"shift": 2.0},
        {"elastic": 1.5},
        {"thicker": 0.6},
        {"thinner": 0.4},
    ],
)
def test_each_distortion_changes_the_ink_and_keeps_it(one: dict[str, float]) -> None:
    images = square()
    moved = distort(images, dataclasses.replace(STILL, **one), torch.Generator().manual_seed(0))
    assert moved.dtype == torch.float32
    assert moved.shape == images.shape
    assert float((moved - images).abs().sum()) > 0
    ratio = moved.sum(dim=(1, 2)) / images.sum(dim=(1, 2))
    assert 0.4 < float(ratio.min()) <= float(ratio.max()) < 1.8
    assert len(torch.unique(moved, dim=0)) > 8, "each image is distorted by its own amount"


def test_no_distortion_leaves_images_as_they_are() -> None:
    images = square(2)
    assert torch.allclose(distort(images, STILL, torch.Generator()), images.to(torch.float32), atol=1e-3)
    assert Distortion().times(0.5).shift == Distortion().shift / 2


def test_a_rest_of_one_image_is_no_batch(dataset: Dataset) -> None:
    images, labels = torch.from_numpy(dataset.train.images[:129]), torch.from_numpy(dataset.train.labels[:129])
    one = Recipe(model="mlp-8", batch_size=64)
    batches = list(Labelled(images, labels, one, World(device=torch.device("cpu"))).epoch(1))
    assert [len(target) for _, target in batches] == [64, 64]


def test_a_convolutional_network_trains_by_the_same_recipes(dataset: Dataset) -> None:
    chosen = dataclasses.replace(recipe("default", dataset="digits", model="cnn-4-8-8"), epochs=2)
    found = train(dataset, chosen, name="a")
    assert found.record.validation is not None
    assert found.record.validation.value > 0.7


def test_the_article_is_trained_as_printed() -> None:
    article = recipe("article", dataset="mnist")
    assert (article.batch_size, article.lr, article.optimizer, article.momentum) == (100, 0.001, "sgd", 0.9)
    assert article.normalization is not None
    assert (article.normalization.mean, article.normalization.std) == (0.5, 0.5)
    assert not article.augment


def test_recipes_refuse_what_cannot_train() -> None:
    for wrong in (
        {"epochs": 0},
        {"lr": 0.0},
        {"val_fraction": 1.0},
        {"optimizer": "lion"},
        {"schedule": "cosine"},
        {"keep": "first"},
        {"average": 1.0},
    ):
        with pytest.raises(UsageError):
            Recipe(**wrong)
    with pytest.raises(UsageError):
        recipe("secret", dataset="mnist")
    assert set(RECIPES) == {"default", "record", "article"}


def test_names_of_bundles() -> None:
    assert bundle_name(dataset="mnist", model="mlp-512-256-128") == "my-mnist-mlp"
    assert bundle_name(dataset="digits", model="mlp-64-64") == "my-digits-mlp-64-64"


def test_unknown_models_are_refused() -> None:
    for wrong in ("resnet", "mlp", "mlp-0", "mlp-64-x", "cnn-8", "cnn-8-8-8"):
        with pytest.raises(UsageError):
            models.build(wrong, shape=(4,), outputs=2)


def test_answers_do_not_depend_on_the_batch(dataset: Dataset) -> None:
    result = train(dataset, dataclasses.replace(SHORT, epochs=1), name="a")
    together = answers(result.module, result.blueprint, dataset.test.images[:8])
    alone = np.concatenate([answers(result.module, result.blueprint, image[None]) for image in dataset.test.images[:8]])
    assert np.allclose(together, alone, atol=1e-4)


def test_a_saved_bundle_gives_back_its_module_its_record_and_its_data(dataset: Dataset, tmp_path: Path) -> None:
    result = train(dataset, dataclasses.replace(SHORT, epochs=1), name="a")
    bundle = save(result, tmp_path / "a", dataset=dataset)
    assert training_record(bundle) == result.record
    assert Blueprint.of(bundle) == result.blueprint
    assert same_weights(result, bundle.folder) is not None
    (golden,) = bundle.golden()
    (entry,) = metadata.entry_points(group="kit.architectures")
    module = entry.load()(bundle)
    with torch.inference_mode():
        rebuilt = module(torch.from_numpy(golden.inputs["pixels"])).numpy()
    assert np.allclose(rebuilt, golden.expected["logits"], atol=1e-5)
    splits = datasets.of(bundle)
    assert splits is not None
    assert (splits.dataset, splits.validation_name) == ("digits", "validation")
    assert len(splits.validation[0].targets["labels"]) == result.record.validation.samples


def test_what_a_model_was_trained_on_whole_is_not_called_validation(dataset: Dataset, tmp_path: Path) -> None:
    result = train(dataset, dataclasses.replace(SHORT, epochs=1, val_fraction=0.0), name="a")
    splits = datasets.of(save(result, tmp_path / "a", dataset=dataset))
    assert splits is not None
    assert splits.validation_name == "train"


def test_another_bundle_has_neither_module_nor_data_of_the_labs(duo: Bundle) -> None:
    assert plugs.rebuild(duo) is None
    assert datasets.of(duo) is None
    assert training_record(duo) is None


def test_records_of_earlier_versions_are_read(dataset: Dataset, tmp_path: Path) -> None:
    result = train(dataset, dataclasses.replace(SHORT, epochs=1), name="a")
    bundle = save(result, tmp_path / "a", dataset=dataset)
    old = json.loads(bundle.attachment("training"))
    counted = {"dataset": "digits", "split": "validation", "images": 144, "correct": 108, "agreeing": 144}
    record = training_record(attach(bundle, "training", json.dumps(old | {"validation": counted}).encode()))
    assert record is not None
    assert (record.validation.metric, record.validation.value, record.validation.correct) == ("top-1", 0.75, 108)
    with pytest.raises(BundleInvalid, match="training record"):
        training_record(attach(bundle, "training", b"[]"))


@pytest.mark.parametrize("architecture", ["mlp-999999-999999", "mlp-9", "cnn-9999-9999-9999"])
def test_weights_that_are_not_those_of_the_architecture_are_told_before_it_is_built(
    tiny: Bundle, architecture: str
) -> None:
    """The first would take 4 TB."""
    blueprint = Blueprint.of(tiny)
    assert blueprint is not None
    assert tiny.manifest.original is not None
    assert tiny.manifest.original.weights is not None
    weights = tiny.check(tiny.manifest.original.weights)
    assert models.load_trained(blueprint, weights)
    with pytest.raises(BundleInvalid, match=r"does not fit the model .* expected"):
        models.load_trained(dataclasses.replace(blueprint, architecture=architecture), weights)
    assert not models.is_known("mlp" + "-9" * 65)
