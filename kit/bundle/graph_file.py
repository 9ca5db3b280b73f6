"""A look into an ONNX file without the package onnx: its versions, the files that its weights lie in, and what is unsound.

The file is mapped and walked by field; weights are stepped over, so that gigabytes take milliseconds. Numbers are fields of
onnx.proto. Whatever opens a file walks it first: runtimes read any file that a tensor names, wherever the tensor stands, and
some hang or end the process where nodes wait for each other or graphs stand in graphs.
"""

from __future__ import annotations

import itertools
import mmap
import re
import stat
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit.bundle.wire import BROKEN, fields, text, varints
from kit.choices import Precision, VariantFormat
from kit.errors import BundleInvalid

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._ -]*")
_LOCATION = b"location"
_DEEPEST = 8
_MOST_DIMS = 64
_KINDS = range(1, 64)  # of TensorProto.DataType, those to come included
_MOST = 2**63
_MOST_IN_A_BYTE = 4  # values of 2 bits
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
        BundleInvalid: It cannot be read, is no ONNX file, or is unsound: see `refuse_unsound`.
    """
    try:
        with path.open("rb") as file:
            return _looked(memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)))
    except OSError as error:
        raise BundleInvalid(f"{path} cannot be read: {error.strerror or error}") from error
    except _UnsoundError as error:
        raise BundleInvalid(f"{path} is no sound ONNX file: {error}") from error
    except BROKEN as error:  # an empty file cannot be mapped
        raise BundleInvalid(f"{path} is no ONNX file", hint="copy it again from where it came, whole") from error


def look_inside(model: bytes) -> GraphFile:
    """Look into an ONNX file in memory; raises as `look` does."""
    try:
        return _looked(memoryview(model))
    except _UnsoundError as error:
        raise BundleInvalid(f"the graph is no sound ONNX file: {error}") from error
    except BROKEN as error:
        raise BundleInvalid("this is no ONNX file, or one that names files where none can be named") from error


def external_of(model: bytes | Path) -> tuple[str, ...]:
    """Return the files that hold a graph's weights, as it names them; none of bytes that are no ONNX file.

    Raises:
        BundleInvalid: A path that cannot be read or holds no ONNX file; bytes that seem to name files and are broken.
    """
    if isinstance(model, Path):
        return look(model).external
    if _LOCATION not in model:  # no tensor can name a file: most models, at the speed of memory
        return ()
    return look_inside(model).external


def refuse_unsound(model: bytes | Path) -> None:
    """Raise BundleInvalid for a graph that no runtime should be given.

    That is one whose nodes wait for each other, or stand in graphs within graphs beyond all use; with tensors of impossible
    sizes and kinds, or names that are no UTF-8; one in memory whose weights lie in files, which a runtime would look for in
    the current folder; and one at a path whose weights do not lie beside it.
    """
    if isinstance(model, Path):
        weights_beside(model)
    elif names := look_inside(model).external:
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
    """Raise BundleInvalid unless a path is a file of its own: no link, no device, at most `names` names (None: any)."""
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


_Function = tuple[str, str, str]
"""Domain, name and overload of what a node calls."""


class _UnsoundError(ValueError):
    """Readable, and not to be given to a runtime; the message says why."""


class _Seen:
    def __init__(self) -> None:
        self.external: dict[str, None] = {}
        self.weights: Counter[int] = Counter()
        self.operators: set[str] = set()
        self.domains: set[str] = set()
        self.bits: Counter[int] = Counter()
        self.called: set[_Function] = set()
        self.calls: dict[_Function, set[_Function]] = {}


class _Names:
    """What the nodes of one graph read and make, in their order."""

    def __init__(self) -> None:
        self.reads: list[set[str]] = []
        self.makers: dict[str, int] = {}
        self.given: set[str] = set()

    def free(self) -> set[str]:
        """Return what is read and made outside; raises _UnsoundError if nodes wait for each other."""
        if any(self.makers.get(name, -1) >= place for place, names in enumerate(self.reads) for name in names):
            waits = {
                place: [self.makers[name] for name in names if name in self.makers]
                for place, names in enumerate(self.reads)
            }
            _refuse_cycles(waits, "it has nodes that wait for each other")
        return set().union(*self.reads) - self.makers.keys() - self.given


def _refuse_cycles(waits: Mapping[Any, Iterable[Any]], what: str) -> None:
    import graphlib  # nodes of most files lie in order

    try:
        graphlib.TopologicalSorter(waits).prepare()
    except graphlib.CycleError as error:
        raise _UnsoundError(what) from error


def _looked(data: memoryview) -> GraphFile:
    met, ir_version, opsets = _Seen(), 0, dict[str, int]()
    for field, value in fields(data):
        if field == 1:
            ir_version = value
        elif field == 7:
            _graph(value, met, 0)
        elif field == 8:
            parts = dict(fields(value))
            opsets[text(parts.get(1, b""))] = parts.get(2, 0)
        elif field == 20:
            _training(value, met)
        elif field == 25:
            _function(value, met)
    if not ir_version or not isinstance(ir_version, int):
        raise ValueError("there is no version")
    if met.calls:
        called = {name: names & met.calls.keys() for name, names in met.calls.items()}
        _refuse_cycles(called, "it has functions that call each other")
    own = {"", "ai.onnx"}
    precision, form = _told(met)
    return GraphFile(
        ir_version=ir_version,
        opset=max((version for domain, version in opsets.items() if domain in own), default=0),
        domains=tuple(sorted(met.domains - own)),
        external=tuple(met.external),
        precision=precision,
        format=form,
    )


def _told(met: _Seen) -> tuple[Precision, VariantFormat]:
    most = max(met.weights, key=lambda kind: met.weights[kind], default=1)
    precision = _PRECISIONS.get(most, Precision.FP32)
    form = next((kind for kind, names in _FORMATS if names & met.operators), VariantFormat.FLOAT)
    if form is VariantFormat.FLOAT and precision in {Precision.INT8, Precision.INT4}:
        form = VariantFormat.WEIGHT_ONLY
    elif met.bits and precision is Precision.INT8:
        precision = Precision.INT8 if max(met.bits, key=lambda bits: met.bits[bits]) == 8 else Precision.INT4
    return precision, form


def _training(data: memoryview, met: _Seen) -> None:
    for field, value in fields(data):
        if field in {1, 2}:
            _graph(value, met, 0)


def _function(data: memoryview, met: _Seen) -> None:
    """Walk a function of the model's own, and what its attributes are where no caller gives them."""
    name, domain, overload, nodes = "", "", "", _Names()
    met.called = set()
    for field, value in fields(data):
        if field == 1:
            name = text(value)
        elif field == 4:
            nodes.given.add(text(value))
        elif field == 7:
            _node(value, met, 0, nodes)
        elif field == 10:
            domain = text(value)
        elif field == 11:
            _attribute(value, met, 0, set())
        elif field == 13:
            overload = text(value)
    nodes.free()
    met.calls.setdefault((domain, name, overload), set()).update(met.called)


def _graph(data: memoryview, met: _Seen, depth: int) -> set[str]:
    """Walk a graph; return what it reads of the graph around it."""
    if depth > _DEEPEST:
        raise _UnsoundError(f"it has graphs in graphs, more than {_DEEPEST} deep")
    nodes = _Names()
    for field, value in fields(data):
        if field == 1:
            _node(value, met, depth, nodes)
        elif field == 5:
            nodes.given.add(_tensor(value, met))
        elif field == 11:
            nodes.given.add(_value(value))
        elif field in {12, 13}:
            _value(value)
        elif field == 15:  # sparse: values and indices
            nodes.given.add(_sparse(value, met))
    return nodes.free()


def _value(data: memoryview) -> str:
    return next((text(part) for field, part in fields(data) if field == 1), "")


def _sparse(data: memoryview, met: _Seen) -> str:
    """Walk a sparse tensor; return the name of its values, which is its own."""
    names = {field: _tensor(part, met) for field, part in fields(data) if field in {1, 2}}
    return names.get(1, "")


def _node(data: memoryview, met: _Seen, depth: int, nodes: _Names) -> None:
    operator, domain, overload, bits, reads = "", "", "", _USUAL_BITS, set[str]()
    for field, value in fields(data):
        if field == 1:
            reads.add(text(value))
        elif field == 2:
            nodes.makers[text(value)] = len(nodes.reads)
        elif field == 3:
            text(value)
        elif field == 4:
            operator = text(value)
        elif field == 7:
            domain = text(value)
        elif field == 8:
            overload = text(value)
        elif field == 5:
            bits = _attribute(value, met, depth, reads).get("bits", bits)
    nodes.makers.pop("", None)  # an output that is left out
    nodes.reads.append(reads)
    met.operators.add(operator)
    met.domains.add(domain)
    met.called.add((domain, operator, overload))
    if operator == _IN_BLOCKS:
        met.bits[bits] += 1


def _attribute(data: memoryview, met: _Seen, depth: int, reads: set[str]) -> dict[str, int]:
    """Walk an attribute, adding to what its graphs read; return its number by its name, if it holds one."""
    name, number = "", None
    for field, part in fields(data):
        if field == 1:
            name = text(part)
        elif field == 3:
            number = part
        elif field in {5, 10}:
            _tensor(part, met)
        elif field in {6, 11}:
            reads |= _graph(part, met, depth + 1)
        elif field in {22, 23}:
            _sparse(part, met)
    return {} if number is None else {name: number}


def _tensor(data: memoryview, met: _Seen) -> str:
    dims, kind, name, outside = list[int](), 0, "", list[Any]()
    for field, value in fields(data):
        if field == 1:
            dims += itertools.islice(varints(value), _MOST_DIMS + 1) if isinstance(value, memoryview) else (value,)
        elif field == 2:
            kind = value
        elif field == 8:
            name = text(value)
        elif field == 13 or (field == 14 and value == 1):
            outside.append(value)
    if outside:
        met.external[_location(outside, name)] = None
    count = _count(dims, name)
    if kind not in _KINDS:
        raise _UnsoundError(f"its tensor {name!r} is of no kind that ONNX has: {kind}")
    if count > _MOST_IN_A_BYTE * len(data) and not outside:
        raise _UnsoundError(f"its tensor {name!r} says to hold {count:,} values, and holds {len(data):,} bytes")
    if kind in _TYPES and kind != 7:
        met.weights[kind] += int(count * _TYPES[kind])
    return name


def _location(entries: Sequence[Any], name: str) -> str:
    """Return the one file that a tensor names: of two, each reader picks another."""
    parts = [dict(fields(entry)) for entry in entries if not isinstance(entry, int)]
    found = [text(one.get(2, b"")) for one in parts if text(one.get(1, b"")) == "location"]
    if len(found) != 1:
        raise _UnsoundError(f"its tensor {name!r} has its values in another file, and names {len(found) or 'none'}")
    return found[0]


def _count(dims: Sequence[int], name: str) -> int:
    """Return how many values a tensor says to hold; a size below nothing is a huge one here."""
    if len(dims) > _MOST_DIMS:
        raise _UnsoundError(f"its tensor {name!r} has more than {_MOST_DIMS} axes")
    count = 1
    for size in dims:
        count = min(count * size, _MOST)
    return count
