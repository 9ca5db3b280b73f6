"""PyTorch behind the Runner protocol: the reference a bundle's variants are held against."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Self

import numpy as np
import torch
from torch import nn

from kit.bundle.records import ModelSpec
from kit.choices import Provider
from kit.errors import ProviderUnavailable, Unavailable
from kit.lab.models import FromPixels
from kit.runtime.base import BaseRunner, Binding, Logits, Pixels, Placement, RunnerOptions, logits_of

_WARMUP_CALLS = 3  # before a CUDA graph is recorded, as torch.cuda.graph asks for
Forward = Callable[[torch.Tensor], torch.Tensor]


class _Half(nn.Module):
    """A module whose weights and activations are float16, between float32 in and out."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = copy.deepcopy(module).half()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.module(x.half())
        return output.float()


class PyTorchRunner(BaseRunner):
    """A module on the CPU or on CUDA, in inference mode: eager, or through torch.compile. Matrices multiply without TF32.

    Args:
        module: Takes normalised float32 `[N, *input shape]`, gives logits `[N, classes]`; set to evaluation mode.
        spec: Tells the normalisation.
        options: Provider, threads (of the whole process, as torch has one setting), device, TF32, CUDA graphs; None: the CPU,
            torch's threads.
        compiled: Compile now: for a dynamic batch, or with CUDA graphs for each batch size in its mode `reduce-overhead`.
        half: Compute in float16.

    Raises:
        ProviderUnavailable: This torch has no CUDA, or sees no such GPU.
        Unavailable: torch.compile does not work here, for want of a C++ compiler for instance.
    """

    def __init__(
        self,
        module: nn.Module,
        spec: ModelSpec,
        *,
        options: RunnerOptions | None = None,
        compiled: bool = False,
        half: bool = False,
    ) -> None:
        if options is not None:
            torch.set_num_threads(options.threads)
        self.fallback_reason = ""
        self.slow_to_open = compiled
        self._options = options or RunnerOptions()
        self.provider, self._device = self._where(self._options)
        self.runtime = "pytorch-compile" if compiled else "pytorch"
        self.placement = Placement({})
        on_gpu = self.provider is Provider.CUDA
        graphs = self._options.cuda_graph and on_gpu
        self._records = graphs and not compiled  # torch.compile records by itself
        self._bindings: dict[tuple[int, ...], Binding] = {}
        self._module: Forward = FromPixels(_Half(module) if half else module, spec).eval().to(self._device)
        if compiled:
            # it warns on every machine that has CUDA's compiler and no GPU
            logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
            self._module = (
                torch.compile(self._module, mode="reduce-overhead")
                if graphs
                else torch.compile(self._module, dynamic=True)
            )
            try:
                self.run(np.zeros((2, *spec.input.shape), np.uint8))
            except (RuntimeError, OSError) as error:
                reason = str(error).strip().splitlines()[0]
                raise Unavailable(
                    f"torch.compile does not work here: {reason}", hint="install a C++ compiler"
                ) from error

    def run(self, pixels: Pixels) -> Logits:
        """Compute logits float32 `[N, classes]` for pixels uint8 `[N, *input shape]`."""
        if self._records:
            if pixels.shape not in self._bindings:
                self._bindings[pixels.shape] = self.bind(pixels.shape)
            return self._bindings[pixels.shape].run(pixels).copy()
        with torch.inference_mode():
            # torch warns about arrays it could write to but must not; pixels are only read.
            logits: Logits = self._forward(torch.tensor(pixels).to(self._device)).cpu().numpy()
        return logits

    def bind(self, shape: tuple[int, ...]) -> Binding:
        """Return a tensor for inputs of one shape, `(N, *input shape)`, on the device, and the call on it."""
        pixels = np.zeros(shape, np.uint8)
        tensor = torch.from_numpy(pixels).to(self._device)
        return _Tensors(pixels, tensor, self._recorded(tensor) if self._records else self._forward)

    def share(self) -> Self:
        """Return a runner of the same module, which may run in several threads at once unless it replays CUDA graphs."""
        if self._options.cuda_graph:
            raise Unavailable("a module that replays CUDA graphs is for one thread", hint="open the model once more")
        return copy.copy(self)

    def _forward(self, tensor: torch.Tensor) -> torch.Tensor:
        if self.provider is Provider.CUDA:  # one setting for the whole process: whoever runs sets it
            torch.set_float32_matmul_precision("high" if self._options.tf32 else "highest")
        return self._module(tensor)

    def _recorded(self, tensor: torch.Tensor) -> Forward:
        """Record the module on a tensor as a CUDA graph, after some calls on a stream of their own."""
        stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        device = torch.cuda.device(self._device)
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.inference_mode(), torch.cuda.stream(stream):
            for _ in range(_WARMUP_CALLS):
                self._forward(tensor)
        torch.cuda.current_stream(self._device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.inference_mode(), device, torch.cuda.graph(graph, stream=stream):
            output = self._forward(tensor)

        def replay(_: torch.Tensor) -> torch.Tensor:
            graph.replay()
            return output

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

    def close(self) -> None:
        """Free recorded graphs; nothing else is held beyond the module."""
        self._bindings = {}


class _Tensors(Binding):
    """A tensor that stays, and the tensor the module made of it. On the CPU the input is `pixels` itself."""

    __slots__ = ("_forward", "_input", "_output")

    def __init__(self, pixels: Pixels, tensor: torch.Tensor, forward: Forward) -> None:
        self._input, self._forward = tensor, forward
        self._output = self._called()
        super().__init__(pixels, self._output.cpu().numpy().copy(), _nothing)

    def compute(self) -> None:
        self._output = self._called()
        if not self._output.is_cuda:
            np.copyto(self.logits, self._output.numpy())

    def _called(self) -> torch.Tensor:
        with torch.inference_mode():
            output = self._forward(self._input)
        if output.is_cuda:
            torch.cuda.synchronize(output.device)
        return output

    def copy_in(self, pixels: Pixels) -> None:
        self.check(pixels)
        np.copyto(self.pixels, pixels)
        if self._input.is_cuda:
            self._input.copy_(torch.from_numpy(self.pixels))

    def copy_out(self) -> Logits:
        if self._output.is_cuda:
            np.copyto(self.logits, self._output.cpu().numpy())
        return self.logits


def _nothing() -> None:
    """Stand in for a call of the binding's own, which would refer to itself and live until the next collection."""


def reference_logits(module: nn.Module, spec: ModelSpec, pixels: Pixels) -> Logits:
    """Compute PyTorch's logits float32 `[N, classes]` for pixels uint8 `[N, *input shape]`, in batches."""
    with PyTorchRunner(module, spec) as runner:
        return logits_of(runner, pixels)
