"""How a torch module is called: its tensors by name, wherever they lie in its arguments and answers."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from kit.errors import UsageError
from kit.tensors import Signature, ordered


@dataclass(frozen=True)
class _Slot:
    """Where a tensor goes."""

    name: str


@dataclass(frozen=True, kw_only=True)
class Call:
    """The arguments of a module, with names in place of the tensors, and the examples that were found there."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    names: tuple[str, ...]
    examples: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def __call__(self, module: nn.Module, tensors: Sequence[torch.Tensor]) -> Any:
        """Call a module with tensors in the order of `names`."""
        named = dict(zip(self.names, tensors, strict=True))
        return module(*_filled(self.args, named), **_filled(dict(self.kwargs), named))


def from_examples(module: nn.Module, inputs: Any) -> Call:
    """Tell how to call a module from example inputs: arrays or tensors by name, in order, or a single one.

    What is neither array nor tensor is passed on with every call.
    """
    parameters = parameters_of(module)
    if isinstance(inputs, Mapping):
        by_name = set(inputs) <= set(parameters) or _takes_any_name(module)
        args, kwargs = ((), dict(inputs)) if by_name else (tuple(inputs.values()), {})
        names = list(inputs) if not by_name else []
    else:
        one = isinstance(inputs, (np.ndarray, torch.Tensor))
        args, kwargs = ((inputs,) if one else tuple(inputs)), {}
        names = parameters
    names = [*names, *(f"input_{place}" for place in range(len(names), len(args)))]
    found: dict[str, torch.Tensor] = {}
    slots = tuple(_slots(value, name, found) for name, value in zip(names, args, strict=False))
    named = {name: _slots(value, name, found) for name, value in kwargs.items()}
    if not found:
        raise UsageError("there is no tensor among the example inputs", hint="give arrays by name, or in order")
    return Call(args=slots, kwargs=named, names=tuple(found), examples=found)


def from_signature(module: nn.Module, signature: Signature) -> Call:
    """Tell how to call a module whose inputs a signature names: by name if it has parameters of those names, else in order."""
    names = tuple(spec.name for spec in signature.inputs)
    slots = {name: _Slot(name) for name in names}
    if set(names) <= set(parameters_of(module)):
        return Call(kwargs=slots, names=names)
    return Call(args=tuple(slots.values()), names=names)


def outputs_of(value: Any) -> dict[str, torch.Tensor]:
    """Return the tensors of an answer by name: keys, fields, places; a single one is `output`.

    Raises:
        UsageError: The answer holds something else.
    """
    if isinstance(value, torch.Tensor):
        return {"output": value}
    found = dict(_leaves(value, ""))
    if not found:
        raise UsageError("the module gives no tensor")
    return found


def _leaves(value: Any, name: str) -> Iterator[tuple[str, torch.Tensor]]:
    if value is None:
        return
    if isinstance(value, torch.Tensor):
        yield name, value
        return
    parts = _parts(value)
    if parts is None:
        raise UsageError(
            f"the output {name or 'output'} is {type(value).__name__}, where a tensor is expected",
            hint="return tensors, or tuples, dicts and dataclasses of them",
        )
    for key, part in parts:
        yield from _leaves(part, f"{name}_{key}" if name else (key if not key.isdigit() else f"output_{key}"))


def _parts(value: Any) -> list[tuple[str, Any]] | None:
    if isinstance(value, Mapping):
        return [(str(key), part) for key, part in value.items()]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(one.name, getattr(value, one.name)) for one in dataclasses.fields(value)]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return list(zip(value._fields, value, strict=True))
    if isinstance(value, (list, tuple)):
        return [(str(place), part) for place, part in enumerate(value)]
    return None


def _slots(value: Any, name: str, found: dict[str, torch.Tensor]) -> Any:
    """Return an argument with slots in place of its tensors, which are noted in `found`."""
    if isinstance(value, (np.ndarray, torch.Tensor)):
        free = name
        while free in found:
            free += "_"
        found[free] = as_tensor(value, free)
        return _Slot(free)
    if isinstance(value, Mapping):
        return {key: _slots(part, f"{name}_{key}", found) for key, part in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        parts = zip(value._fields, value, strict=True)
        return type(value)(*(_slots(part, f"{name}_{key}", found) for key, part in parts))
    if isinstance(value, (list, tuple)):
        return type(value)(_slots(part, f"{name}_{place}", found) for place, part in enumerate(value))
    return value


def _filled(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(value, _Slot):
        return tensors[value.name]
    if isinstance(value, dict):
        return {key: _filled(part, tensors) for key, part in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_filled(part, tensors) for part in value))
    if isinstance(value, (list, tuple)):
        return type(value)(_filled(part, tensors) for part in value)
    return value


def as_tensor(value: Any, name: str, device: torch.device | None = None) -> torch.Tensor:
    """Return a copy of an array as a tensor on a device, the CPU if none is named; a tensor is only moved there.

    Arrays of any layout and byte order are taken.

    Raises:
        UsageError: It holds no numbers, or numbers of a kind that torch lacks; the message names the input.
    """
    if isinstance(value, torch.Tensor):
        return value.detach().to(device or "cpu")
    try:
        return torch.tensor(ordered(np.asarray(value)), device=device)
    except (TypeError, ValueError) as error:
        raise UsageError(f"the input {name} is no tensor: {error}", hint="give an array of numbers") from error


def as_array(value: torch.Tensor) -> np.ndarray[Any, np.dtype[Any]]:
    """Return a tensor as an array; bfloat16, which numpy lacks, as float32."""
    tensor = value.detach().cpu()
    array: np.ndarray[Any, np.dtype[Any]] = (tensor.float() if tensor.dtype is torch.bfloat16 else tensor).numpy()
    return array


_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def parameters_of(module: nn.Module) -> list[str]:
    """Return the names of what `forward` takes."""
    parameters = inspect.signature(module.forward).parameters.values()
    return [one.name for one in parameters if one.kind in _NAMED]


def _takes_any_name(module: nn.Module) -> bool:
    parameters = inspect.signature(module.forward).parameters.values()
    return any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters)


class Flat(nn.Module):
    """A module that takes tensors in order and gives tensors in order, whatever the one inside takes and gives.

    Weights are called `model.*`, which no name inside a graph of torch's can meet. `outputs` chooses and orders them.
    """

    def __init__(self, model: nn.Module, call: Call, outputs: Sequence[str] | None = None) -> None:
        super().__init__()
        self.model = model
        self._call = call
        self._outputs = outputs

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the outputs; bfloat16 is given as float32, since numpy lacks it."""
        found = list(outputs_of(self._call(self.model, tensors)).items())
        if self._outputs is not None:
            by_name = dict(found)
            if set(self._outputs) <= set(by_name):
                found = [(name, by_name[name]) for name in self._outputs]
        return tuple(one.float() if one.dtype is torch.bfloat16 else one for _, one in found)
