"""Graphs as files: how weights beside a graph are found, written piece by piece, and named after their content.

A candidate waits in a folder of its own until it is published: `settle` gives its files the names they will have in the
bundle, and from then on they are opened, judged and moved, never rewritten.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from kit import bundle as bundles
from kit.bundle.manifest import FileRef

_ALIGNED = 4096  # so that a runtime can map each weight


@dataclass(frozen=True, kw_only=True)
class Settled:
    """Files under the names they have in a bundle.

    Attributes:
        folder: Where they lie.
        graph: The .onnx file.
        data: Its weights, if they lie beside it.
    """

    folder: Path
    graph: FileRef
    data: tuple[FileRef, ...]

    @property
    def path(self) -> Path:
        """Of the graph."""
        return self.folder / self.graph.file


def read(path: Path) -> onnx.ModelProto:
    """Return a graph; weights beside it are not read."""
    return onnx.load(str(path), load_external_data=False)


def write(model: onnx.ModelProto, path: Path) -> Path:
    """Write a graph, the same bytes for the same graph; its weights beside it stay as they are."""
    path.write_bytes(model.SerializeToString(deterministic=True))
    return path


def settle(path: Path, stem: str) -> Settled:
    """Rename a graph and its weights after their content: `STEM-1a2b3c4d.onnx`, `STEM-5e6f7a8b.data`."""
    model, folder = read(path), path.parent
    renamed: dict[str, FileRef] = {}
    for tensor in external_tensors(model):
        place = ExternalDataInfo(tensor).location
        if place not in renamed:
            renamed[place] = bundles.file_ref(folder / place, stem, ".data")
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = renamed[place].file
    encoded = model.SerializeToString(deterministic=True)
    graph = bundles.file_ref(encoded, stem, ".onnx")
    for place, ref in renamed.items():
        (folder / place).replace(folder / ref.file)
    path.unlink()
    (folder / graph.file).write_bytes(encoded)
    return Settled(folder=folder, graph=graph, data=tuple(dict.fromkeys(renamed.values())))


def tensors_of(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Give every constant of a graph and of the graphs and functions inside it."""
    yield from _tensors(model.graph)
    for function in model.functions:
        for node in function.node:
            yield from _of_node(node)


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        yield from _of_node(node)


def _of_node(node: onnx.NodeProto) -> Iterator[onnx.TensorProto]:
    for attribute in node.attribute:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        for inner in (attribute.g, *attribute.graphs):
            yield from _tensors(inner)


def external_tensors(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    """Return the constants that lie in files beside the graph."""
    return [tensor for tensor in tensors_of(model) if uses_external_data(tensor)]


def is_large(model: onnx.ModelProto) -> bool:
    """Whether some of the weights lie beside the graph."""
    return any(uses_external_data(tensor) for tensor in tensors_of(model))


def nbytes(tensor: onnx.TensorProto) -> int:
    """Return how many bytes a constant's values take, without reading them."""
    size = math.prod(tensor.dims)
    if tensor.data_type in {onnx.TensorProto.INT4, onnx.TensorProto.UINT4}:
        return math.ceil(size / 2)
    dtype: np.dtype[Any] = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    return size * dtype.itemsize


def array_of(tensor: onnx.TensorProto, folder: Path) -> NDArray[Any]:
    """Return a constant's values; those in a file are mapped, not read."""
    if not uses_external_data(tensor):
        return np.asarray(numpy_helper.to_array(tensor))
    info = ExternalDataInfo(tensor)
    dtype: np.dtype[Any] = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    offset = int(info.offset) if info.offset else 0
    return np.memmap(folder / info.location, dtype=dtype, mode="r", offset=offset, shape=tuple(tensor.dims))


class DataWriter:
    """A file of weights that grows constant by constant.

    Args:
        path: Of the file, beside its graph.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None

    def add(self, tensor: onnx.TensorProto, values: NDArray[Any] | None = None) -> None:
        """Write a constant's values, or its own, into the file, and let it name their place there."""
        data = tensor.raw_data if values is None else np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
        if self._file is None:
            self._file = self._path.open("wb")
        offset = self._file.tell()
        self._file.write(b"\0" * (-offset % _ALIGNED))
        offset = self._file.tell()
        self._file.write(data)
        for name in ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "external_data"):
            tensor.ClearField(name)
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", self._path.name), ("offset", str(offset)), ("length", str(len(data)))):
            entry = tensor.external_data.add()
            entry.key, entry.value = key, value

    def close(self) -> None:
        """Write what is left."""
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def link(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it if the file system cannot do that."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def link_weights(model: onnx.ModelProto, source: Path, target: Path) -> None:
    """Let the files that a graph's weights lie in appear in another folder as well."""
    for place in {ExternalDataInfo(tensor).location for tensor in external_tensors(model)}:
        if not (target / place).exists():
            link(source / place, target / place)
