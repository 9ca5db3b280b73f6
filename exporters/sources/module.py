"""A torch module, or a program of torch.export, as an original."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.export import ExportedProgram
from torch.utils._python_dispatch import TorchDispatchMode

from exporters.graph.files import Graph
from exporters.graph.rewrite import simplify
from exporters.options import DEFAULT_OPSET
from exporters.sources import calls, torch_export
from exporters.sources.names import bundle_name
from exporters.sources.pupil import Pupil
from kit.bundle.manifest import Provenance
from kit.errors import GateFailed, UsageError
from kit.runtime.base import BATCH_BYTES
from kit.samples import Samples, seeded
from kit.tasks.base import Task
from kit.tensors import BATCH, Axis, Signature, Tensors, TensorSpec

Answer = Callable[[Sequence[torch.Tensor]], dict[str, torch.Tensor]]
Ask = Callable[[nn.Module, Sequence[torch.Tensor]], Sequence[torch.Tensor]]


class TorchOriginal:
    """What torch runs and writes: an exporters.sources.base.Original."""

    def __init__(
        self,
        *,
        name: str,
        signature: Signature,
        record: Provenance,
        program: ExportedProgram,
        answer: Answer,
        ask: Ask,
        device: torch.device,
        task: Task | None = None,
        examples: tuple[Samples, ...] | None = None,
        close: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = name
        self.signature = signature
        self.task = task
        self.record = record
        self.examples = examples
        self.remarks: tuple[str, ...] = ()
        self._program: ExportedProgram | None = program
        self._answer: Answer | None = answer
        self._ask = ask
        self._device = device
        self._close = close

    def answer(self, tensors: Tensors) -> dict[str, NDArray[Any]]:
        """Compute the outputs, in pieces bounded by bytes."""
        if self._answer is None:
            raise UsageError("this model was closed")
        rows = self.signature.rows_within(BATCH_BYTES, self.signature.sizes(tensors))
        return self.signature.join([self._piece(piece) for piece in self.signature.split(tensors, rows)])

    def _piece(self, tensors: Tensors) -> dict[str, NDArray[Any]]:
        assert self._answer is not None  # answer looked
        found = _run(self._answer, self._given(tensors), _sizes(self.signature, tensors))
        return {
            spec.name: calls.as_array(value) for spec, value in zip(self.signature.outputs, found.values(), strict=True)
        }

    def graph(self, *, opset: int = DEFAULT_OPSET) -> Graph:
        """Return it as a graph whose large weights stay where the module has them."""
        if self._program is None:
            raise UsageError("this model was closed")
        return self._graph_of(self._program, opset)

    def write(self, folder: Path, *, opset: int = DEFAULT_OPSET) -> Path:
        """Write it as `model.onnx`, large weights in `model.data` beside it."""
        return self.graph(opset=opset).save(folder)

    def pupil(self) -> Pupil:
        """Return what can learn; it stays when this is closed."""
        if self._program is None:
            raise UsageError("this model was closed")
        return Pupil(
            program=self._program,
            signature=self.signature,
            inside=self._given,
            asked=self._ask,
            written=self._graph_of,
        )

    def _given(self, tensors: Tensors) -> list[torch.Tensor]:
        return [calls.as_tensor(tensors[spec.name], spec.name, self._device) for spec in self.signature.inputs]

    def _graph_of(self, program: ExportedProgram, opset: int) -> Graph:
        graph = torch_export.to_graph(program, self.signature, opset=opset)
        simplify(graph, batch=self.signature.batch)
        return graph

    def close(self) -> None:
        """Free its weights, as far as they are nobody else's."""
        self._program = self._answer = None
        self._close()
        self._close = lambda: None


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
    if outputs is None and signature is not None and _is_whole(signature):
        outputs = [spec.name for spec in signature.outputs]
    restore = _in_evaluation(module)
    try:
        flat = calls.Flat(module, call, outputs).eval()
        device = next(
            (one.device for one in itertools.chain(module.parameters(), module.buffers())), torch.device("cpu")
        )
        tensors = _tracing_inputs(known, call.examples, device)
        names = _try_out(flat, known, tensors, outputs)
        program = torch_export.trace(flat, known, tensors)
        known_axes = known.axes
        found = torch_export.described(program, known, names, axes=known_axes)
        if signature is not None and _is_whole(signature):
            _compare(signature, found)
            found = dataclasses.replace(found, outputs=signature.outputs, axes={**found.axes, **signature.axes})

        def answer(given: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
            return dict(zip(names, flat(*given), strict=True))

        _try_sizes(answer, found, tensors)
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
    tensors = _tracing_inputs(known, _program_examples(program, known), device)
    names = _distinct(list(_run(lambda given: ask(module, given), tensors, {})), known)
    found = torch_export.described(program, known, names, axes=known.axes)
    if signature is not None and _is_whole(signature):
        _compare(signature, found)
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


def _is_whole(signature: Signature) -> bool:
    return bool(signature.outputs) and signature.outputs != UNKNOWN


UNKNOWN = (TensorSpec(name="?", dtype="float32", shape=()),)
"""Outputs of a signature whose outputs are not known yet."""


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
    return Signature(inputs=specs, outputs=UNKNOWN, axes=axes, batch=batch)


def _tracing_inputs(
    signature: Signature, examples: Mapping[str, torch.Tensor], device: torch.device
) -> list[torch.Tensor]:
    """Return inputs to trace with: like the examples, with sizes that are 2 or more and differ from axis to axis."""
    arrays = {name: calls.as_array(tensor) for name, tensor in examples.items()}
    own = _sizes(signature, arrays) if arrays else {}
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


def _sizes(signature: Signature, tensors: Mapping[str, Any]) -> dict[str, int]:
    return {
        size: int(found)
        for spec in signature.inputs
        for size, found in zip(spec.shape, tensors[spec.name].shape, strict=False)
        if isinstance(size, str)
    }


def _run(
    answer: Callable[[Sequence[torch.Tensor]], Any], tensors: Sequence[torch.Tensor], sizes: dict[str, int]
) -> Any:
    """Ask once; whatever the module raises becomes one sentence."""
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


def _try_out(
    flat: calls.Flat, signature: Signature, tensors: Sequence[torch.Tensor], wanted: Sequence[str] | None
) -> list[str]:
    """Ask twice, which must give the same, and return the outputs' names."""
    names: list[str] = []

    def ask(given: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        found = calls.outputs_of(flat._call(flat.model, given))  # noqa: SLF001 - of the room
        names[:] = list(wanted) if wanted is not None and set(wanted) <= set(found) else list(found)
        outputs: tuple[torch.Tensor, ...] = flat(*given)
        return outputs

    sizes = _sizes(signature, {spec.name: tensor for spec, tensor in zip(signature.inputs, tensors, strict=True)})
    random = _Random()
    with random:
        first = _run(ask, tensors, sizes)
    again = _run(ask, tensors, sizes)
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
    return list(wanted) if wanted is not None else _distinct(names, signature)


def _distinct(names: list[str], signature: Signature) -> list[str]:
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


def _try_sizes(answer: Answer, signature: Signature, tensors: Sequence[torch.Tensor]) -> None:
    """Ask at the smallest size of each axis: a batch of 1 is where squeezed axes go missing."""
    arrays = {spec.name: calls.as_array(one) for spec, one in zip(signature.inputs, tensors, strict=True)}
    usual = _sizes(signature, arrays)
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
        found = _run(answer, given, sizes)
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


def _compare(wanted: Signature, found: Signature) -> None:
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
    return Signature(inputs=tuple(specs), outputs=UNKNOWN, axes={**bounds, **axes}, batch=batch)


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
