"""How fast kit trains: against the usual tutorial loop, against the bare arithmetic, and what augmentation costs.

    python scripts/training_speed.py [--data-dir FOLDER] [--target 98.2]

Prints three figures, all from this one run on this machine:

- the tutorial's loop (torchvision's MNIST in a DataLoader, ToTensor and Normalize for each image, batches of 100, SGD) over
  its 10 epochs, against the default recipe up to the epoch at which it first reads TARGET % of the validation images;
- an epoch of kit's loop without augmentation against forward, backward and step alone of the same batches, in turns;
- an epoch with augmentation against one without, in turns.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Subset

from kit.lab import data, models
from kit.lab.data import Dataset, validation_indices
from kit.lab.scores import top1 as count_top1
from kit.lab.training.batches import Labelled
from kit.lab.training.loop import Epoch, Listener, train
from kit.lab.training.recipe import RECIPES, Recipe
from kit.lab.training.trained import answers
from kit.lab.training.trainer import Trainer, normalized, precision
from kit.lab.training.world import World, world

TURNS = 7


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, help="holds MNIST/raw; kit's own folder without it")
    parser.add_argument("--target", type=float, default=98.2, help="validation accuracy to reach, in percent")
    asked = parser.parse_args()
    dataset = data.load("mnist", data_dir=asked.data_dir)
    with world("cpu") as here:
        _to_target(dataset, asked.data_dir or data.default_dir(), asked.target / 100, here)
        _overheads(dataset, here)


def _to_target(dataset: Dataset, root: Path, target: float, here: World) -> None:
    article, default = RECIPES["article"], RECIPES["default"]
    tutorial = _tutorial_seconds(dataset, root, article)
    print(f"tutorial's loop: {article.epochs} epochs in {tutorial:.1f} s")
    began = time.perf_counter()
    reached: list[tuple[int, float, float]] = []

    def on_epoch(epoch: Epoch) -> None:
        seconds = time.perf_counter() - began
        top1 = epoch.validation_top1 or 0.0
        print(f"  default recipe, epoch {epoch.epoch}: {100 * top1:.2f} % of validation after {seconds:.1f} s")
        if not reached and top1 >= target:
            reached.append((epoch.epoch, seconds, top1))
            raise KeyboardInterrupt  # keeps what there is

    result = train(dataset, default, name="speed", world=here, listener=Listener(on_epoch=on_epoch))
    if not reached:
        print(f"the default recipe did not reach {100 * target:g} %")
        return
    epoch, seconds, top1 = reached[0]
    logits = answers(result.module, result.blueprint, dataset.test.images)
    test = count_top1(logits, dataset.test.labels, dataset="mnist", split="test")
    print(
        f"default recipe: {100 * top1:.2f} % of validation after {epoch} epochs and {seconds:.1f} s, "
        f"{100 * test.value:.2f} % of the test set: {tutorial / seconds:.1f} times as fast"
    )


def _tutorial_seconds(dataset: Dataset, root: Path, article: Recipe) -> float:
    """Train as tutorials do, on the same images as kit, and return the seconds."""
    from torchvision import datasets, transforms

    fitted, _ = validation_indices(len(dataset.train), fraction=article.val_fraction, seed=0)
    each = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5,), (0.5,))])
    images = Subset(datasets.MNIST(root=str(root), train=True, transform=each, download=True), fitted.tolist())
    loader = DataLoader(images, batch_size=article.batch_size, shuffle=True)
    module = models.build(article.model, shape=(1, 28, 28), outputs=10)
    optimizer = torch.optim.SGD(module.parameters(), lr=article.lr, momentum=article.momentum)
    loss_of = nn.CrossEntropyLoss()
    began = time.perf_counter()
    for _ in range(article.epochs):
        for batch, labels in loader:
            optimizer.zero_grad()
            loss = loss_of(module(batch), labels)
            loss.backward()
            optimizer.step()
    return time.perf_counter() - began


def _overheads(dataset: Dataset, here: World) -> None:
    plain = dataclasses.replace(RECIPES["default"], augment=False)
    augmented = dataclasses.replace(plain, augment=True)
    own, with_augmentation, bare = (
        _epoch(dataset, plain, here),
        _epoch(dataset, augmented, here),
        _bare(dataset, plain, here),
    )
    turns: dict[str, list[float]] = {"kit": [], "augmented": [], "bare": []}
    rng = np.random.default_rng(0)
    tasks = [("kit", own), ("augmented", with_augmentation), ("bare", bare)]
    for turn in range(TURNS + 1):
        for index in rng.permutation(len(tasks)):
            name, task = tasks[index]
            began = time.perf_counter()
            task(turn + 1)
            if turn:  # the first one warms up
                turns[name].append(time.perf_counter() - began)
    _print_ratio(
        "kit's epoch without augmentation, against forward, backward and step alone", turns["kit"], turns["bare"]
    )
    _print_ratio("an epoch with augmentation, against one without", turns["augmented"], turns["kit"])
    cost = statistics.median(turns["augmented"]) - statistics.median(turns["kit"])
    print(f"augmentation of {len(dataset.train):,} images: {cost:.2f} s")


def _print_ratio(what: str, one: list[float], other: list[float]) -> None:
    ratios = sorted(a / b for a, b in zip(one, other, strict=True))
    print(
        f"{what}: {statistics.median(ratios):.2f} times [{ratios[0]:.2f}, {ratios[-1]:.2f}] "
        f"({statistics.median(one):.2f} s and {statistics.median(other):.2f} s, {len(ratios)} turns)"
    )


def _epoch(dataset: Dataset, recipe: Recipe, here: World) -> Callable[[int], object]:
    torch.manual_seed(0)
    module = models.build(recipe.model, shape=(28, 28), outputs=10, batch_norm=recipe.batch_norm)
    images, labels = torch.from_numpy(dataset.train.images), torch.from_numpy(dataset.train.labels)
    long = dataclasses.replace(recipe, epochs=100)  # the schedule must not end meanwhile
    return Trainer(module, long, Labelled(images, labels, long, here), dataset.info.normalization, here).epoch


def _bare(dataset: Dataset, recipe: Recipe, here: World) -> Callable[[int], object]:
    torch.manual_seed(0)
    module = models.build(recipe.model, shape=(28, 28), outputs=10, batch_norm=recipe.batch_norm)
    optimizer = torch.optim.AdamW(module.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True)
    everything = normalized(torch.from_numpy(dataset.train.images), dataset.info.normalization)
    batches = list(
        zip(
            torch.split(everything, recipe.batch_size),
            torch.split(torch.from_numpy(dataset.train.labels), recipe.batch_size),
            strict=True,
        )
    )

    def epoch(_number: int) -> None:
        for images, labels in batches:
            optimizer.zero_grad(set_to_none=True)
            with precision(here, bf16=recipe.bf16):
                logits = module(images)
            nn.functional.cross_entropy(logits.to(torch.float32), labels).backward()
            optimizer.step()

    return epoch


if __name__ == "__main__":
    main()
