"""JSON of strangers: strict, and bounded before anything is made of it.

plain = read(path.read_bytes(), what=str(path), most_bytes=2**20)
"""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

MOST_DEEP = 64
"""Lists and objects inside each other."""


class PlainJsonError(ValueError):
    """Bytes that are no JSON, or more of it than is read; the message says which."""


def read(data: bytes | str, *, what: str, most_bytes: int, finite: bool = True) -> Any:
    """Return the value that JSON stands for: text, or UTF-8 with or without a byte order mark.

    `what` names the file in messages; `finite` refuses NaN, Infinity and numbers as large; some writers mean them.

    Raises:
        PlainJsonError: Longer than `most_bytes` or too deep, or no JSON: not UTF-8, half a surrogate pair, no number.
    """
    if len(data) > most_bytes:
        raise PlainJsonError(f"{what} is too large: {len(data):,} bytes, and {most_bytes:,} are read at most")
    try:
        text = data if isinstance(data, str) else data.decode("utf-8-sig")
        value = json.loads(text, parse_constant=_refuse_constant if finite else None)
    except RecursionError as error:
        raise _too_deep(what) from error
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are both
        raise PlainJsonError(f"{what} is no JSON: {error}") from error
    _check(value, what, finite=finite)
    return value


def write(value: Any, *, indent: int | None = None) -> str:
    """Return JSON; numbers that JSON does not have, NaN and the infinite ones, become null."""
    try:
        return json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(value), indent=indent, ensure_ascii=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _refuse_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is no finite number")


def _too_deep(what: str) -> PlainJsonError:
    return PlainJsonError(f"{what} is nested too deep: more than {MOST_DEEP} lists and objects inside each other")


def _check(value: Any, what: str, *, finite: bool) -> None:
    """Refuse depth, infinities that are written as digits, and text that no file can hold."""
    level, depth = [value], 0
    while level:
        below: list[Any] = []
        for one in level:
            if isinstance(one, dict):
                below += one.keys()
                below += one.values()
            elif isinstance(one, list):
                below += one
            elif isinstance(one, str):
                _check_text(one, what)
            elif finite and isinstance(one, float) and not math.isfinite(one):
                raise PlainJsonError(f"{what} is no JSON: {one} is no finite number")
        depth += any(isinstance(one, dict | list) for one in level)
        if depth > MOST_DEEP:
            raise _too_deep(what)
        level = below


def _check_text(text: str, what: str) -> None:
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PlainJsonError(f"{what} is no JSON: half a surrogate pair, which is no character") from error
