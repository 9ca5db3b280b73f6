"""The Runner protocol: what every runtime offers, and what is asked of it. Imports no runtime."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from kit.choices import Provider
from kit.errors import Unavailable, UsageError
from kit.tensors import Axis, Signature, Sizes, Tensors

_THREADS_A_CPU = 4
_FEW_THREADS = 16

LEAST_GPU_BYTES = 64 * 2**20
OPTIMIZATIONS = ("all", "extended", "basic", "off")


@dataclass(frozen=True, kw_only=True)
class RunnerOptions:
    """What is asked of a runtime.

    Fields after `allow_fallback` are for ONNX Runtime, except `bf16`; PyTorch has `tf32` and `cuda_graph` as well. The
    defaults were measured to be the safest for small models (docs/performance.md): waiting threads save little and
    take CPUs from whatever else runs; an arena is no faster and keeps the most that any batch ever needed.

    Attributes:
        provider: Where the model must run; strict unless `allow_fallback`.
        threads: Threads one operator may use.
        allow_fallback: Accept the CPU where the provider cannot run; the runner then says so.
        spinning: Let further threads wait for work by spinning: quicker, at the price of a CPU each.
        arena: Keep freed memory for the next call; None: for models above ARENA_ABOVE_BYTES. What lies inside those may
            exceed 32 MB, which the C library gives back to the system and fetches anew in every call.
        prepacking: Store weights as the kernels read them best; uses more memory.
        optimization: How far the graph is rewritten: one of OPTIMIZATIONS.
        tf32: Let a GPU round the inputs of float32 products to 10 bits: faster, and no longer what the CPU computes.
        cuda_graph: Record the kernels of each batch size once and replay them; for CUDA.
        gpu_memory_limit_bytes: The most ONNX Runtime may take of the GPU's memory; None: all that is free.
        bf16: Let OpenVINO compute float32 with 8 bits of precision, on CPUs that do so in hardware: up to 2x as fast.
    """

    provider: Provider = Provider.CPU
    threads: int = 1
    device_id: int = 0
    allow_fallback: bool = False
    spinning: bool = True
    arena: bool | None = None
    prepacking: bool = True
    optimization: str = "all"
    tf32: bool = False
    cuda_graph: bool = False
    gpu_memory_limit_bytes: int | None = None
    bf16: bool = False

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise UsageError(f"threads must be 1 or more, found {self.threads}")
        cpus = os.cpu_count() or 1
        if self.threads > max(_THREADS_A_CPU * cpus, _FEW_THREADS):
            raise UsageError(
                f"{self.threads:,} threads on {cpus} CPUs would only wait for each other", hint=f"use {cpus} at most"
            )
        if self.device_id < 0:
            raise UsageError(f"the device id must be 0 or more, found {self.device_id}")
        if self.optimization not in OPTIMIZATIONS:
            raise UsageError(
                f"unknown graph optimization {self.optimization!r}", hint="choose one of: " + ", ".join(OPTIMIZATIONS)
            )
        self._check_gpu()

    def _check_gpu(self) -> None:
        limit = self.gpu_memory_limit_bytes
        if limit is not None and limit < LEAST_GPU_BYTES:
            raise UsageError(f"{limit:,} bytes of GPU memory are too few", hint="allow 64 MiB or more")
        asked = {"tf32": self.tf32, "cuda_graph": self.cuda_graph, "gpu_memory_limit_bytes": limit is not None}
        for name, is_asked in asked.items():
            if is_asked and self.provider is not Provider.CUDA:
                where = "the CPU" if self.provider is Provider.CPU else self.provider
                raise UsageError(f"{name} changes nothing on {where}", hint="use it with provider cuda")
        if self.bf16 and self.provider is not Provider.CPU:
            raise UsageError(f"bf16 changes nothing on {self.provider}", hint="use it with the runtime openvino")
        if self.cuda_graph and self.allow_fallback:
            raise UsageError("a CUDA graph holds all nodes or none", hint="leave the fallback out")

    def describe_session(self) -> str:
        """Return the threads and what is not as usual: `2 threads, no spinning`."""
        parts = [f"{self.threads} thread" + ("s" if self.threads > 1 else "")]
        return ", ".join([*parts, *self._unusual()])

    def _unusual(self) -> list[str]:
        unusual = {
            "no spinning": not self.spinning,
            "arena": self.arena is True,
            "no arena": self.arena is False,
            "no prepacking": not self.prepacking,
            f"optimization {self.optimization}": self.optimization != OPTIMIZATIONS[0],
            "TF32": self.tf32,
            "bf16": self.bf16,
            "CUDA graph": self.cuda_graph,
            f"{(self.gpu_memory_limit_bytes or 0) / 1e6:,.0f} MB of GPU memory": self.gpu_memory_limit_bytes
            is not None,
        }
        return [name for name, applies in unusual.items() if applies]

    @property
    def is_usual(self) -> bool:
        """Whether nothing but provider, threads and device was chosen."""
        return not self._unusual()


@dataclass(frozen=True)
class Placement:
    """Which provider runs how many nodes of the graph, counted before the providers fuse them."""

    nodes: dict[str, int]

    @property
    def total(self) -> int:
        """Nodes in all."""
        return sum(self.nodes.values())

    def is_all_on(self, provider: Provider, *helpers: Provider) -> bool:
        """Whether every node runs on `provider`, or on one of its helpers, and some do run on `provider`."""
        here = self.nodes.get(provider.value, 0)
        return here > 0 and here + sum(self.nodes.get(helper.value, 0) for helper in helpers) == self.total

    def describe(self) -> str:
        """Return `cuda 6/6`, or `cuda 4/6, cpu 2/6`."""
        parts = sorted(self.nodes.items(), key=lambda item: -item[1])
        return ", ".join(f"{provider} {count}/{self.total}" for provider, count in parts) or "unknown"


class Binding:
    """Inputs and outputs of one size that stay where they are, so that a call allocates and converts nothing.

    `run` copies inputs in and gives outputs; or fill `inputs` in place, call `compute`, and read `outputs`. On the CPU
    both are the memory that the model reads and writes. A binding keeps the model open; it is for one thread at a time.

    ```python
    bound = engine.bind(batch=8)
    logits = bound.run(pixels)          # one output: its array; several: a tuple in the signature's order
    bound.inputs["pixels"][:] = pixels  # the same in two steps
    bound.compute()
    bound.outputs["logits"]
    ```

    Attributes:
        inputs: By name, what the next call will read.
        outputs: By name, what the last call wrote: copy what must outlive the next one.
    """

    __slots__ = ("_call", "_given", "_made", "inputs", "outputs")

    def __init__(self, inputs: Tensors, outputs: Tensors, call: Callable[[], object]) -> None:
        self._call = call
        self.inputs = inputs
        self.outputs = outputs
        self._given = tuple(inputs.values())
        self._made = tuple(outputs.values())

    def run(self, *arrays: NDArray[Any]) -> Any:
        """Return the outputs for inputs in the signature's order: an array, or a tuple of several; valid until the next call.

        Raises:
            UsageError: Another number, shape or dtype than was bound.
        """
        self.copy_in(*arrays)
        self.compute()
        return self.copy_out()

    def compute(self) -> None:
        """Run the model on what lies in its inputs, and wait for the end. Raises what the runner's `run` does."""
        self._call()

    def copy_in(self, *arrays: NDArray[Any]) -> None:
        """Copy inputs to where the model reads them."""
        self.check(*arrays)
        for place, array in zip(self._given, arrays, strict=True):
            np.copyto(place, array)

    def copy_out(self) -> Any:
        """Return what the model wrote, in host memory: an array, or a tuple of several."""
        return self._made[0] if len(self._made) == 1 else self._made

    def check(self, *arrays: NDArray[Any]) -> None:
        """Raise UsageError for another number of inputs, another shape or dtype than was bound."""
        if len(arrays) != len(self._given):
            raise UsageError(f"bound for {len(self._given)} inputs, found {len(arrays)}")
        for (name, place), array in zip(self.inputs.items(), arrays, strict=True):
            if array.shape != place.shape or array.dtype != place.dtype:
                raise UsageError(
                    f"{name} is bound as {place.dtype} {place.shape}, found {array.dtype} {array.shape}",
                    hint="bind that size as well",
                )


class OneToOne(Binding):
    """A binding of one input and one output: without a look at names, for models of some microseconds."""

    __slots__ = ("_input", "_output", "dtype", "shape")

    def __init__(self, inputs: Tensors, outputs: Tensors, call: Callable[[], object]) -> None:
        super().__init__(inputs, outputs, call)
        (self._input,), (self._output,) = self._given, self._made
        self.shape = self._input.shape
        self.dtype = self._input.dtype

    def run(self, *arrays: NDArray[Any]) -> NDArray[Any]:
        """Return the output for an input; valid until the next call. Raises what `Binding.run` does."""
        if len(arrays) != 1 or arrays[0].shape != self.shape or arrays[0].dtype != self.dtype:
            self.check(*arrays)
        return self.run_fitting(arrays[0])

    def run_fitting(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return the output for an input that is known to have the bound shape and dtype; valid until the next call."""
        np.copyto(self._input, array)
        self._call()
        return self._output


def bind_arrays(inputs: Tensors, outputs: Tensors, call: Callable[[], object]) -> Binding:
    """Return the quickest binding of arrays in host memory that a call reads and writes."""
    kind = OneToOne if len(inputs) == len(outputs) == 1 else Binding
    return kind(inputs, outputs, call)


Shapes = tuple[tuple[int, ...], ...]


class RecentBindings:
    """The bindings of the shapes used last, `most` of them: a new one replaces the one used longest ago."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._held: dict[Shapes, Binding] = {}

    def __len__(self) -> int:
        return len(self._held)

    def get(self, shapes: Shapes) -> Binding | None:
        """Return the binding of these shapes, which is then the one used last; None if there is none."""
        found = self._held.pop(shapes, None)
        if found is not None:
            self._held[shapes] = found
        return found

    def keep(self, shapes: Shapes, binding: Binding) -> Binding:
        """Keep a binding, and return it."""
        while len(self._held) >= self.most:
            del self._held[next(iter(self._held))]
        self._held[shapes] = binding
        return binding

    def clear(self) -> None:
        """Forget them all."""
        self._held.clear()


MOST_BINDINGS = 8
"""Sizes that a runtime keeps ready, if each costs a compiled model or a recorded graph."""


class Runner(Protocol):
    """A model opened on one provider. Not for two threads at once: `share` it, or open one for each."""

    @property
    def runtime(self) -> str:
        """Name of the runtime, such as `onnxruntime`."""

    @property
    def provider(self) -> Provider:
        """Where it truly runs, which differs from what was asked only after an allowed fallback."""

    @property
    def placement(self) -> Placement:
        """Nodes by provider."""

    @property
    def fallback_reason(self) -> str:
        """Why it does not run where it was asked to; empty when it does."""

    @property
    def fallback_fix(self) -> str:
        """What to do about that."""

    @property
    def slow_to_open(self) -> bool:
        """Whether the bench should keep it open, and not open it anew every few rounds."""

    @property
    def signature(self) -> Signature:
        """What it takes and gives."""

    def run(self, tensors: Tensors) -> dict[str, NDArray[Any]]:
        """Compute all outputs, by name, for inputs that fit the signature; the arrays are the caller's to keep.

        Raises:
            ProviderUnavailable: A device failed while running, for want of memory for instance.
            BundleInvalid: The graph does not run with these inputs.
            UsageError: The runner was closed, or inputs are missing.
        """

    def bind(self, sizes: Sizes) -> Binding:
        """Return buffers for inputs of these sizes; each call makes new ones, which outlive the runner.

        Raises:
            Unavailable: An output varies with the values, so that there is no room to reserve for it.
        """

    def share(self) -> Self:
        """Return a runner of the same model for another thread, with buffers of its own; close both."""

    def close(self) -> None:
        """Free what it holds; a closed runner cannot run."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class BaseRunner:
    """The half of a Runner that most share: the context manager, and buffers for runtimes that have no better ones."""

    signature: Signature
    fallback_reason = ""
    fallback_fix = ""
    slow_to_open = False

    def run(self, tensors: Tensors) -> dict[str, NDArray[Any]]:
        """Compute the outputs."""
        raise TypeError(f"{type(self).__name__} must say how it runs {list(tensors)}")

    def bind(self, sizes: Sizes) -> Binding:
        """Return buffers whose inputs are passed to `run` and whose outputs are copied from it."""
        refuse_varying(self.signature)
        inputs = self.signature.zeros(self.signature.usual_sizes(**sizes))
        outputs = {name: np.array(array) for name, array in self.run(inputs).items()}

        def compute() -> None:
            for name, array in self.run(inputs).items():
                np.copyto(outputs[name], array)

        return bind_arrays(inputs, outputs, compute)

    def share(self) -> Self:
        """Say that this runtime's open model is for one thread alone."""
        raise Unavailable(f"{type(self).__name__} is for one thread", hint="open the model once more for another")

    def close(self) -> None:
        """Free what it holds."""
        raise TypeError(f"{type(self).__name__} must say how it closes")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


BATCH_BYTES = 64 * 2**20
"""Inputs and outputs of one call when many samples are answered: a bound by bytes, whatever a sample is."""


def run_in_batches(runner: Runner, tensors: Tensors, *, most_bytes: int = BATCH_BYTES) -> dict[str, NDArray[Any]]:
    """Run inputs along the batch axis in pieces bounded by bytes, and join the outputs.

    Any number of samples will do: a last piece too small for the axis is filled up with copies of its last sample,
    whose answers are dropped. A model whose answers cannot be joined runs whole.

    Raises:
        UsageError: An input is missing, unknown, or has another dtype, rank or size than the model takes.
    """
    signature = runner.signature
    batch = signature.batch
    if batch is None or not joins(signature):
        return runner.run(tensors)
    sizes = signature.sizes(tensors)
    axis, count = signature.axes[batch], signature.rows(tensors)
    if count == 0:
        return runner.run(tensors)
    most = axis.most if axis.most is not None else count + axis.least + axis.multiple_of
    largest = max(most // axis.multiple_of * axis.multiple_of, 1)
    rows = min(_up_to_unit(signature.rows_within(most_bytes, sizes), axis), largest)
    pieces = math.ceil(count / rows)
    rows = _up_to_unit(math.ceil(count / pieces), axis)
    found = []
    for start in range(0, count, rows):
        piece = signature.take(tensors, slice(start, start + rows))
        own = min(rows, count - start)
        wanted = _up_to_unit(own, axis)
        if wanted > own:
            last = np.minimum(np.arange(wanted), own - 1)
            found.append(signature.take(runner.run(signature.take(piece, last)), slice(own)))
        else:
            found.append(runner.run(piece))
    return signature.join(found)


def joins(signature: Signature) -> bool:
    """Whether the answers to pieces of a batch can be joined: every output has the batch axis, and a size that is known."""
    return all(signature.batch in spec.shape and not spec.varies for spec in signature.outputs)


def _up_to_unit(rows: int, axis: Axis) -> int:
    """Return the smallest size that an axis allows and that so many rows fit into, its largest left aside."""
    return math.ceil(max(rows, axis.least) / axis.multiple_of) * axis.multiple_of


def copied(outputs: Any, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Return what a binding gave, by name, as arrays that are the caller's."""
    return (
        {names[0]: outputs.copy()}
        if len(names) == 1
        else dict(zip(names, [one.copy() for one in outputs], strict=True))
    )


def refuse_varying(signature: Signature) -> None:
    """Raise Unavailable if an output's size depends on values: there is no room to reserve for it."""
    varying = next((spec.name for spec in signature.outputs if spec.varies), None)
    if varying is not None:
        raise Unavailable(
            f"the size of {varying!r} depends on the values, so that it cannot be bound", hint="use run instead"
        )
