"""A program of torch.export, at hand or in a .pt2 file."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from exporters.sources import archive, calls, torch_export, trial
from exporters.sources.names import bundle_name
from exporters.sources.torch_original import TorchOriginal
from kit.bundle.manifest import Provenance
from kit.errors import BadInput, UsageError
from kit.system import files
from kit.tasks.base import Task
from kit.tensors import BATCH, Axis, Signature, TensorSpec

_WEIGHTS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


def open_file(
    path: Path,
    *,
    name: str | None = None,
    signature: Signature | None = None,
    task: Task | None = None,
    axes: Mapping[str, Axis] | None = None,
) -> TorchOriginal:
    """Take a saved program as an original.

    Raises:
        BadInput: It is not there, damaged, or this torch cannot read it.
        UsageError: Reading it would run code of its own.
    """
    if not path.is_file():
        raise BadInput(f"there is no file {str(path)!r}")
    archive.check(path)
    return open_program(
        _loaded(path),
        name=name or bundle_name(path.stem),
        record=Provenance(kind="program", name=path.name, sha256=files.sha256(path)),
        signature=signature,
        task=task,
        axes=axes,
    )


def open_program(
    program: ExportedProgram,
    *,
    name: str | None = None,
    record: Provenance | None = None,
    signature: Signature | None = None,
    task: Task | None = None,
    axes: Mapping[str, Axis] | None = None,
) -> TorchOriginal:
    """Take a program of torch.export as an original; its axes come from its range constraints.

    Raises:
        UsageError: An input or output is of a kind that kit lacks, or the signature does not fit.
        GateFailed: It cannot run.
    """
    known = _program_inputs(program, signature, dict(axes or {}))
    module = program.module()
    spec = program.call_spec.in_spec

    def ask(module: nn.Module, given: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        tensors = iter(given)
        leaves = [next(tensors) if isinstance(one, str) else one for one in program.graph_signature.user_inputs]
        args, kwargs = torch.utils._pytree.tree_unflatten(leaves, spec)  # noqa: SLF001 - torch's own documents name it
        return calls.outputs_of(module(*args, **kwargs))

    device = next((one.device for one in program.state_dict.values()), torch.device("cpu"))
    tensors = trial.inputs(known, _program_examples(program, known), device)
    names = trial.distinct(list(trial.run(lambda given: ask(module, given), tensors, {})), known)
    found = torch_export.described(program, known, names, axes=known.axes)
    if signature is not None and trial.is_whole(signature):
        trial.compare(signature, found)
        found = dataclasses.replace(found, outputs=signature.outputs)

    def answer(given: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        return dict(zip(names, ask(module, given).values(), strict=True))

    return TorchOriginal(
        name=name or "program",
        signature=found,
        record=record or Provenance(kind="program", name=name or "program"),
        program=program,
        answer=answer,
        ask=lambda module, given: list(ask(module, given).values()),
        device=device,
        task=task,
    )


def _loaded(path: Path) -> Any:
    try:
        with torch_export.silence(), _no_pickles():
            return torch.export.load(str(path))
    except Exception as error:  # torch raises whatever its own readers do
        raise BadInput(
            f"torch {torch.__version__.partition('+')[0]} cannot read {path.name}: {torch_export.root_cause(error)}",
            hint="save it with this version: torch.export.save(program, 'model.pt2')",
        ) from error


@contextlib.contextmanager
def _no_pickles() -> Iterator[None]:
    """Hold torch to weights: its reader of programs unpickles some entries otherwise, and a pickle may hold code."""
    before = os.environ.get(_WEIGHTS_ONLY)
    os.environ[_WEIGHTS_ONLY] = "1"  # torch.load heeds it, whatever its caller asks for
    try:
        yield
    finally:
        if before is None:
            del os.environ[_WEIGHTS_ONLY]
        else:
            os.environ[_WEIGHTS_ONLY] = before


def _program_inputs(program: ExportedProgram, signature: Signature | None, axes: dict[str, Axis]) -> Signature:
    values = torch_export.input_values(program)
    words = [one for one in program.graph_signature.user_inputs if isinstance(one, str)]
    if signature is not None:
        if len(signature.inputs) != len(values):
            raise UsageError(f"the signature names {len(signature.inputs)} inputs, and the program has {len(values)}")
        return dataclasses.replace(signature, axes={**signature.axes, **axes})
    named: dict[str, str] = {}
    bounds: dict[str, Axis] = {}
    first = {str(value.shape[0]) if value.ndim and not isinstance(value.shape[0], int) else None for value in values}
    batch = BATCH if len(first) == 1 and None not in first else None
    specs = []
    for name, value in zip(words, values, strict=True):
        shape: list[int | str] = []
        for place, size in enumerate(value.shape):
            if isinstance(size, int):
                shape.append(size)
                continue
            axis = named.setdefault(str(size), BATCH if batch and not place else f"{name}_{place}")
            bounds.setdefault(axis, _bounds(program, size))
            shape.append(axis)
        specs.append(TensorSpec(name=name, dtype=torch_export.dtype_of(value, name), shape=tuple(shape)))
    return Signature(inputs=tuple(specs), outputs=trial.UNKNOWN, axes={**bounds, **axes}, batch=batch)


def _bounds(program: ExportedProgram, size: Any) -> Axis:
    factor, symbol = size.node.expr.as_coeff_Mul()
    span = program.range_constraints.get(symbol)
    factor = int(factor)
    if span is None:
        return Axis(multiple_of=factor)
    most = int(span.upper) * factor if str(span.upper).isdigit() and int(span.upper) < 2**31 else None
    return Axis(least=max(1, int(span.lower)) * factor, most=most, multiple_of=factor)


def _program_examples(program: ExportedProgram, signature: Signature) -> dict[str, torch.Tensor]:
    if program.example_inputs is None:
        return {}
    leaves: Iterator[Any] = iter(torch.utils._pytree.tree_leaves(program.example_inputs))  # noqa: SLF001
    tensors = [one for one in leaves if isinstance(one, torch.Tensor)]
    if len(tensors) != len(signature.inputs):
        return {}
    return {spec.name: one for spec, one in zip(signature.inputs, tensors, strict=True)}
