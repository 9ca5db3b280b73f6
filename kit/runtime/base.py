"""The Runner protocol: what every runtime offers, and what is asked of it. Imports no runtime."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from kit.choices import Provider
from kit.errors import Unavailable, UsageError

_THREADS_A_CPU = 4
_FEW_THREADS = 16

LEAST_GPU_BYTES = 64 * 2**20
OPTIMIZATIONS = ("all", "extended", "basic", "off")

Pixels = NDArray[np.uint8]
Logits = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class RunnerOptions:
    """What is asked of a runtime. What follows `allow_fallback` is ONNX Runtime's; PyTorch has `tf32` and `cuda_graph` as well.

    The defaults are the safest for small models, and were measured (docs/performance.md): one thread, because sharing out a
    layer of some microseconds saves little, and waiting threads take CPUs from whatever else runs; no arena, because it is no
    faster and keeps the most that any batch ever needed.

    Attributes:
        provider: Where the model must run; strict unless `allow_fallback`.
        threads: Threads one operator may use. 1 is the safest for small models: more threads spin and disturb neighbours.
        device_id: Index of the GPU.
        allow_fallback: Accept the CPU where the provider cannot run; the runner then says so.
        spinning: Let further threads wait for work by spinning: quicker, at the price of a CPU each.
        arena: Keep freed memory for the next call.
        prepacking: Store weights as the kernels read them best; uses more memory.
        optimization: How far the graph is rewritten: one of OPTIMIZATIONS.
        tf32: Let a GPU round the inputs of float32 products to 10 bits: faster, and no longer what the CPU computes.
        cuda_graph: Record the kernels of each batch size once and replay them; for CUDA.
        gpu_memory_limit_bytes: The most ONNX Runtime may take of the GPU's memory; None: all that is free.
    """

    provider: Provider = Provider.CPU
    threads: int = 1
    device_id: int = 0
    allow_fallback: bool = False
    spinning: bool = True
    arena: bool = False
    prepacking: bool = True
    optimization: str = "all"
    tf32: bool = False
    cuda_graph: bool = False
    gpu_memory_limit_bytes: int | None = None

    def __post_init__(self) -> None:
        """Refuse what no runtime can do."""
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
        """Refuse what changes nothing on the CPU, or leaves a GPU no memory to speak of."""
        limit = self.gpu_memory_limit_bytes
        if limit is not None and limit < LEAST_GPU_BYTES:
            raise UsageError(f"{limit:,} bytes of GPU memory are too few", hint="allow 64 MiB or more")
        asked = {"tf32": self.tf32, "cuda_graph": self.cuda_graph, "gpu_memory_limit_bytes": limit is not None}
        for name, is_asked in asked.items():
            if is_asked and self.provider is not Provider.CUDA:
                where = "the CPU" if self.provider is Provider.CPU else self.provider
                raise UsageError(f"{name} changes nothing on {where}", hint="use it with provider cuda")
        if self.cuda_graph and self.allow_fallback:
            raise UsageError("a CUDA graph holds all nodes or none", hint="leave the fallback out")

    def describe_session(self) -> str:
        """Return the threads and what is not as usual: `2 threads, no spinning`."""
        parts = [f"{self.threads} thread" + ("s" if self.threads > 1 else "")]
        return ", ".join([*parts, *self._unusual()])

    def _unusual(self) -> list[str]:
        unusual = {
            "no spinning": not self.spinning,
            "arena": self.arena,
            "no prepacking": not self.prepacking,
            f"optimization {self.optimization}": self.optimization != OPTIMIZATIONS[0],
            "TF32": self.tf32,
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
    """An input and an output of one shape that stay where they are, so that a call allocates and converts nothing.

    `run` copies pixels in and gives logits; or fill `pixels` in place, call `compute`, and read `logits`. On the CPU both are
    the memory that the model reads and writes. It keeps the model open, and is not for two threads at once.

    Args:
        pixels: uint8 `[N, *input shape]`, what the next call will read.
        logits: float32 `[N, classes]`, what the last call wrote: copy what must outlive the next one.
        call: Runs the model on them. It need not keep them alive: the binding does.
    """

    __slots__ = ("_call", "_shape", "logits", "pixels")

    def __init__(self, pixels: Pixels, logits: Logits, call: Callable[[], object]) -> None:
        self._call = call
        self._shape = pixels.shape
        self.pixels = pixels
        self.logits = logits

    def run(self, pixels: Pixels) -> Logits:
        """Return logits float32 `[N, classes]` for pixels uint8 `[N, *input shape]`; valid until the next call.

        Raises:
            UsageError: Another shape or dtype than was bound.
        """
        self.copy_in(pixels)
        self.compute()
        return self.copy_out()

    def compute(self) -> None:
        """Run the model on what lies in its input, and wait for the end. Raises what the runner's `run` does."""
        self._call()

    def copy_in(self, pixels: Pixels) -> None:
        """Copy pixels to where the model reads them."""
        if pixels.shape != self._shape or pixels.dtype != np.uint8:
            self.check(pixels)
        np.copyto(self.pixels, pixels)

    def copy_out(self) -> Logits:
        """Return what the model wrote, in host memory."""
        return self.logits

    def check(self, pixels: Pixels) -> None:
        """Raise UsageError for another shape or dtype than was bound."""
        if pixels.shape != self.pixels.shape or pixels.dtype != self.pixels.dtype:
            raise UsageError(
                f"bound for {self.pixels.dtype} {self.pixels.shape}, found {pixels.dtype} {pixels.shape}",
                hint="bind that shape as well",
            )


class Runner(Protocol):
    """A model opened on one provider. Not for two threads at once: `share` it, or open one for each.

    A runner may have an attribute `slow_to_open`: the bench then keeps it open and does not open it anew every few rounds;
    and an attribute `fallback_fix`: what to do about its `fallback_reason`.
    """

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

    def run(self, pixels: Pixels) -> Logits:
        """Compute logits float32 `[N, classes]` for raw pixels uint8 `[N, *input shape]`; the array is the caller's to keep."""

    def bind(self, shape: tuple[int, ...]) -> Binding:
        """Return buffers for inputs of one shape, `(N, *input shape)`; each call makes new ones, which outlive the runner."""

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

    def run(self, pixels: Pixels) -> Logits:
        """Compute logits float32 `[N, classes]`."""
        raise TypeError(f"{type(self).__name__} must say how it runs {pixels.shape}")

    def bind(self, shape: tuple[int, ...]) -> Binding:
        """Return buffers whose input is passed to `run` and whose output is copied from it."""
        pixels = np.zeros(shape, np.uint8)
        logits = np.array(self.run(pixels))

        def compute() -> None:
            np.copyto(logits, self.run(pixels))

        return Binding(pixels, logits, compute)

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


def logits_of(runner: Runner, pixels: Pixels, *, batch_size: int = 1000) -> Logits:
    """Run pixels uint8 `[N, *shape]` through a runner in batches; logits float32 `[N, classes]`."""
    parts = [runner.run(pixels[start : start + batch_size]) for start in range(0, len(pixels), batch_size)]
    return np.concatenate(parts)


def check_pixels(pixels: np.ndarray[Any, Any], shape: tuple[int, ...]) -> Pixels:
    """Return `pixels` as a contiguous uint8 batch, or say what was expected.

    Raises:
        UsageError: Wrong dtype or shape.
    """
    batch = pixels[np.newaxis] if pixels.shape == shape else pixels
    if batch.dtype != np.uint8 or batch.shape[1:] != shape or not batch.shape:
        raise UsageError(
            f"expected uint8 pixels of shape {shape} or (N, {', '.join(map(str, shape))}), "
            f"found {pixels.dtype} {pixels.shape}",
            hint="give raw 0..255 pixels; the graph normalises them itself",
        )
    return batch if batch.flags.c_contiguous else np.ascontiguousarray(batch)
