"""Where a model looked: which parts of the input its answer rests on. Knows a function from pixels to logits, and no runtime.

heat = occlusion(engine.logits, pixels, temperature=1.0)   # float32 (28, 28)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kit.accuracy import probabilities
from kit.errors import UsageError

Run = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True)
class Occlusion:
    """What covering a patch does to the probability of the answer.

    Attributes:
        label: Index of the answer.
        probability: Of that answer for the whole picture.
        heat: float32 `[height, width]`, how much of the probability is lost where a pixel is covered, the mean over all patches
            that cover it; negative where covering it makes the answer surer.
        patches: How many pictures were run.
    """

    label: int
    probability: float
    heat: NDArray[np.float32]
    patches: int


def occlusion(
    run: Run,
    pixels: NDArray[np.uint8],
    *,
    temperature: float = 1.0,
    patch: int = 5,
    stride: int = 2,
    fill: int = 0,
    batch_size: int = 256,
) -> Occlusion:
    """Cover one patch after another and see what the answer loses (Zeiler and Fergus 2014, arXiv 1311.2901).

    Args:
        run: Logits float32 `[N, classes]` for pixels uint8 `[N, *shape]`, such as a runner's `run`.
        pixels: One sample uint8 `[*shape]`; its last two axes are height and width.
        temperature: Of the softmax.
        patch: Side of a patch, in pixels.
        stride: From one patch to the next, in pixels; patches reach over the border, so that each pixel is covered as often.
        fill: Value of a covered pixel: what a picture is where nothing is drawn.
        batch_size: Pictures in one call.

    Raises:
        UsageError: A sample without height and width.
    """
    if pixels.ndim < 2:
        raise UsageError(f"occlusion needs height and width, found one sample of shape {pixels.shape}")
    height, width = pixels.shape[-2:]
    corners = [(top, left) for top in range(1 - patch, height, stride) for left in range(1 - patch, width, stride)]
    places = [
        (slice(max(top, 0), min(top + patch, height)), slice(max(left, 0), min(left + patch, width)))
        for top, left in corners
    ]
    whole = probabilities(run(pixels[np.newaxis]), temperature)[0]
    label = int(whole.argmax())
    lost = np.empty(len(places), np.float32)
    for start in range(0, len(places), batch_size):
        part = places[start : start + batch_size]
        covered = np.repeat(pixels[np.newaxis], len(part), axis=0)
        for index, (rows, columns) in enumerate(part):
            covered[index, ..., rows, columns] = fill
        lost[start : start + len(part)] = whole[label] - probabilities(run(covered), temperature)[:, label]
    heat, times = np.zeros((height, width), np.float32), np.zeros((height, width), np.float32)  # each pixel is covered
    for (rows, columns), one in zip(places, lost, strict=True):
        heat[rows, columns] += one
        times[rows, columns] += 1
    return Occlusion(label=label, probability=float(whole[label]), heat=heat / times, patches=len(places))
