"""A bundle opened for predicting: pictures or pixels in, labels and probabilities out. Never imports torch.

engine = load("mnist-mlp")
engine.predict("photo.jpg").names       # through the bundle's picture pipeline
engine.predict(pixels).probabilities    # uint8 (28, 28) or (N, 28, 28): straight into the graph
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kit.accuracy import probabilities
from kit.bundle import Bundle, find
from kit.bundle.records import ModelSpec, Variant
from kit.choices import Provider
from kit.errors import Unavailable, UsageError
from kit.runtime import registry
from kit.runtime.base import Binding, Placement, Runner, RunnerOptions, check_pixels
from kit.runtime.choice import Choice, choice_for
from kit.runtime.onnxruntime import OnnxRuntimeRunner
from kit.tasks.images import to_pixels

Picture = str | os.PathLike[str] | bytes | Image.Image
MAX_BATCH = 4096
"""Larger inputs are run in pieces of this many, so that memory stays bounded."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where predictions come from: what an engine is, in one object that all of its predictions hold."""

    provider: Provider
    runtime: str
    variant: str
    spec: ModelSpec


@dataclass(kw_only=True, slots=True, eq=False)  # frozen, it takes 0.8 us longer to make
class Prediction:
    """What the model says, and where it said so. All arrays are the caller's to keep.

    Attributes:
        labels: int64 `[N]`, index of the most probable class.
        probabilities: float32 `[N, classes]`, softmax of the logits over the bundle's temperature.
        logits: float32 `[N, classes]`, as the model gave them.
        latency_us: Time of the runtime's call alone, in microseconds; the picture pipeline is not in it.
        pixels: uint8 `[N, *input shape]`, what the model really saw; the array that was given, where it was one.
        source: Provider, runtime, variant and model.
    """

    labels: NDArray[np.int64]
    probabilities: NDArray[np.float32]
    logits: NDArray[np.float32] = field(repr=False)
    latency_us: float
    pixels: NDArray[np.uint8] = field(repr=False)
    source: Source = field(repr=False)

    @property
    def provider(self) -> Provider:
        """Where it ran."""
        return self.source.provider

    @property
    def runtime(self) -> str:
        """By what."""
        return self.source.runtime

    @property
    def variant(self) -> str:
        """Which file of the bundle ran."""
        return self.source.variant

    @property
    def names(self) -> tuple[str, ...]:
        """Name of each sample's class, `N` of them."""
        return tuple(self.source.spec.labels[label] for label in self.labels.tolist())

    @property
    def unsure(self) -> NDArray[np.bool_]:
        """Whether the most probable class stays under the bundle's abstain threshold, bool `[N]`."""
        found: NDArray[np.bool_] = self.probabilities.max(axis=1) < (self.source.spec.abstain_below or 0.0)
        return found

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[tuple[str, float]]:
        """Give (name, probability) of each sample."""
        return iter(zip(self.names, self.probabilities.max(axis=1).tolist(), strict=True))


class Engine:
    """One variant of a bundle, open on one provider. Not for two threads at once: `share` it with each."""

    def __init__(self, bundle: Bundle, variant: Variant, runner: Runner, *, choice: Choice | None = None) -> None:
        self._bundle = bundle
        self._spec = bundle.spec
        self._variant = variant
        self._runner = runner
        self._choice = choice
        self._source = Source(runner.provider, runner.runtime, variant.id, bundle.spec)

    @property
    def choice(self) -> Choice | None:
        """What `kit tune` chose here, if the engine was opened by that."""
        return self._choice

    @property
    def runtime(self) -> str:
        """Name of the runtime, such as `onnxruntime`."""
        return self._runner.runtime

    @property
    def spec(self) -> ModelSpec:
        """What the model is."""
        return self._spec

    @property
    def variant(self) -> Variant:
        """The file that runs."""
        return self._variant

    @property
    def provider(self) -> Provider:
        """Where it runs."""
        return self._runner.provider

    @property
    def placement(self) -> Placement:
        """Nodes by provider."""
        return self._runner.placement

    def predict(self, x: Picture | NDArray[np.uint8]) -> Prediction:
        """Predict one picture, or a batch of pixels.

        Args:
            x: A path, encoded bytes or a Pillow image, which go through the bundle's picture pipeline; or raw pixels,
                uint8 `[*input shape]` or `[N, *input shape]`, which do not.

        Raises:
            PictureInvalid: Not a readable picture, or an empty one.
            UsageError: An array of the wrong dtype or shape.
        """
        pixels = self.pixels(x)
        started = time.perf_counter_ns()
        logits = self._runner.run(pixels) if len(pixels) <= MAX_BATCH else self._in_pieces(pixels)
        latency_us = (time.perf_counter_ns() - started) / 1e3
        return Prediction(
            labels=logits.argmax(axis=1),
            probabilities=probabilities(logits, self._spec.temperature),
            logits=logits,
            latency_us=latency_us,
            pixels=pixels,
            source=self._source,
        )

    def bind(self, batch_size: int = 1) -> Binding:
        """Return buffers for batches of one size: the shortest way to logits, with no object made and nothing copied twice.

        ```python
        bound = engine.bind()
        logits = bound.run(pixels)  # uint8 (1, 28, 28) in, float32 (1, 10) out, overwritten by the next call
        ```

        Raises:
            UsageError: Not a size, or the engine was closed.
        """
        if batch_size < 1:
            raise UsageError(f"a batch has 1 sample or more, found {batch_size}")
        return self._runner.bind((batch_size, *self._spec.input.shape))

    def share(self) -> Engine:
        """Return an engine of the same open model for another thread, with buffers of its own.

        Sessions of ONNX Runtime and modules of PyTorch are shared; OpenVINO compiles once more. Close each of them.

        Raises:
            Unavailable: A runtime of another package that cannot.
        """
        return Engine(self._bundle, self._variant, self._runner.share(), choice=self._choice)

    def pixels(self, x: Picture | NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return what the model sees of `x`: uint8 `[N, *input shape]`."""
        shape = self._spec.input.shape
        if isinstance(x, np.ndarray):
            return check_pixels(x, shape)
        if not isinstance(x, str | os.PathLike | bytes | Image.Image):
            raise UsageError(f"cannot predict from {type(x).__name__}", hint="give a path, a picture or a uint8 array")
        return to_pixels(x, pipeline=self.spec.pipeline, shape=shape)[np.newaxis]

    def close(self) -> None:
        """Free the runtime's session."""
        self._runner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _in_pieces(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        starts = range(0, len(pixels), MAX_BATCH)
        return np.concatenate([self._runner.run(pixels[start : start + MAX_BATCH]) for start in starts])


def open_engine(bundle: Bundle, variant: str | None = None, *, options: RunnerOptions | None = None) -> Engine:
    """Open a variant of an opened bundle; its sha256 is checked first.

    Raises:
        UsageError: No such variant.
        BundleInvalid: The file is missing or altered.
        ProviderUnavailable: The provider cannot run it here.
    """
    chosen = bundle.variant(variant)
    return Engine(bundle, chosen, OnnxRuntimeRunner(bundle.read(chosen.artifact), options))


def load(
    name: str | os.PathLike[str] | None = None,
    *,
    variant: str | None = None,
    provider: str | Provider | None = None,
    threads: int | None = None,
    device_id: int = 0,
    allow_fallback: bool = False,
    gpu_memory_limit_bytes: int | None = None,
) -> Engine:
    """Open a bundle for predicting.

    Where variant, provider and threads are all left to kit, what `kit tune` chose for this bundle on this machine is opened;
    else, and where nothing was chosen, the bundle's default variant on one thread of the CPU.

    Args:
        name: Path or name of a bundle; None for `mnist-mlp`, or for the only bundle there is.
        variant: Such as `int8-qdq`; None for the bundle's default.
        provider: `cpu` or `cuda`. It runs there or not at all, unless `allow_fallback`; None for the CPU.
        threads: Threads one operator may use; None for 1.
        device_id: Index of the GPU.
        allow_fallback: Accept the CPU where the provider cannot run; `Prediction.provider` tells.
        gpu_memory_limit_bytes: The most ONNX Runtime may take of the GPU's memory; None: all that is free.

    Raises:
        BundleNotFound, BundleInvalid, UsageError, ProviderUnavailable, PackageMissing.
    """
    bundle = find(name)
    if variant is None and provider is None and threads is None:
        engine = _tuned(bundle)
        if engine is not None:
            return engine
    where = Provider.CPU if provider is None else Provider.parse(provider)
    options = RunnerOptions(
        provider=where,
        threads=1 if threads is None else threads,
        device_id=device_id,
        allow_fallback=allow_fallback,
        gpu_memory_limit_bytes=gpu_memory_limit_bytes,
    )
    return open_engine(bundle, variant, options=options)


def _tuned(bundle: Bundle) -> Engine | None:
    """Open what was chosen here; None where nothing was, or where its runtime does not load any more."""
    choice = choice_for(bundle)
    if choice is None:
        return None
    chosen = bundle.variant(choice.variant)
    try:
        runner = registry.open_runner(choice.runtime, bundle, chosen, choice.options)
    except Unavailable:  # a choice is about speed: the default variant is as right
        return None
    return Engine(bundle, chosen, runner, choice=choice)


def as_record(prediction: Prediction, spec: ModelSpec, *, file: str) -> dict[str, Any]:
    """Return the first sample's answer as plain values for JSON and CSV."""
    probabilities = prediction.probabilities[0].tolist()
    return {
        "file": file,
        "label": prediction.names[0],
        "probability": max(probabilities),
        "unsure": bool(prediction.unsure[0]),
        "probabilities": dict(zip(spec.labels, probabilities, strict=True)),
        "variant": prediction.variant,
        "runtime": prediction.runtime,
        "provider": prediction.provider.value,
        "latency_us": prediction.latency_us,
    }
