"""Where a model looked: which parts of a picture its answer rests on. Knows a function from pictures to probabilities.

heat = occlusion(probabilities, picture, **patches(picture.shape, "uint8")).heat   # float32 [height, width]
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from kit.errors import UsageError
from kit.tensors import Signature

Run = Callable[[NDArray[Any]], NDArray[np.float32]]
CHANNELS = frozenset({1, 3, 4})
_SIDE = 28  # of the pictures that a patch of 5 every 2 pixels suits; larger ones get larger patches
_BATCH_VALUES = 2**22  # of covered pictures in one call


class Patches(TypedDict):
    """How a picture is covered: see `occlusion`."""

    patch: int
    stride: int
    fill: float


def picture_of(signature: Signature) -> str | None:
    """Return the input that is a picture, grey or in colours, channels first or last; None if none is."""
    for spec in signature.inputs:
        shape = spec.shape[1:]
        if signature.batch is not None and spec.shape[0] == signature.batch and len(shape) in {2, 3}:
            sizes = [size if isinstance(size, int) else signature.axes[size].usual for size in shape]
            if (len(sizes) == 2 and spec.dtype == "uint8") or (len(sizes) == 3 and {sizes[0], sizes[-1]} & CHANNELS):
                return spec.name
    return None


def plane_of(shape: Sequence[int]) -> tuple[int, int]:
    """Return which axes of a picture are height and width; raises UsageError if it has none."""
    if len(shape) < 2:
        raise UsageError(f"occlusion needs height and width, found one sample of shape {tuple(shape)}")
    is_last = len(shape) == 3 and shape[-1] in CHANNELS and shape[0] not in CHANNELS
    return (0, 1) if is_last else (len(shape) - 2, len(shape) - 1)


def patches(shape: Sequence[int], dtype: str) -> Patches:
    """Return how to cover a picture of this shape: grey ones with nothing drawn, those of colours with middle grey."""
    rows, columns = plane_of(shape)
    scale = max(max(shape[rows], shape[columns]) / _SIDE, 1.0)
    channels = math.prod(shape) // max(shape[rows] * shape[columns], 1)
    return Patches(
        patch=round(5 * scale), stride=round(2 * scale), fill=128 if channels >= 3 and dtype == "uint8" else 0
    )


def how_many(shape: Sequence[int], dtype: str) -> int:
    """Return how many pictures have to be run to explain one."""
    rows, columns = plane_of(shape)
    how = patches(shape, dtype)
    return math.prod(len(range(1 - how["patch"], shape[axis], how["stride"])) for axis in (rows, columns))


@dataclass(frozen=True, kw_only=True)
class Occlusion:
    """What covering a patch does to the probability of the answer.

    Attributes:
        probability: Of the answer, `label`, for the whole picture.
        heat: float32 `[height, width]`, how much of the probability is lost where a pixel is covered, the mean over all
            patches that cover it; negative where covering it makes the answer surer.
    """

    label: int
    probability: float
    heat: NDArray[np.float32]
    patches: int


def occlusion(run: Run, picture: NDArray[Any], *, patch: int = 5, stride: int = 2, fill: float = 0) -> Occlusion:
    """Cover one patch after another and see what the answer loses (Zeiler and Fergus 2014, arXiv 1311.2901).

    Args:
        run: Probabilities float32 `[N, classes]` for pictures `[N, *shape]`.
        picture: One, `[height, width]`, `[channels, height, width]` or `[height, width, channels]`.
        patch: Side of a patch, in pixels.
        stride: From one patch to the next, in pixels; patches reach over the border, so that each pixel is covered as often.
        fill: Value of a covered pixel.

    Raises:
        UsageError: A sample without height and width.
    """
    first, second = plane_of(picture.shape)
    height, width = picture.shape[first], picture.shape[second]
    corners = [(top, left) for top in range(1 - patch, height, stride) for left in range(1 - patch, width, stride)]
    places = [
        (slice(max(top, 0), min(top + patch, height)), slice(max(left, 0), min(left + patch, width)))
        for top, left in corners
    ]
    whole = run(picture[np.newaxis])[0]
    label = int(whole.argmax())
    lost = np.empty(len(places), np.float32)
    batch_size = min(max(_BATCH_VALUES // max(picture.size, 1), 1), 256)
    for start in range(0, len(places), batch_size):
        part = places[start : start + batch_size]
        covered = np.repeat(picture[np.newaxis], len(part), axis=0)
        for index, (rows, columns) in enumerate(part):
            np.moveaxis(covered[index], (first, second), (0, 1))[rows, columns] = fill
        lost[start : start + len(part)] = whole[label] - run(covered)[:, label]
    heat, times = np.zeros((height, width), np.float32), np.zeros((height, width), np.float32)  # each pixel is covered
    for (rows, columns), one in zip(places, lost, strict=True):
        heat[rows, columns] += one
        times[rows, columns] += 1
    return Occlusion(label=label, probability=float(whole[label]), heat=heat / times, patches=len(places))
