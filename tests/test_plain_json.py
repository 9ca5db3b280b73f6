"""JSON of strangers: what is read, and what is refused with a reason."""

from __future__ import annotations

import json

import pytest

from kit.system.plain_json import MOST_DEEP, PlainJsonError, read


def nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b'{"a": [1, 2.5, null, true]}', {"a": [1, 2.5, None, True]}),
        (b"\xef\xbb\xbf[]", []),
        ('"é"', "é"),
        (rb'"\ud83d\ude00"', "\U0001f600"),
    ],
)
def test_json_is_read(data: bytes | str, value: object) -> None:
    assert read(data, what="it", most_bytes=100) == value


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"{", "it is no JSON"),
        (b"", "it is no JSON"),
        (b'"\xff"', "no JSON: 'utf-8'"),
        ('["UTF-16"]'.encode("utf-16"), "no JSON: 'utf-8'"),
        (b"[NaN]", "NaN is no finite number"),
        (b"-Infinity", "-Infinity is no finite number"),
        (b'{"a": 1e999}', "inf is no finite number"),
        (rb'["\ud83d"]', "half a surrogate pair"),
        (rb'{"\udc00": 1}', "half a surrogate pair"),
        (b"[" + b"1" * 5000 + b"]", "no JSON: Exceeds the limit"),
        (nested(MOST_DEEP + 1), "nested too deep"),
        (nested(4_000), "nested too deep"),
        (b" " * 10_000, "too large: 10,000 bytes"),
    ],
)
def test_what_is_refused_is_told_with_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(PlainJsonError, match=reason):
        read(data, what="it", most_bytes=9_000)


def test_depth_is_counted_in_lists_and_objects_alike() -> None:
    assert read(nested(MOST_DEEP), what="it", most_bytes=1000)
    objects = json.dumps("x")
    for _ in range(MOST_DEEP):
        objects = f'{{"a": {objects}}}'
    assert read(objects, what="it", most_bytes=1000)
    with pytest.raises(PlainJsonError, match="nested too deep"):
        read(f"[{objects}]", what="it", most_bytes=1000)


def test_infinities_are_read_if_they_are_meant() -> None:
    assert read(b"[Infinity, 1e999]", what="it", most_bytes=100, finite=False) == [float("inf")] * 2
