"""The Runner protocol: what every runtime offers, and what is asked of it. Imports no runtime."""

from __future__ import annotations

import os
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from kit.errors import UsageError
from kit.spec import Provider

_THREADS_A_CPU = 4
_FEW_THREADS = 16

OPTIMIZATIONS = ("all", "extended", "basic", "off")

Pixels = NDArray[np.uint8]
Logits = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class RunnerOptions:
    """What is asked of a runtime. The last four are ONNX Runtime's, by its own names; other runtimes have none of them.

    Attributes:
        provider: Where the model must run; strict unless `allow_fallback`.
        threads: Threads one operator may use. 1 is the safest for small models: more threads spin and disturb neighbours.
        device_id: Index of the GPU.
        allow_fallback: Accept the CPU where the provider cannot run; the runner then says so.
        spinning: Let further threads wait for work by spinning: quicker, at the price of a CPU each.
        arena: Keep freed memory for the next call.
        prepacking: Store weights as the kernels read them best; uses more memory.
        optimization: How far the graph is rewritten: one of OPTIMIZATIONS.
    """

    provider: Provider = Provider.CPU
    threads: int = 1
    device_id: int = 0
    allow_fallback: bool = False
    spinning: bool = True
    arena: bool = True
    prepacking: bool = True
    optimization: str = "all"

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

    def describe_session(self) -> str:
        """Return the threads and what is not as usual: `2 threads, no spinning`."""
        parts = [f"{self.threads} thread" + ("s" if self.threads > 1 else "")]
        unusual = {"no spinning": not self.spinning, "no arena": not self.arena, "no prepacking": not self.prepacking}
        parts += [name for name, applies in unusual.items() if applies]
        if self.optimization != OPTIMIZATIONS[0]:
            parts.append(f"optimization {self.optimization}")
        return ", ".join(parts)


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


class Runner(Protocol):
    """A model opened on one provider. Not for two threads at once: open one for each.

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
        """Compute logits float32 `[N, classes]` for raw pixels uint8 `[N, *input shape]`."""

    def close(self) -> None:
        """Free what it holds; a closed runner cannot run."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class ClosingRunner:
    """The context manager half of a Runner."""

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
