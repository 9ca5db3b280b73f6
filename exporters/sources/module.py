"""A torch module as an original."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from exporters.sources import calls, torch_export, trial
from exporters.sources.names import bundle_name
from exporters.sources.torch_original import TorchOriginal
from kit.bundle.manifest import Provenance
from kit.errors import UsageError
from kit.samples import Samples
from kit.tasks.base import Task
from kit.tensors import BATCH, Axis, Signature, TensorSpec


def open_module(
    module: nn.Module,
    *,
    name: str | None = None,
    record: Provenance | None = None,
    inputs: Any = None,
    signature: Signature | None = None,
    task: Task | None = None,
    axes: Mapping[str, Axis] | None = None,
    outputs: Sequence[str] | None = None,
    fixed: Mapping[str, Any] | None = None,
) -> TorchOriginal:
    """Take a module as an original: it is run, asked twice, and traced now, so that what cannot work is found at once.

    It is in evaluation mode until the original is closed. Example inputs come by the names of `forward`'s parameters or
    in their order; without a signature, the axis with which all of them begin is the batch, and everything else is
    fixed. Inputs of a signature that are named like parameters are passed by name. `outputs` names the outputs to keep;
    None: all. `fixed` are further arguments that every call has, by name.

    Raises:
        UsageError: There is neither an example nor a signature, or they do not fit the module.
        GateFailed: It cannot run, answers differently each time, or cannot be traced.
    """
    if inputs is None and signature is None:
        raise UsageError(
            f"{type(module).__name__} needs example inputs or a signature",
            hint='pass inputs=(array, ...) or signature=; on the command line: --input "x=float32[batch,3,224,224]"',
        )
    call, known = _called(module, inputs, signature, dict(axes or {}))
    call = dataclasses.replace(call, kwargs={**call.kwargs, **(fixed or {})})
    if outputs is None and signature is not None and trial.is_whole(signature):
        outputs = [spec.name for spec in signature.outputs]
    restore = _in_evaluation(module)
    try:
        flat = calls.Flat(module, call, outputs).eval()
        device = next(
            (one.device for one in itertools.chain(module.parameters(), module.buffers())), torch.device("cpu")
        )
        tensors = trial.inputs(known, call.examples, device)
        names = trial.ask_twice(flat, known, tensors, outputs)
        program = torch_export.trace(flat, known, tensors)
        found = torch_export.described(program, known, names, axes=known.axes)
        if signature is not None and trial.is_whole(signature):
            trial.compare(signature, found)
            found = dataclasses.replace(found, outputs=signature.outputs, axes={**found.axes, **signature.axes})

        def answer(given: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
            return dict(zip(names, flat(*given), strict=True))

        trial.ask_smallest(answer, found, tensors)
    except BaseException:
        restore()
        raise
    return TorchOriginal(
        name=name or bundle_name(type(module).__name__),
        signature=found,
        record=record or Provenance(kind="module", name=type(module).__name__),
        program=program,
        answer=answer,
        ask=lambda module, given: list(module(*given)),
        device=device,
        task=task,
        examples=_examples(call, found),
        close=restore,
    )


def _called(
    module: nn.Module, inputs: Any, signature: Signature | None, axes: dict[str, Axis]
) -> tuple[calls.Call, Signature]:
    if signature is None:
        call = calls.from_examples(module, inputs)
        return call, _of_examples(call.examples, axes)
    unknown = sorted(set(axes) - set(signature.axes))
    if unknown:
        raise UsageError(
            f"the model has no axis {unknown[0]!r}", hint=f"its axes are: {', '.join(signature.axes) or 'none'}"
        )
    signature = dataclasses.replace(signature, axes={**signature.axes, **axes})
    call = calls.from_signature(module, signature)
    if inputs is None:
        return call, signature
    structured = calls.from_examples(module, inputs)
    if set(structured.names) == set(call.names):
        return dataclasses.replace(structured, names=call.names), signature
    if len(structured.names) != len(call.names):
        raise UsageError(
            f"the signature names {len(call.names)} inputs, and there are {len(structured.names)} examples",
            hint=f"the examples are: {', '.join(structured.names)}",
        )
    renamed = dict(zip(call.names, structured.examples.values(), strict=True))
    return dataclasses.replace(call, examples=renamed), signature


def _of_examples(examples: Mapping[str, torch.Tensor], axes: dict[str, Axis]) -> Signature:
    """Return a signature of inputs like these: the axis with which all begin is the batch."""
    first = {tensor.shape[0] if tensor.ndim else None for tensor in examples.values()}
    batch = BATCH if len(first) == 1 and None not in first else None
    specs = tuple(
        TensorSpec(
            name=name,
            dtype=torch_export.dtype_of(tensor, name),
            shape=(*([batch] if batch else []), *tensor.shape[1 if batch else 0 :]),
        )
        for name, tensor in examples.items()
    )
    unknown = sorted(set(axes) - {batch})
    if unknown:
        raise UsageError(
            f"the model has no axis {unknown[0]!r}: from examples alone only the batch is known",
            hint="pass a signature that names the axes",
        )
    return Signature(inputs=specs, outputs=trial.UNKNOWN, axes=axes, batch=batch)


def _examples(call: calls.Call, signature: Signature) -> tuple[Samples, ...] | None:
    if not call.examples:
        return None
    inputs = {spec.name: calls.as_array(call.examples[spec.name]) for spec in signature.inputs}
    return (Samples(inputs=inputs, source="example inputs"),)


def _in_evaluation(module: nn.Module) -> Callable[[], None]:
    """Switch a module to evaluation mode; return what switches it back."""
    modes = [(one, one.training) for one in module.modules()]
    module.eval()

    def restore() -> None:
        for one, training in modes:
            one.training = training

    return restore
