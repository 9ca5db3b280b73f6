"""What the lab trains: a network that sorts grey pictures into classes. Imports no torch.

blueprint = Blueprint.of(bundle)  # None if the lab did not make the bundle
blueprint.task, blueprint.signature
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from kit.bundle import Bundle
from kit.tasks.image import ImageClassification
from kit.tensors import Signature

ARCHITECTURE = "architecture"
"""Kind of original that can be built again from its name and its weights."""

_TASK = "image-classification@"


@dataclass(frozen=True, kw_only=True)
class Normalization:
    """`(pixel / 255 - mean) / std`, which the graph does itself."""

    mean: float
    std: float

    def __post_init__(self) -> None:
        if not (self.std > 0 and math.isfinite(self.std) and math.isfinite(self.mean)):
            raise ValueError(f"mean and std must be finite and std positive, found {self.mean} and {self.std}")

    @property
    def scale(self) -> float:
        """Factor from a raw pixel to the normalised value."""
        return 1.0 / (255.0 * self.std)

    @property
    def shift(self) -> float:
        """Offset of the normalised value: what a pixel of 0 becomes."""
        return -self.mean / self.std


@dataclass(frozen=True, kw_only=True)
class Blueprint:
    """All of a trained network but its weights.

    Attributes:
        architecture: Name that `kit.lab.models.build` understands.
        shape: Of one picture, height and width.
        labels: Names of the classes, in the order of the output.
        pipeline: Named, versioned pipeline from a picture to pixels.
        temperature: Divides the logits before softmax.
        abstain_below: Probability under which an answer should be treated as "unsure"; None for never.
    """

    architecture: str
    shape: tuple[int, ...]
    labels: tuple[str, ...]
    pipeline: str
    normalization: Normalization
    temperature: float = 1.0
    abstain_below: float | None = None

    @property
    def task(self) -> ImageClassification:
        """The task of the bundle."""
        return ImageClassification(
            labels=self.labels,
            pipeline=self.pipeline,
            mean=(self.normalization.mean,),
            std=(self.normalization.std,),
            temperature=self.temperature,
            abstain_below=self.abstain_below,
        )

    @property
    def signature(self) -> Signature:
        """What the model takes and gives: raw pixels in, logits out."""
        return self.task.signature(self.shape)

    @classmethod
    def of(cls, bundle: Bundle) -> Blueprint | None:
        """Return what a bundle says of its network; None if it is no network of the lab's."""
        manifest = bundle.manifest
        original, task, inputs = manifest.original, manifest.task, manifest.signature.inputs
        if original is None or original.kind != ARCHITECTURE or task is None or not task.name.startswith(_TASK):
            return None
        sizes = inputs[0].shape[1:]
        if len(inputs) != 1 or inputs[0].dtype != "uint8" or any(isinstance(size, str) for size in sizes):
            return None
        try:
            options = task.options
            (mean,), (std,) = options["mean"], options["std"]
            return cls(
                architecture=original.name,
                shape=tuple(int(size) for size in sizes),
                labels=tuple(options["labels"]),
                pipeline=str(options.get("pipeline", "")),
                normalization=Normalization(mean=float(mean), std=float(std)),
                temperature=float(options.get("temperature", 1.0)),
                abstain_below=options.get("abstain_below"),
            )
        except (KeyError, TypeError, ValueError):
            return None
