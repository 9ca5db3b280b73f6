"""Prove what can run here, by running it: a one-node model on each provider, its answer checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kit.choices import Provider
from kit.errors import KitError, PackageMissing, ProviderUnavailable
from kit.runtime import libraries
from kit.runtime.base import RunnerOptions
from kit.runtime.onnxruntime import OnnxRuntimeRunner
from kit.system import packages

PROBE = Path(__file__).parent / "probe.onnx"
"""One Gemm, `y = x @ [[1, 2], [3, 4]]` in float32: it needs the matrix library that real models need."""


@dataclass(frozen=True, kw_only=True)
class ProviderReport:
    """Whether a provider ran the probe, else why not and what would mend it."""

    provider: Provider
    works: bool
    reason: str = ""
    fix: str = ""


def prove(provider: Provider, *, device_id: int = 0) -> ProviderReport:
    """Run the probe on a provider and check its answer; what goes wrong is in the report, not raised."""
    try:
        with OnnxRuntimeRunner(PROBE.read_bytes(), RunnerOptions(provider=provider, device_id=device_id)) as runner:
            answer = runner.run({"x": np.array([[1, 1]], np.float32)})["y"]
    except PackageMissing as error:
        wanted = libraries.CPU_PACKAGE if provider is Provider.CPU else libraries.GPU_PACKAGE
        return ProviderReport(provider=provider, works=False, reason=str(error), fix=packages.install_line(wanted))
    except KitError as error:
        return ProviderReport(provider=provider, works=False, reason=str(error), fix=error.hint)
    if not np.array_equal(answer, [[4.0, 6.0]]):
        return ProviderReport(provider=provider, works=False, reason=f"the probe gave {answer.tolist()}, not [[4, 6]]")
    return ProviderReport(provider=provider, works=True)


def require(provider: Provider, *, device_id: int = 0) -> None:
    """Raise ProviderUnavailable, which says why and what to do, unless the provider works here."""
    report = prove(provider, device_id=device_id)
    if not report.works:
        raise ProviderUnavailable(report.reason, hint=report.fix)


def working(*, device_id: int = 0) -> tuple[Provider, ...]:
    """Return the providers that run here, the CPU first; TensorRT, which builds an engine for every shape, only by name."""
    return tuple(one for one in (Provider.CPU, Provider.CUDA) if prove(one, device_id=device_id).works)
