"""The Open Inference Protocol v2 over HTTP: a body becomes named tensors, and named tensors a body.

Source: KServe's "Open Inference Protocol" (REST), and Triton's "binary tensor data" extension: after the JSON, whose length a
header gives, the values of tensors follow as little-endian bytes in the order in which the JSON names them.
"""

from __future__ import annotations

import math
import sys
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from apps.serve.refusals import bad
from kit.tensors import DATATYPES, Signature, Tensors, TensorSpec

HEADER_LENGTH = b"inference-header-content-length"

_CODES = {np.dtype(code).name: code for code in "bBhHiIqQfd"}
"""Of the module array, by numpy's names."""

_MOST_AXES = 32
_MOST_VALUES = 2**48
_INPUT_KEYS = frozenset({"name", "datatype", "shape", "data", "parameters"})


@dataclass(slots=True)
class Question:
    """A request to infer.

    Attributes:
        tensors: By name; not yet held to a signature.
        id: The client's own word for it, given back.
        wanted: Outputs that are asked for and whether as bytes; None for all.
        is_binary: Whether outputs that `wanted` does not name come as bytes.
    """

    tensors: dict[str, NDArray[Any]]
    id: str = ""
    wanted: dict[str, bool] | None = None
    is_binary: bool = False


def read(body: bytes | bytearray, header_length: int | None, signature: Signature) -> Question:
    """Return the question that a body holds; raises Refused 400, whose message says what was expected."""
    if header_length is None:
        header_length = len(body)
    elif not 0 <= header_length <= len(body):
        raise bad(f"the JSON of the request cannot be {header_length} of {len(body)} bytes")
    try:
        asked = orjson.loads(body if header_length == len(body) else memoryview(body)[:header_length])
    except orjson.JSONDecodeError as error:
        raise bad(f"the request is no JSON: {error}") from error
    if not isinstance(asked, dict):
        raise bad("the request must be a JSON object")
    inputs = asked.get("inputs")
    if not isinstance(inputs, list) or not inputs:
        raise bad('"inputs" must be a list of one input or more')
    tensors: dict[str, NDArray[Any]] = {}
    place = header_length
    for one in inputs:
        name, values, place = _input(one, signature, body, place)
        if name in tensors:
            raise bad(f"the input {name!r} stands twice")
        tensors[name] = values
    if place != len(body):
        raise bad(f"{len(body) - place} bytes follow that no input names")
    return _question(asked, tensors)


def write(
    answer: Tensors, wanted: Sequence[tuple[str, bool]], named: str, head: Mapping[str, str]
) -> tuple[bytes, int | None]:
    """Return the body of an answer, and the length of its JSON if bytes follow it.

    `wanted` is as `chosen` gives it; `named` is the client's own word for the question, or empty; `head` holds
    `model_name` and `model_version`.
    """
    outputs, parts = [], []
    for name, is_binary in wanted:
        values = answer[name]
        described: dict[str, Any] = {"name": name, "datatype": _datatype(values.dtype), "shape": values.shape}
        if is_binary:
            raw = to_bytes(values)
            described["parameters"] = {"binary_data_size": len(raw)}
            parts.append(raw)
        else:
            described["data"] = np.ascontiguousarray(values).reshape(-1)
        outputs.append(described)
    given = {**head, "id": named, "outputs": outputs} if named else {**head, "outputs": outputs}
    said = orjson.dumps(given, option=orjson.OPT_SERIALIZE_NUMPY, default=_listed)
    return (b"".join((said, *parts)), len(said)) if parts else (said, None)


def chosen(question: Question, signature: Signature) -> Sequence[tuple[str, bool]]:
    """Return the outputs that a question asks for, and whether as bytes; raises Refused if there is no such output."""
    if question.wanted is None:
        return [(spec.name, question.is_binary) for spec in signature.outputs]
    known = {spec.name for spec in signature.outputs}
    strange = next((name for name in question.wanted if name not in known), None)
    if strange is not None:
        raise bad(f"there is no output {strange!r}; the model gives {', '.join(sorted(known))}")
    return list(question.wanted.items())


def metadata(signature: Signature, name: str, versions: Sequence[str], platform: str) -> dict[str, Any]:
    """Return what the protocol says of a model: -1 for every size that may differ."""
    return {
        "name": name,
        "versions": list(versions),
        "platform": platform,
        "inputs": [_described(spec) for spec in signature.inputs],
        "outputs": [_described(spec) for spec in signature.outputs],
    }


def of_bytes(raw: bytes | memoryview, spec: TensorSpec, shape: Sequence[int]) -> NDArray[Any]:
    """Return little-endian bytes as an array that reads them in place; raises Refused if their number does not fit."""
    dtype = _little(spec.dtype)
    needed = math.prod(shape) * dtype.itemsize
    if len(raw) != needed:
        raise bad(f"{spec.name} of {list(shape)} takes {needed} bytes of {spec.dtype}, found {len(raw)}")
    values = np.frombuffer(raw, dtype).reshape(shape)
    if dtype.kind == "b" and values.size and values.view(np.uint8).max() > 1:
        raise bad(f"{spec.name} is BOOL: its bytes must be 0 or 1")
    return values


def to_bytes(values: NDArray[Any]) -> bytes:
    """Return values as little-endian bytes."""
    return values.tobytes() if sys.byteorder == "little" else values.astype(values.dtype.newbyteorder("<")).tobytes()


@cache
def _little(dtype: str) -> np.dtype[Any]:
    return np.dtype(dtype).newbyteorder("<")


@cache
def _datatype(dtype: np.dtype[Any]) -> str:
    return DATATYPES[dtype.name]


def spec_of(name: Any, datatype: Any, shape: Any, signature: Signature) -> TensorSpec:
    """Return the input of a name; raises Refused unless datatype and shape can be one of it."""
    for spec in signature.inputs:
        if spec.name == name:
            break
    else:
        known = ", ".join(one.name for one in signature.inputs)
        raise bad(f"there is no input {str(name)[:100]!r}; the model takes {known}")
    if datatype != DATATYPES[spec.dtype]:
        raise bad(f"{spec.name} is {DATATYPES[spec.dtype]}, found {str(datatype)[:100]!r}")
    if (
        not isinstance(shape, list)
        or len(shape) > _MOST_AXES
        or any(type(size) is not int or not 0 <= size < 2**31 for size in shape)
    ):
        raise bad(f"the shape of {spec.name} must be a list of whole numbers")
    if math.prod(size or 1 for size in shape) > _MOST_VALUES:  # numpy makes no such array, not even an empty one
        raise bad(f"the shape of {spec.name} is too large")
    return spec


def _described(spec: TensorSpec) -> dict[str, Any]:
    shape = [size if isinstance(size, int) else -1 for size in spec.shape]
    return {"name": spec.name, "datatype": DATATYPES[spec.dtype], "shape": shape}


def _input(one: Any, signature: Signature, body: bytes | bytearray, place: int) -> tuple[str, NDArray[Any], int]:
    """Return name and values of an input, and where the bytes of the next one begin."""
    if not isinstance(one, dict):
        raise bad("an input must be an object with name, datatype, shape and data")
    shape = one.get("shape")
    spec = spec_of(one.get("name"), one.get("datatype"), shape, signature)
    assert isinstance(shape, list)  # spec_of has looked
    parameters = one.get("parameters")
    if parameters:
        size = _binary_size(parameters, spec.name)
        if size is not None:
            if "data" in one:
                raise bad(f"{spec.name} has both data and binary_data_size")
            if size > len(body) - place:
                raise bad(f"{spec.name} is said to have {size} bytes, and {len(body) - place} follow")
            return spec.name, of_bytes(memoryview(body)[place : place + size], spec, shape), place + size
    if "data" not in one:
        raise bad(f"{spec.name} has neither data nor binary_data_size")
    return spec.name, _of_list(one["data"], spec, shape), place


def _binary_size(parameters: Any, name: str) -> int | None:
    if not isinstance(parameters, dict):
        raise bad(f"the parameters of {name} must be an object")
    strange = next((one for one in parameters if one != "binary_data_size"), None)
    if strange is not None:
        raise bad(f"{name}: the parameter {str(strange)[:100]!r} is not known here")
    size = parameters["binary_data_size"]
    if type(size) is not int or size < 0:
        raise bad(f"{name}: binary_data_size must be a whole number")
    return size


def _of_list(data: Any, spec: TensorSpec, shape: Sequence[int]) -> NDArray[Any]:
    """Return a list, flat or nested, as an array; numbers must be what the dtype can hold."""
    if not isinstance(data, list):
        raise bad(f"the data of {spec.name} must be a list")
    quick = _quickly(data, spec, shape)
    if quick is not None:
        return quick
    try:
        found = np.array(data)
    except (ValueError, OverflowError) as error:
        raise bad(f"the data of {spec.name} is no array: its lists differ in length") from error
    kinds = "b" if spec.dtype == "bool" else "biuf"
    if found.size and found.dtype.kind not in kinds:
        raise bad(f"the data of {spec.name} must be {'true and false' if kinds == 'b' else 'numbers'}")
    if found.size != math.prod(shape):
        raise bad(f"{spec.name} of {list(shape)} takes {math.prod(shape)} values, found {found.size}")
    with np.errstate(over="ignore", invalid="ignore"):
        values = found.astype(spec.dtype)
    if values.dtype.kind == "f":
        if not np.isfinite(values).all():
            raise bad(f"{spec.name} holds a number that {spec.dtype} cannot")
    elif not np.array_equal(values, found):
        raise bad(f"{spec.name} holds a number that is no {spec.dtype}")
    return values.reshape(shape)


def _quickly(data: list[Any], spec: TensorSpec, shape: Sequence[int]) -> NDArray[Any] | None:
    """Return a flat list of numbers that fit as an array; None for anything else, which `_of_list` judges."""
    # `bytes` and `array` refuse what does not fit, in half the time that numpy needs to find out what a list holds.
    code = _CODES.get(spec.dtype)
    if code is None or len(data) != math.prod(shape):
        return None
    try:
        held = bytes(data) if spec.dtype == "uint8" else array(code, data)
    except (TypeError, ValueError, OverflowError):
        return None
    found = np.frombuffer(held, spec.dtype).reshape(shape)
    return found if found.dtype.kind != "f" or np.isfinite(found).all() else None


def _question(asked: Mapping[str, Any], tensors: dict[str, NDArray[Any]]) -> Question:
    named = asked.get("id", "")
    if not isinstance(named, str) or len(named) > 1000:
        raise bad('"id" must be a text of 1,000 characters at most')
    is_binary = _flag(asked.get("parameters"), "binary_data_output", "the request")
    outputs = asked.get("outputs")
    if not outputs:
        if outputs is not None and not isinstance(outputs, list):
            raise bad('"outputs" must be a list')
        return Question(tensors, named, None, is_binary)
    if not isinstance(outputs, list):
        raise bad('"outputs" must be a list')
    wanted: dict[str, bool] = {}
    for one in outputs:
        if not isinstance(one, dict) or not isinstance(one.get("name"), str):
            raise bad("an output must be an object with a name")
        wanted[one["name"]] = _flag(one.get("parameters"), "binary_data", one["name"], usual=is_binary)
    return Question(tensors, named, wanted, is_binary)


def _flag(parameters: Any, name: str, of: str, *, usual: bool = False) -> bool:
    if parameters is None:
        return usual
    if not isinstance(parameters, dict):
        raise bad(f"the parameters of {of[:100]} must be an object")
    for unknown in ("classification", "shared_memory_region"):
        if parameters.get(unknown):
            raise bad(f"{of[:100]}: the parameter {unknown!r} is not known here")
    value = parameters.get(name, usual)
    if not isinstance(value, bool):
        raise bad(f"{name} must be true or false")
    return value


def _listed(value: Any) -> Any:
    """Return what orjson does not take as lists: half floats of old versions, sizes of no axis."""
    return value.tolist()
