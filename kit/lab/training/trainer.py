"""One module, fitted: optimizer, schedule, moving average, and a state that can be put away and taken up again."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from kit.lab.blueprint import Normalization
from kit.lab.training.batches import Batches
from kit.lab.training.recipe import Recipe
from kit.lab.training.world import World

_EVALUATION_BATCH = 2000
_LOWEST = 1 / 25  # of the peak learning rate, where the one-cycle schedule begins
_FEW_STEPS = 10  # have no room for a cycle

State = dict[str, torch.Tensor]


class Trainer:
    """Fits a module that takes normalised float32 `[n, height, width]` to batches, an epoch at a time.

    The module is moved to the world's device. `on_step` is told the share of all steps that is done, now and then.
    """

    def __init__(
        self,
        module: nn.Module,
        recipe: Recipe,
        batches: Batches,
        normalization: Normalization,
        world: World,
        on_step: Callable[[float], None] = lambda _: None,
    ) -> None:
        self.module = module.to(world.device)
        self._recipe, self._batches, self._world = recipe, batches, world
        self._normalization, self._on_step = normalization, on_step
        self._shared = world.shared(self.module)
        self._optimizer = _optimizer(self.module, recipe)
        self._average: AveragedModel | None = None
        if recipe.average:
            average = get_ema_multi_avg_fn(recipe.average)  # type: ignore[no-untyped-call]
            self._average = AveragedModel(self.module, multi_avg_fn=average, use_buffers=True)
        self._steps_done = 0
        self._steps = recipe.epochs * batches.steps

    @property
    def fitted(self) -> nn.Module:
        """The module to evaluate and to keep: the average where there is one."""
        return self._average.module if self._average is not None else self.module

    @property
    def precision(self) -> str:
        """In which the products are computed."""
        return "bfloat16" if self._recipe.bf16 and self._world.has_fast_bf16() else "float32"

    @property
    def learning_rate(self) -> float:
        """Of the next step."""
        return self._recipe.lr * cycle(self._steps_done, self._steps, self._recipe)

    def epoch(self, number: int) -> float:
        """Take one pass; return the mean loss."""
        self._shared.train()
        total, images = torch.zeros((), device=self._world.device), 0
        for pixels, target in self._batches.epoch(number):
            for group in self._optimizer.param_groups:
                group["lr"] = self.learning_rate
            with precision(self._world, bf16=self._recipe.bf16):
                logits = self._shared(normalized(pixels, self._normalization))
            loss = self._batches.loss(logits.to(torch.float32), target)
            self._optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
            if self._average is not None:
                self._average.update_parameters(self.module)
            total += loss.detach() * len(pixels)
            images += len(pixels)
            self._steps_done += 1
            if self._steps_done % 20 == 0 or self._steps_done == self._steps:
                self._on_step(self._steps_done / self._steps)
        return self._world.mean(float(total) / max(images, 1))

    def logits(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the fitted module's logits float32 `[N, classes]`, on the CPU, for pixels uint8 `[N, height, width]`."""
        return predict(self.fitted, pixels, self._normalization, self._world, bf16=self._recipe.bf16).cpu()

    def state(self) -> State:
        """Return all that decides how training goes on, as tensors by name."""
        found = {f"module.{name}": value for name, value in self.module.state_dict().items()}
        if self._average is not None:
            found |= {f"average.{name}": value for name, value in self._average.state_dict().items()}
        for index, state in self._optimizer.state_dict()["state"].items():
            found |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in state.items()}
        found["steps"] = torch.tensor(self._steps_done)
        return found

    def load(self, state: State) -> None:
        """Go on from a state of the same recipe."""
        self.module.load_state_dict(within(state, "module."))
        if self._average is not None:
            self._average.load_state_dict(within(state, "average."))
        settings = self._optimizer.state_dict()
        settings["state"] = {}
        for name, value in within(state, "optimizer.").items():
            index, _, key = name.partition(".")
            settings["state"].setdefault(int(index), {})[key] = value
        self._optimizer.load_state_dict(settings)
        # A fused step walks through memory: its state must lie there as the weights do, which may be channels last.
        for parameter, own in self._optimizer.state.items():
            for key, value in own.items():
                if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                    own[key] = torch.empty_like(parameter).copy_(value)
        self._steps_done = int(state["steps"])


def predict(
    module: nn.Module, pixels: torch.Tensor, normalization: Normalization, world: World, *, bf16: bool = False
) -> torch.Tensor:
    """Return logits float32 `[N, classes]` on the device for pixels uint8 `[N, height, width]`, in evaluation mode."""
    module.eval()
    with torch.inference_mode(), precision(world, bf16=bf16):
        parts = (part.to(world.device) for part in torch.split(pixels, _EVALUATION_BATCH))
        return torch.cat([module(normalized(part, normalization)).to(torch.float32) for part in parts])


def precision(world: World, *, bf16: bool) -> contextlib.AbstractContextManager[object]:
    """Return a context in which products are computed in bfloat16, where that is wanted and fast."""
    return torch.autocast(world.device.type, torch.bfloat16, enabled=bf16 and world.has_fast_bf16())


def normalized(pixels: torch.Tensor, normalization: Normalization) -> torch.Tensor:
    """Return what the network takes, for pixels of any type, 0 to 255."""
    return pixels.to(torch.float32) * normalization.scale + normalization.shift


def cycle(step: int, steps: int, recipe: Recipe) -> float:
    """Return the learning rate of a step, counted from 0, as a share of the recipe's."""
    if recipe.schedule == "constant" or steps < _FEW_STEPS:
        return 1.0
    way_up = recipe.warmup * steps
    if step < way_up:
        return _LOWEST + (1 - _LOWEST) * (1 - math.cos(math.pi * step / way_up)) / 2
    return (1 + math.cos(math.pi * min((step - way_up) / (steps - way_up), 1.0))) / 2


def _optimizer(module: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(
            module.parameters(), lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
        )
    return torch.optim.AdamW(module.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True)


def within(state: State, prefix: str) -> State:
    """Return what is named with a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
