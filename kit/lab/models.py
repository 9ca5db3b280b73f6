"""The lab's torch modules, their weights as safetensors, and the way back from a bundle to its module."""

from __future__ import annotations

import copy
import functools
import math
import re
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn

from kit.bundle import Bundle
from kit.errors import BundleInvalid, UsageError
from kit.lab.blueprint import Blueprint, Normalization
from kit.system import packages

ARCHITECTURES = ("mlp-512-256-128", "mlp-64-64", "cnn-16-48-96")


class Network(nn.Module):
    """Takes normalised float32 `[N, height, width]`, or raw uint8 with a normalization; gives logits `[N, classes]`."""

    normalization: Normalization | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits `[N, classes]`."""
        if self.normalization is not None:
            x = x.to(torch.float32) * self.normalization.scale + self.normalization.shift
        return self.logits(x)

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits `[N, classes]` for normalised values."""
        raise NotImplementedError


class Mlp(Network):
    """Dense layers with ReLU between them.

    Args:
        sizes: Of inputs, hidden layers and outputs.
        batch_norm: Normalise each hidden layer over the batch (Ioffe & Szegedy 2015), to train with; `folded` removes it.
        crop: Rows and columns left out on every side of an image: what lies there carries nothing.
    """

    def __init__(self, sizes: tuple[int, ...], *, batch_norm: bool = False, crop: int = 0) -> None:
        super().__init__()
        self.crop = crop
        layers: list[nn.Module] = [nn.Flatten()]
        for index, (fan_in, fan_out) in enumerate(pairwise(sizes)):
            if index:
                layers.append(nn.ReLU())
            layers.append(nn.Linear(fan_in, fan_out))
            if batch_norm and index < len(sizes) - 2:
                layers.append(nn.BatchNorm1d(fan_out))
        self.sizes = sizes
        self.layers = nn.Sequential(*layers)

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits `[N, classes]` for normalised values."""
        if self.crop:
            x = x[:, self.crop : x.shape[1] - self.crop, self.crop : x.shape[2] - self.crop]
        logits: torch.Tensor = self.layers(x)
        return logits


class Cnn(Network):
    """A small convolutional network, such as teaches a smaller one.

    `widths` are channels: of the first convolution, of the two after the first pooling, of the two after the second.
    """

    def __init__(self, widths: tuple[int, int, int], *, height: int, width: int, outputs: int) -> None:
        super().__init__()
        first, second, third = widths
        self.features = nn.Sequential(
            *_convolution(1, first),
            nn.MaxPool2d(2),
            *_convolution(first, second),
            *_convolution(second, second),
            nn.MaxPool2d(2),
            *_convolution(second, third),
            *_convolution(third, third),
            nn.Flatten(),
        ).to(memory_format=torch.channels_last)
        self.classify = nn.Linear(third * (height // 4) * (width // 4), outputs)

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits `[N, classes]` for normalised values."""
        logits: torch.Tensor = self.classify(self.features(x.unsqueeze(1)))
        return logits


def _convolution(channels_in: int, channels_out: int) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
    return convolution, nn.BatchNorm2d(channels_out), nn.ReLU(inplace=True)


def is_known(architecture: str) -> bool:
    """Whether `build` can make this architecture."""
    return _parse(architecture) is not None


def mlp_name(hidden: tuple[int, ...], *, crop: int = 0) -> str:
    """Return the name of a dense architecture: `mlp-512-256-128`, or `mlp-192-96-64-crop-3`."""
    return "-".join(["mlp", *map(str, hidden), *(["crop", str(crop)] if crop else [])])


def _parse(architecture: str) -> tuple[str, tuple[int, ...], int] | None:
    """Return the kind, the sizes and the crop; None if it is no architecture of the lab's."""
    found = re.fullmatch(
        r"(mlp)((?:-[1-9]\d{0,5}){1,64})(?:-crop-([1-9]\d?))?|(cnn)((?:-[1-9]\d{0,3}){3})", architecture
    )
    if found is None:
        return None
    kind, sizes = found[1] or found[4], found[2] or found[5]
    return kind, tuple(int(size) for size in sizes[1:].split("-")), int(found[3] or 0)


def build(architecture: str, *, shape: tuple[int, ...], outputs: int, batch_norm: bool = False) -> Network:
    """Make an untrained network such as `mlp-512-256-128` or `cnn-16-48-96`; `outputs` are its classes.

    Raises:
        UsageError: Unknown architecture, or one that does not take samples of this shape.
    """
    parsed = _parse(architecture)
    if parsed is None:
        raise UsageError(f"unknown model {architecture!r}", hint="choose one of: " + ", ".join(ARCHITECTURES))
    kind, sizes, crop = parsed
    if crop and (len(shape) != 2 or 2 * crop >= min(shape)):
        raise UsageError(
            f"{architecture} takes images of {2 * crop + 1} by {2 * crop + 1} pixels or more, found {shape}"
        )
    if kind == "mlp":
        inputs = math.prod(size - 2 * crop for size in shape)
        return Mlp((inputs, *sizes, outputs), batch_norm=batch_norm, crop=crop)
    if len(shape) != 2 or min(shape) < 4:
        raise UsageError(f"{architecture} takes images of 4 by 4 pixels or more, found {shape}")
    if batch_norm:
        raise UsageError(f"{architecture} normalises its layers anyway", hint="leave batch_norm out")
    first, second, third = sizes
    return Cnn((first, second, third), height=shape[0], width=shape[1], outputs=outputs)


def folded(module: nn.Module) -> nn.Module:
    """Return a dense network that computes the same in evaluation mode, without its batch normalisation; others as they are."""
    if not isinstance(module, Mlp) or not any(isinstance(layer, nn.BatchNorm1d) for layer in module.layers):
        return module
    plain = Mlp(module.sizes, crop=module.crop)
    targets = iter(layer for layer in plain.layers if isinstance(layer, nn.Linear))
    target = next(targets)
    with torch.no_grad():
        for layer in module.layers:
            if isinstance(layer, nn.Linear):
                target.weight.copy_(layer.weight)
                target.bias.copy_(layer.bias)
                current, target = target, next(targets, target)
            elif isinstance(layer, nn.BatchNorm1d):
                assert layer.running_var is not None  # they are tracked
                assert layer.running_mean is not None
                scale = layer.weight / torch.sqrt(layer.running_var + layer.eps)
                current.weight.mul_(scale.unsqueeze(1))
                current.bias.sub_(layer.running_mean).mul_(scale).add_(layer.bias)
    return plain.eval()


def save_weights(module: nn.Module) -> bytes:
    """Serialise a module's state as safetensors."""
    safetensors = packages.needed(
        "safetensors.torch", distribution="safetensors", purpose="saving weights", extra="train"
    )
    # A state may share storage between names (tied weights), which safetensors refuses: clone.
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in module.state_dict().items()}
    data: bytes = safetensors.save(state)
    return data


def load_trained(blueprint: Blueprint, weights: Path) -> Network:
    """Build a module with its weights, in evaluation mode; it takes normalised float32 `[N, *shape]`.

    Raises:
        UsageError: kit does not know the architecture.
        BundleInvalid: The weights do not fit it.
    """
    safetensors = packages.needed("safetensors", distribution="safetensors", purpose="reading weights", extra="train")
    from safetensors.torch import load_file

    make = functools.partial(build, blueprint.architecture, shape=blueprint.shape, outputs=len(blueprint.labels))
    try:
        with torch.device("meta"):  # a name of a few letters may ask for any amount of memory
            wanted = {name: tuple(tensor.shape) for name, tensor in make().state_dict().items()}
        with safetensors.safe_open(str(weights), framework="numpy") as held:
            shapes = {name: tuple(held.get_slice(name).get_shape()) for name in held.keys()}  # noqa: SIM118 - no mapping
        _refuse_other_shapes(shapes, wanted)
        module = make()
        module.load_state_dict(load_file(str(weights)))
    except (RuntimeError, ValueError, OSError, safetensors.SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise BundleInvalid(f"{weights} does not fit the model {blueprint.architecture!r}: {reason}") from error
    return module.eval()


def _refuse_other_shapes(found: dict[str, tuple[int, ...]], wanted: dict[str, tuple[int, ...]]) -> None:
    for name in sorted(found.keys() | wanted.keys()):
        if found.get(name) != wanted.get(name):
            raise ValueError(f"{name} is {found.get(name, 'missing')}, expected {wanted.get(name, 'none')}")


def original(bundle: Bundle) -> Network | None:
    """Build the module that a bundle of the lab's was made of, in evaluation mode; None for other bundles.

    It takes normalised float32 `[N, *shape]`: the task's prologue comes before it.

    Raises:
        BundleInvalid: Its weights were altered, or do not fit.
    """
    blueprint, source = Blueprint.of(bundle), bundle.manifest.original
    if blueprint is None or source is None or source.weights is None or not is_known(blueprint.architecture):
        return None
    return load_trained(blueprint, bundle.check(source.weights))


def rebuild(bundle: Bundle) -> Network | None:
    """Return `original`, but taking what the bundle's signature says: raw pixels."""
    module, blueprint = original(bundle), Blueprint.of(bundle)
    if module is not None and blueprint is not None:
        module.normalization = blueprint.normalization
    return module


def from_pixels(module: nn.Module, normalization: Normalization) -> nn.Module:
    """Return a copy of a network that takes raw pixels, in evaluation mode."""
    found = copy.deepcopy(module).eval()
    assert isinstance(found, Network)  # the lab has no others
    found.normalization = normalization
    return found
