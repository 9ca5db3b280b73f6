"""Dataclasses to JSON and back."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import pytest

from kit.choices import Provider
from kit.system.serial import DecodeError, decode, encode


@dataclass(frozen=True)
class Inner:
    number: float
    where: Provider


@dataclass(frozen=True)
class Outer:
    inner: tuple[Inner, ...]
    names: dict[str, int]
    note: str | None = None
    extra: tuple[str, ...] = field(default=())


@dataclass(frozen=True)
class Loose:
    shape: tuple[int | str, ...]
    options: dict[str, Any]


def test_nested_values_survive_the_round_trip() -> None:
    value = Outer(inner=(Inner(1.5, Provider.CUDA),), names={"a": 1}, note=None, extra=("x",))
    assert decode(Outer, json.loads(json.dumps(encode(value)))) == value


@pytest.mark.parametrize(
    ("data", "path"),
    [
        ([], "Outer: expected an object"),
        ({"names": {}}, "'inner' is missing"),
        ({"inner": [], "names": {"a": "b"}}, "Outer.names.a: expected int"),
        ({"inner": [{"number": "x", "where": "cpu"}], "names": {}}, r"Outer.inner\[0\].number: expected float"),
        ({"inner": [{"number": 1, "where": "tpu"}], "names": {}}, r"Outer.inner\[0\].where"),
        ({"inner": [], "names": {"a": True}}, "Outer.names.a: expected int"),
    ],
)
def test_what_does_not_fit_names_its_field(data: object, path: str) -> None:
    with pytest.raises(DecodeError, match=path):
        decode(Outer, data)


def test_a_union_of_scalars_and_any_value_survive() -> None:
    value = Loose(shape=("batch", 28, 28), options={"labels": ["a"], "mean": 0.5})
    assert decode(Loose, json.loads(json.dumps(encode(value)))) == value
    with pytest.raises(DecodeError, match=r"Loose.shape\[0\]: expected int or str, found bool"):
        decode(Loose, {"shape": [True], "options": {}})


def test_a_brief_encoding_leaves_out_what_decoding_fills_in() -> None:
    value = Outer(inner=(), names={}, note=None, extra=())
    assert encode(value, brief=True) == {"inner": [], "names": {}}
    assert decode(Outer, encode(value, brief=True)) == value


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_what_is_no_number_is_refused(number: str) -> None:
    with pytest.raises(DecodeError, match="finite"):
        decode(Inner, json.loads(f'{{"number": {number}, "where": "cpu"}}'))


@pytest.mark.parametrize("number", [2**63 + 1, -(10**400)])
def test_whole_numbers_are_bounded_wherever_they_stand(number: int) -> None:
    for kind, data in (
        (Outer, {"inner": [], "names": {"a": number}}),
        (Inner, {"number": number, "where": "cpu"}),
        (Loose, {"shape": [number], "options": {}}),
        (Loose, {"shape": [], "options": {"deep": [{"a": number}]}}),
    ):
        with pytest.raises(DecodeError, match=r"beyond 2\*\*63"):
            decode(kind, data)
