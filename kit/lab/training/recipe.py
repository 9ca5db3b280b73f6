"""A recipe: everything that decides what training gives, frozen. No torch, so that the command line can read defaults."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from kit.errors import UsageError
from kit.lab.blueprint import Normalization

OPTIMIZERS = ("sgd", "adamw")
SCHEDULES = ("constant", "one-cycle")
KEEPS = ("best", "last")


@dataclass(frozen=True, kw_only=True)
class Distortion:
    """How strongly images are distorted at random: half-widths of uniform distributions, except where said.

    Attributes:
        degrees: Of rotation.
        scale: Of the logarithm of the scale, along x and y by themselves.
        shear: Along x.
        shift: In pixels, along x and y.
        elastic: Standard deviation in pixels of a smooth random field; each image draws its share of it, 0 to 1.
        nodes: The field is drawn on so many points along each side, and bicubic between them.
        thicker: Largest share of the 3x3 maximum that is mixed in.
        thinner: Largest share of the 3x3 minimum.
    """

    degrees: float = 10.0
    scale: float = 0.1
    shear: float = 0.15
    shift: float = 1.5
    elastic: float = 0.0
    nodes: int = 6
    thicker: float = 0.3
    thinner: float = 0.2

    def times(self, strength: float) -> Distortion:
        """Return the same, weaker or stronger."""
        changed = {
            one.name: getattr(self, one.name) * strength for one in dataclasses.fields(self) if one.name != "nodes"
        }
        return dataclasses.replace(self, **changed)


@dataclass(frozen=True, kw_only=True)
class Teaching:
    """Distillation (Hinton et al. 2015, arXiv 1503.02531), by teachers that see the very images the student sees.

    Distorted views of every image are drawn once, and the teachers read them once; the student goes over these views again
    and again (Beyer et al. 2022, arXiv 2106.05237: a good teacher is patient and consistent).

    Attributes:
        teacher: How each of them is trained, on the same images as the student; its seed is added to the student's.
        count: Number of teachers, of different seeds; their logits are averaged.
        views: Distorted views of every image, for all but the last epochs.
        calm_views: Views for the last epochs, less distorted; the images themselves are one more.
        temperature: Divides the logits of both before they are compared.
    """

    teacher: Recipe
    count: int = 2
    views: int = 16
    calm_views: int = 4
    temperature: float = 4.0

    def __post_init__(self) -> None:
        if self.count < 1 or self.views < 1 or self.calm_views < 0 or not self.temperature > 0:
            raise UsageError("distillation needs a teacher, a view and a temperature above 0")
        if self.teacher.teaching is not None:
            raise UsageError("a teacher learns from labels, not from a teacher of its own")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to train.

    Attributes:
        model: Architecture, such as `mlp-512-256-128`.
        epochs: Passes over the training split; with teaching, of as many views as it has images.
        batch_size: Images for each step, of all processes together.
        lr: Learning rate; the peak, with the one-cycle schedule.
        optimizer: `sgd` with `momentum`, or `adamw` with decoupled `weight_decay` (Loshchilov & Hutter 2019).
        schedule: `constant`, or `one-cycle` (Smith & Topin 2018): up and down again along cosines.
        warmup: Share of the steps on the way up, for `one-cycle`.
        seed: Of the split, the weights, the order and the augmentation.
        augment: Distort every training image at random, by `distortion`.
        calm: Share of the epochs, the last ones, in which the distortion is weaker by the factor `calm_strength`.
        val_fraction: Share of the training data held out to choose the best epoch; 0 trains on all and keeps the last.
        keep: `best` epoch on validation, or the `last`.
        normalization: None for the data set's own.
        batch_norm: Normalise the hidden layers of a dense network while training; folded into its weights afterwards.
        drawn: Digits drawn by strokes that are trained on too, by the student and its teachers, in forms that MNIST
            hardly has (kit/lab/data/strokes.py); for data sets of digits alone.
        signs: Drawn signs that are no digits, of which training asks that every digit be as likely.
        average: Decay of a moving average of the weights, which is what is evaluated and kept; 0 for none.
        bf16: Multiply in bfloat16 where the processor can; weights stay float32.
        teaching: Teachers to learn from; None for the labels.
        confidence: Temperature and abstain threshold to publish where nothing is held out to fit them on, as an
            earlier run of the same recipe found them on validation data.
    """

    model: str = "mlp-512-256-128"
    epochs: int = 10
    batch_size: int = 256
    lr: float = 3e-3
    optimizer: str = "adamw"
    momentum: float = 0.9
    weight_decay: float = 0.01
    schedule: str = "one-cycle"
    warmup: float = 0.3
    seed: int = 0
    augment: bool = True
    distortion: Distortion = field(default_factory=Distortion)
    calm: float = 0.0
    calm_strength: float = 0.5
    val_fraction: float = 0.1
    keep: str = "best"
    normalization: Normalization | None = None
    batch_norm: bool = False
    drawn: int = 0
    signs: int = 0
    average: float = 0.0
    bf16: bool = False
    teaching: Teaching | None = None
    confidence: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1:
            raise UsageError("epochs and batch size must be 1 or more")
        if self.drawn < 0 or self.signs < 0:
            raise UsageError("fewer than no drawings cannot be trained on")
        if not self.lr > 0:
            raise UsageError(f"the learning rate must be positive, found {self.lr}")
        shares = {"validation fraction": self.val_fraction, "warm-up": self.warmup, "average": self.average}
        for name, share in {**shares, "share of calm epochs": self.calm}.items():
            if not 0 <= share < 1:
                raise UsageError(f"the {name} must lie between 0 and 1, found {share}")
        if self.teaching is not None and not self.augment:
            raise UsageError(
                "teachers read distorted views: there is nothing to learn from without", hint="leave --no-augment out"
            )
        for name, value, known in (
            ("optimizer", self.optimizer, OPTIMIZERS),
            ("schedule", self.schedule, SCHEDULES),
            ("choice of the epoch to keep", self.keep, KEEPS),
        ):
            if value not in known:
                raise UsageError(f"unknown {name} {value!r}", hint="choose one of: " + ", ".join(known))

    @property
    def calm_from(self) -> int:
        """Number of the first epoch, counted from 1, with weaker distortion."""
        return self.epochs - round(self.calm * self.epochs) + 1

    def described(self) -> dict[str, str]:
        """Return the fields by name, those within others after a dot, as the manifest keeps them."""
        return _flat(self)


def _flat(value: Any, prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for one in dataclasses.fields(value):
        inner = getattr(value, one.name)
        if isinstance(inner, Recipe | Teaching | Distortion):
            found |= _flat(inner, f"{prefix}{one.name}.")
        else:
            found[f"{prefix}{one.name}"] = str(inner)
    return found


_STRONG = Distortion(degrees=13.0, scale=0.15, shear=0.18, shift=2.0, elastic=1.4, thicker=0.6, thinner=0.4)

RECIPES = {
    "default": Recipe(batch_size=500, lr=0.01, warmup=0.1, batch_norm=True, bf16=True),
    # For the highest accuracy; docs/log.md has what each part brought. All images are trained on: what could be chosen was
    # chosen on a validation split before.
    "record": Recipe(
        epochs=200,
        batch_size=500,
        lr=0.01,
        warmup=0.1,
        distortion=_STRONG,
        calm=0.15,
        val_fraction=0.0,
        keep="last",
        batch_norm=True,
        drawn=6_000,
        signs=1_500,
        bf16=True,
        teaching=Teaching(
            count=1,
            teacher=Recipe(
                model="cnn-16-48-96",
                epochs=18,
                batch_size=250,
                lr=3e-3,
                weight_decay=0.02,
                warmup=0.2,
                distortion=_STRONG,
                calm=0.2,
                calm_strength=0.6,
                val_fraction=0.0,
                keep="last",
                average=0.995,
                bf16=True,
            ),
        ),
    ),
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
_FOR_SMALL_DATA: dict[str, dict[str, Any]] = {"digits": {"epochs": 40, "batch_size": 64, "lr": 3e-3}}
_OF_DIGITS = ("mnist",)
# Found by runs of the record recipe with 10,000 images of MNIST's training set held out; the second before it drew digits.
_RECORD_CONFIDENCE = {("mnist", "mlp-512-256-128"): (1.07, 0.987), ("mnist", "mlp-64-64"): (1.42, 0.946)}


def recipe(name: str, *, dataset: str, model: str = Recipe.model) -> Recipe:
    """Return a recipe by name, as it is for a data set and a model; raises UsageError if there is none of that name."""
    if name not in RECIPES:
        raise UsageError(f"unknown recipe {name!r}", hint="choose one of: " + ", ".join(RECIPES))
    changes = _FOR_SMALL_DATA.get(dataset, {}) if name == "default" else {}
    known = _RECORD_CONFIDENCE.get((dataset, model))
    fitted: dict[str, Any] = {"confidence": known} if name == "record" else {}
    drawings: dict[str, Any] = {} if dataset in _OF_DIGITS else {"drawn": 0, "signs": 0}
    # A convolutional network has layers of its own that normalise.
    own: dict[str, Any] = {"batch_norm": False} if model.startswith("cnn") else {}
    return dataclasses.replace(RECIPES[name], model=model, **changes, **fitted, **drawings, **own)


def bundle_name(*, dataset: str, model: str) -> str:
    """Return what a trained bundle is called when no name is given: `my-mnist-mlp`, or `my-mnist-mlp-64-64`."""
    return f"my-{dataset}-mlp" if model == Recipe.model else f"my-{dataset}-{model}"
