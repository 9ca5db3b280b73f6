"""Prove a bundle on this machine: its hashes, its golden samples, each variant against PyTorch or its stored logits.

Needs neither torch nor data. Where torch is installed and the bundle holds weights kit can rebuild, the module itself is
the reference, and its agreement with the stored logits is checked too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kit import parity
from kit.bundle import Bundle, GoldenSamples
from kit.bundle.records import FileRef, Variant
from kit.choices import Provider
from kit.errors import KitError, PackageMissing, Unavailable
from kit.parity import Parity, Verdict
from kit.runtime import registry
from kit.runtime.base import RunnerOptions, logits_of
from kit.system import packages

OnStep = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class FileCheck:
    """One file of the bundle and whether its bytes are what the manifest says."""

    file: str
    ok: bool
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class VariantCheck:
    """One variant on the golden samples; parity and verdict are None when it could not run, and `problem` says why.

    Attributes:
        golden_correct: How many of the labelled golden samples it reads correctly.
        golden_labelled: How many have labels.
        reference_correct: How many of those the reference reads correctly: the same pictures need not be the ones the
            accuracy in the manifest was counted on.
    """

    variant: str
    runtime: str
    provider: Provider
    placement: str
    reference: str
    parity: Parity | None
    verdict: Verdict | None
    golden_correct: int
    golden_labelled: int
    reference_correct: int
    problem: str = ""
    unavailable: bool = False

    @property
    def ok(self) -> bool:
        """Whether it ran and agreed."""
        return self.verdict is not None and self.verdict.passed


@dataclass(frozen=True, kw_only=True)
class Verification:
    """All checks of a bundle on this machine."""

    bundle: str
    files: tuple[FileCheck, ...]
    variants: tuple[VariantCheck, ...]
    golden_source: str
    reference: str

    @property
    def ok(self) -> bool:
        """Whether everything holds and there was something to check."""
        return (
            bool(self.variants) and all(check.ok for check in self.files) and all(check.ok for check in self.variants)
        )

    @property
    def only_unavailable(self) -> bool:
        """Whether all that is missing is a provider that cannot run here."""
        failed = [check for check in self.variants if not check.ok]
        return all(check.ok for check in self.files) and bool(failed) and all(check.unavailable for check in failed)


def verify(
    bundle: Bundle,
    *,
    options: RunnerOptions | None = None,
    runtimes: tuple[str, ...] = (registry.DEFAULT,),
    on_step: OnStep = lambda _: None,
) -> Verification:
    """Check files, golden samples and every variant in every runtime; what fails is in the result, not raised.

    Raises:
        UsageError: A runtime that does not exist.
    """
    wanted = registry.chosen(runtimes)
    options = options or RunnerOptions()
    on_step("hashes")
    files = tuple(_check_file(bundle, ref) for ref in bundle.manifest.files())
    intact = {check.file for check in files if check.ok}
    if bundle.manifest.golden.file not in intact:
        return Verification(bundle=bundle.name, files=files, variants=(), golden_source="", reference="")
    golden = bundle.golden()
    on_step("reference")
    reference, source = _reference(bundle, golden, intact)
    checks = []
    for runtime in wanted:
        for variant in (one for one in bundle.variants if registry.can_run(runtime, one)):
            on_step(f"{variant.id} in {runtime}")
            checks.append(_check_variant(bundle, variant, runtime, golden, reference, source, options))
    return Verification(
        bundle=bundle.name, files=files, variants=tuple(checks), golden_source=golden.source, reference=source
    )


def _check_file(bundle: Bundle, ref: FileRef) -> FileCheck:
    try:
        bundle.read(ref)
    except KitError as error:
        return FileCheck(file=ref.file, ok=False, problem=str(error))
    return FileCheck(file=ref.file, ok=True)


def _reference(bundle: Bundle, golden: GoldenSamples, intact: set[str]) -> tuple[NDArray[np.float32], str]:
    """Return reference logits and where they come from; PyTorch where it can be had."""
    weights = bundle.manifest.weights
    if weights is None or weights.file not in intact:
        return golden.logits, "stored logits"
    try:
        from kit.lab import models
        from kit.runtime.pytorch import reference_logits
    except ImportError:  # no torch, or one that does not load: golden samples are made for this
        return golden.logits, "stored logits"
    if not models.is_known(bundle.spec.architecture):
        return golden.logits, "stored logits"
    try:
        module = models.load_trained(bundle.spec, bundle.path(weights))
    except PackageMissing:  # torch is here, safetensors is not
        return golden.logits, "stored logits"
    return reference_logits(module, bundle.spec, golden.pixels), f"PyTorch {packages.version('torch')}"


def _check_variant(
    bundle: Bundle,
    variant: Variant,
    runtime: str,
    golden: GoldenSamples,
    reference: NDArray[np.float32],
    source: str,
    options: RunnerOptions,
) -> VariantCheck:
    labelled = golden.labels >= 0
    reference_correct = int((reference.argmax(axis=1) == golden.labels)[labelled].sum())
    try:
        with registry.open_runner(runtime, bundle, variant, options) as runner:
            logits = logits_of(runner, golden.pixels)
            provider = runner.provider
            placement = runner.placement.describe() if runner.placement.total else provider.value
    except KitError as error:
        return VariantCheck(
            variant=variant.id,
            runtime=runtime,
            provider=options.provider,
            placement="",
            reference=source,
            parity=None,
            verdict=None,
            golden_correct=0,
            golden_labelled=int(labelled.sum()),
            reference_correct=reference_correct,
            problem=f"{error}. {error.hint}".rstrip(". "),
            unavailable=isinstance(error, Unavailable),
        )
    found = parity.compare(reference, logits)
    verdict = parity.judge(found, variant)
    return VariantCheck(
        variant=variant.id,
        runtime=runtime,
        provider=provider,
        placement=placement,
        reference=source,
        parity=found,
        verdict=verdict,
        golden_correct=int((logits.argmax(axis=1) == golden.labels)[labelled].sum()),
        golden_labelled=int(labelled.sum()),
        reference_correct=reference_correct,
        problem=verdict.reason,
    )
