"""Protobuf's wire format, read where it lies: fields by number, numbers, text (protobuf.dev/programming-guides/encoding)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

BROKEN = (ValueError, IndexError, TypeError)
"""What reading raises of bytes that are no protobuf."""

_BYTES = 2  # the wire type of what has a length


def fields(data: memoryview) -> Iterator[tuple[int, Any]]:
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


def varints(data: memoryview) -> Iterator[int]:
    """Give the numbers of a packed field."""
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


def text(data: Any) -> str:
    """Return a field's text; raises TypeError for a number, UnicodeDecodeError (a ValueError) for what is no UTF-8."""
    if not isinstance(data, memoryview | bytes):  # of a number, bytes() makes so many zeros
        raise TypeError("a number for text")
    return bytes(data).decode()
