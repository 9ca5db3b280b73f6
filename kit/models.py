"""The torch modules, and their weights as safetensors. Low in the house: training, exporters and runtime/pytorch need it."""

from __future__ import annotations

import math
import re
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn

from kit import packages
from kit.errors import BundleInvalid, UsageError
from kit.spec import ModelSpec

ARCHITECTURES = ("mlp-512-256-128", "mlp-64-64")


class Mlp(nn.Module):
    """Dense layers with ReLU between them; takes float32 `[N, ...]` normalised values, gives logits `[N, classes]`."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Flatten()]
        for index, (fan_in, fan_out) in enumerate(pairwise(sizes)):
            if index:
                layers.append(nn.ReLU())
            layers.append(nn.Linear(fan_in, fan_out))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits `[N, classes]`."""
        logits: torch.Tensor = self.layers(x)
        return logits


class FromPixels(nn.Module):
    """A module that takes raw pixels uint8 `[N, *shape]`: normalisation first, then the model it wraps."""

    def __init__(self, model: nn.Module, spec: ModelSpec) -> None:
        super().__init__()
        self.model = model
        self.scale = spec.normalization.scale
        self.shift = spec.normalization.shift

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the model's output for `pixels * scale + shift`."""
        output: torch.Tensor = self.model(pixels.to(torch.float32) * self.scale + self.shift)
        return output


def is_known(architecture: str) -> bool:
    """Whether `build` can make this architecture."""
    return re.fullmatch(r"mlp(-[1-9]\d{0,5})+", architecture) is not None


def build(architecture: str, *, inputs: int, outputs: int) -> nn.Module:
    """Make an untrained module, such as `mlp-512-256-128`.

    Raises:
        UsageError: Unknown architecture.
    """
    if not is_known(architecture):
        raise UsageError(f"unknown model {architecture!r}", hint="choose one of: " + ", ".join(ARCHITECTURES))
    hidden = (int(size) for size in architecture.split("-")[1:])
    return Mlp((inputs, *hidden, outputs))


def save_weights(module: nn.Module) -> bytes:
    """Serialise a module's state as safetensors."""
    safetensors = packages.needed(
        "safetensors.torch", distribution="safetensors", purpose="saving weights", extra="train"
    )
    # A state may share storage between names (tied weights), which safetensors refuses: clone.
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in module.state_dict().items()}
    data: bytes = safetensors.save(state)
    return data


def load_trained(spec: ModelSpec, weights: Path) -> nn.Module:
    """Rebuild a bundle's module with its weights, in evaluation mode.

    Raises:
        UsageError: kit does not know the architecture.
        BundleInvalid: The weights do not fit it.
    """
    safetensors = packages.needed("safetensors", distribution="safetensors", purpose="reading weights", extra="train")
    from safetensors.torch import load_file

    module = build(spec.architecture, inputs=math.prod(spec.input.shape), outputs=len(spec.labels))
    try:
        module.load_state_dict(load_file(str(weights)))
    except (RuntimeError, ValueError, OSError, safetensors.SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise BundleInvalid(f"{weights} does not fit the model {spec.architecture!r}: {reason}") from error
    return module.eval()
