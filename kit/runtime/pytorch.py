"""PyTorch behind the Runner protocol: the reference a bundle's variants are held against."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from kit.errors import Unavailable
from kit.models import FromPixels
from kit.runtime.base import ClosingRunner, Logits, Pixels, Placement, logits_of
from kit.spec import ModelSpec, Provider


class PyTorchRunner(ClosingRunner):
    """A module on the CPU, in inference mode: eager, or through torch.compile.

    Args:
        module: Takes normalised float32 `[N, *input shape]`, gives logits `[N, classes]`; set to evaluation mode.
        spec: Tells the normalisation.
        threads: Of the whole process, as torch has one setting; None leaves it.
        compiled: Compile now, for a dynamic batch.

    Raises:
        Unavailable: torch.compile does not work here, for want of a C++ compiler for instance.
    """

    provider = Provider.CPU
    fallback_reason = ""

    def __init__(
        self, module: nn.Module, spec: ModelSpec, *, threads: int | None = None, compiled: bool = False
    ) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self.runtime = "pytorch-compile" if compiled else "pytorch"
        self.placement = Placement({})
        self._module: Callable[[torch.Tensor], torch.Tensor] = FromPixels(module, spec).eval()
        if compiled:
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
            logits: Logits = self._module(torch.tensor(pixels)).numpy()
        return logits

    def close(self) -> None:
        """Nothing is held beyond the module."""


def reference_logits(module: nn.Module, spec: ModelSpec, pixels: Pixels) -> Logits:
    """Compute PyTorch's logits float32 `[N, classes]` for pixels uint8 `[N, *input shape]`, in batches."""
    with PyTorchRunner(module, spec) as runner:
        return logits_of(runner, pixels)
