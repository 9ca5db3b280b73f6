"""`digits`: scikit-learn's 1,797 handwritten digits, embedded in that package."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kit.lab.data.draws import validation_indices
from kit.lab.data.sets import Dataset, DatasetInfo, Split
from kit.system import packages
from kit.tasks.images import place_by_mass


def read(known: DatasetInfo) -> Dataset:
    """Read scikit-learn's digits, drawn at 8x8, and lay them out as MNIST is: 20x20 in 28x28, centred by mass."""
    sklearn_datasets = packages.needed(
        "sklearn.datasets", distribution="scikit-learn", purpose="the data set 'digits'", extra="train"
    )
    raw = sklearn_datasets.load_digits()
    small = np.asarray(raw.images) * (255.0 / 16.0)
    images = np.stack([_enlarge(image) for image in small.astype(np.uint8)])
    labels = np.asarray(raw.target).astype(np.int64)
    train, test = validation_indices(len(labels), fraction=0.2, seed=0)
    everything = Split(images, labels)
    return Dataset(info=known, train=everything.take(train), test=everything.take(test))


def _enlarge(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    ink = Image.fromarray(image).resize((20, 20), Image.Resampling.BICUBIC)
    return place_by_mass(np.asarray(ink), (28, 28))
