"""A look into an ONNX file without the package onnx: its versions, and the files that its weights lie in.

The file is mapped and walked by field (protobuf's wire format, protobuf.dev/programming-guides/encoding); weights are stepped
over, so that gigabytes take milliseconds. Numbers are fields of onnx.proto.
"""

from __future__ import annotations

import mmap
import re
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit.choices import Precision, VariantFormat
from kit.errors import BundleInvalid

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._ -]*")
_LOCATION = b"location"
_BROKEN = (ValueError, IndexError, TypeError)
_DEEPEST = 32
_MOST = 2**63
_BYTES = 2  # protobuf's wire type of what has a length
_TYPES = {1: 4.0, 2: 1.0, 3: 1.0, 10: 2.0, 11: 8.0, 21: 0.5, 22: 0.5}  # TensorProto.DataType: bytes of a value
_PRECISIONS = {10: Precision.FP16, 2: Precision.INT8, 3: Precision.INT8, 21: Precision.INT4, 22: Precision.INT4}
_IN_BLOCKS, _USUAL_BITS = "MatMulNBits", 4
_FORMATS = (
    (VariantFormat.WEIGHT_ONLY, frozenset({_IN_BLOCKS, "GatherBlockQuantized"})),
    (VariantFormat.QOPERATOR, frozenset({"QGemm", "QLinearMatMul", "QLinearConv", "QLinearAdd"})),
    (
        VariantFormat.DYNAMIC,
        frozenset(
            {
                *("DynamicQuantizeLinear", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "MatMulInteger"),
                *("MatMulIntegerToFloat", "ConvInteger"),
            }
        ),
    ),
    (VariantFormat.QDQ, frozenset({"QuantizeLinear", "DequantizeLinear"})),
)


@dataclass(frozen=True, kw_only=True)
class GraphFile:
    """What an ONNX file says of itself.

    Attributes:
        opset: Version of ONNX's own operators.
        domains: Of other operators.
        external: Files that hold weights, as the graph names them.
        precision: Of most of the weights, by their bytes; of weights in blocks, which lie packed, by their bits.
        format: As the operators tell; `weight-only` too for integers that no operator computes with: they are made float.
    """

    ir_version: int
    opset: int
    domains: tuple[str, ...]
    external: tuple[str, ...]
    precision: Precision
    format: VariantFormat


def look(path: Path) -> GraphFile:
    """Look into an ONNX file.

    Raises:
        BundleInvalid: It cannot be read, or is no ONNX file.
    """
    try:
        with path.open("rb") as file:
            return _looked(memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)))
    except OSError as error:
        raise BundleInvalid(f"{path} cannot be read: {error.strerror or error}") from error
    except _BROKEN as error:  # an empty file cannot be mapped
        raise BundleInvalid(f"{path} is no ONNX file") from error


def external_of(model: bytes | Path) -> tuple[str, ...]:
    """Return the files that hold a graph's weights, as it names them; none of bytes that are no ONNX file.

    Raises:
        BundleInvalid: A path that cannot be read or holds no ONNX file; bytes that seem to name files and are broken.
    """
    if isinstance(model, Path):
        return look(model).external
    if _LOCATION not in model:  # no tensor can name a file: most models, at the speed of memory
        return ()
    try:
        return _looked(memoryview(model)).external
    except _BROKEN as error:
        raise BundleInvalid("the graph is no ONNX file, or names files for its weights where none can be") from error


def refuse_external(model: bytes | Path) -> None:
    """Raise BundleInvalid for a graph in memory whose weights lie in files: a runtime would look in the current folder.

    Those of a path must lie beside it.
    """
    if isinstance(model, Path):
        weights_beside(model)
    elif names := external_of(model):
        raise BundleInvalid(
            f"the graph has weights in {names[0]!r}, and nothing says where that lies",
            hint="open the model by its path",
        )


def weights_beside(path: Path) -> tuple[Path, ...]:
    """Return the files that hold a graph's weights; they must lie beside it.

    Raises:
        BundleInvalid: A name leads elsewhere, the file is missing, or it is a link.
    """
    found = []
    for name in look(path).external:
        if not _PLAIN_NAME.fullmatch(name):
            raise BundleInvalid(
                f"{path.name} has weights in {name!r}, which is not a plain file name",
                hint="save the model again with its weights beside it",
            )
        place = path.parent / name
        if not place.exists() and not place.is_symlink():
            raise BundleInvalid(
                f"{path.name} has weights in {name}, which is not beside it", hint="copy both into one folder"
            )
        refuse_link(place, names=None)
        found.append(place)
    return tuple(found)


def refuse_link(path: Path, *, names: int | None = 1) -> None:
    """Raise BundleInvalid unless a path is a file of its own: no link, no device, and no second name elsewhere.

    Args:
        path: Of the file.
        names: How many the file may have at most; None: any number.
    """
    try:
        found = path.lstat()
    except OSError as error:
        raise BundleInvalid(f"{path} cannot be read: {error.strerror or error}") from error
    if not stat.S_ISREG(found.st_mode):
        raise BundleInvalid(f"{path} is no ordinary file: a link could lead anywhere", hint="copy the file itself")
    if names is not None and found.st_nlink > names:
        raise BundleInvalid(
            f"{path} has {found.st_nlink} names: weights could be changed under another one",
            hint="copy the file itself",
        )


class _Seen:
    """What the walk has met."""

    def __init__(self) -> None:
        self.external: dict[str, None] = {}
        self.weights: Counter[int] = Counter()
        self.operators: set[str] = set()
        self.domains: set[str] = set()
        self.bits: Counter[int] = Counter()


def _looked(data: memoryview) -> GraphFile:
    seen, ir_version, opsets = _Seen(), 0, dict[str, int]()
    for field, value in _fields(data):
        if field == 1:
            ir_version = value
        elif field == 7:
            _graph(value, seen, 0)
        elif field == 8:
            parts = dict(_fields(value))
            opsets[_text(parts.get(1, b""))] = parts.get(2, 0)
        elif field in {20, 25}:
            _beside_the_graph(field, value, seen)
    if not ir_version or not isinstance(ir_version, int):
        raise ValueError("there is no version")
    own = {"", "ai.onnx"}
    most = max(seen.weights, key=lambda kind: seen.weights[kind], default=1)
    precision = _PRECISIONS.get(most, Precision.FP32)
    form = next((kind for kind, names in _FORMATS if names & seen.operators), VariantFormat.FLOAT)
    if form is VariantFormat.FLOAT and precision in {Precision.INT8, Precision.INT4}:
        form = VariantFormat.WEIGHT_ONLY
    elif seen.bits and precision is Precision.INT8:
        precision = Precision.INT8 if max(seen.bits, key=lambda bits: seen.bits[bits]) == 8 else Precision.INT4
    return GraphFile(
        ir_version=ir_version,
        opset=max((version for domain, version in opsets.items() if domain in own), default=0),
        domains=tuple(sorted(seen.domains - own)),
        external=tuple(seen.external),
        precision=precision,
        format=form,
    )


def _beside_the_graph(field: int, data: memoryview, seen: _Seen) -> None:
    """Walk the two graphs of training, which no runtime runs, or the nodes of a function of the model's own."""
    for inner, value in _fields(data):
        if field == 20 and inner in {1, 2}:
            _graph(value, seen, 0)
        elif field == 25 and inner == 7:
            _node(value, seen, 0)


def _graph(data: memoryview, seen: _Seen, depth: int) -> None:
    if depth > _DEEPEST:
        raise ValueError("graphs in graphs without end")
    for field, value in _fields(data):
        if field == 1:
            _node(value, seen, depth)
        elif field == 5:
            _tensor(value, seen)
        elif field == 15:  # sparse: values and indices
            _sparse(value, seen)


def _sparse(data: memoryview, seen: _Seen) -> None:
    for field, part in _fields(data):
        if field in {1, 2}:
            _tensor(part, seen)


def _node(data: memoryview, seen: _Seen, depth: int) -> None:
    operator, bits = "", _USUAL_BITS
    for field, value in _fields(data):
        if field == 4:
            operator = _text(value)
        elif field == 7:
            seen.domains.add(_text(value))
        elif field == 5:
            bits = _attribute(value, seen, depth).get("bits", bits)
    seen.operators.add(operator)
    if operator == _IN_BLOCKS:
        seen.bits[bits] += 1


def _attribute(data: memoryview, seen: _Seen, depth: int) -> dict[str, int]:
    """Walk an attribute; return its number by its name, if it holds one."""
    name, number = "", None
    for field, part in _fields(data):
        if field == 1:
            name = _text(part)
        elif field == 3:
            number = part
        elif field in {5, 10}:
            _tensor(part, seen)
        elif field in {6, 11}:
            _graph(part, seen, depth + 1)
        elif field in {22, 23}:
            _sparse(part, seen)
    return {} if number is None else {name: number}


def _tensor(data: memoryview, seen: _Seen) -> None:
    count, kind = 1, 0
    for field, value in _fields(data):
        if field == 1:
            for size in _varints(value) if isinstance(value, memoryview) else (value,):
                count = min(count * size, _MOST)
        elif field == 2:
            kind = value
        elif field == 13:
            parts = dict(_fields(value))
            if _text(parts.get(1, b"")) == "location":
                seen.external[_text(parts.get(2, b""))] = None
    if kind in _TYPES and kind != 7:
        seen.weights[kind] += int(count * _TYPES[kind])


def _fields(data: memoryview) -> Iterator[tuple[int, Any]]:
    """Give each field's number and value: an integer, or the bytes where they lie; raises ValueError and IndexError."""
    place, end = 0, len(data)
    while place < end:
        key, place = _varint(data, place)
        kind = key & 7
        if key >> 32:  # readers of other makers drop the upper bits, and see another field
            raise ValueError("no protobuf")
        if kind == 0:
            value, place = _varint(data, place)
            yield key >> 3, value
            continue
        length, place = (8, place) if kind == 1 else (4, place) if kind == 5 else _varint(data, place)
        if kind not in {1, _BYTES, 5} or place + length > end:
            raise ValueError("no protobuf")
        yield key >> 3, data[place : place + length]
        place += length


def _varints(data: memoryview) -> Iterator[int]:
    place = 0
    while place < len(data):
        value, place = _varint(data, place)
        yield value


def _varint(data: memoryview, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise ValueError("a number without end")


def _text(data: Any) -> str:
    if not isinstance(data, memoryview | bytes):  # of a number, bytes() makes so many zeros
        raise TypeError("a number for text")
    return bytes(data).decode()
