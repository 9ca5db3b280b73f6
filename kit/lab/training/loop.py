"""Training: images and labels in memory, a validation split held out, teachers first where a recipe has them.

    result = train(dataset, Recipe(epochs=10), name="my-model", listener=Listener(on_epoch=print))

Repeatable: the same recipe on the same machine with the same versions gives the same weights, even if it was killed and
taken up again.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from kit.errors import KitError, UsageError
from kit.lab import models
from kit.lab.blueprint import Blueprint
from kit.lab.data import Dataset, Split, validation_indices
from kit.lab.data.strokes import draw_digits
from kit.lab.records import TrainingRecord
from kit.lab.scores import top1
from kit.lab.training import confidence
from kit.lab.training.batches import Batches, Labelled, Taught, draw_views
from kit.lab.training.checkpoint import Checkpoint, RunFolder
from kit.lab.training.recipe import Recipe
from kit.lab.training.trainer import State, Trainer, predict
from kit.lab.training.world import World
from kit.system.wording import counted

STUDENT = "student"
_CHECKPOINT_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """What one epoch brought.

    Attributes:
        phase: `student`, or `teacher-0`, ... before it.
        validation_top1: A share, 0 to 1; None where nothing is held out.
    """

    phase: str
    epoch: int
    epochs: int
    loss: float
    validation_top1: float | None
    learning_rate: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """The module with its best weights, what it is, and how it came to be.

    Attributes:
        validation: The split that was held out, and the module's logits float32 `[N, classes]` on it; None without one.
    """

    name: str
    module: nn.Module
    blueprint: Blueprint
    record: TrainingRecord
    validation: tuple[Split, NDArray[np.float32]] | None = None


class DivergedError(KitError):
    """The loss is no number any more."""

    exit_code = 1


class InterruptedEarlyError(KitError):
    """Training was interrupted before there was anything to keep."""

    exit_code = 130


@dataclass(frozen=True, kw_only=True)
class Listener:
    """Who is told how training goes on: each epoch, and now and then what is being done and its share that is done."""

    on_epoch: Callable[[Epoch], None] = lambda _: None
    on_step: Callable[[str, float], None] = lambda _what, _share: None


def train(
    dataset: Dataset,
    recipe: Recipe,
    *,
    name: str,
    world: World | None = None,
    run_folder: Path | None = None,
    resume: bool = False,
    checkpoint_seconds: float = _CHECKPOINT_SECONDS,
    listener: Listener | None = None,
) -> TrainingResult:
    """Train by a recipe, on the training split alone; without a world, in this process on the CPU.

    Checkpoints are written into `run_folder`, if there is one, between epochs, `checkpoint_seconds` apart or more;
    `resume` goes on from the last of them. Ctrl-C ends training after what it has: the epoch to keep so far is returned
    and its record says `interrupted`.

    Raises:
        InterruptedEarlyError: There is nothing to keep yet.
        UsageError: An unknown model, or a fraction that leaves nothing.
        BadInput: The checkpoint is corrupt or of another run.
        StorageUnavailable: A checkpoint cannot be written.
    """
    return _Run(dataset, recipe, name, world, run_folder, resume, checkpoint_seconds, listener).result()


def blueprint_for(dataset: Dataset, recipe: Recipe) -> Blueprint:
    """Describe the model that a recipe trains on a data set."""
    height, width = dataset.train.images.shape[1:]
    temperature, threshold = recipe.confidence or (1.0, None)
    return Blueprint(
        architecture=recipe.model,
        shape=(int(height), int(width)),
        labels=dataset.info.labels,
        pipeline=dataset.info.pipeline,
        normalization=recipe.normalization or dataset.info.normalization,
        temperature=temperature,
        abstain_below=threshold,
    )


def with_drawings(train: Split, recipe: Recipe) -> Split:
    """Return training images with the digits and signs that the recipe has drawn beside them.

    Raises:
        UsageError: The images are not of the size that digits are drawn in.
    """
    if not (recipe.drawn or recipe.signs):
        return train
    drawn = draw_digits(recipe.drawn, signs=recipe.signs, seed=recipe.seed)
    if train.images.shape[1:] != drawn.images.shape[1:]:
        raise UsageError("digits are drawn in 28x28 pixels, and the images have other sizes", hint="drawn=0, signs=0")
    return Split(np.concatenate([train.images, drawn.images]), np.concatenate([train.labels, drawn.labels]))


class _Run:
    def __init__(
        self,
        dataset: Dataset,
        recipe: Recipe,
        name: str,
        world: World | None,
        folder: Path | None,
        resume: bool,
        checkpoint_seconds: float,
        listener: Listener | None,
    ) -> None:
        self.dataset, self.recipe, self.name = dataset, recipe, name
        self.blueprint = blueprint_for(dataset, recipe)
        self.world = world or World(device=torch.device("cpu"))
        self.listener = listener or Listener()
        self.checkpoint_seconds = checkpoint_seconds
        fitted, held_out = validation_indices(len(dataset.train), fraction=recipe.val_fraction, seed=recipe.seed)
        learnt = with_drawings(dataset.train.take(fitted), recipe)
        self.images, self.labels = torch.from_numpy(learnt.images), torch.from_numpy(learnt.labels)
        self.held_out = dataset.train.take(held_out) if len(held_out) else None
        self._check_batches()
        self.folder = RunFolder(folder, recipe, dataset) if folder is not None else None
        self.start: Checkpoint | None = None
        self.resumed = resume
        if self.folder is not None and resume:
            self.start = self.folder.load()
        elif self.folder is not None and self.world.is_first:
            self.folder.begin_anew()
        self.world.wait()
        self.before = self.start.seconds if self.start is not None else 0.0
        self.began = time.perf_counter()

    def _check_batches(self) -> None:
        recipes = [self.recipe, *([self.recipe.teaching.teacher] if self.recipe.teaching else [])]
        for recipe in recipes:
            least = 2 if recipe.batch_norm or recipe.model.startswith("cnn") else 1
            share = min(recipe.batch_size, len(self.images)) // self.world.size
            if share < least:
                raise UsageError(
                    f"{recipe.model} needs {counted(least, 'image')} or more in each batch of each of "
                    f"{counted(self.world.size, 'process', 'processes')}, found {share}",
                    hint="use a larger --batch-size, fewer processes, or more images",
                )

    @property
    def seconds(self) -> float:
        """Spent on this run, those before it was taken up again included."""
        return self.before + time.perf_counter() - self.began

    def result(self) -> TrainingResult:
        recipe = self.recipe
        phase: _Phase | None = None
        try:
            batches = self._batches()
            phase = _Phase(self, STUDENT, recipe, batches)
            phase.run()
        except KeyboardInterrupt:
            if phase is not None:
                phase.save()
            if phase is None or not phase.history:
                raise InterruptedEarlyError(
                    "interrupted before there was anything to keep",
                    hint="repeat the line with --resume to go on" if self.folder is not None else "",
                ) from None
        module, best_epoch = phase.best()
        epochs_run = len(phase.history)
        blueprint, validation, figures, found = self.blueprint, None, None, None
        if self.held_out is not None:
            images = torch.from_numpy(self.held_out.images)
            logits = predict(module, images, blueprint.normalization, self.world).cpu().numpy()
            validation = top1(logits, self.held_out.labels, dataset=self.dataset.name, split="validation")
            temperature, threshold, figures = confidence.fit(logits, self.held_out.labels)
            blueprint = dataclasses.replace(blueprint, temperature=temperature, abstain_below=threshold)
            found = self.held_out, logits
        record = TrainingRecord(
            dataset=self.dataset.name,
            recipe=recipe.described(),
            seed=recipe.seed,
            validation_fraction=recipe.val_fraction,
            validation=validation,
            epochs_run=epochs_run,
            best_epoch=best_epoch,
            interrupted=epochs_run < recipe.epochs,
            train_seconds=round(self.seconds, 3),
            history=phase.history,
            confidence=figures,
            device=f"{self.world.device.type} {phase.trainer.precision}",
        )
        return TrainingResult(
            name=self.name, module=module.cpu().eval(), blueprint=blueprint, record=record, validation=found
        )

    def _batches(self) -> Batches:
        """Return what the student learns from; train the teachers, and have them read, where there are some."""
        recipe, world = self.recipe, self.world
        is_done = self.start is not None and (self.start.phase, self.start.epoch) == (STUDENT, recipe.epochs)
        if recipe.teaching is None or is_done:
            return Labelled(self.images, self.labels, recipe, world)
        teachers = [self._teacher(number) for number in range(recipe.teaching.count)]

        def read(pixels: torch.Tensor) -> torch.Tensor:
            logits = [
                predict(teacher, pixels, self.blueprint.normalization, world, bf16=recipe.bf16) for teacher in teachers
            ]
            return torch.stack(logits).mean(dim=0)

        def on_view(done: int, total: int) -> None:
            self.listener.on_step(f"the teachers read view {done} of {total}", done / total)

        views, calm = draw_views(self.images, recipe, read, world, on_view)
        return Taught(views, calm, recipe, world, images=len(self.images))

    def _teacher(self, number: int) -> nn.Module:
        assert self.recipe.teaching is not None  # the caller looked
        plan = self.recipe.teaching.teacher
        recipe = dataclasses.replace(plan, seed=self.recipe.seed * 100 + plan.seed + number)
        name = f"teacher-{number}"
        done = self.folder.load_weights(name) if self.folder is not None and self.resumed else None
        if done is not None:
            module = _build(dataclasses.replace(recipe, batch_norm=False), self.blueprint)  # it was folded
            module.load_state_dict(done)
            return module.to(self.world.device).eval()
        phase = _Phase(self, name, recipe, Labelled(self.images, self.labels, recipe, self.world))
        try:
            phase.run()
        except KeyboardInterrupt:
            phase.save()
            raise
        module, _ = phase.best()
        self.world.take_from_first(module)
        if self.folder is not None and self.world.is_first:
            self.folder.save_weights(name, module.state_dict())
        self.world.wait()
        return module


class _Phase:
    """The training of one module, a teacher or the student: epochs, evaluation, the one to keep, checkpoints."""

    def __init__(self, run: _Run, name: str, recipe: Recipe, batches: Batches) -> None:
        self._owner, self.name, self.recipe = run, name, recipe
        torch.manual_seed(recipe.seed)
        module = _build(recipe, run.blueprint)
        self.trainer = Trainer(
            module,
            recipe,
            batches,
            run.blueprint.normalization,
            run.world,
            lambda share: run.listener.on_step(name, share),
        )
        # All that is known at the end of an epoch, replaced in one step: an interrupt may come at any moment.
        self._done = Checkpoint(phase=name, epoch=0, state={}, best={}, history=(), seconds=0.0)
        self._saved_at = time.perf_counter()
        start = run.start
        if start is not None and start.phase == name:
            self.trainer.load(start.state)
            self._done = start

    @property
    def history(self) -> tuple[dict[str, float], ...]:
        return self._done.history

    def run(self) -> None:
        for number in range(len(self.history) + 1, self.recipe.epochs + 1):
            self._owner.listener.on_epoch(self._epoch(number))

    def best(self) -> tuple[nn.Module, int]:
        """Return the module with the weights that are kept, without what served its training only, and their epoch."""
        module = _build(self.recipe, self._owner.blueprint)
        module.load_state_dict(self._done.best)
        best = self.history[-1]
        if self._chooses:
            best = max(self.history, key=lambda row: (row["validation_top1"], -row["epoch"]))
        return models.folded(module).to(self._owner.world.device).eval(), int(best["epoch"])

    def _epoch(self, number: int) -> Epoch:
        started = time.perf_counter()
        learning_rate = self.trainer.learning_rate
        loss = self.trainer.epoch(number)
        top1 = self._top1()
        seconds = round(time.perf_counter() - started, 3)
        if not math.isfinite(loss):
            raise DivergedError(f"the loss is no number after epoch {number}", hint="use a lower --lr")
        row = {"epoch": float(number), "loss": loss, "learning_rate": learning_rate, "seconds": seconds}
        if top1 is not None:
            row["validation_top1"] = top1
        is_best = not self._chooses or all(
            row["validation_top1"] > before["validation_top1"] for before in self.history
        )
        self._done = Checkpoint(
            phase=self.name,
            epoch=number,
            state=_copy(self.trainer.state()),
            best=_copy(self.trainer.fitted.state_dict()) if is_best else self._done.best,
            history=(*self.history, row),
            seconds=self._owner.seconds,
        )
        if number == self.recipe.epochs or time.perf_counter() - self._saved_at >= self._owner.checkpoint_seconds:
            self.save()
        return Epoch(
            phase=self.name,
            epoch=number,
            epochs=self.recipe.epochs,
            loss=loss,
            validation_top1=top1,
            learning_rate=learning_rate,
            seconds=seconds,
        )

    def _top1(self) -> float | None:
        held_out = self._owner.held_out
        if held_out is None:
            return None
        right = self.trainer.logits(torch.from_numpy(held_out.images)).argmax(dim=1) == torch.from_numpy(
            held_out.labels
        )
        return float(right.sum()) / len(held_out)

    @property
    def _chooses(self) -> bool:
        """Whether the best epoch is kept, and not the last."""
        return self.recipe.keep == "best" and self._owner.held_out is not None

    def save(self) -> None:
        owner = self._owner
        if owner.folder is not None and owner.world.is_first and self._done.epoch:
            owner.folder.save(self._done)
            self._saved_at = time.perf_counter()


def _build(recipe: Recipe, blueprint: Blueprint) -> nn.Module:
    outputs = len(blueprint.labels)
    return models.build(recipe.model, shape=blueprint.shape, outputs=outputs, batch_norm=recipe.batch_norm)


def _copy(state: Mapping[str, torch.Tensor]) -> State:
    return {name: value.detach().to("cpu", copy=True) for name, value in state.items()}
