"""Sizes as people type them: `--batch-size 8`, `--batch-size sweep`, `--axis sequence=128`."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import click

from kit.errors import UsageError

if TYPE_CHECKING:
    from kit.tensors import Signature

SWEEP = "sweep"

_FLAGS = {
    "tf32": "--tf32",
    "bf16": "--bf16",
    "cuda_graph": "--cuda-graph",
    "gpu_memory_limit_bytes": "--gpu-memory-limit",
    "allow_fallback": "--allow-fallback",
}


class AxisSize(click.ParamType[tuple[str, int]]):
    """An axis and its size, typed as `sequence=128`."""

    name = "name=size"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, int]:
        """Return the axis and its size."""
        if isinstance(value, tuple):
            return value
        axis, _, size = str(value).partition("=")
        if not axis or not size.isdecimal():
            self.fail(f"{str(value)!r} is no axis with its size, such as sequence=128", param, ctx)
        return axis, int(size)


def points(
    signature: Signature, batch_sizes: Sequence[int | str], axes: Sequence[tuple[str, int]]
) -> tuple[dict[str, int], ...] | None:
    """Return all combinations of the sizes that were typed, None for none; raises UsageError if the batch is fixed."""
    from kit.bench.points import batches

    found: list[dict[str, int]] = [{}]
    numbers = [size for size in batch_sizes if isinstance(size, int)]
    sizes: dict[str, list[int]] = {}
    for axis, size in axes:
        sizes.setdefault(axis, []).append(size)
    choices = [[{axis: size} for size in dict.fromkeys(own)] for axis, own in sizes.items()]
    if numbers:
        choices.insert(0, list(batches(signature, numbers)))
    for choice in choices:
        found = [{**before, **one} for before in found for one in choice]
    return tuple(found) if found != [{}] else None


def swept(signature: Signature, batch_sizes: Sequence[int | str], axis: str | None) -> str | None:
    """Return the axis to sweep over; None for no sweep.

    Raises:
        UsageError: Two sweeps, a sweep with sizes of its own axis, or one over a batch that is fixed.
    """
    from kit.bench.points import batches

    if SWEEP not in batch_sizes:
        return axis
    if axis is not None or len(set(batch_sizes)) > 1:
        raise UsageError("--batch-size sweep chooses its sizes itself", hint="leave the others out")
    batches(signature, [1])
    return signature.batch


@contextlib.contextmanager
def in_flags() -> Iterator[None]:
    """Have errors of the library name options as they are typed."""
    try:
        yield
    except UsageError as error:
        raise UsageError(_as_typed(str(error)), hint=_as_typed(error.hint)) from error


def _as_typed(text: str) -> str:
    return re.sub(rf"\b({'|'.join(_FLAGS)})\b", lambda found: _FLAGS[found[0]], text)
