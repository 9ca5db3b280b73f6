"""The training loop: uint8 tensors in memory, a validation split held out, the best weights kept.

    result = train(dataset, Recipe(epochs=10), on_epoch=print)

Knows tensors and labels; what the pictures show is the data set's business. Repeatable: the same recipe on the same
machine with the same versions gives the same weights.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from kit import models
from kit.accuracy import accuracy
from kit.data import Dataset, Split, validation_indices
from kit.errors import KitError
from kit.machine import this_machine
from kit.spec import Accuracy, ModelSpec, Normalization, TensorSpec, TrainingRecord
from kit.training.augment import random_affine
from kit.training.recipe import Recipe

_EVALUATION_BATCH = 2000


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """What one epoch brought; `validation_top1` is a share, 0 to 1."""

    epoch: int
    loss: float
    validation_top1: float
    learning_rate: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """The module with its best weights, what it is, and how it came to be."""

    module: nn.Module
    spec: ModelSpec
    record: TrainingRecord


class InterruptedEarlyError(KitError):
    """Training was interrupted before its first epoch ended, so that there is nothing to keep."""

    exit_code = 130


def train(
    dataset: Dataset,
    recipe: Recipe,
    *,
    name: str,
    on_epoch: Callable[[Epoch], None] = lambda _: None,
    on_step: Callable[[int, int], None] = lambda _done, _total: None,
) -> TrainingResult:
    """Train by a recipe and keep the epoch that is best on the validation split.

    Args:
        dataset: Only its training split is looked at.
        recipe: What to do.
        name: Name of the bundle the ModelSpec is for.
        on_epoch: Told after each epoch.
        on_step: Told (steps done, steps in all) now and then.

    Ctrl-C ends training after what it has: the best epoch so far is returned and its record says `interrupted`.

    Raises:
        InterruptedEarlyError: There is no finished epoch yet.
        UsageError: An unknown model, or a fraction that leaves nothing.
    """
    spec = spec_for(dataset, recipe, name=name)
    fitted, held_out = validation_indices(len(dataset.train), fraction=recipe.val_fraction, seed=recipe.seed)
    # torch counts the CPUs it may run on, but not the share of them that a container's quota allows
    torch.set_num_threads(min(torch.get_num_threads(), this_machine().cpus_to_use))
    torch.manual_seed(recipe.seed)
    module = models.build(recipe.model, inputs=dataset.train.images[0].size, outputs=len(dataset.info.labels))
    session = _Session(module, spec, recipe, dataset.train.take(fitted), dataset.train.take(held_out), on_step)
    started = time.perf_counter()
    interrupted = False
    try:
        for number in range(1, recipe.epochs + 1):
            on_epoch(session.epoch(number))
    except KeyboardInterrupt:
        interrupted = True
        if session.best is None:
            raise InterruptedEarlyError("interrupted before the first epoch ended: nothing to keep") from None
    assert session.best is not None  # recipe.epochs >= 1
    module.load_state_dict(session.best_state)
    record = TrainingRecord(
        dataset=dataset.name,
        recipe=recipe.described(),
        seed=recipe.seed,
        validation_fraction=recipe.val_fraction,
        validation=session.best_accuracy(dataset.name),
        epochs_run=len(session.history),
        best_epoch=session.best.epoch,
        interrupted=interrupted,
        train_seconds=round(time.perf_counter() - started, 3),
        history=tuple(_row(epoch) for epoch in session.history),
    )
    return TrainingResult(module=module.eval(), spec=spec, record=record)


def spec_for(dataset: Dataset, recipe: Recipe, *, name: str) -> ModelSpec:
    """Describe the model that a recipe trains on a data set."""
    height, width = dataset.train.images.shape[1:]
    return ModelSpec(
        name=name,
        architecture=recipe.model,
        input=TensorSpec(name="pixels", dtype="uint8", shape=(int(height), int(width))),
        output=TensorSpec(name="logits", dtype="float32", shape=(len(dataset.info.labels),)),
        labels=dataset.info.labels,
        pipeline=dataset.info.pipeline,
        normalization=recipe.normalization or dataset.info.normalization,
    )


class _Session:
    """The state of one training run: module, optimizer, schedule, generator, and the best so far."""

    def __init__(
        self,
        module: nn.Module,
        spec: ModelSpec,
        recipe: Recipe,
        fitted: Split,
        held_out: Split,
        on_step: Callable[[int, int], None],
    ) -> None:
        self.module = module
        self.recipe = recipe
        self.normalization: Normalization = spec.normalization
        self.images = torch.from_numpy(fitted.images)
        self.labels = torch.from_numpy(fitted.labels)
        self.held_out = held_out
        self.generator = torch.Generator().manual_seed(recipe.seed)
        self.optimizer = _optimizer(module, recipe)
        self.steps_per_epoch = -(-len(fitted) // recipe.batch_size)
        self.schedule = _schedule(self.optimizer, recipe, self.steps_per_epoch)
        self.on_step = on_step
        self.best: Epoch | None = None
        self.best_state: dict[str, torch.Tensor] = {}
        self.history: list[Epoch] = []

    def epoch(self, number: int) -> Epoch:
        """Run one epoch, evaluate it, and remember it if it is the best."""
        started = time.perf_counter()
        learning_rate = self.optimizer.param_groups[0]["lr"]
        loss = self._fit(number)
        correct = int((self._predict(self.held_out) == torch.from_numpy(self.held_out.labels)).sum())
        result = Epoch(
            epoch=number,
            loss=loss,
            validation_top1=correct / len(self.held_out),
            learning_rate=learning_rate,
            seconds=round(time.perf_counter() - started, 3),
        )
        self.history.append(result)
        if self.best is None or result.validation_top1 > self.best.validation_top1:
            self.best, self.best_state = result, copy.deepcopy(self.module.state_dict())
        return result

    def best_accuracy(self, dataset: str) -> Accuracy:
        """Count the validation images the module, with its best weights, reads correctly."""
        logits = self._logits(self.held_out).numpy()
        return accuracy(logits, self.held_out.labels, dataset=dataset, split="validation")

    def _fit(self, number: int) -> float:
        """Take one pass over the training images; return the mean loss."""
        self.module.train()
        order = torch.randperm(len(self.images), generator=self.generator)
        total = 0.0
        for step, indices in enumerate(torch.split(order, self.recipe.batch_size), start=1):
            inputs = self.images[indices].to(torch.float32)
            if self.recipe.augment:
                inputs = random_affine(inputs, self.generator)
            logits = self.module(self._normalize(inputs))
            loss = nn.functional.cross_entropy(logits, self.labels[indices])
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            self.schedule.step()
            total += float(loss.detach()) * len(indices)
            if step % 20 == 0 or step == self.steps_per_epoch:
                self.on_step((number - 1) * self.steps_per_epoch + step, self.recipe.epochs * self.steps_per_epoch)
        return total / len(self.images)

    def _normalize(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs * self.normalization.scale + self.normalization.shift

    def _logits(self, split: Split) -> torch.Tensor:
        self.module.eval()
        with torch.inference_mode():
            parts = torch.split(torch.from_numpy(split.images), _EVALUATION_BATCH)
            return torch.cat([self.module(self._normalize(part.to(torch.float32))) for part in parts])

    def _predict(self, split: Split) -> torch.Tensor:
        return self._logits(split).argmax(dim=1)


def _optimizer(module: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(module.parameters(), lr=recipe.lr, momentum=recipe.momentum)
    return torch.optim.AdamW(module.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)


def _schedule(
    optimizer: torch.optim.Optimizer, recipe: Recipe, steps_per_epoch: int
) -> torch.optim.lr_scheduler.LRScheduler:
    total = recipe.epochs * steps_per_epoch
    if recipe.schedule == "constant" or total < 10:  # a handful of steps has no room for a cycle
        return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=recipe.lr, total_steps=total)


def _row(epoch: Epoch) -> dict[str, float]:
    return {
        "epoch": float(epoch.epoch),
        "loss": epoch.loss,
        "validation_top1": epoch.validation_top1,
        "learning_rate": epoch.learning_rate,
        "seconds": epoch.seconds,
    }
