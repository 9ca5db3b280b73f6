"""Graphs as files: weights that stay where they are, written piece by piece, and names that carry hashes.

    graph = read(Path("model.onnx"))            # the weights are not read
    graph.values("conv1.weight")                # mapped when somebody asks
    path = graph.save(folder)                   # model.onnx, and model.data if the weights are large
    file, data = place(path, "fp32", folder)    # fp32-1a2b3c4d.onnx, fp32-5e6f7a8b.data

Needs onnx and no torch.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from exporters.sources.base import EXTERNAL_ABOVE_BYTES
from kit import bundle as bundles
from kit.bundle.manifest import FileRef
from kit.errors import BundleInvalid
from kit.system import files

MODEL = "model.onnx"
_INSIDE_BYTES = 16 * 2**10  # constants below this stay in the graph, whatever the model weighs
_ALIGNED = 4096  # so that a runtime can map each weight
_PIECE = 8 * 2**20
_VALUES = ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data", "external_data")
_BITS: dict[int, int] = {TensorProto.INT4: 4, TensorProto.UINT4: 4}


@dataclass(frozen=True)
class Stored:
    """Values that lie in a file, as ONNX lays them out."""

    path: Path
    offset: int
    length: int


Held = NDArray[Any] | Stored
"""Values that are not in the graph: an array that somebody else owns, or a place in a file."""


class Graph:
    """An ONNX graph whose large constants are kept outside of it until it is saved.

    Constants that are `held` elsewhere have their dtype and dims in `model`, and no values.
    """

    def __init__(self, model: onnx.ModelProto, held: Mapping[str, Held] | None = None) -> None:
        self.model = model
        self._held = dict(held or {})

    @property
    def constants(self) -> dict[str, TensorProto]:
        """The graph's constants by name; ask `values` for what they hold."""
        return {tensor.name: tensor for tensor in self.model.graph.initializer}

    @property
    def held(self) -> Mapping[str, Held]:
        """Values that are kept outside of the graph."""
        return self._held

    def values(self, name: str) -> NDArray[Any]:
        """Return a constant's values; those in a file are mapped. Not to be written to."""
        tensor = self.constants[name]
        found = self._held.get(name)
        if found is None:
            return numpy_helper.to_array(tensor)
        return mapped(tensor, found) if isinstance(found, Stored) else found

    def assign(self, name: str, values: NDArray[Any]) -> None:
        """Give a constant other values, of its own dtype; a view of what is held elsewhere is copied when it is saved."""
        tensor = self.constants[name]
        if name in self._held:
            self._held[name] = values.astype(dtype_of(tensor), copy=False)
            tensor.dims[:] = values.shape
        else:
            own = np.ascontiguousarray(values, dtype_of(tensor))
            tensor.CopyFrom(numpy_helper.from_array(own, name))

    def drop_unused(self) -> None:
        """Remove constants that nothing reads."""
        used = set(names_read(self.model.graph))
        for tensor in [one for one in self.model.graph.initializer if one.name not in used]:
            self._held.pop(tensor.name, None)
            self.model.graph.initializer.remove(tensor)

    def rename_constants(self, names: Mapping[str, str]) -> None:
        """Note that constants have other names in the graph."""
        self._held = {names.get(name, name): values for name, values in self._held.items()}

    def nbytes(self) -> int:
        """Return the bytes of all constants."""
        return sum(nbytes(tensor) for tensor in self.model.graph.initializer)

    def outline(self) -> onnx.ModelProto:
        """Return a valid model of small size, in which constants that are held elsewhere are inputs."""
        outline = onnx.ModelProto()
        outline.CopyFrom(self.model)
        for tensor in [one for one in outline.graph.initializer if one.name in self._held]:
            outline.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
            outline.graph.initializer.remove(tensor)
        return outline

    def save(self, folder: Path, name: str = MODEL) -> Path:
        """Write it into a folder: one file, or weights above EXTERNAL_ABOVE_BYTES beside it in a file of their own.

        Raises:
            StorageUnavailable: The disk has no room for it.
        """
        path, total = folder / name, self.nbytes()
        files.check_room(folder, total, what=name)
        if total <= EXTERNAL_ABOVE_BYTES:
            for own in list(self._held):
                values = np.ascontiguousarray(self.values(own))
                self.constants[own].CopyFrom(numpy_helper.from_array(values, own))
            self._held.clear()
        else:
            self._write_beside(path.with_suffix(".data"))
        path.write_bytes(self.model.SerializeToString(deterministic=True))
        return path

    def _write_beside(self, path: Path) -> None:
        with path.open("wb") as file:
            for tensor in self.model.graph.initializer:
                if tensor.name not in self._held and nbytes(tensor) < _INSIDE_BYTES:
                    continue
                offset = file.tell() + -file.tell() % _ALIGNED
                file.write(b"\0" * (offset - file.tell()))
                _write_values(file, tensor, self._held.get(tensor.name))
                _refer(tensor, path.name, offset, file.tell() - offset)
                self._held[tensor.name] = Stored(path, offset, file.tell() - offset)


def read(path: Path) -> Graph:
    """Read a graph; weights in it or beside it stay in their files, however many gigabytes they are.

    Raises:
        BundleInvalid: It is no ONNX file.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            encoded, places = _without_weights(memoryview(data))
        model = onnx.ModelProto.FromString(encoded)
    except OSError as error:
        raise BundleInvalid(f"{path} cannot be read: {error.strerror or error}") from error
    except (DecodeError, ValueError, IndexError) as error:  # an empty file cannot be mapped
        raise BundleInvalid(f"{path} is no ONNX file", hint="copy it again from where it came, whole") from error
    held: dict[str, Held] = {}
    for index, tensor in enumerate(model.graph.initializer):
        if index in places:
            offset, length = places[index]
            held[tensor.name] = Stored(path, offset, length)
            tensor.data_location = TensorProto.EXTERNAL
        elif uses_external_data(tensor):
            held[tensor.name] = stored(tensor, path.parent)
            tensor.ClearField("external_data")
    for tensor in tensors_of(model):  # in graphs inside the graph
        if tensor.name not in held and uses_external_data(tensor):
            values = np.array(array_of(tensor, path.parent))
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return Graph(model, held)


def load(path: Path) -> onnx.ModelProto:
    """Return a graph as it lies in its file; weights beside it are not read."""
    return onnx.load(str(path), load_external_data=False)


def save(model: onnx.ModelProto, folder: Path, name: str = MODEL) -> Path:
    """Write a model, large weights beside it; weights that lie beside it already must lie in this folder, and stay."""
    if any(uses_external_data(tensor) for tensor in tensors_of(model)):
        path = folder / name
        path.write_bytes(model.SerializeToString(deterministic=True))
        return path
    return Graph(model).save(folder, name)


def weights_bytes(path: Path) -> int:
    """Return the bytes of a graph's constants, inside it and beside it, without reading them."""
    return read(path).nbytes()


def place(path: Path, name: str, folder: Path) -> tuple[FileRef, tuple[FileRef, ...]]:
    """Move a graph and its weights to the names that they have in a bundle: `NAME-1a2b3c4d.onnx`, `NAME-5e6f7a8b.data`.

    The weights lie beside the graph; `folder` is on the same file system.
    """
    model = load(path)
    moved: dict[str, FileRef] = {}
    for tensor in tensors_of(model):
        if not uses_external_data(tensor):
            continue
        old = ExternalDataInfo(tensor).location
        if old not in moved:
            moved[old] = bundles.file_ref(path.parent / old, name, ".data")
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = moved[old].file
    encoded = model.SerializeToString(deterministic=True) if moved else path.read_bytes()
    graph = bundles.file_ref(encoded, name, ".onnx")
    for old, ref in moved.items():
        (path.parent / old).replace(folder / ref.file)
    path.unlink()
    (folder / graph.file).write_bytes(encoded)
    return graph, tuple(dict.fromkeys(moved.values()))


def tensors_of(model: onnx.ModelProto) -> Iterator[TensorProto]:
    """Give every constant of a graph, and of the graphs and functions inside it."""
    yield from _of_graph(model.graph)
    for function in model.functions:
        for node in function.node:
            yield from _of_node(node)


def _of_graph(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        yield from _of_node(node)


def _of_node(node: onnx.NodeProto) -> Iterator[TensorProto]:
    for attribute in node.attribute:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        for inner in inner_graphs(attribute):
            yield from _of_graph(inner)


def inner_graphs(attribute: onnx.AttributeProto) -> Iterator[onnx.GraphProto]:
    """Give the graphs inside an attribute, such as the body of a Loop."""
    if attribute.HasField("g"):
        yield attribute.g
    yield from attribute.graphs


def names_read(graph: onnx.GraphProto) -> Iterator[str]:
    """Give every name that nodes read or the graph gives, graphs inside it included."""
    for node in graph.node:
        yield from names_of(node)
    yield from (output.name for output in graph.output)


def names_of(node: onnx.NodeProto) -> Iterator[str]:
    """Give every name that a node reads, graphs inside it included."""
    yield from node.input
    for attribute in node.attribute:
        for inner in inner_graphs(attribute):
            yield from names_read(inner)


def dtype_of(tensor: TensorProto) -> np.dtype[Any]:
    """Return numpy's dtype of a constant."""
    return np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type))


def nbytes(tensor: TensorProto) -> int:
    """Return how many bytes a constant's values take, without reading them."""
    size = int(math.prod(tensor.dims))
    if tensor.data_type in _BITS:
        return math.ceil(size * _BITS[tensor.data_type] / 8)
    return 0 if tensor.data_type == TensorProto.STRING else int(size * dtype_of(tensor).itemsize)


def stored(tensor: TensorProto, folder: Path) -> Stored:
    """Return where the values of a constant lie that is beside its graph."""
    info: Any = ExternalDataInfo(tensor)  # what a file leaves out is None
    return Stored(folder / info.location, info.offset or 0, info.length or nbytes(tensor))


def mapped(tensor: TensorProto, place: Stored) -> NDArray[Any]:
    """Return a constant's values, mapped from where they lie."""
    if tensor.data_type in _BITS:
        with place.path.open("rb") as file:
            file.seek(place.offset)
            packed = TensorProto(data_type=tensor.data_type, dims=tensor.dims, raw_data=file.read(place.length))
        return numpy_helper.to_array(packed)
    shape = tuple(tensor.dims)
    if 0 in shape:
        return np.zeros(shape, dtype_of(tensor))
    return np.memmap(place.path, dtype=dtype_of(tensor), mode="r", offset=place.offset, shape=shape)


def array_of(tensor: TensorProto, folder: Path) -> NDArray[Any]:
    """Return a constant's values; those in a file beside the graph are mapped, not read."""
    return mapped(tensor, stored(tensor, folder)) if uses_external_data(tensor) else numpy_helper.to_array(tensor)


def overwrite(tensor: TensorProto, values: NDArray[Any], folder: Path) -> None:
    """Give a constant other values, of its own dtype and shape, where it lies: in the graph, or in a file beside it."""
    own = np.ascontiguousarray(values, dtype_of(tensor))
    if not uses_external_data(tensor):
        tensor.CopyFrom(numpy_helper.from_array(own, tensor.name))
        return
    place = stored(tensor, folder)
    with place.path.open("r+b") as file:
        file.seek(place.offset)
        file.write(own.tobytes())


def _write_values(file: BinaryIO, tensor: TensorProto, held: Held | None) -> None:
    if held is None:
        if tensor.HasField("raw_data"):
            file.write(tensor.raw_data)
            return
        held = numpy_helper.to_array(tensor)
    if isinstance(held, Stored):
        _copy(held, file)
    elif held.flags.c_contiguous:
        file.write(held.reshape(-1).view(np.uint8).data)
    else:
        rows = max(1, _PIECE * len(held) // max(held.nbytes, 1))
        file.writelines(
            np.ascontiguousarray(held[start : start + rows]).reshape(-1).view(np.uint8).data
            for start in range(0, len(held), rows)
        )


def _copy(place: Stored, target: BinaryIO) -> None:
    left = place.length
    with place.path.open("rb") as file:
        file.seek(place.offset)
        while left and (piece := file.read(min(left, _PIECE))):
            target.write(piece)
            left -= len(piece)
    if left:
        raise BundleInvalid(f"{place.path.name} ends before its weights do", hint="copy the file again")


def _refer(tensor: TensorProto, file: str, offset: int, length: int) -> None:
    for name in _VALUES:
        tensor.ClearField(name)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", file), ("offset", str(offset)), ("length", str(length))):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value


# Protobuf's wire format, protobuf.dev/programming-guides/encoding; the numbers are fields of onnx.proto.
_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9
_WITH_LENGTH = 2


def _without_weights(data: memoryview) -> tuple[bytes, dict[int, tuple[int, int]]]:
    """Return a serialised model whose large constants have no values, and where those lie: (offset, length) by index."""
    places: dict[int, tuple[int, int]] = {}
    model: list[bytes] = []
    for number, first, start, end in _fields(data, 0, len(data)):
        if number != _GRAPH:
            model.append(bytes(data[first:end]))
            continue
        graph: list[bytes] = []
        index = 0
        for inner, inner_first, inner_start, inner_end in _fields(data, start, end):
            if inner != _INITIALIZER:
                graph.append(bytes(data[inner_first:inner_end]))
                continue
            tensor: list[bytes] = []
            for field, field_first, field_start, field_end in _fields(data, inner_start, inner_end):
                if field == _RAW_DATA and field_end - field_start >= _INSIDE_BYTES:
                    places[index] = (field_start, field_end - field_start)
                else:
                    tensor.append(bytes(data[field_first:field_end]))
            graph.append(_encoded(_INITIALIZER, b"".join(tensor)))
            index += 1
        model.append(_encoded(_GRAPH, b"".join(graph)))
    return b"".join(model), places


def _fields(data: memoryview, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Give number, where it begins, where its content begins and ends, of every field of a message."""
    while start < end:
        first = start
        tag, start = _number(data, start)
        wire = tag & 7
        content = start
        if wire == _WITH_LENGTH:
            length, content = _number(data, start)
            start = content + length
        elif wire == 0:
            _, start = _number(data, start)
        elif wire in {1, 5}:
            start += 8 if wire == 1 else 4
        else:
            raise ValueError("no protobuf")
        if start > end:
            raise ValueError("a field ends after its message")
        yield tag >> 3, first, content, start


def _number(data: memoryview, start: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[start]
        start += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, start
        shift += 7
        if shift > 63:
            raise ValueError("no number")


def _encoded(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | _WITH_LENGTH) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
