"""Which samples: seeded draws that any machine repeats, and a hash that names them."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from kit.errors import UsageError


def validation_indices(count: int, *, fraction: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split `range(count)` into sorted training and validation indices, repeatably; a fraction of 0 holds nothing out.

    Raises:
        UsageError: Another fraction leaves one side empty.
    """
    held_out = round(count * fraction)
    if not 0 < held_out < count and fraction != 0:
        raise UsageError(
            f"a validation fraction of {fraction} leaves nothing to train or to validate on",
            hint="--val-fraction 0 trains on all images, 0.1 holds a tenth out",
        )
    order = np.random.default_rng(seed).permutation(count).astype(np.int64)
    return np.sort(order[held_out:]), np.sort(order[:held_out])


def calibration_indices(candidates: NDArray[np.int64], *, samples: int, seed: int) -> NDArray[np.int64]:
    """Draw up to `samples` of the candidate indices, sorted, the same for the same arguments."""
    count = min(samples, len(candidates))
    return np.sort(np.random.default_rng(seed).choice(candidates, size=count, replace=False))


def indices_sha256(indices: NDArray[np.int64]) -> str:
    """Hash a set of sample indices, so that a record can name it."""
    return hashlib.sha256(np.sort(indices).astype("<i8").tobytes()).hexdigest()
