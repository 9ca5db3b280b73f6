"""PyTorch behind the Runner protocol: the reference a bundle's variants are held against."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from kit.errors import ProviderUnavailable, Unavailable
from kit.models import FromPixels
from kit.runtime.base import ClosingRunner, Logits, Pixels, Placement, RunnerOptions, logits_of
from kit.spec import ModelSpec, Provider


class PyTorchRunner(ClosingRunner):
    """A module on the CPU or on CUDA, in inference mode: eager, or through torch.compile. Matrices multiply without TF32.

    Args:
        module: Takes normalised float32 `[N, *input shape]`, gives logits `[N, classes]`; set to evaluation mode.
        spec: Tells the normalisation.
        options: Provider, threads (of the whole process, as torch has one setting), device; None: the CPU, torch's threads.
        compiled: Compile now, for a dynamic batch.

    Raises:
        ProviderUnavailable: This torch has no CUDA, or sees no such GPU.
        Unavailable: torch.compile does not work here, for want of a C++ compiler for instance.
    """

    def __init__(
        self, module: nn.Module, spec: ModelSpec, *, options: RunnerOptions | None = None, compiled: bool = False
    ) -> None:
        if options is not None:
            torch.set_num_threads(options.threads)
        self.fallback_reason = ""
        self.slow_to_open = compiled
        self.provider, self._device = self._where(options or RunnerOptions())
        self.runtime = "pytorch-compile" if compiled else "pytorch"
        self.placement = Placement({})
        self._module: Callable[[torch.Tensor], torch.Tensor] = FromPixels(module, spec).eval().to(self._device)
        if compiled:
            # it warns on every machine that has CUDA's compiler and no GPU
            logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
            self._module = torch.compile(self._module, dynamic=True)
            try:
                self.run(np.zeros((2, *spec.input.shape), np.uint8))
            except (RuntimeError, OSError) as error:
                reason = str(error).strip().splitlines()[0]
                raise Unavailable(
                    f"torch.compile does not work here: {reason}", hint="install a C++ compiler"
                ) from error

    def run(self, pixels: Pixels) -> Logits:
        """Compute logits float32 `[N, classes]` for pixels uint8 `[N, *input shape]`."""
        with torch.inference_mode():
            # torch warns about arrays it could write to but must not; pixels are only read.
            logits: Logits = self._module(torch.tensor(pixels).to(self._device)).cpu().numpy()
        return logits

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
        """Nothing is held beyond the module."""


def reference_logits(module: nn.Module, spec: ModelSpec, pixels: Pixels) -> Logits:
    """Compute PyTorch's logits float32 `[N, classes]` for pixels uint8 `[N, *input shape]`, in batches."""
    with PyTorchRunner(module, spec) as runner:
        return logits_of(runner, pixels)
