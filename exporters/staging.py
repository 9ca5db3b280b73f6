"""Graphs as files: how weights beside a graph are found, written piece by piece, and named after their content.

A candidate waits in a folder of its own until it is published: `settle` gives its files the names they will have in the
bundle, and from then on they are opened, judged and moved, never rewritten.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from exporters.graph.files import array_of, load, place, tensors_of
from kit.bundle.manifest import FileRef

_ALIGNED = 4096  # so that a runtime can map each weight


@dataclass(frozen=True, kw_only=True)
class Settled:
    """Files under the names they have in a bundle: the .onnx file, and its weights if they lie beside it."""

    folder: Path
    graph: FileRef
    data: tuple[FileRef, ...]

    @property
    def path(self) -> Path:
        """Of the graph."""
        return self.folder / self.graph.file


def read(path: Path) -> onnx.ModelProto:
    """Return a graph; weights beside it are not read."""
    return load(path)


def write(model: onnx.ModelProto, path: Path) -> Path:
    """Write a graph, the same bytes for the same graph; its weights beside it stay as they are."""
    path.write_bytes(model.SerializeToString(deterministic=True))
    return path


def settle(path: Path, stem: str) -> Settled:
    """Rename a graph and its weights after their content: `STEM-1a2b3c4d.onnx`, `STEM-5e6f7a8b.data`."""
    graph, data = place(path, stem, path.parent)
    return Settled(folder=path.parent, graph=graph, data=data)


def external_tensors(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    """Return the constants that lie in files beside the graph."""
    return [tensor for tensor in tensors_of(model) if uses_external_data(tensor)]


def is_large(model: onnx.ModelProto) -> bool:
    """Whether some of the weights lie beside the graph."""
    return any(uses_external_data(tensor) for tensor in tensors_of(model))


def _bytes_of(values: NDArray[Any]) -> memoryview:
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8).data


class DataWriter:
    """A file of weights beside a graph that grows constant by constant."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None

    def add(self, tensor: onnx.TensorProto, values: NDArray[Any] | None = None) -> None:
        """Write a constant's values, or its own, into the file, and let it name their place there."""
        self._write(tensor, [tensor.raw_data if values is None else _bytes_of(values)])

    def add_pieces(self, tensor: onnx.TensorProto, pieces: Iterable[NDArray[Any]]) -> None:
        """Write a constant's values as `add` does, one piece behind the other."""
        self._write(tensor, map(_bytes_of, pieces))

    def _write(self, tensor: onnx.TensorProto, parts: Iterable[bytes | memoryview]) -> None:
        if self._file is None:
            self._file = self._path.open("wb")
        offset = self._file.tell()
        self._file.write(b"\0" * (-offset % _ALIGNED))
        offset = self._file.tell()
        self._file.writelines(parts)
        length = self._file.tell() - offset
        for name in ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "external_data"):
            tensor.ClearField(name)
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", self._path.name), ("offset", str(offset)), ("length", str(length))):
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


def rewrite_weights(model: onnx.ModelProto, path: Path) -> None:
    """Write the weights beside a graph, as far as it still names them, into a new file; remove the old ones."""
    tensors = external_tensors(model)
    old = {path.parent / ExternalDataInfo(tensor).location for tensor in tensors}
    beside = path.with_suffix(".data")
    if not tensors or beside in old:
        return
    with DataWriter(beside) as data:
        for tensor in tensors:
            data.add(tensor, array_of(tensor, path.parent))
    for one in old:
        one.unlink()


def link(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it if the file system cannot do that."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def link_weights(model: onnx.ModelProto, source: Path, target: Path) -> None:
    """Let the files that a graph's weights lie in appear in another folder as well."""
    for name in {ExternalDataInfo(tensor).location for tensor in external_tensors(model)}:
        if not (target / name).exists():
            link(source / name, target / name)


def cut(model: onnx.ModelProto, tensors: Sequence[str], weights: Path, folder: Path) -> Path:
    """Write a graph that gives tensors inside a model, and nothing else, its weights linked beside it."""
    folder.mkdir(exist_ok=True)
    part = onnx.ModelProto()
    part.CopyFrom(model)
    known = {value.name: value for value in onnx.shape_inference.infer_shapes(part).graph.value_info}
    given = {value.name: value for value in model.graph.output}
    del part.graph.output[:]
    for name in tensors:
        about = given.get(name) or known.get(name)
        part.graph.output.append(about or helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    link_weights(part, weights, folder)
    return write(part, folder / "cut.onnx")
