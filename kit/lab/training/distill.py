"""Fit a network that has weights already to the answers of another one, on distorted views of unlabelled images."""

from __future__ import annotations

import torch
from torch import nn

from kit.lab import models
from kit.lab.blueprint import Normalization
from kit.lab.models import Mlp
from kit.lab.training.batches import Taught, draw_views
from kit.lab.training.recipe import Recipe
from kit.lab.training.trainer import Trainer, predict
from kit.lab.training.world import World
from kit.system.progress import OnProgress, silent

_SEEN = 10_000
"""Images that are looked at to begin where the network is."""


def distill(
    student: Mlp,
    teacher: nn.Module,
    pixels: torch.Tensor,
    recipe: Recipe,
    normalization: Normalization,
    *,
    world: World | None = None,
    on_progress: OnProgress = silent,
) -> nn.Module:
    """Return the student in evaluation mode, fitted to the teacher on views of pixels uint8 `[N, height, width]`.

    The recipe needs its teaching; its `model` is not looked at. Batch normalisation, where it asks for that, changes
    nothing at first and is folded afterwards. Without a world: this process alone, on the CPU.
    """
    world = world or World(device=torch.device("cpu"))
    torch.manual_seed(recipe.seed)
    teacher = teacher.to(world.device).eval()

    def read(images: torch.Tensor) -> torch.Tensor:
        return predict(teacher, images, normalization, world, bf16=recipe.bf16)

    views, calm = draw_views(
        pixels, recipe, read, world, lambda done, total: on_progress("distorting and reading views", done / total)
    )
    batches = Taught(views, calm, recipe, world, images=len(pixels))
    module: nn.Module = student
    if recipe.batch_norm:
        module = with_batch_norm(student, pixels[:_SEEN].to(torch.float32) * normalization.scale + normalization.shift)
    trainer = Trainer(module, recipe, batches, normalization, world)
    for number in range(1, recipe.epochs + 1):
        loss = trainer.epoch(number)
        on_progress(f"epoch {number} of {recipe.epochs}, loss {loss:.4f}", number / recipe.epochs)
    return models.folded(trainer.fitted).cpu().eval()


@torch.no_grad()
def with_batch_norm(module: Mlp, normalized: torch.Tensor) -> Mlp:
    """Return the same network with batch normalisation in its hidden layers, set so that it computes what it did.

    Means and variances are those of the units for `normalized`, float32 `[N, height, width]`.
    """
    found = Mlp(module.sizes, batch_norm=True, crop=module.crop)
    sources = iter(layer for layer in module.layers if isinstance(layer, nn.Linear))
    height, width = normalized.shape[1:]
    values = normalized[:, module.crop : height - module.crop, module.crop : width - module.crop].flatten(1)
    for layer in found.layers:
        if isinstance(layer, nn.Linear):
            layer.load_state_dict(next(sources).state_dict())
            values = layer(values)
        elif isinstance(layer, nn.BatchNorm1d):
            mean, variance = values.mean(dim=0), values.var(dim=0, unbiased=False)
            assert layer.running_mean is not None  # they are tracked
            assert layer.running_var is not None
            layer.running_mean.copy_(mean)
            layer.running_var.copy_(variance)
            layer.weight.copy_(torch.sqrt(variance + layer.eps))
            layer.bias.copy_(mean)
        elif isinstance(layer, nn.ReLU):
            values = values.relu()
    return found
