"""A bundle as a source: its original if an installed package rebuilds it, else its baseline variant."""

from __future__ import annotations

from pathlib import Path

from exporters.sources.base import Original
from kit.bundle import Bundle
from kit.bundle.manifest import Original as OriginalRecord
from kit.bundle.manifest import Variant
from kit.errors import PackageMissing, Unavailable, UsageError
from kit.runtime import registry
from kit.runtime.base import RunnerOptions, run_in_batches
from kit.runtime.onnxruntime import OnnxRuntimeRunner
from kit.samples import Samples
from kit.tasks.base import Task
from kit.tensors import Signature, Tensors

ANSWER_BYTES = 4 * 2**20


class Baseline:
    """The baseline variant of a bundle, which answers for an original that is not at hand: in ONNX Runtime, not optimized.

    Args:
        bundle: With a variant.
        variant: Its baseline.
    """

    task: Task | None = None
    examples: tuple[Samples, ...] | None = None

    def __init__(self, bundle: Bundle, variant: Variant) -> None:
        self.bundle, self.variant = bundle, variant
        self.name: str = bundle.manifest.name
        self.signature: Signature = bundle.signature
        self.record = bundle.manifest.original or OriginalRecord(kind="onnx", name=bundle.manifest.name)
        options = RunnerOptions(optimization="off")
        self._runner: OnnxRuntimeRunner | None = OnnxRuntimeRunner(
            bundle.model(variant), options, signature=bundle.signature
        )

    def answer(self, tensors: Tensors) -> Tensors:
        """Compute its outputs."""
        if self._runner is None:
            raise UsageError("this original was closed")
        if all(self.signature.batch in spec.shape and not spec.varies for spec in self.signature.outputs):
            return run_in_batches(self._runner, tensors, most_bytes=ANSWER_BYTES)
        return self._runner.run(tensors)

    def write(self, folder: Path, *, opset: int) -> Path:
        """Return where it lies in its bundle, whatever folder and operator set are asked for."""
        del folder, opset
        return self.bundle.folder / self.variant.graph.file

    def close(self) -> None:
        """Free its weights."""
        if self._runner is not None:
            self._runner.close()
        self._runner = None


def open_bundle(bundle: Bundle) -> Original:
    """Open what the variants of a bundle are compared with.

    Raises:
        UsageError: It has no variant, and no installed package rebuilds its original.
        BundleInvalid: A file of it is missing or altered.
    """
    try:
        module = registry.rebuilt(bundle)
    except (Unavailable, PackageMissing) as error:
        variant = bundle.baseline
        if variant is None:
            raise UsageError(
                f"bundle {bundle.name!r} has no variant yet, and its original cannot be rebuilt: {error}",
                hint="export its model from Python: exporters.export(module, out=...)",
            ) from error
        return Baseline(bundle, variant)
    from exporters.sources import open_source

    return open_source(
        module, name=bundle.manifest.name, signature=bundle.signature, inputs=None, task=None, weights=None
    )
