"""What this machine can run, proved by running it."""

from __future__ import annotations

from dataclasses import dataclass

from kit.bundle import Bundle
from kit.choices import Provider
from kit.errors import KitError, PackageMissing
from kit.runtime import libraries, providers, registry
from kit.runtime.base import RunnerOptions
from kit.runtime.onnxruntime import compiled_package, saturates
from kit.runtime.providers import ProviderReport
from kit.system import machine, packages
from kit.system.machine import Machine
from kit.system.progress import OnProgress, silent


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """A look at this machine.

    Attributes:
        runtime: The ONNX Runtime package whose files are really imported; empty without one.
        runtime_packages: All that are installed; two of them overwrite each other.
        providers: One report each, from a real model that ran or did not.
        int8_saturates: Whether this CPU saturates with int8 weights of 8 bits; None without ONNX Runtime.
        warnings: What will hurt later, each a reason and its fix.
    """

    machine: Machine
    tools: dict[str, str]
    runtime: str
    runtime_packages: dict[str, str]
    providers: tuple[ProviderReport, ...]
    int8_saturates: bool | None
    warnings: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether at least one provider works and nothing is installed twice."""
        return any(report.works for report in self.providers) and not self.warnings


def diagnose(*, device_id: int = 0) -> Diagnosis:
    """Look at this machine; nothing is raised for what is missing."""
    try:
        runtime = compiled_package()
    except PackageMissing:
        runtime = ""
    reports = tuple(providers.prove(provider, device_id=device_id) for provider in Provider)
    cpu_works = any(report.works for report in reports if report.provider is Provider.CPU)
    return Diagnosis(
        machine=machine.this_machine(),
        tools=machine.tool_versions(),
        runtime=runtime,
        runtime_packages=libraries.installed_packages(),
        providers=reports,
        int8_saturates=saturates() if cpu_works else None,
        warnings=_warnings(runtime),
    )


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A model in a runtime on a provider: whether it opened and answered, and where; or why not, and what to do."""

    runtime: str
    provider: Provider
    works: bool
    placement: str = ""
    reason: str = ""
    fix: str = ""


def try_model(bundle: Bundle, *, device_id: int = 0, on_progress: OnProgress = silent) -> tuple[Trial, ...]:
    """Open a model's default variant in every runtime on every provider and ask it once; nothing is raised for what fails."""
    variant, tried = bundle.variant(), []
    for runtime in registry.chosen((registry.ALL,)):
        for provider in Provider:
            # Other runtimes than ONNX Runtime have fewer providers, and say nothing new of those they lack.
            if registry.can_run(runtime, variant, provider) and (
                provider is Provider.CPU or runtime == registry.DEFAULT
            ):
                on_progress(f"{runtime} on {provider}")
                tried.append(_try(bundle, runtime, RunnerOptions(provider=provider, device_id=device_id)))
    return tuple(tried)


def _try(bundle: Bundle, runtime: str, options: RunnerOptions) -> Trial:
    try:
        with registry.open_runner(runtime, bundle, bundle.variant(), options) as runner:
            for group in bundle.golden():
                runner.run(group.inputs)
            placement = runner.placement.describe() if runner.placement.total else runner.provider.value
    except KitError as error:
        return Trial(
            runtime=runtime, provider=options.provider, works=False, reason=str(error).splitlines()[0], fix=error.hint
        )
    return Trial(runtime=runtime, provider=options.provider, works=True, placement=placement)


def _warnings(runtime: str) -> tuple[str, ...]:
    found = []
    doubled = libraries.double_install()
    if doubled is not None:
        found.append(f"{doubled.reason}: {doubled.fix}")
    if not runtime:
        found.append(f"no ONNX Runtime is installed: {packages.install_line('onnxruntime')}")
    return tuple(found)
