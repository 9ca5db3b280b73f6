"""Ways to spoil what lies in a file: its bytes, and its structure where it has one."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx

Rng = np.random.Generator

HOSTILE: tuple[Any, ...] = (
    *(None, True, 0, -1, 2**31, 2**63, 10**30, 1e308, 0.1, float("nan"), float("inf"), -0.0),
    *(
        "",
        " ",
        "../x",
        "/etc/passwd",
        "[/]",
        "[red]",
        "\x1b[2J",
        "\u202e",
        "\ud800",
        "\x00",
        "a" * 10_000,
        "NaN",
        "C:\\x",
    ),
    *([], {}, [[]], [None], {"": None}, [0] * 1000),
)
"""Values that stand where others belong."""


def of_bytes(data: bytes, rng: Rng) -> bytes:
    """Return a file with some bytes changed, lost, doubled or added."""
    spoilt = bytearray(data)
    for _ in range(int(rng.integers(1, 6))):
        place = int(rng.integers(0, max(len(spoilt), 1)))
        length = int(rng.integers(1, 64))
        match int(rng.integers(0, 5)):
            case 0:
                spoilt[place : place + 1] = bytes([int(rng.integers(0, 256))])
            case 1:
                del spoilt[place : place + length]
            case 2:
                spoilt[place:place] = spoilt[place : place + length]
            case 3:
                spoilt[place:place] = rng.bytes(length)
            case _:
                del spoilt[place:]
    return bytes(spoilt)


def of_json(data: bytes, rng: Rng) -> bytes:
    """Return JSON with values that are impossible, missing, of another kind, or without end."""
    plain = json.loads(data)
    places = list(_places(plain))
    for _ in range(int(rng.integers(1, 4))):
        holder, key = places[int(rng.integers(0, len(places)))]
        with contextlib.suppress(KeyError, IndexError):  # it was lost before
            _spoil(holder, key, places, rng)
    return _dumped(plain)


def _spoil(holder: Any, key: Any, places: list[tuple[Any, Any]], rng: Rng) -> None:
    match int(rng.integers(0, 5)):
        case 0:
            del holder[key]
        case 1:
            with contextlib.suppress(RecursionError):
                holder[key] = copy.deepcopy(places[int(rng.integers(0, len(places)))][0])
        case 2:
            holder[key] = _nested(int(2 ** rng.uniform(0, 13)))
        case 3 if isinstance(holder, dict):
            holder[f"{key}{rng.integers(0, 10)}"] = holder[key]
        case _:
            holder[key] = HOSTILE[int(rng.integers(0, len(HOSTILE)))]


def _dumped(plain: Any) -> bytes:
    try:
        return json.dumps(plain).encode()
    except (RecursionError, ValueError):  # deeper than Python writes, or a part within itself
        return b"[" * 100_000


def _nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


def _places(plain: Any) -> Iterator[tuple[Any, Any]]:
    keys = list(plain) if isinstance(plain, dict) else range(len(plain)) if isinstance(plain, list) else ()
    for key in keys:
        yield plain, key
        yield from _places(plain[key])


def of_graph(data: bytes, rng: Rng) -> bytes:
    """Return an ONNX graph with other names, sizes, kinds, operators, attributes or edges; or other bytes."""
    if rng.random() < 0.3:
        return of_bytes(data, rng)
    model = onnx.load_from_string(data)
    for _ in range(int(rng.integers(1, 4))):
        CHANGES[int(rng.integers(0, len(CHANGES)))](model, rng)
    return bytes(model.SerializeToString())


def _node(model: onnx.ModelProto, rng: Rng) -> Any:
    return model.graph.node[int(rng.integers(0, len(model.graph.node)))]


def _weight(model: onnx.ModelProto, rng: Rng) -> Any:
    return model.graph.initializer[int(rng.integers(0, len(model.graph.initializer)))]


def _name(model: onnx.ModelProto, rng: Rng) -> str:
    names = [name for node in model.graph.node for name in (*node.input, *node.output)]
    return names[int(rng.integers(0, len(names)))]


def _other_operator(model: onnx.ModelProto, rng: Rng) -> None:
    names = (
        "Relu",
        "If",
        "Loop",
        "Reshape",
        "Conv",
        "NoSuch",
        "",
        "Softmax",
        "Concat",
        "Cast",
        "Gather",
        "Tile",
        "Expand",
    )
    _node(model, rng).op_type = names[int(rng.integers(0, len(names)))]


def _other_edge(model: onnx.ModelProto, rng: Rng) -> None:
    node = _node(model, rng)
    if node.input:
        node.input[int(rng.integers(0, len(node.input)))] = _name(model, rng)


def _other_output(model: onnx.ModelProto, rng: Rng) -> None:
    _node(model, rng).output[0] = _name(model, rng)


def _other_kind(model: onnx.ModelProto, rng: Rng) -> None:
    _weight(model, rng).data_type = int(rng.integers(0, 40))


def _other_dims(model: onnx.ModelProto, rng: Rng) -> None:
    sizes = (0, 1, 3, -1, 2**20, 2**31, 2**62)
    weight = _weight(model, rng)
    if weight.dims:
        weight.dims[int(rng.integers(0, len(weight.dims)))] = sizes[int(rng.integers(0, len(sizes)))]


def _outside(model: onnx.ModelProto, rng: Rng) -> None:
    weight = _weight(model, rng)
    weight.data_location = 1
    weight.external_data.add(
        key="location", value=("../x", "/etc/passwd", "*/_ORT_MEM_ADDR_/*")[int(rng.integers(0, 3))]
    )
    weight.external_data.add(key="offset", value=("0", "4096", "-1", "x")[int(rng.integers(0, 4))])


def _other_border(model: onnx.ModelProto, rng: Rng) -> None:
    value = (model.graph.input, model.graph.output)[int(rng.integers(0, 2))][0]
    match int(rng.integers(0, 4)):
        case 0:
            value.type.tensor_type.elem_type = int(rng.integers(0, 30))
        case 1:
            value.type.tensor_type.ClearField("shape")
        case 2:
            value.type.tensor_type.shape.dim.add().dim_value = int(rng.integers(-2, 2**40))
        case _:
            value.name = _name(model, rng)


def _branches(model: onnx.ModelProto, rng: Rng) -> None:
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", [_name(model, rng)], ["z"])], "b", [], [])
    for _ in range(int(rng.integers(1, 25))):
        branch = onnx.helper.make_node("If", ["c"], ["z"], then_branch=graph, else_branch=graph)
        graph = onnx.helper.make_graph([branch], "b", [], [])
        if graph.ByteSize() > 2**20:
            break
    model.graph.node.append(onnx.helper.make_node("If", ["c"], ["z"], then_branch=graph, else_branch=graph))


CHANGES: tuple[Callable[[onnx.ModelProto, Rng], None], ...] = (
    *(_other_operator, _other_edge, _other_output, _other_kind, _other_dims, _outside, _other_border, _branches),
)


def _other_header(content: bytes, rng: Rng) -> bytes:
    words = (
        b"(4,)",
        b"()",
        b"(-1,)",
        b"(99999999999999,)",
        b"((((",
        b"'|O'",
        b"'<U5'",
        b"'>f8'",
        b"True",
        b"None",
        b"\x00",
    )
    old = (b"False", b"'<f4'", b"'|u1'", b"(", b"4", b"}")
    wanted, given = old[int(rng.integers(0, len(old)))], words[int(rng.integers(0, len(words)))]
    return content[:128].replace(wanted, given, 1) + content[128:]


def of_zip(data: bytes, rng: Rng, *, usual: int) -> bytes:
    """Return a zip archive with members that are spoilt, renamed, lost, or compressed otherwise; or other bytes.

    Args:
        data: The archive.
        rng: Decides.
        usual: How its members are compressed, most of the time.
    """
    if rng.random() < 0.4:
        return of_bytes(data, rng)
    written = io.BytesIO()
    others = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
    method = others[int(rng.integers(0, 4))] if rng.random() < 0.1 else usual
    names = ("", "../x", "/x", "a/../b", "x\x00y", "manifest.json", "c:x", "ä", "a" * 5000)
    with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(written, "w") as spoilt:
        for info in archive.infolist():
            content, name = archive.read(info), info.filename
            match int(rng.integers(0, 8)):
                case 0:
                    content = of_bytes(content, rng)
                case 1:
                    name = names[int(rng.integers(0, len(names)))]
                case 2:
                    continue
                case 3:
                    content = bytes(2**20)
                case 4:  # the header of an array: its dtype, order and shape as Python writes them
                    content = _other_header(content, rng)
                case _:
                    pass
            if name not in spoilt.namelist():
                spoilt.writestr(zipfile.ZipInfo(name), content, method)
    return written.getvalue()
