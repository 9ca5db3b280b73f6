"""What people type, as values: axes, inputs, labels, and what a model comes from."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from kit.tensors import BATCH, DTYPES, Axis, TensorSpec

_FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_SPAN = re.compile(r"(\d*)\.\.(\d*)(?:\*(\d+))?")
_INPUT = re.compile(r"([^=]+)=([a-z]+\d*)\[([^\]]*)\]")


@dataclass(frozen=True)
class TypedAxis:
    """An axis by its name; None for `none`: the model has no such axis, `batch=none` above all."""

    name: str
    axis: Axis | None


class AxisType(click.ParamType[TypedAxis]):
    """`sequence=1..512:16,128`: bounds, and the sizes to prove and measure; either alone will do. `batch=none` for no batch."""

    name = "axis"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> TypedAxis:
        """Return an axis."""
        if isinstance(value, TypedAxis):
            return value
        name, equals, text = str(value).partition("=")
        if not name or not equals or not text:
            self.fail(f"{str(value)!r} is no axis such as sequence=1..512:16,128", param, ctx)
        if text == "none":
            if name != BATCH:
                self.fail(f"only the batch axis can be none, not {name!r}", param, ctx)
            return TypedAxis(name, None)
        try:
            return TypedAxis(name, _axis(text))
        except ValueError as error:
            self.fail(f"{str(value)!r} is no axis such as sequence=1..512:16,128: {error}", param, ctx)


def _axis(text: str) -> Axis:
    span, _, sizes = text.rpartition(":") if ".." in text and ":" in text else (text, "", "")
    bounds = _SPAN.fullmatch(span)
    if bounds is None:
        if span != text or ".." in text:
            raise ValueError(f"{span!r} is no span such as 1..512, 32.. or 32..1024*32")
        return Axis(typical=_sizes(text))
    least, most, multiple = bounds.groups()
    return Axis(
        least=int(least or 1),
        most=int(most) if most else None,
        multiple_of=int(multiple or 1),
        typical=_sizes(sizes) if sizes else (),
    )


def _sizes(text: str) -> tuple[int, ...]:
    try:
        sizes = tuple(int(size) for size in text.split(","))
    except ValueError:
        raise ValueError(f"{text!r} is no list of sizes such as 16,128") from None
    return tuple(dict.fromkeys(sizes))


class SizeOfAxis(click.ParamType[tuple[str, tuple[int, ...]]]):
    """`sequence=128` or `sequence=16,128`: sizes to measure."""

    name = "axis"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, tuple[int, ...]]:
        """Return a name and its sizes."""
        if isinstance(value, tuple):
            return value
        name, _, text = str(value).partition("=")
        try:
            sizes = _sizes(text)
        except ValueError:
            sizes = ()
        if not name or not sizes or min(sizes) < 1:
            self.fail(f"{str(value)!r} is no size such as sequence=128", param, ctx)
        return name, sizes


class InputType(click.ParamType[TensorSpec]):
    """`ids=int64[batch,sequence]`: an input of a module that comes without examples."""

    name = "input"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> TensorSpec:
        """Return what the input is."""
        if isinstance(value, TensorSpec):
            return value
        parts = _INPUT.fullmatch(str(value).replace(" ", ""))
        if parts is None:
            self.fail(f"{str(value)!r} is no input such as ids=int64[batch,sequence]", param, ctx)
        name, dtype, shape = parts.groups()
        if dtype not in DTYPES:
            self.fail(f"{name} cannot be {dtype}: choose one of {', '.join(DTYPES)}", param, ctx)
        sizes = tuple(int(size) if size.isdigit() else size for size in shape.split(",") if size)
        try:
            return TensorSpec(name=name, dtype=dtype, shape=sizes)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Numbers(click.ParamType[tuple[float, ...]]):
    """`0.485,0.456,0.406`: one number for all channels, or one for each."""

    name = "numbers"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        """Return the numbers."""
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(float(number) for number in str(value).split(","))
        except ValueError:
            numbers = ()
        if not numbers or not all(map(math.isfinite, numbers)):
            self.fail(f"{str(value)!r} is no list of numbers such as 0.485,0.456,0.406", param, ctx)
        return numbers


class PictureSize(click.ParamType[tuple[int, int]]):
    """`224` or `224x320`: height and width in pixels."""

    name = "size"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """Return height and width."""
        if isinstance(value, tuple):
            return value
        sides = re.fullmatch(r"(\d+)(?:x(\d+))?", str(value).lower())
        if sides is None or int(sides[1]) < 1 or int(sides[2] or 1) < 1:
            self.fail(f"{str(value)!r} is no size of a picture such as 224 or 224x320", param, ctx)
        return int(sides[1]), int(sides[2] or sides[1])


class TaskOption(click.ParamType[tuple[str, Any]]):
    """`resize=256`: an option of a task, as JSON; what is no JSON is a word."""

    name = "option"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Any]:
        """Return name and value."""
        if isinstance(value, tuple):
            return value
        name, equals, text = str(value).partition("=")
        if not name or not equals:
            self.fail(f"{str(value)!r} is no option such as resize=256", param, ctx)
        try:
            return name.replace("-", "_"), json.loads(text)
        except ValueError:
            return name.replace("-", "_"), text


class Labels(click.ParamType[tuple[str, ...]]):
    """`cat,dog`, or a file with a label on each line, or a JSON list."""

    name = "labels"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        """Return the labels in the order of the model's scores."""
        if isinstance(value, tuple):
            return value
        text, path = str(value), Path(str(value))
        if path.is_file():
            labels = self._in_file(path, param, ctx)
        elif "," in text:
            labels = tuple(label.strip() for label in text.split(","))
        else:
            self.fail(f"{text!r} is neither a file nor labels such as cat,dog", param, ctx)
        if len(set(labels)) != len(labels) or not all(labels) or len(labels) < 2:
            self.fail(f"labels must be two or more, none of them twice; found {len(labels)}", param, ctx)
        return labels

    def _in_file(self, path: Path, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            self.fail(f"{path} cannot be read as text: {error}", param, ctx)
        if path.suffix.lower() != ".json":
            return tuple(line.strip() for line in text.splitlines() if line.strip())
        try:
            found: Any = json.loads(text)
        except ValueError as error:
            self.fail(f"{path} is no JSON: {error}", param, ctx)
        if isinstance(found, dict):  # as ImageNet's labels often come: {"0": "tench", ...}
            found = [found[key] for key in sorted(found, key=lambda key: (len(key), key))]
        if not isinstance(found, list) or not all(isinstance(label, str) for label in found):
            self.fail(f"{path} must hold a list of strings", param, ctx)
        return tuple(found)


def is_factory(source: str) -> bool:
    """Whether a word names a function, `package.module:function`, and no file."""
    return _FACTORY.fullmatch(source) is not None and not Path(source).exists()
