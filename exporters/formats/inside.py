"""What lies inside a float model on calibration samples, and parts of a model that fit into memory."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import onnx

from exporters import staging
from kit.runtime.onnxruntime import OnnxRuntimeRunner
from kit.tensors import Tensors

T = TypeVar("T")


def tensors_inside(
    model: onnx.ModelProto, names: Sequence[str], batches: Sequence[Tensors], folder: Path
) -> Iterator[Tensors]:
    """Give tensors of a fp32 model, its inputs among them if they are named, for one batch of inputs after the other.

    `folder` is where weights lie that are not in the model.
    """
    given = {value.name for value in model.graph.input}
    inside = list(dict.fromkeys(name for name in names if name not in given))
    if not inside:
        yield from batches
        return
    with tempfile.TemporaryDirectory(prefix="kit-") as place:
        path = staging.cut(model, inside, folder, Path(place))
        with OnnxRuntimeRunner(path, binds=False) as runner:
            for batch in batches:
                yield {**batch, **runner.run({spec.name: batch[spec.name] for spec in runner.signature.inputs})}


def in_parts(items: Sequence[T], size: Callable[[T], int], most: int) -> Iterator[list[T]]:
    """Give items in parts whose sizes add up to no more than `most`; what is larger is a part by itself."""
    some: list[T] = []
    held = 0
    for item in items:
        if some and held + size(item) > most:
            yield some
            some, held = [], 0
        some.append(item)
        held += size(item)
    if some:
        yield some
