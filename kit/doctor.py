"""What this machine can run, proved by running it."""

from __future__ import annotations

from dataclasses import dataclass

from kit.choices import Provider
from kit.errors import PackageMissing
from kit.runtime import libraries, providers
from kit.runtime.onnxruntime import compiled_package
from kit.runtime.providers import ProviderReport
from kit.system import machine, packages
from kit.system.machine import Machine


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """A look at this machine.

    Attributes:
        runtime: The ONNX Runtime package whose files are really imported; empty without one.
        runtime_packages: All that are installed; two of them overwrite each other.
        providers: One report each, from a real model that ran or did not.
        warnings: What will hurt later, each a reason and its fix.
    """

    machine: Machine
    tools: dict[str, str]
    runtime: str
    runtime_packages: dict[str, str]
    providers: tuple[ProviderReport, ...]
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
    return Diagnosis(
        machine=machine.this_machine(),
        tools=machine.tool_versions(),
        runtime=runtime,
        runtime_packages=libraries.installed_packages(),
        providers=tuple(providers.prove(provider, device_id=device_id) for provider in Provider),
        warnings=_warnings(runtime),
    )


def _warnings(runtime: str) -> tuple[str, ...]:
    found = []
    doubled = libraries.double_install()
    if doubled is not None:
        found.append(f"{doubled.reason}: {doubled.fix}")
    if not runtime:
        found.append(f"no ONNX Runtime is installed: {packages.install_line('onnxruntime')}")
    return tuple(found)
