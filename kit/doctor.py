"""What this machine can run, proved by running it."""

from __future__ import annotations

from dataclasses import dataclass

from kit.bundle import Bundle, Variant
from kit.choices import Provider
from kit.errors import KitError, PackageMissing
from kit.runtime import libraries, providers
from kit.runtime.base import Placement, RunnerOptions
from kit.runtime.onnxruntime import OnnxRuntimeRunner, compiled_package
from kit.runtime.providers import ProviderReport
from kit.system import machine, packages
from kit.system.machine import Machine


@dataclass(frozen=True, kw_only=True)
class ModelReport:
    """Whether a provider runs all of a model.

    Attributes:
        variant: Id.
        runs: Whether it ran on golden samples, every node on the provider.
        placement: Nodes by provider; none if it did not open.
        reason: Why not all of it runs there; empty if it does.
        fix: What to do about that.
    """

    variant: str
    provider: Provider
    runs: bool
    placement: Placement
    reason: str = ""
    fix: str = ""


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """A look at this machine.

    Attributes:
        runtime: The ONNX Runtime package whose files are really imported; empty without one.
        runtime_packages: All that are installed; two of them overwrite each other.
        providers: One report each, from a real model that ran or did not.
        warnings: What will hurt later, each a reason and its fix.
        models: Of each variant on each provider that works, if a bundle or a model was named.
    """

    machine: Machine
    tools: dict[str, str]
    runtime: str
    runtime_packages: dict[str, str]
    providers: tuple[ProviderReport, ...]
    warnings: tuple[str, ...]
    models: tuple[ModelReport, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether at least one provider works, which runs the model if one was named, and nothing is installed twice."""
        models = not self.models or any(report.runs for report in self.models)
        return any(report.works for report in self.providers) and models and not self.warnings


def diagnose(bundle: Bundle | None = None, *, device_id: int = 0) -> Diagnosis:
    """Look at this machine; nothing is raised for what is missing.

    Args:
        bundle: Also try each of its variants on each provider that works here.
        device_id: Index of the GPU.
    """
    try:
        runtime = compiled_package()
    except PackageMissing:
        runtime = ""
    reports = tuple(providers.prove(provider, device_id=device_id) for provider in Provider)
    working = [report.provider for report in reports if report.works]
    variants = bundle.variants if bundle is not None else ()
    return Diagnosis(
        machine=machine.this_machine(),
        tools=machine.tool_versions(),
        runtime=runtime,
        runtime_packages=libraries.installed_packages(),
        providers=reports,
        warnings=_warnings(runtime),
        models=tuple(
            _try(bundle, variant, RunnerOptions(provider=provider, device_id=device_id))
            for variant in variants
            for provider in working
            if bundle is not None
        ),
    )


def _try(bundle: Bundle, variant: Variant, options: RunnerOptions) -> ModelReport:
    """Open a variant on a provider, strictly, and run what it was proved with."""
    placement = Placement({})
    try:
        with OnnxRuntimeRunner(bundle.model(variant), options, signature=bundle.signature) as runner:
            placement = runner.placement
            for group in bundle.golden():
                runner.run(group.inputs)
    except KitError as error:
        return ModelReport(
            variant=variant.id,
            provider=options.provider,
            runs=False,
            placement=placement,
            reason=str(error),
            fix=error.hint,
        )
    return ModelReport(variant=variant.id, provider=options.provider, runs=True, placement=placement)


def _warnings(runtime: str) -> tuple[str, ...]:
    found = []
    doubled = libraries.double_install()
    if doubled is not None:
        found.append(f"{doubled.reason}: {doubled.fix}")
    if not runtime:
        found.append(f"no ONNX Runtime is installed: {packages.install_line('onnxruntime')}")
    return tuple(found)
