"""PyTorch behind the Runner protocol: the reference a bundle's variants are held against."""

from __future__ import annotations

import torch
from torch import nn

from kit.models import FromPixels
from kit.runtime.base import ClosingRunner, Logits, Pixels, Placement, logits_of
from kit.spec import ModelSpec, Provider


class PyTorchRunner(ClosingRunner):
    """A module in eager mode on the CPU, in inference mode.

    Args:
        module: Takes normalised float32 `[N, *input shape]`, gives logits `[N, classes]`; set to evaluation mode.
        spec: Tells the normalisation.
    """

    runtime = "pytorch"
    provider = Provider.CPU
    fallback_reason = ""

    def __init__(self, module: nn.Module, spec: ModelSpec) -> None:
        self._module = FromPixels(module, spec).eval()
        self.placement = Placement({})

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
