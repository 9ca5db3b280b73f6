"""A recipe: everything that decides what training gives, frozen. No torch, so that the command line can read defaults."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from kit.errors import UsageError
from kit.spec import Normalization

OPTIMIZERS = ("sgd", "adamw")
SCHEDULES = ("constant", "one-cycle")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to train.

    Attributes:
        model: Architecture, such as `mlp-512-256-128`.
        epochs: Passes over the training split.
        batch_size: Images for each step.
        lr: Learning rate; the peak, with the one-cycle schedule.
        optimizer: `sgd` or `adamw`.
        momentum: For `sgd`.
        weight_decay: For `adamw`, decoupled (Loshchilov & Hutter 2019).
        schedule: `constant`, or `one-cycle` (Smith & Topin 2018).
        seed: Of the split, the weights, the order and the augmentation.
        augment: Random affine distortion of every training image.
        val_fraction: Share of the training data held out to choose the best epoch.
        normalization: None for the data set's own.
    """

    model: str = "mlp-512-256-128"
    epochs: int = 10
    batch_size: int = 256
    lr: float = 3e-3
    optimizer: str = "adamw"
    momentum: float = 0.9
    weight_decay: float = 0.01
    schedule: str = "one-cycle"
    seed: int = 0
    augment: bool = True
    val_fraction: float = 0.1
    normalization: Normalization | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot train."""
        if self.epochs < 1 or self.batch_size < 1:
            raise UsageError("epochs and batch size must be 1 or more")
        if not self.lr > 0:
            raise UsageError(f"the learning rate must be positive, found {self.lr}")
        if not 0 < self.val_fraction < 1:
            raise UsageError(f"the validation fraction must lie between 0 and 1, found {self.val_fraction}")
        if self.optimizer not in OPTIMIZERS:
            raise UsageError(f"unknown optimizer {self.optimizer!r}", hint="choose one of: " + ", ".join(OPTIMIZERS))
        if self.schedule not in SCHEDULES:
            raise UsageError(f"unknown schedule {self.schedule!r}", hint="choose one of: " + ", ".join(SCHEDULES))

    def described(self) -> dict[str, str]:
        """Return the fields by name, as the manifest keeps them."""
        return {field.name: str(getattr(self, field.name)) for field in dataclasses.fields(self)}


RECIPES = {
    "default": Recipe(),
    # The source article's: plain SGD, constant rate, no validation set of its own (a small one is held out here).
    "article": Recipe(
        epochs=10,
        batch_size=100,
        lr=0.001,
        optimizer="sgd",
        momentum=0.9,
        weight_decay=0.0,
        schedule="constant",
        augment=False,
        normalization=Normalization(mean=0.5, std=0.5),
    ),
}


# A set of some thousand images gives few steps an epoch: more epochs of smaller batches, still under 10 seconds.
_FOR_SMALL_DATA: dict[str, dict[str, Any]] = {"digits": {"epochs": 40, "batch_size": 64}}


def recipe(name: str, *, dataset: str) -> Recipe:
    """Return a recipe by name, as it is for a data set.

    Raises:
        UsageError: There is none of that name.
    """
    if name not in RECIPES:
        raise UsageError(f"unknown recipe {name!r}", hint="choose one of: " + ", ".join(RECIPES))
    changes = _FOR_SMALL_DATA.get(dataset, {}) if name == "default" else {}
    return dataclasses.replace(RECIPES[name], **changes)


def bundle_name(*, dataset: str, model: str) -> str:
    """Return the name a trained bundle gets when none is given: `mnist-mlp`, or `mnist-mlp-64-64`."""
    return f"{dataset}-mlp" if model == Recipe.model else f"{dataset}-{model}"
