"""Frozen dataclasses to plain JSON values and back, with errors that name the field.

Knows dataclasses, enums, tuples, dicts, optional values, unions of JSON scalars and Any; nothing of what they mean. Unknown
keys are ignored, so that a reader accepts what a later minor writer adds.
"""

from __future__ import annotations

import dataclasses
import enum
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T")


class DecodeError(ValueError):
    """A value that does not fit the declared type; the message starts with the path of the field."""


def encode(value: Any, *, brief: bool = False) -> Any:
    """Turn dataclasses, enums and tuples into what `json.dumps` writes.

    If `brief`, fields that have their default are left out; `decode` fills them in again.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: encode(item, brief=brief)
            for field in dataclasses.fields(value)
            if not (_is_default(field, item := getattr(value, field.name)) and brief)
        }
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): encode(item, brief=brief) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [encode(item, brief=brief) for item in value]
    return value


def _is_default(field: dataclasses.Field[Any], value: Any) -> bool:
    if field.default is not dataclasses.MISSING:
        return bool(value == field.default)
    return field.default_factory is not dataclasses.MISSING and bool(value == field.default_factory())


def decode(kind: type[T], data: Any, *, path: str = "") -> T:
    """Build `kind`, a dataclass, from plain JSON values.

    Raises:
        DecodeError: A field is missing or has the wrong type, or the dataclass refused its values.
    """
    return typing.cast("T", _decode(kind, data, path or kind.__name__))


_JSON_NAMES: dict[Any, str] = {
    str: "string",
    bool: "boolean",
    int: "integer",
    float: "number",
    type(None): "null",
}
_NEVER_NEGATIVE = (
    "_us",
    "_uj",
    "_ms",
    "_seconds",
    "_bytes",
    "_per_second",
    "openings",
    "calls",
    "rounds",
    "batch_size",
    "threads",
)


def json_schema(kind: type[Any], *, title: str) -> dict[str, Any]:
    """Return the JSON Schema (draft 7) of what `encode` writes for a dataclass.

    A field with a default may be left out, as `decode` allows. Fields whose name ends in a unit are never negative. Unknown
    fields are allowed.
    """
    definitions: dict[str, Any] = {}
    _schema(kind, definitions)
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": title,
        "$ref": f"#/definitions/{kind.__name__}",
        "definitions": definitions,
    }


def _schema(kind: Any, definitions: dict[str, Any], name: str = "") -> dict[str, Any]:
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        inner = [arg for arg in typing.get_args(kind) if arg is not type(None)]
        if len(inner) > 1:
            return {"type": [_JSON_NAMES[arg] for arg in typing.get_args(kind)]}
        # and not anyOf, whose errors name no field
        return {"if": {"not": {"type": "null"}}, "then": _schema(inner[0], definitions, name)}
    if origin is tuple:
        return {"type": "array", "items": _schema(typing.get_args(kind)[0], definitions, name)}
    if origin is dict:
        return {"type": "object", "additionalProperties": _schema(typing.get_args(kind)[1], definitions, name)}
    if kind is Any:
        return {}
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _schema_of_dataclass(kind, definitions)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return {"enum": [member.value for member in kind]}
    found: dict[str, Any] = {"type": _JSON_NAMES[kind]}
    if kind in (int, float) and name.endswith(_NEVER_NEGATIVE):
        found["minimum"] = 0
    return found


def _schema_of_dataclass(kind: type[Any], definitions: dict[str, Any]) -> dict[str, Any]:
    if kind.__name__ not in definitions:
        definitions[kind.__name__] = {}  # a place in the order
        hints = typing.get_type_hints(kind)
        fields = dataclasses.fields(kind)
        definitions[kind.__name__] = {
            "type": "object",
            "properties": {field.name: _schema(hints[field.name], definitions, field.name) for field in fields},
            "required": [
                field.name
                for field in fields
                if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
            ],
        }
    return {"$ref": f"#/definitions/{kind.__name__}"}


def _decode(kind: Any, data: Any, path: str) -> Any:
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        return _decode_union(kind, data, path)
    if origin is tuple:
        return _decode_tuple(kind, data, path)
    if origin is dict:
        if not isinstance(data, dict):
            raise DecodeError(f"{path}: expected an object, found {type(data).__name__}")
        item = typing.get_args(kind)[1]
        return {key: _decode(item, value, f"{path}.{key}") for key, value in data.items()}
    if dataclasses.is_dataclass(kind):
        return _decode_dataclass(kind, data, path)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        try:
            return kind(data)
        except ValueError as error:
            raise DecodeError(f"{path}: {error}") from error
    return _decode_scalar(kind, data, path)


def _decode_dataclass(kind: Any, data: Any, path: str) -> Any:
    if not isinstance(data, dict):
        raise DecodeError(f"{path}: expected an object, found {type(data).__name__}")
    hints = typing.get_type_hints(kind)
    values: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        if field.name in data:
            values[field.name] = _decode(hints[field.name], data[field.name], f"{path}.{field.name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise DecodeError(f"{path}: the field {field.name!r} is missing")
    try:
        return kind(**values)
    except ValueError as error:
        raise DecodeError(f"{path}: {error}") from error


def _decode_union(kind: Any, data: Any, path: str) -> Any:
    """Decode `X | None`, or a union of JSON scalars such as `int | str`."""
    every = typing.get_args(kind)
    inner = [arg for arg in every if arg is not type(None)]
    if data is None and len(inner) < len(every):
        return None
    if len(inner) == 1:
        return _decode(inner[0], data, path)
    for arg in inner:
        if isinstance(data, arg) and (arg is bool or not isinstance(data, bool)):
            return _decode_scalar(arg, data, path)
    names = " or ".join(arg.__name__ for arg in inner)
    raise DecodeError(f"{path}: expected {names}, found {type(data).__name__}")


def _decode_tuple(kind: Any, data: Any, path: str) -> tuple[Any, ...]:
    """Decode `tuple[X, ...]`, the only tuple the dataclasses use."""
    if not isinstance(data, list):
        raise DecodeError(f"{path}: expected a list, found {type(data).__name__}")
    item = typing.get_args(kind)[0]
    return tuple(_decode(item, value, f"{path}[{index}]") for index, value in enumerate(data))


_LARGEST = 2**63


def _check_any(data: Any, path: str) -> None:
    """Refuse numbers inside plain values that no field would take."""
    if isinstance(data, dict):
        for key, value in data.items():
            _check_any(value, f"{path}.{key}")
    elif isinstance(data, list):
        for index, value in enumerate(data):
            _check_any(value, f"{path}[{index}]")
    elif isinstance(data, int | float) and not isinstance(data, bool):
        _decode_scalar(type(data), data, path)


def _decode_scalar(kind: Any, data: Any, path: str) -> Any:
    if kind is Any:
        _check_any(data, path)
        return data
    if isinstance(data, int) and abs(data) > _LARGEST:
        raise DecodeError(f"{path}: a number beyond 2**63")
    if kind is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    if kind is float and isinstance(data, float) and not math.isfinite(data):
        raise DecodeError(f"{path}: expected a finite number, found {data}")
    if not isinstance(data, kind) or (kind is int and isinstance(data, bool)):
        raise DecodeError(f"{path}: expected {kind.__name__}, found {type(data).__name__}")
    return data
