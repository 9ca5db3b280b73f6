"""What a model of torch is asked before it is taken, so that what cannot work is found at once and said in a sentence."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from exporters.sources import calls, torch_export
from kit.errors import GateFailed, UsageError
from kit.samples import Samples, seeded
from kit.tensors import Axis, Signature, TensorSpec

Answer = Callable[[Sequence[torch.Tensor]], dict[str, torch.Tensor]]

UNKNOWN = (TensorSpec(name="?", dtype="float32", shape=()),)
"""Outputs of a signature whose outputs are not known yet."""


def is_whole(signature: Signature) -> bool:
    """Whether it says what the outputs are."""
    return bool(signature.outputs) and signature.outputs != UNKNOWN


def inputs(signature: Signature, examples: Mapping[str, torch.Tensor], device: torch.device) -> list[torch.Tensor]:
    """Return inputs to trace with: like the examples, with sizes that are 2 or more and differ from axis to axis."""
    arrays = {name: calls.as_array(tensor) for name, tensor in examples.items()}
    own = sizes_of(signature, arrays) if arrays else {}
    sizes: dict[str, int] = {}
    for name in signature.dynamic:
        axis = signature.axes[name]
        sizes[name] = _distinct_size(axis, own.get(name, axis.usual), set(sizes.values()))
    samples = Samples(inputs=arrays) if arrays else seeded(signature, sizes=sizes)
    resized = samples.resized(signature, sizes)
    return [
        calls.as_tensor(resized[spec.name], spec.name, device).to(
            examples[spec.name].dtype if spec.name in examples else None
        )
        for spec in signature.inputs
    ]


def _distinct_size(axis: Axis, preferred: int, used: set[int]) -> int:
    start = max(preferred, 2 * axis.multiple_of)  # torch takes a size of 1, or one times the multiple, for a constant
    up = (start + step for step in range(64 * axis.multiple_of))
    down = range(start, 1, -1)
    possible = [size for size in itertools.chain(up, down) if not axis.problem(size)]
    return next((size for size in possible if size not in used), possible[0] if possible else preferred)


def sizes_of(signature: Signature, tensors: Mapping[str, Any]) -> dict[str, int]:
    """Return how large each named axis is in these inputs."""
    return {
        size: int(found)
        for spec in signature.inputs
        for size, found in zip(spec.shape, tensors[spec.name].shape, strict=False)
        if isinstance(size, str)
    }


def run(answer: Callable[[Sequence[torch.Tensor]], Any], tensors: Sequence[torch.Tensor], sizes: dict[str, int]) -> Any:
    """Ask once; whatever the model raises becomes one sentence.

    Raises:
        GateFailed: It cannot run with these tensors.
    """
    try:
        with torch.inference_mode():
            return answer(tensors)
    except (UsageError, MemoryError):
        raise
    except Exception as error:  # the module is the user's, and may raise anything
        at = f" with {', '.join(f'{name} {size}' for name, size in sizes.items())}" if sizes else ""
        raise GateFailed(
            f"PyTorch cannot run the module{at}: {torch_export.root_cause(error)}",
            hint="give example inputs, or a signature with the sizes, dtypes and bounds that it takes",
        ) from error


def ask_twice(
    flat: calls.Flat, signature: Signature, tensors: Sequence[torch.Tensor], wanted: Sequence[str] | None
) -> list[str]:
    """Ask twice, which must give the same, and return the outputs' names.

    Raises:
        UsageError: The outputs are not as many as are wanted.
        GateFailed: It cannot run, or answers differently each time.
    """
    names: list[str] = []

    def ask(given: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        found = calls.outputs_of(flat._call(flat.model, given))  # noqa: SLF001 - of the room
        names[:] = list(wanted) if wanted is not None and set(wanted) <= set(found) else list(found)
        outputs: tuple[torch.Tensor, ...] = flat(*given)
        return outputs

    sizes = sizes_of(signature, {spec.name: tensor for spec, tensor in zip(signature.inputs, tensors, strict=True)})
    random = _Random()
    with random:
        first = run(ask, tensors, sizes)
    again = run(ask, tensors, sizes)
    for name, one, other in zip(names, first, again, strict=True):
        if not np.allclose(calls.as_array(one), calls.as_array(other), rtol=1e-3, atol=1e-5, equal_nan=True):
            dropout = any("dropout" in op or "bernoulli" in op for op in random.found)
            what = "dropout is on even in evaluation mode" if dropout else f"it draws random numbers ({random.words})"
            raise GateFailed(
                f"the module answers differently each time it is asked the same ({name}): {what}",
                hint="pass training=self.training to functional.dropout"
                if dropout
                else "give it the numbers as an input",
            )
    if wanted is not None and len(wanted) != len(names):
        raise UsageError(
            f"the signature names {len(wanted)} outputs, and the module gives {len(names)}: {', '.join(names)}"
        )
    return list(wanted) if wanted is not None else distinct(names, signature)


def distinct(names: list[str], signature: Signature) -> list[str]:
    """Let no output have the name of an input: the graph knows both by one name."""
    taken = {spec.name for spec in signature.inputs}
    return [f"{name}_out" if name in taken else name for name in names]


class _Random(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own
    """Notes the operators that draw random numbers."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: dict[str, None] = {}

    @property
    def words(self) -> str:
        return ", ".join(self.found) or "or depends on something outside of it"

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.found[str(func).removeprefix("aten.").partition(".")[0]] = None
        return func(*args, **(kwargs or {}))


def ask_smallest(answer: Answer, signature: Signature, tensors: Sequence[torch.Tensor]) -> None:
    """Ask at the smallest size of each axis: a batch of 1 is where squeezed axes go missing.

    Raises:
        GateFailed: It cannot run there, or an output's shape is not what the signature says.
    """
    arrays = {spec.name: calls.as_array(one) for spec, one in zip(signature.inputs, tensors, strict=True)}
    usual = sizes_of(signature, arrays)
    for name in signature.dynamic:
        axis = signature.axes[name]
        sizes = {**usual, name: max(1, -(-axis.least // axis.multiple_of) * axis.multiple_of)}
        if sizes[name] == usual[name]:
            continue
        resized = Samples(inputs=arrays).resized(signature, sizes)
        given = [
            calls.as_tensor(resized[spec.name], spec.name, one.device).to(one.dtype)
            for spec, one in zip(signature.inputs, tensors, strict=True)
        ]
        found = run(answer, given, sizes)
        for spec, value in zip(signature.outputs, found.values(), strict=True):
            fits = len(spec.shape) == value.ndim and all(
                sizes.get(size, have) == have if isinstance(size, str) else size == have or spec.varies
                for size, have in zip(spec.shape, value.shape, strict=True)
            )
            if not fits:
                raise GateFailed(
                    f"with {name} {sizes[name]} the module gives {spec.name} as {tuple(value.shape)}, "
                    f"expected {spec.describe()}",
                    hint="name the axis that squeeze is to remove, such as squeeze(-1)"
                    if value.ndim < len(spec.shape)
                    else f"give {name} bounds that the module keeps",
                )


def compare(wanted: Signature, found: Signature) -> None:
    """Hold the outputs that were found to those of a signature.

    Raises:
        UsageError: The signature says something else.
        GateFailed: The model fixes an axis that the signature lets vary.
    """
    for spec, own in zip(wanted.outputs, found.outputs, strict=True):
        fits = spec.dtype == own.dtype and len(spec.shape) == len(own.shape)
        if fits:
            pairs = zip(spec.shape, own.shape, strict=True)
            fits = all(one == other for one, other in pairs if isinstance(one, int) and isinstance(other, int))
        if not fits:
            raise UsageError(
                f"the signature says that {spec.name} is {spec.describe()}, the module gives {own.describe()}"
            )
        for one, other in zip(spec.shape, own.shape, strict=True):
            if isinstance(one, str) and isinstance(other, int) and one in wanted.dynamic and not spec.varies:
                raise GateFailed(
                    f"{spec.name} has {other} along {one!r} whatever its size is: the module's code fixes it",
                    hint=f"give {other} as a number in the signature, or keep {one} in the module's code",
                )
