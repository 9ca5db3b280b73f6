"""Calibration samples: a seeded draw from the training split that any machine repeats, in batches of bearable size."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from exporters.formats.base import Source
from exporters.graph.shapes import with_shapes
from kit.bundle.manifest import Calibration
from kit.choices import CalibrationMethod
from kit.errors import UsageError
from kit.samples import Samples, count
from kit.tensors import Signature

USUAL_SAMPLES = 1024
"""How many are drawn if nobody says otherwise and there are so many."""

_MOST_ROWS = 128
_BATCH_BYTES = 256 * 2**20  # of all that lies between input and output
_INPUT_BYTES = 16 * 2**20
_STRIDED_ABOVE_BYTES = 256 * 2**20  # histograms are made of all batches at once up to here


@dataclass(frozen=True, kw_only=True)
class CalibrationDraw:
    """Samples for calibration, and the record of the draw."""

    samples: tuple[Samples, ...]
    record: Calibration


def draw(source: Source, *, method: CalibrationMethod, samples: int | None, seed: int) -> CalibrationDraw:
    """Draw calibration samples from the training split.

    Raises:
        UsageError: There are none to draw from, or fewer than were asked for.
    """
    if not source.train:
        raise UsageError(
            "static INT8 needs data to draw its calibration samples from",
            hint="give some of the model's own inputs: --data FILE; or use --quantization dynamic, which needs none",
        )
    signature = source.signature
    total = count(source.train, signature)
    wanted = samples or min(USUAL_SAMPLES, total)
    if wanted > total:
        raise UsageError(
            f"{wanted:,} calibration samples were asked for, and there are {total:,} to draw from",
            hint=f"use --calibration-size {total} or less",
        )
    rows = np.sort(np.random.default_rng(seed).choice(np.arange(total, dtype=np.int64), size=wanted, replace=False))
    starts = list(itertools.accumulate((signature.rows(group.inputs) for group in source.train), initial=0))
    drawn = []
    for group, start, end in zip(source.train, starts, starts[1:], strict=False):
        inside = rows[(rows >= start) & (rows < end)] - start
        if len(inside):
            drawn.append(group.take(signature, inside))
    record = Calibration(
        method=method,
        dataset=source.dataset,
        split="train",
        samples=wanted,
        indices_sha256=hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest(),
        seed=seed,
    )
    return CalibrationDraw(samples=tuple(drawn), record=record)


def batch_rows(model: onnx.ModelProto, signature: Signature, group: Samples) -> tuple[int, int]:
    """Return how many samples of a group to run at a time, and the bytes that one of them takes inside the model."""
    if signature.batch is None:
        return 1, 0
    sizes = {**signature.sizes(group.inputs), signature.batch: 1}
    inside = _bytes_inside(model, signature, sizes)
    given = signature.nbytes(sizes)
    rows = min(_MOST_ROWS, _BATCH_BYTES // max(inside, 1), _INPUT_BYTES // max(given, 1))
    return max(rows, 1), max(inside, given)


def _bytes_inside(model: onnx.ModelProto, signature: Signature, sizes: dict[str, int]) -> int:
    inferred = with_shapes(model, signature, sizes)
    if inferred is None:  # a bound on memory, not a check
        return 0
    total = 0
    for value in inferred.graph.value_info:
        tensor = value.type.tensor_type
        if tensor.elem_type and all(dim.HasField("dim_value") for dim in tensor.shape.dim):
            size = math.prod(dim.dim_value for dim in tensor.shape.dim)
            total += size * helper.tensor_dtype_to_np_dtype(tensor.elem_type).itemsize
    return total


def calibration_reader(model: onnx.ModelProto, signature: Signature, samples: Sequence[Samples]) -> Any:
    """Return what feeds ONNX Runtime's calibrators: batches bounded by what lies between input and output."""
    from onnxruntime import quantization as ort

    batches: list[dict[str, NDArray[Any]]] = []
    total = 0
    for group in samples:
        count = signature.rows(group.inputs)
        most, one = batch_rows(model, signature, group)
        # All of one size: the histograms of the calibrators stumble over a smaller last batch.
        rows = next(rows for rows in range(min(most, count), 0, -1) if count % rows == 0)
        batches += list(signature.split(group.inputs, rows))
        total += count * one
    sizes = {tuple(array.shape for array in batch.values()) for batch in batches}

    class Reader(ort.CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no stubs
        all = batches
        is_strided = len(sizes) > 1 or total > _STRIDED_ABOVE_BYTES

        def __init__(self) -> None:
            self.batches = iter(batches)

        def __len__(self) -> int:
            return len(batches)

        def set_range(self, start_index: int, end_index: int) -> None:
            self.batches = itertools.islice(batches, start_index, end_index)

        def get_next(self) -> dict[str, NDArray[Any]] | None:
            return next(self.batches, None)

    return Reader()
