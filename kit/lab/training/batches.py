"""What a training step learns from: labelled images, distorted anew in each epoch, or views that teachers have read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.nn import functional

from kit.lab.data.strokes import NO_DIGIT
from kit.lab.training.augment import distort
from kit.lab.training.recipe import Recipe
from kit.lab.training.world import World, seeded

Batch = tuple[torch.Tensor, torch.Tensor]
"""Images float32 or uint8 `[n, height, width]`, and what they are: labels int64 `[n]` or logits float `[n, classes]`."""


class Batches(Protocol):
    """Gives an epoch's batches; the loss that goes with them."""

    steps: int
    """In each epoch."""

    def epoch(self, number: int) -> Iterator[Batch]:
        """Yield this process's part of each batch of epoch `number`, counted from 1; the same whenever it is asked for."""

    def loss(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return the mean loss of a batch."""


class Labelled:
    """Images uint8 `[N, height, width]` with labels int64 `[N]`, distorted as the recipe says; NO_DIGIT for signs."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor, recipe: Recipe, world: World) -> None:
        self._images, self._labels = images.to(world.device), labels.to(world.device)
        self._recipe, self._world = recipe, world
        whole, rest = divmod(len(images), recipe.batch_size)
        self.steps = whole + _is_enough(rest, recipe.batch_size, world)

    def epoch(self, number: int) -> Iterator[Batch]:
        """Yield the images in a new order, each distorted anew."""
        recipe, world = self._recipe, self._world
        order = seeded(torch.device("cpu"), recipe.seed, number)
        chance = seeded(world.device, recipe.seed, number, world.rank)
        strength = recipe.calm_strength if number >= recipe.calm_from else 1.0
        distortion = recipe.distortion.times(strength)
        for indices in _parts(len(self._images), recipe.batch_size, world, order):
            images = self._images[indices]
            if recipe.augment:
                images = distort(images, distortion, chance)
            yield images, self._labels[indices]

    def loss(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return the cross-entropy; of a sign that is no digit, with every class as likely."""
        known = target != NO_DIGIT
        if bool(known.all()):
            return functional.cross_entropy(logits, target)
        losses = functional.cross_entropy(logits, target.clamp(min=0), reduction="none")
        unknown = -functional.log_softmax(logits, dim=1).mean(dim=1)
        return torch.where(known, losses, unknown).mean()


@dataclass(frozen=True)
class Views:
    """Images uint8 `[V, height, width]` and the teachers' mean logits float16 `[V, classes]`."""

    images: torch.Tensor
    logits: torch.Tensor


class Taught:
    """Views in a new order until all were seen, epoch after epoch; calm ones in the last epochs."""

    def __init__(self, views: Views, calm: Views, recipe: Recipe, world: World, *, images: int) -> None:
        assert recipe.teaching is not None  # the caller looked
        self._views, self._calm = views, calm
        self._recipe, self._world = recipe, world
        self._temperature = recipe.teaching.temperature
        self.steps = -(-images // recipe.batch_size)

    def epoch(self, number: int) -> Iterator[Batch]:
        """Yield the next views of a pass over all of them; each process has views of its own."""
        calm = number >= self._recipe.calm_from
        views, since = (self._calm, self._recipe.calm_from) if calm else (self._views, 1)
        share = max(self._recipe.batch_size // self._world.size, 1)
        per_pass = max(len(views.images) // share, 1)
        for step in range((number - since) * self.steps, (number - since + 1) * self.steps):
            if step % per_pass == 0 or step == (number - since) * self.steps:
                chosen = self._order(step // per_pass, len(views.images))
            place = step % per_pass * share
            indices = chosen[place : place + share]
            yield views.images[indices], views.logits[indices]

    def _order(self, number: int, count: int) -> torch.Tensor:
        """Draw the order of a pass, the same however often it is asked for: a resumed run begins in the middle of one."""
        order = seeded(torch.device("cpu"), self._recipe.seed, number, self._world.rank)
        return torch.randperm(count, generator=order).to(self._world.device)

    def loss(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return the divergence of the softened answers, scaled so that its gradient does not fade (Hinton et al. 2015)."""
        soft = functional.log_softmax(logits / self._temperature, dim=1)
        wanted = functional.log_softmax(target.to(torch.float32) / self._temperature, dim=1)
        return functional.kl_div(soft, wanted, reduction="batchmean", log_target=True) * self._temperature**2


def draw_views(
    images: torch.Tensor,
    recipe: Recipe,
    read: Callable[[torch.Tensor], torch.Tensor],
    world: World,
    on_view: Callable[[int, int], None],
) -> tuple[Views, Views]:
    """Distort images uint8 `[N, height, width]` several times and have the teachers read the rounded pixels.

    `read` gives logits `[n, classes]` for pixels uint8 `[n, height, width]`; `on_view` is told (views done, in all).
    Each process draws its share of the images. Returns views for the main part, and calm ones that include the images.
    """
    teaching = recipe.teaching
    assert teaching is not None  # the caller looked
    own = images[world.rank :: world.size].to(world.device)
    wanted = (
        (recipe.distortion, teaching.views, False),
        (recipe.distortion.times(recipe.calm_strength), teaching.calm_views, True),
    )
    found = []
    done, total = 0, teaching.views + teaching.calm_views + 1
    for distortion, count, with_plain in wanted:
        parts = [own] if with_plain else []
        for view in range(count):
            chance = seeded(world.device, recipe.seed, world.rank, view, int(with_plain))
            parts.append(
                torch.cat(
                    [
                        distort(part, distortion, chance).round_().clamp_(0, 255).to(torch.uint8)
                        for part in torch.split(own, 2000)
                    ]
                )
            )
        logits = []
        for part in parts:
            logits.append(read(part).to(torch.float16))
            done += 1
            on_view(done, total)
        found.append(Views(torch.cat(parts), torch.cat(logits)))
    return found[0], found[1]


def _parts(count: int, batch: int, world: World, order: torch.Generator) -> Iterator[torch.Tensor]:
    """Yield this process's part of each batch of a random order; parts are of one size, so that nobody waits.

    A rest of one image for each process is left out this time: batch normalisation cannot learn from it.
    """
    shuffled = torch.randperm(count, generator=order).to(world.device)
    for indices in torch.split(shuffled, batch):
        if _is_enough(len(indices), batch, world):
            share = len(indices) // world.size
            yield indices[world.rank * share : (world.rank + 1) * share] if world.size > 1 else indices


def _is_enough(count: int, batch: int, world: World) -> bool:
    """Whether each process gets more than one image of so many, or as many as of a whole batch."""
    share = count // world.size
    return count > 0 and (share > 1 or share == batch // world.size)
