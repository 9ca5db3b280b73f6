"""What each step of the picture pipeline brings, on digits drawn by people and on digits drawn anew.

    uv run python -m scripts.picture_ablation BUNDLE --drawn drawn.npz [--mnist FOLDER] [--digits 120] [--loss]

`--drawn` is a file of numpy arrays: `canvas` uint8 `[N, height, width]`, `label` `[N]` and `name` `[N]`, the file of each
writer. `--mnist` holds `train-images-idx3-ubyte.gz` and its labels; the test set is not touched. Prints the table of
docs/pictures.md.
"""

from __future__ import annotations

import argparse
import gzip
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kit.engine import Engine, load
from kit.errors import PictureInvalid
from kit.lab.data import default_dir, validation_indices
from kit.tasks.images import PIPELINES, Crop
from kit.tasks.images.ink import Steps, ink_pixels
from scripts.picture_conditions import CONDITIONS, as_lines

SHAPE = (28, 28)
Pixels = NDArray[np.uint8]
Labels = NDArray[np.int64]
Way = Callable[[Image.Image], Pixels]

WAYS: dict[str, Way] = {
    "`mnist-ink@1`": lambda picture: PIPELINES["mnist-ink@1"].run(picture, SHAPE, "L", Crop()),
    **{
        name: lambda picture, steps=steps: ink_pixels(picture, SHAPE, steps=steps)  # type: ignore[misc]
        for name, steps in {
            "crop, scale, centre": Steps(even_light=False, pieces=False, stroke_width=False),
            "+ even light": Steps(pieces=False, stroke_width=False),
            "+ pieces": Steps(stroke_width=False),
            "+ stroke width = `mnist-ink@2`": Steps(),
            "`@2` without even light": Steps(even_light=False),
            "`@2` without pieces": Steps(pieces=False),
            "`@2` with deskewing": Steps(deskew=True),
        }.items()
    },
}


def main() -> None:
    """Read the digits, draw the conditions, print a row for each way."""
    parser = argparse.ArgumentParser(description="What each step of the picture pipeline brings.")
    parser.add_argument("bundle")
    parser.add_argument("--drawn", type=Path, required=True)
    parser.add_argument("--mnist", type=Path, default=default_dir() / "MNIST" / "raw")
    parser.add_argument("--digits", type=int, default=120, help="for each condition")
    parser.add_argument("--loss", action="store_true", help="mean cross-entropy instead of top-1")
    chosen = parser.parse_args()
    sets = people(chosen.drawn) | conditions(chosen.mnist, chosen.digits)
    print(f"| | {' | '.join(sets)} |\n|{'---|' * (len(sets) + 1)}")
    with load(chosen.bundle) as engine:
        for name, way in WAYS.items():
            results = (result(engine, way, *pair) for pair in sets.values())
            cells = (f"{one.cross_entropy:.3f}" if chosen.loss else f"{one.top1:.1f}" for one in results)
            print(f"| {name} | {' | '.join(cells)} |", flush=True)


@dataclass(frozen=True, kw_only=True)
class Result:
    """Top-1 in percent, and the mean cross-entropy in nats."""

    top1: float
    cross_entropy: float


def result(engine: Engine, way: Way, pictures: Sequence[Image.Image], labels: Labels) -> Result:
    """Read pictures; one that is refused counts as wrong, and as if every digit were as likely."""
    classes = engine.signature.outputs[0].shape[-1]
    assert isinstance(classes, int)  # a classifier
    probabilities = np.full((len(labels), classes), 1 / classes)
    read = np.zeros(len(labels), bool)
    for number, picture in enumerate(pictures):
        try:
            probabilities[number] = engine.predict(way(picture)).probabilities[0]
            read[number] = True
        except PictureInvalid:
            continue
    right = read & (probabilities.argmax(axis=1) == labels)
    of_the_label = np.maximum(probabilities[np.arange(len(labels)), labels], 1e-9)
    return Result(top1=100 * float(right.mean()), cross_entropy=float(-np.log(of_the_label).mean()))


def people(path: Path) -> dict[str, tuple[list[Image.Image], Labels]]:
    """Return the digits people drew, in two halves without a common file: the steps were chosen by the first."""
    with np.load(path) as held:
        canvases, labels, names = held["canvas"], held["label"].astype(np.int64), held["name"].tolist()
    files = sorted({name for name in names if "/imp/" in name})
    first = np.array(["gresai" in name or name in files[::2] for name in names])
    return {
        word: ([Image.fromarray(canvas) for canvas in canvases[half]], labels[half])
        for word, half in (("people, developed on", first), ("people, held out", ~first))
    }


def conditions(raw: Path, count: int) -> dict[str, tuple[list[Image.Image], Labels]]:
    """Draw `count` of MNIST's training images, those kept for validation, anew under every condition."""
    images = _idx(raw / "train-images-idx3-ubyte.gz", 16).reshape(-1, *SHAPE)
    labels = _idx(raw / "train-labels-idx1-ubyte.gz", 8).astype(np.int64)
    _, held_out = validation_indices(len(images), fraction=0.1, seed=0)
    digits = as_lines(images[held_out[:count]])
    drawn = {}
    for number, condition in enumerate(CONDITIONS):
        random = np.random.default_rng(number)
        drawn[condition.__name__.replace("_", " ")] = (
            [condition(lines, random) for lines in digits],
            labels[held_out[:count]],
        )
    return drawn


def _idx(path: Path, header_bytes: int) -> Pixels:
    return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=header_bytes)


if __name__ == "__main__":
    main()
