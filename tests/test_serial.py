"""Dataclasses to JSON and back."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import pytest

from kit.bundle.records import Accuracy, ModelSpec, Normalization, TensorSpec
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


def test_a_spec_refuses_what_no_later_room_could_use() -> None:
    good = {
        "name": "m",
        "architecture": "mlp-8",
        "input": TensorSpec(name="pixels", dtype="uint8", shape=(4, 4)),
        "output": TensorSpec(name="logits", dtype="float32", shape=(2,)),
        "labels": ("a", "b"),
        "pipeline": "resize@1",
        "normalization": Normalization(mean=0.5, std=0.5),
    }
    assert ModelSpec(**good).input.describe() == "uint8 [batch, 4, 4]"
    for change in (
        {"name": "../m"},
        {"labels": ("a",)},
        {"temperature": 0.0},
        {"input": TensorSpec(name="pixels", dtype="float32", shape=(4, 4))},
    ):
        with pytest.raises(ValueError):
            ModelSpec(**{**good, **change})
    for wrong in (lambda: Normalization(mean=0, std=0), lambda: TensorSpec(name="x", dtype="uint8", shape=())):
        with pytest.raises(ValueError):
            wrong()


def test_drop_counts_flips_both_ways() -> None:
    found = Accuracy(dataset="d", split="test", images=1000, correct=980, flips_to_wrong=5, flips_to_right=2)
    assert found.drop_points == pytest.approx(0.3)
    assert found.top1 == pytest.approx(0.98)
