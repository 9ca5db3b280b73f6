"""Frozen dataclasses to plain JSON values and back, with errors that name the field.

Knows dataclasses, enums, tuples, dicts, optional values and the JSON scalars; nothing of what they mean. Unknown keys are
ignored, so that a reader accepts what a later minor writer adds.
"""

from __future__ import annotations

import dataclasses
import enum
import types
import typing
from typing import Any, TypeVar

T = TypeVar("T")


class DecodeError(ValueError):
    """A value that does not fit the declared type; the message starts with the path of the field."""


def encode(value: Any) -> Any:
    """Turn dataclasses, enums and tuples into what `json.dumps` writes; None fields are kept."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: encode(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, dict):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [encode(item) for item in value]
    return value


def decode(kind: type[T], data: Any, *, path: str = "") -> T:
    """Build `kind`, a dataclass, from plain JSON values.

    Raises:
        DecodeError: A field is missing or has the wrong type, or the dataclass refused its values.
    """
    return typing.cast("T", _decode(kind, data, path or kind.__name__))


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
        inner = next(arg for arg in typing.get_args(kind) if arg is not type(None))
        # and not anyOf, whose errors name no field
        return {"if": {"not": {"type": "null"}}, "then": _schema(inner, definitions, name)}
    if origin is tuple:
        return {"type": "array", "items": _schema(typing.get_args(kind)[0], definitions, name)}
    if origin is dict:
        return {"type": "object", "additionalProperties": _schema(typing.get_args(kind)[1], definitions)}
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _schema_of_dataclass(kind, definitions)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return {"enum": [member.value for member in kind]}
    names = {str: "string", bool: "boolean", int: "integer", float: "number"}
    found: dict[str, Any] = {"type": names[kind]}
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
    """Decode `X | None`, the only union the dataclasses use."""
    if data is None:
        return None
    (inner,) = (arg for arg in typing.get_args(kind) if arg is not type(None))
    return _decode(inner, data, path)


def _decode_tuple(kind: Any, data: Any, path: str) -> tuple[Any, ...]:
    """Decode `tuple[X, ...]`, the only tuple the dataclasses use."""
    if not isinstance(data, list):
        raise DecodeError(f"{path}: expected a list, found {type(data).__name__}")
    item = typing.get_args(kind)[0]
    return tuple(_decode(item, value, f"{path}[{index}]") for index, value in enumerate(data))


def _decode_scalar(kind: Any, data: Any, path: str) -> Any:
    if kind is Any:
        return data
    if kind is float and isinstance(data, int) and not isinstance(data, bool):
        try:
            return float(data)
        except OverflowError as error:
            raise DecodeError(f"{path}: {error}") from error
    if not isinstance(data, kind) or (kind is int and isinstance(data, bool)):
        raise DecodeError(f"{path}: expected {kind.__name__}, found {type(data).__name__}")
    return data
