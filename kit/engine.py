"""A bundle opened for running: named tensors in and out, or what its task reads. Never imports torch.

engine = load("mnist-mlp")
engine.predict("photo.jpg").names       # through the bundle's task
engine.predict(pixels).probabilities    # an array: straight into the only input
engine.run({"pixels": pixels})          # named tensors, whatever the task
"""

from __future__ import annotations

import os
from time import perf_counter_ns
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from kit import ready
from kit.bundle import Bundle, Variant, with_fresh
from kit.choices import Provider
from kit.errors import Unavailable, UsageError
from kit.runtime import registry
from kit.runtime.base import Binding, Placement, Runner, RunnerOptions, joins, run_in_batches
from kit.runtime.choice import Choice, choice_for
from kit.system import html
from kit.tasks.base import Opened, Prediction
from kit.tasks.registry import task_of
from kit.tensors import Signature, Tensors

if TYPE_CHECKING:
    from kit.tasks.base import Task

WHOLE_UP_TO_BYTES = 2**20
"""Inputs above this are run in pieces that are bounded by bytes."""


class Engine:
    """One variant of a bundle, open on one provider. Not for two threads at once: `share` it with each."""

    def __init__(self, bundle: Bundle, variant: Variant, runner: Runner, *, choice: Choice | None = None) -> None:
        self._bundle = bundle
        self._variant = variant
        self._runner = runner
        self._choice = choice
        self._task: Task | None = None
        self._opened = Opened(runner.provider, runner.runtime, variant.id)
        self.signature: Signature = bundle.signature
        inputs = self.signature.inputs
        self._only, self._rank = (inputs[0].name, len(inputs[0].shape)) if len(inputs) == 1 else ("", -1)
        self._joins = joins(self.signature)

    def __repr__(self) -> str:
        where = self.placement.describe() if self.placement.total else self.provider.value
        return f"<Engine {self._bundle.name}: {self._variant.id} in {self.runtime} on {where}; {self.signature.describe()}>"

    def _repr_html_(self) -> str:
        where = self.placement.describe() if self.placement.total else self.provider.value
        rows = [("variant", self._variant.id), ("runtime", self.runtime), ("nodes on", where)]
        rows += [("takes", f"{spec.name}: {spec.describe()}") for spec in self.signature.inputs]
        rows += [("gives", f"{spec.name}: {spec.describe()}") for spec in self.signature.outputs]
        return html.table(f"Engine of {self._bundle.name}", rows)

    @property
    def bundle(self) -> Bundle:
        """What it was opened from."""
        return self._bundle

    @property
    def task(self) -> Task:
        """What the bundle's items are, opened when it is first needed.

        Raises:
            PackageMissing: No installed package knows the task; `run` works without it.
            BundleInvalid: Its options or files are not what this version takes.
        """
        if self._task is None:
            self._task = task_of(self._bundle)
        return self._task

    @property
    def choice(self) -> Choice | None:
        """What `kit tune` chose here, if the engine was opened by that."""
        return self._choice

    @property
    def runtime(self) -> str:
        """Name of the runtime, such as `onnxruntime`."""
        return self._runner.runtime

    @property
    def variant(self) -> Variant:
        """What runs."""
        return self._variant

    @property
    def provider(self) -> Provider:
        """Where it runs."""
        return self._runner.provider

    @property
    def fallback(self) -> tuple[str, str]:
        """Why it does not run where it was asked to, and what to do about that; both empty if it does."""
        return self._runner.fallback_reason, self._runner.fallback_fix

    @property
    def placement(self) -> Placement:
        """Nodes by provider."""
        return self._runner.placement

    def run(self, tensors: Tensors) -> dict[str, NDArray[Any]]:
        """Return all outputs by name, for an array for each input, or lists and numbers that can be one.

        Raises:
            UsageError: A tensor is missing, unknown, or has another dtype, rank or size than the model takes.
        """
        if not all(isinstance(array, np.ndarray) for array in tensors.values()):
            tensors = self.signature.arrays(tensors)
        return self._run(tensors)

    def predict(self, items: Any) -> Prediction:
        """Return what the model says of an item, or of a list of them.

        Args:
            items: What the bundle's task reads, such as a path, a text or a row; a list of several is one call. An array is the
                model's only input as it is, with or without the batch.

        Raises:
            BadInput: An item cannot be read.
            UsageError: An item of another kind, or an array of the wrong dtype or shape.
            PackageMissing: No installed package knows the bundle's task.
        """
        task = self._task or self.task
        if isinstance(items, np.ndarray):  # a call may take 11 us: no loop, no look-up
            inputs: Tensors = {self._only: items if items.ndim == self._rank else self._with_batch(items)}
            run = self._runner.run if 0 < items.nbytes <= WHOLE_UP_TO_BYTES else self._run
        else:
            inputs, run = task.encode(items if isinstance(items, list) else [items]), self._run
        started = perf_counter_ns()
        outputs = run(inputs)
        latency_us = (perf_counter_ns() - started) / 1e3
        prediction = task.decode(outputs, inputs)
        prediction.latency_us = latency_us
        prediction.opened = self._opened
        return prediction

    def bind(self, **sizes: int) -> Binding:
        """Return buffers for inputs of one size: the quickest way to outputs, nothing is allocated or copied twice.

        ```python
        bound = engine.bind(batch=8)  # axes that are left out have their usual size
        logits = bound.run(pixels)  # uint8 (8, 28, 28) in, float32 (8, 10) out, overwritten by the next call
        ```

        Raises:
            UsageError: No such axis, not a size of it, or the engine was closed.
            Unavailable: The size of an output depends on the values.
        """
        return self._runner.bind(self.signature.usual_sizes(**sizes))

    def share(self) -> Engine:
        """Return an engine of the same open model for another thread, with buffers of its own.

        Sessions of ONNX Runtime and modules of PyTorch are shared; OpenVINO compiles once more. Close each of them.

        Raises:
            Unavailable: A runtime of another package that cannot.
        """
        return Engine(self._bundle, self._variant, self._runner.share(), choice=self._choice)

    def close(self) -> None:
        """Free the runtime's session."""
        self._runner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, tensors: Tensors) -> dict[str, NDArray[Any]]:
        total = 0
        for array in tensors.values():
            total += array.nbytes
        if 0 < total <= WHOLE_UP_TO_BYTES or self.signature.batch is None:
            return self._runner.run(tensors)
        if total == 0 and tensors.keys() == {spec.name for spec in self.signature.inputs}:
            return self._of_nothing(tensors)
        if not self._joins:
            return self._runner.run(tensors)
        self.signature.check(tensors)  # pieces would be taken of any number of samples
        return run_in_batches(self._runner, tensors)

    def _of_nothing(self, tensors: Tensors) -> dict[str, NDArray[Any]]:
        """Answer a batch of no samples: what one sample of zeros gives, without it."""
        signature = self.signature
        if not self._joins or any(
            array.ndim != len(spec.shape) or array.dtype != spec.dtype
            for spec, array in ((spec, tensors[spec.name]) for spec in signature.inputs)
        ):
            return self._runner.run(tensors)
        sizes = signature.check(self._one_row(tensors))
        return signature.take(self._runner.run(signature.zeros(sizes)), slice(0, 0))

    def _one_row(self, tensors: Tensors) -> Tensors:
        batch = self.signature.batch
        return {
            spec.name: np.zeros(
                [
                    1 if wanted == batch else size
                    for wanted, size in zip(spec.shape, tensors[spec.name].shape, strict=True)
                ],
                spec.dtype,
            )
            for spec in self.signature.inputs
        }

    def _with_batch(self, array: NDArray[Any]) -> NDArray[Any]:
        if not self._only:
            raise UsageError(
                f"the model has {len(self.signature.inputs)} inputs, found one array",
                hint="give them by name: engine.run({"
                + ", ".join(f'"{s.name}": ...' for s in self.signature.inputs)
                + "})",
            )
        spec, batch = self.signature.inputs[0], self.signature.batch
        if array.ndim != self._rank - 1:
            self.signature.check({self._only: array})
        return np.expand_dims(array, spec.shape.index(batch) if batch in spec.shape else 0)


def open_engine(
    bundle: Bundle,
    variant: str | None = None,
    *,
    options: RunnerOptions | None = None,
    runtime: str = registry.DEFAULT,
) -> Engine:
    """Open a variant of an opened bundle; its sha256 is checked first.

    Raises:
        UsageError: No such variant or runtime.
        BundleInvalid: A file is missing or altered.
        Unavailable: The runtime or its provider cannot run it here.
    """
    chosen = bundle.variant(variant)
    (name,) = registry.chosen((runtime,))
    return Engine(bundle, chosen, registry.open_runner(name, bundle, chosen, options or RunnerOptions()))


def load(
    name: str | os.PathLike[str] | None = None,
    *,
    variant: str | None = None,
    runtime: str | None = None,
    provider: str | Provider | None = None,
    threads: int | None = None,
    device_id: int = 0,
    allow_fallback: bool = False,
    gpu_memory_limit_bytes: int | None = None,
) -> Engine:
    """Open a bundle, or a ready .onnx, for running.

    Without variant, runtime, provider and threads, opens what `kit tune` chose on this machine, or else the default variant on
    one CPU thread.

    Args:
        name: Path or name of a bundle, or of a `model.onnx`; None for `mnist-mlp`, or for the only bundle there is.
        variant: Such as `int8-qdq`; None for the bundle's default.
        runtime: Such as `openvino`; None for `onnxruntime`.
        provider: `cpu`, `cuda` or `tensorrt`. It runs there or not at all, unless `allow_fallback`; None for the CPU.
        threads: Threads one operator may use; None for 1.
        device_id: Index of the GPU.
        allow_fallback: Accept the CPU if the provider cannot run; `Prediction.provider` tells.
        gpu_memory_limit_bytes: The most ONNX Runtime may take of the GPU's memory; None: all that is free.

    Raises:
        BundleNotFound, BundleInvalid, UsageError, ProviderUnavailable, PackageMissing.
    """
    by_choice = variant is None and runtime is None and provider is None and threads is None
    options = RunnerOptions(
        provider=Provider.CPU if provider is None else Provider.parse(provider),
        threads=1 if threads is None else threads,
        device_id=device_id,
        allow_fallback=allow_fallback,
        gpu_memory_limit_bytes=gpu_memory_limit_bytes,
    )

    def opened(bundle: Bundle) -> Engine:
        engine = _tuned(bundle) if by_choice else None
        return engine or open_engine(bundle, variant, options=options, runtime=runtime or registry.DEFAULT)

    return with_fresh(ready.find(name), opened)


def _tuned(bundle: Bundle) -> Engine | None:
    """Open what was chosen here; None if nothing was, or if its runtime does not load any more."""
    choice = choice_for(bundle)
    if choice is None:
        return None
    chosen = bundle.variant(choice.variant)
    try:
        runner = registry.open_runner(choice.runtime, bundle, chosen, choice.options)
    except Unavailable:  # a choice is about speed: the default variant is as right
        return None
    return Engine(bundle, chosen, runner, choice=choice)
