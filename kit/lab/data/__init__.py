"""Data sets as uint8 arrays with labels and splits; no torch.

`load("mnist")` reads the IDX files with numpy wherever they lie; torchvision is imported only to download them. `digits`,
scikit-learn's 1,797 handwritten digits, is embedded in that package and needs no network.

The folder is `--data-dir`, else `KIT_DATA_DIR`, else the user's cache; below it stand torchvision's own folder names
(`MNIST/raw/train-images-idx3-ubyte.gz`, packed or not). Any other name is a folder of images by class, as torchvision's
ImageFolder has it; folder.py and listing.py tell what becomes of it.
"""

from __future__ import annotations

from kit.lab.data.draws import calibration_indices, indices_sha256, validation_indices
from kit.lab.data.find import at_hand, golden_split, is_here, load, short_name
from kit.lab.data.sets import DATASETS, DIGITS, GARMENTS, Dataset, DatasetInfo, Split, default_dir, info

__all__ = [
    "DATASETS",
    "DIGITS",
    "GARMENTS",
    "Dataset",
    "DatasetInfo",
    "Split",
    "at_hand",
    "calibration_indices",
    "default_dir",
    "golden_split",
    "indices_sha256",
    "info",
    "is_here",
    "load",
    "short_name",
    "validation_indices",
]
