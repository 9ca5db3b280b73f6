"""PyTorch behind the Runner protocol: a module as the reference that a bundle's variants are held against."""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from kit.choices import Provider
from kit.errors import BundleInvalid, KitError, MemoryShort, ProviderUnavailable, Unavailable, UsageError
from kit.runtime.base import (
    MOST_BINDINGS,
    BaseRunner,
    Binding,
    Placement,
    RecentBindings,
    RunnerOptions,
    copied,
    refuse_varying,
    run_in_batches,
)
from kit.samples import seeded
from kit.tensors import Signature, Sizes, Tensors, ordered

_WARMUP_CALLS = 3  # before a CUDA graph is recorded, as torch.cuda.graph asks for
_Many = tuple[torch.Tensor, ...]
Forward = Callable[[_Many], _Many]


def answers(module: nn.Module, signature: Signature, tensors: Tensors) -> dict[str, NDArray[Any]]:
    """Return what a module answers to inputs, in pieces of bounded size, on the CPU."""
    with PyTorchRunner(module, signature) as runner:
        return run_in_batches(runner, tensors)


class PyTorchRunner(BaseRunner):
    """A module on the CPU or on CUDA, in inference mode: eager, or through torch.compile; without TF32 by default.

    Args:
        module: Its forward takes the inputs in order. It returns a tensor, a tuple or a list in the order of the
            outputs, or a mapping or dataclass with their names; set to evaluation mode.
        signature: What it takes and gives.
        options: Provider, threads (of the whole process, as torch has one setting), device, TF32, CUDA graphs; None:
            the CPU, torch's threads.
        compiled: Compile now: for sizes that differ, or with CUDA graphs for each size in its mode `reduce-overhead`.
        half: Compute in float16.

    Raises:
        ProviderUnavailable: This torch has no CUDA, or sees no such GPU.
        Unavailable: torch.compile does not work here, for want of a C++ compiler for instance.
    """

    def __init__(
        self,
        module: nn.Module,
        signature: Signature,
        *,
        options: RunnerOptions | None = None,
        compiled: bool = False,
        half: bool = False,
    ) -> None:
        if options is not None:
            torch.set_num_threads(options.threads)
        self.signature = signature
        self.slow_to_open = compiled
        self._options = options or RunnerOptions()
        self.provider, self._device = self._where(self._options)
        self.runtime = "pytorch-compile" if compiled else "pytorch"
        self.placement = Placement({})
        graphs = self._options.cuda_graph and self.provider is Provider.CUDA
        self._records = graphs and not compiled  # torch.compile records by itself
        self._bindings = RecentBindings(MOST_BINDINGS)
        self._outputs = [spec.name for spec in signature.outputs]
        self._module: Callable[..., Any] | None = (_in_half(module) if half else module).eval().to(self._device)
        if compiled:
            self._compile(graphs=graphs)

    def run(self, tensors: Tensors) -> dict[str, NDArray[Any]]:
        """Compute the outputs; with CUDA graphs, the first call of a size records."""
        sizes = self.signature.check(tensors)
        arrays = [tensors[spec.name] for spec in self.signature.inputs]
        if self._records:
            shapes = tuple([array.shape for array in arrays])
            bound = self._bindings.get(shapes) or self._bindings.keep(shapes, self.bind(sizes))
            return copied(bound.run(*arrays), self._outputs)
        with torch.inference_mode():
            # torch warns about arrays it could write to but must not; inputs are only read.
            found = self._forward(tuple(torch.tensor(ordered(array)).to(self._device) for array in arrays))
        return {name: _to_numpy(one) for name, one in zip(self._outputs, found, strict=True)}

    def bind(self, sizes: Sizes) -> Binding:
        """Return tensors for inputs of these sizes on the device, and the call on them; an axis left out has its usual size."""
        refuse_varying(self.signature)
        known = self.signature.usual_sizes(**sizes)
        try:
            return self._bound(self.signature.zeros(known))
        except BundleInvalid:  # zeros need not be what the module accepts
            return self._bound(dict(seeded(self.signature, sizes=known).inputs))

    def share(self) -> Self:
        """Return a runner of the same module, which may run in several threads at once unless it replays CUDA graphs."""
        if self._options.cuda_graph:
            raise Unavailable("a module that replays CUDA graphs is for one thread", hint="open the model once more")
        other = copy.copy(self)
        other._bindings = RecentBindings(MOST_BINDINGS)  # noqa: SLF001 - one of this class
        return other

    def close(self) -> None:
        """Free recorded graphs, and forget the module."""
        self._module = None
        self._bindings.clear()

    def _bound(self, inputs: dict[str, NDArray[Any]]) -> Binding:
        given = tuple(torch.from_numpy(array).to(self._device) for array in inputs.values())
        return _OnDevice(inputs, given, self._outputs, self._recorded(given) if self._records else self._forward)

    def _compile(self, *, graphs: bool) -> None:
        # it warns on every machine that has CUDA's compiler and no GPU
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
        module = self._module
        self._module = torch.compile(module, mode="reduce-overhead") if graphs else torch.compile(module, dynamic=True)
        usual = self.signature.usual_sizes()
        batch = self.signature.batch
        if batch is not None and not self.signature.axes[batch].problem(2):
            usual[batch] = 2  # with 1, the size would be compiled in
        try:
            self.run(seeded(self.signature, sizes=usual).inputs)
        except (BundleInvalid, OSError) as error:
            raise Unavailable(f"torch.compile does not work here: {error}", hint="install a C++ compiler") from error

    def _forward(self, tensors: _Many) -> _Many:
        if self._module is None:
            raise UsageError("this runner was closed")
        if self.provider is Provider.CUDA:  # one setting for the whole process: whoever runs sets it
            torch.set_float32_matmul_precision("high" if self._options.tf32 else "highest")
        try:
            found = self._module(*tensors)
        except KitError:
            raise
        except Exception as error:  # the module may raise anything
            raise self._failure(error) from error
        return tuple(
            one.to(_dtype(spec.dtype))
            for spec, one in zip(self.signature.outputs, _in_order(found, self._outputs), strict=True)
        )

    def _failure(self, error: Exception) -> KitError:
        lines = str(error).strip().splitlines()
        kind_of = "" if isinstance(error, RuntimeError) or not lines else f"{type(error).__name__}: "
        message = f"PyTorch could not run on {self.provider}: {kind_of}{lines[0] if lines else type(error).__name__}"
        if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error):
            kind = MemoryShort if self.provider is Provider.CPU else ProviderUnavailable
            return kind(message, hint="use smaller inputs, or fewer in one call")
        return (BundleInvalid if self.provider is Provider.CPU else ProviderUnavailable)(message)

    def _recorded(self, tensors: _Many) -> Forward:
        stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        device = torch.cuda.device(self._device)
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.inference_mode(), torch.cuda.stream(stream):
            for _ in range(_WARMUP_CALLS):
                self._forward(tensors)
        torch.cuda.current_stream(self._device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.inference_mode(), device, torch.cuda.graph(graph, stream=stream):
            outputs = self._forward(tensors)

        def replay(_: _Many) -> _Many:
            graph.replay()
            return outputs

        return replay

    def _where(self, options: RunnerOptions) -> tuple[Provider, torch.device]:
        if options.provider is Provider.CPU:
            return Provider.CPU, torch.device("cpu")
        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if options.device_id < gpus:
            return Provider.CUDA, torch.device("cuda", options.device_id)
        reason = f"PyTorch {torch.__version__} sees {gpus or 'no'} GPUs here"
        if not options.allow_fallback:
            raise ProviderUnavailable(f"{reason}, and GPU {options.device_id} was asked for", hint="kit doctor")
        self.fallback_reason = reason
        return Provider.CPU, torch.device("cpu")


class _OnDevice(Binding):
    """Tensors that stay, and the tensors the module made of them. On the CPU the inputs are `inputs` themselves."""

    __slots__ = ("_forward", "_given_tensors", "_made_tensors")

    def __init__(self, inputs: dict[str, NDArray[Any]], tensors: _Many, names: Sequence[str], forward: Forward) -> None:
        self._given_tensors, self._forward = tensors, forward
        self._made_tensors = self._called()
        outputs = {name: _to_numpy(one).copy() for name, one in zip(names, self._made_tensors, strict=True)}
        super().__init__(inputs, outputs, _nothing)

    def compute(self) -> None:
        self._made_tensors = self._called()
        if not self._is_away:
            self._fetch()

    def copy_in(self, *arrays: NDArray[Any]) -> None:
        super().copy_in(*arrays)
        if self._is_away:
            for tensor, array in zip(self._given_tensors, self._given, strict=True):
                tensor.copy_(torch.from_numpy(array))

    def copy_out(self) -> Any:
        if self._is_away:
            self._fetch()
        return super().copy_out()

    @property
    def _is_away(self) -> bool:
        return self._given_tensors[0].is_cuda

    def _called(self) -> _Many:
        with torch.inference_mode():
            outputs = self._forward(self._given_tensors)
        if self._is_away:
            torch.cuda.synchronize(self._given_tensors[0].device)
        return outputs

    def _fetch(self) -> None:
        for place, tensor in zip(self._made, self._made_tensors, strict=True):
            if place.shape != tuple(tensor.shape):
                raise Unavailable(
                    "the size of an output depends on the values, so that it cannot be bound", hint="use run"
                )
            np.copyto(place, tensor.cpu().numpy())


def _nothing() -> None:
    """Stand in for a call of the binding's own, which would refer to itself and live until the next collection."""


def _in_order(found: Any, names: Sequence[str]) -> Sequence[torch.Tensor]:
    if isinstance(found, torch.Tensor):
        made: Sequence[Any] = (found,)
    elif isinstance(found, Mapping):
        made = [found[name] for name in names] if set(names) <= set(found) else tuple(found.values())
    elif dataclasses.is_dataclass(found):
        fields = {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}
        made = [fields[name] for name in names] if set(names) <= set(fields) else tuple(fields.values())
    elif isinstance(found, list | tuple):
        made = found
    else:
        made = ()
    if len(made) != len(names) or not all(isinstance(one, torch.Tensor) for one in made):
        raise BundleInvalid(
            f"the module gave {type(found).__name__} of {len(made)}, expected tensors for {', '.join(names)}",
            hint="return a tensor, a tuple in the order of the outputs, or a dict with their names",
        )
    return made


def _in_half(module: nn.Module) -> nn.Module:
    """Return a copy whose weights are float16, and whose layers take their inputs so: arithmetic before them stays float32."""
    copied_module = copy.deepcopy(module).half()

    def to_half(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(one.half() if isinstance(one, torch.Tensor) and one.is_floating_point() else one for one in inputs)

    for layer in copied_module.modules():
        if next(layer.parameters(recurse=False), None) is not None:
            layer.register_forward_pre_hook(to_half)
    return copied_module


def _dtype(name: str) -> torch.dtype:
    found: torch.dtype = getattr(torch, name)
    return found


def _to_numpy(tensor: torch.Tensor) -> NDArray[Any]:
    array: NDArray[Any] = tensor.cpu().numpy()
    return array
