"""Connected pieces of a mask, and running extremes: the little of image morphology the pipelines need, in numpy alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Grey = NDArray[np.uint8]
Extreme = Callable[[Grey, Grey], Grey]


def label_pieces(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Number the 8-connected pieces of a mask (height, width).

    Returns int64 (number of true pixels,): the piece of each, in the order of `mask[mask]`, from 0 upwards.

    Runs of each row are joined to the runs they touch in the next one; labels then sink to the smallest of their piece
    by hooking and pointer jumping (Shiloach and Vishkin, 1982), so that no step loops over pixels.
    """
    stride = mask.shape[1] + 3  # empty columns keep the end of one row off the beginning of the next
    rows = np.zeros((mask.shape[0], stride), np.bool_)
    rows[:, 1:-2] = mask
    flat = rows.ravel()
    turns = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    starts, ends = turns[::2], turns[1::2]
    first = np.searchsorted(ends, starts + stride, side="left")
    last = np.searchsorted(starts, ends + stride, side="right")
    touching = np.maximum(last - first, 0)
    above = np.repeat(np.arange(len(starts)), touching)
    below = np.arange(len(above)) - np.repeat(np.cumsum(touching) - touching, touching) + np.repeat(first, touching)
    label = np.arange(len(starts))
    while not np.array_equal(label[above], label[below]):
        one, other = label[above], label[below]
        least = np.minimum(one, other)
        np.minimum.at(label, one, least)
        np.minimum.at(label, other, least)
        while not np.array_equal(label, label[label]):
            label = label[label]
    _, dense = np.unique(label, return_inverse=True)
    return np.repeat(dense.astype(np.int64), ends - starts)


def running(extreme: Extreme, grey: Grey, size: int) -> Grey:
    """Return the largest (np.maximum) or smallest (np.minimum) of the `size` x `size` pixels around each one.

    The picture goes on beyond its border as it is there. Of an even size, more lies below and to the right.
    """
    before = (size - 1) // 2
    for axis in (0, 1):
        grey = _windows(extreme, _edged(grey, before, size - 1 - before, axis), size, axis)
    return grey


def closing(grey: Grey, size: int) -> Grey:
    """Fill what is darker than its surroundings and narrower than `size`, odd: the light ground without its dark ink.

    The picture goes on beyond its border as it is there; cut off, the dark end of a gradient would count as ink.
    """
    beyond = size - 1
    for extreme in (np.maximum, np.minimum):
        for axis in (0, 1):
            wider = _edged(grey, beyond, beyond, axis) if extreme is np.maximum else grey
            grey = _windows(extreme, wider, size, axis)
    return grey


def _edged(grey: Grey, before: int, after: int, axis: int) -> Grey:
    pads = [(0, 0), (0, 0)]
    pads[axis] = (before, after)
    return np.pad(grey, pads, mode="edge")


def _windows(extreme: Extreme, grey: Grey, size: int, axis: int) -> Grey:
    """Return the extreme of the `size` pixels from each one on along an axis, where so many are left: `size` - 1 fewer of them.

    Windows double instead of growing by one: a few passes for any size (the idea of van Herk and of Gil and Werman). Each pass
    is over all pixels as one row, at the speed of memory: what runs over the end of a row is cut off in the end.
    """
    height, width = grey.shape
    stride = (width, 1)[axis]
    flat = np.ascontiguousarray(grey).ravel()
    done = 1
    while done < size:
        step = min(done, size - done)
        flat = extreme(flat[: -step * stride], flat[step * stride :])
        done += step
    if axis == 0:
        return flat.reshape(-1, width)
    whole = np.empty(height * width, grey.dtype)
    whole[: len(flat)] = flat
    return whole.reshape(height, width)[:, : width - size + 1]


def spread(grey: Grey, radius: int) -> Grey:
    """Widen light strokes by `radius` pixels on each side (a grey dilation), or narrow them where it is negative.

    Squares and crosses in turn make octagons, so that slanting strokes grow as much as upright ones.
    """
    extreme: Extreme = np.maximum if radius > 0 else np.minimum
    padded = np.pad(grey, max(radius, 0))
    for turn in range(abs(radius)):
        padded = running(extreme, padded, 3) if turn % 5 in {1, 3} else _cross(extreme, padded)
    return padded


def _cross(extreme: Extreme, grey: Grey) -> Grey:
    around = np.pad(grey, 1)
    upright = extreme(extreme(around[:-2, 1:-1], around[2:, 1:-1]), grey)
    return extreme(upright, extreme(around[1:-1, :-2], around[1:-1, 2:]))
